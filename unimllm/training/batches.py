"""From a source of samples to the micro-batches of one rank, prepared ahead by worker processes."""

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from unimllm.data.faults import Fault
from unimllm.errors import UserError
from unimllm.training.config import TrainConfig
from unimllm.training.ending import outlive_the_step

FORK = "fork"  # workers share the order of the data and its indices; Python 3.14 would send each of them a copy


class SampleSource(Protocol):
    """Endless data: a batch is a pure function of the indices of its samples.

    A source that may meet unreadable samples puts others in their place and lists the faults under "skipped".
    """

    def __call__(self, indices: range) -> dict[str, torch.Tensor | list[Fault]]: ...


@dataclass(frozen=True)
class Place:
    """Where a run is.

    Attributes:
        step: steps made.
        sample: of the source, the one that comes next; steps of other batch sizes may lie before it.
    """

    step: int = 0
    sample: int = 0

    def later(self, batch_size: int, steps: int = 1) -> "Place":
        """The place some steps later."""
        return Place(self.step + steps, self.sample + steps * batch_size)


class MicroBatches(IterableDataset):
    """The micro-batches of one rank from a sample on; worker w of W prepares every W-th, so order is kept."""

    def __init__(self, source: SampleSource, config: TrainConfig, rank: int, world_size: int, first_sample: int):
        self.source, self.config, self.rank, self.first_sample = source, config, rank, first_sample
        self.micro, self.accumulation = config.per_device(world_size)

    def __iter__(self) -> Iterator[dict | UserError]:
        worker = get_worker_info()
        number, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        while True:
            step, part = divmod(number, self.accumulation)
            start = self.first_sample + step * self.config.batch_size
            start += (self.rank * self.accumulation + part) * self.micro
            try:
                batch = self.source(range(start, start + self.micro))
            except UserError as error:
                batch = error  # as a value: raised in a worker, its one line would come back as a traceback
            yield batch
            number += stride


def open_batches(
    source: SampleSource, config: TrainConfig, rank: int, world_size: int, first_sample: int
) -> Generator[dict[str, torch.Tensor | list[Fault]]]:
    """The micro-batches of a rank, without end, of steps of which the first begins with a sample.

    Raises:
        UserError: the source's own.
    """
    batches = MicroBatches(source, config, rank, world_size, first_sample)
    if config.num_workers:
        batches = DataLoader(
            batches, batch_size=None, num_workers=config.num_workers, prefetch_factor=4, multiprocessing_context=FORK,
            worker_init_fn=outlive_the_step,
            generator=torch.Generator(),  # else it draws from the step's own numbers, in the first step after a break
        )  # fmt: skip
    for batch in batches:
        if isinstance(batch, UserError):
            raise batch
        yield batch


@contextmanager
def name_dead_worker():
    """Say in one line that a worker process died; torch notices it and raises wherever the main process then is.

    Raises:
        UserError: one died.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            f"a data worker died: {str(error).rstrip('. ')}; if memory ran out, lower --train.num_workers; the same "
            "command goes on from the last checkpoint"
        ) from error
