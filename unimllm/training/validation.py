"""Losses on samples that no step trains on: the same rows each time, a forward pass of all ranks together."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from unimllm.data.faults import FaultLog
from unimllm.training.batches import SampleSource


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
        task: defines `target_sums(batch, outputs)`: each part's summed loss and number of targets, (2,) float64.
        faults: what could not be read is added here.
    """
    rank, world_size, micro = dist.get_rank(), dist.get_world_size(), engine.train_micro_batch_size_per_gpu()
    totals: dict[str, torch.Tensor] = {}
    for start in range(rank * micro, held_out.num_samples + rank * micro, world_size * micro):
        mine = range(start, min(start + micro, held_out.num_samples))
        batch = held_out.source(mine or range(1))
        faults.add(batch.pop("skipped", ()))
        batch = {name: value.to(engine.device) for name, value in batch.items()}
        outputs = engine(**batch)
        for part, sums in task.target_sums(batch, outputs).items():
            totals[part] = totals.get(part, 0) + sums * bool(mine)
    stacked = torch.stack(list(totals.values()))  # (parts, 2)
    if world_size > 1:
        dist.all_reduce(stacked)
    return {part: total / count for part, (total, count) in zip(totals, stacked.tolist(), strict=True) if count}
