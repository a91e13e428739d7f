"""What is told of a step whose numbers are none: which samples it had, and each rank's losses over them."""

import math
from collections.abc import Callable

import torch
import torch.distributed as dist

from unimllm.errors import UserError
from unimllm.training.batches import Place, SampleSource

NAMED = 8  # micro-batches of a step that are told


def not_finite(
    what: str,
    engine,
    place: Place,
    losses: list[torch.Tensor],
    source: SampleSource | None,
    skip_steps: tuple[int, ...],
) -> UserError:
    """What ends a run in a step whose numbers are none, before it is saved; called by all ranks.

    Rank 0 prints the micro-batches with such a loss, else those of the highest losses, and what the source's
    `describe(indices)` says of their samples, where it has one.

    Args:
        what: is no number.
        place: of the step.
        losses: of this rank's micro-batches, in order.
        skip_steps: that are passed over already, counted from 1.
    """
    batch_size, micro = engine.train_batch_size(), engine.train_micro_batch_size_per_gpu()
    first, own = place.sample, [float(loss) for loss in losses]
    everyone: list = [own] * dist.get_world_size()
    if len(everyone) > 1:
        dist.all_gather_object(everyone, own)
    if dist.get_rank() == 0:
        print("\n".join(told_samples(everyone, first, micro, getattr(source, "describe", None))), flush=True)
    skip = ",".join(map(str, sorted({*skip_steps, place.step + 1})))
    return UserError(
        f"{what} at step {place.step + 1}, samples {first:,} to {first + batch_size - 1:,}; nothing of the step was "
        "saved: lower --train.learning_rate and start again from the last checkpoint; where its samples are at fault, "
        f"pass over the step with --train.skip_steps {skip}"
    )


def told_samples(
    losses: list[list[float]], first: int, micro: int, describe: Callable[[range], str] | None
) -> list[str]:
    """A line for each micro-batch of a step that may be at fault, NAMED at most.

    Args:
        losses: of each rank's micro-batches.
        first: sample of the step.
        micro: samples of a micro-batch.
        describe: says where samples lie.
    """
    accumulation = len(losses[0])
    parts = [(loss, rank, part) for rank, own in enumerate(losses) for part, loss in enumerate(own)]
    suspects = [part for part in parts if not math.isfinite(part[0])] or sorted(parts, reverse=True)
    lines = []
    for loss, rank, part in suspects[:NAMED]:
        start = first + (rank * accumulation + part) * micro  # as `batches.MicroBatches` shares them out
        where = f": {describe(range(start, start + micro))}" if describe else ""
        lines.append(f"samples {start:,} to {start + micro - 1:,}, rank {rank}, loss {loss:.4g}{where}")
    left = len(suspects) - NAMED
    return [*lines, f"and {left:,} more such micro-batches"] if left > 0 else lines
