"""Losses on samples that no step trains on: the same rows each time, a forward pass of all ranks together."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from unimllm.data.faults import FaultLog
from unimllm.metrics.codes import perplexity
from unimllm.training.batches import SampleSource
from unimllm.training.in_place import gathered


@dataclass(frozen=True)
class HeldOut:
    """Samples to validate on.

    Attributes:
        source: gives them by index.
        num_samples: that are looked at, the first of the source.
    """

    source: SampleSource
    num_samples: int


def validation_losses(engine, task: nn.Module, held_out: HeldOut, faults: FaultLog) -> dict[str, float]:
    """Mean loss of each part over all its targets in all samples; parts without a target are left out.

    Called by all ranks, in evaluation mode and without gradients. Each takes a share of the micro-batches; under ZeRO 3
    a forward pass needs all of them, so one that has none left runs the first sample again and counts nothing.

    Args:
        task: `target_sums(batch, outputs)` returns each part's summed loss and number of targets, (2,) float64; what a
            task without it returns are means over the batch's pictures. One that trains codes (`semhitok.stages`) has
            their use told too, once they have begun: "codes_used" by all the samples, and the "perplexity" of these.
        faults: what could not be read is added here.
    """
    totals: dict[str, torch.Tensor] = {}
    counts = _no_counts(task, engine.device)
    for batch, is_counted in _shares(engine, held_out, faults):
        for part, sums in _sums(task, batch, engine(**batch)).items():
            totals[part] = totals.get(part, 0) + sums * is_counted
        if counts is not None:
            with gathered(task.model.parameters()):
                ids = task.code_ids(batch["pixel_values"]).flatten()
            counts += torch.bincount(ids, minlength=len(counts)) * is_counted
    stacked = torch.stack(list(totals.values()))  # (parts, 2)
    _add_up(stacked)
    losses = {part: total / count for part, (total, count) in zip(totals, stacked.tolist(), strict=True) if count}
    if counts is None:
        return losses
    _add_up(counts)
    return losses | {"codes_used": float((counts > 0).sum()), "perplexity": perplexity(counts.cpu().numpy())}


def mean_loss(task: nn.Module, losses: dict[str, dict[str, float]]) -> float | None:
    """The one number by which checkpoints are compared; None where none is to be had.

    The mean over the sources: of each its whole "loss", or the mean of its parts where it has no whole. While codes are
    still to come there is none: it would be lower than any with codes.

    Args:
        losses: of each source, from `validation_losses`.
    """
    if codes_are_to_come(task):
        return None
    found = [parts.get("loss", sum(parts.values()) / len(parts)) for parts in losses.values() if parts]
    return sum(found) / len(found) if found else None


def codes_are_to_come(task: nn.Module) -> bool:
    """Whether a stage that trains codes has not begun with all of them."""
    return hasattr(task, "codebooks") and not all(bool(codebook.initialized) for codebook in task.codebooks())


def _no_counts(task: nn.Module, device: torch.device) -> torch.Tensor | None:
    """Zero for each code of a stage whose codebooks have begun, (K * m,) int64; None where none is to be counted."""
    if not hasattr(task, "codebooks") or codes_are_to_come(task):
        return None
    return torch.zeros(task.model.config.num_codes, dtype=torch.int64, device=device)


def _shares(engine, held_out: HeldOut, faults: FaultLog) -> Iterator[tuple[dict[str, torch.Tensor], bool]]:
    """This rank's micro-batches on its device, as many as of any other rank, and whether each is to be counted."""
    rank, world_size, micro = dist.get_rank(), dist.get_world_size(), engine.train_micro_batch_size_per_gpu()
    for start in range(rank * micro, held_out.num_samples + rank * micro, world_size * micro):
        mine = range(start, min(start + micro, held_out.num_samples))
        batch = held_out.source(mine or range(1))
        faults.add(batch.pop("skipped", ()))
        yield {name: value.to(engine.device) for name, value in batch.items()}, bool(mine)


def _sums(task: nn.Module, batch: dict[str, torch.Tensor], outputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Each part's summed loss and number of targets, (2,) float64."""
    if hasattr(task, "target_sums"):
        return task.target_sums(batch, outputs)
    count = len(batch["pixel_values"])
    outputs = {"loss": outputs["loss"]} | outputs  # the whole before its parts
    means = {name: mean.double() for name, mean in outputs.items() if name != "codes_used"}  # of a batch, not of all
    return {name: torch.stack([mean * count, torch.full_like(mean, count)]) for name, mean in means.items()}


def _add_up(tensor: torch.Tensor) -> None:
    """Sum over the ranks, in place."""
    if dist.get_world_size() > 1:
        dist.all_reduce(tensor)
