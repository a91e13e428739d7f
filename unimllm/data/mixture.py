"""Several sources in one endless stream: which sample comes when is arithmetic, so nobody keeps a position.

A stream is what one source holds for one task. Stream s has the share p_s of all samples; its k-th sample falls due at
time k / p_s. A window is the samples that fall due within a stretch of time, about as many as the stretch is long. So
each stream is used up evenly, every sample of it once in each of its own epochs, whatever the shares are.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from unimllm.data.order import EpochOrder
from unimllm.data.sample_index import SampleIndex
from unimllm.data.samples import TASKS
from unimllm.data.survey import Survey
from unimllm.errors import UserError

WINDOW = 2048  # samples; a mixture with fewer has windows of its size


@dataclass(frozen=True)
class Stream:
    """What a source holds for a task.

    Attributes:
        source: its number.
        task: into TASKS.
        size: usable samples.
        share: of all samples that the mixture gives.
    """

    source: int
    task: int
    size: int
    share: float


@dataclass(frozen=True)
class Due:
    """Samples of a window, an entry each: (n,) source, number in it, and how often that stream has been through."""

    sources: np.ndarray
    numbers: np.ndarray
    epochs: np.ndarray

    def __len__(self) -> int:
        return len(self.sources)


class Mixture:
    """Sources by weight and by task.

    Args:
        indices, surveys, weights: of each source; weight 2 shows its samples twice as often as weight 1.
        ratios: understanding, drawing, text: their shares, to any scale; None: as the sources have them.
        seed: of the order.

    Raises:
        UserError: ratios that the sources cannot serve.
    """

    def __init__(
        self, indices: list[SampleIndex], surveys: list[Survey], weights: list[float],
        ratios: tuple[float, ...] | None, seed: int,
    ):  # fmt: skip
        self.surveys = surveys
        num_sharing = max(1, sum(index.memory > 0 for index in indices))
        self.orders = [
            EpochOrder(index.chunk_sizes, 1000 * seed + number, index.num_lanes(num_sharing))
            for number, index in enumerate(indices)
        ]
        self.streams = make_streams(surveys, weights, ratios)
        self.window_size = min(WINDOW, sum(stream.size for stream in self.streams))
        self._order_of = lru_cache(maxsize=2 * len(self.streams))(self._order)

    def window(self, number: int) -> Due:
        """The samples that fall due from time `number * window_size` up to the next window's."""
        parts = [self._of_stream(s, *self._due(stream.share, number)) for s, stream in enumerate(self.streams)]
        return Due(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))

    def _due(self, share: float, window: int) -> tuple[int, int]:
        """The first sample of a stream that falls due in a window, and the first of the next."""
        times = share * self.window_size * np.array([window, window + 1], np.float64)
        return tuple(np.ceil(times - 1e-9).astype(np.int64).tolist())

    def _of_stream(self, s: int, first: int, end: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(source, number, epoch) of some samples of a stream."""
        stream = self.streams[s]
        epochs, places = np.divmod(np.arange(first, end), stream.size)
        numbers = np.zeros(end - first, np.int64)
        for epoch in np.unique(epochs).tolist():
            chosen = epochs == epoch
            numbers[chosen] = self._order_of(stream.source, stream.task, epoch)[places[chosen]]
        return np.full(end - first, stream.source), numbers, epochs

    def _order(self, source: int, task: int, epoch: int) -> np.ndarray:
        """(size,) the samples of a stream in the order of an epoch."""
        survey = self.surveys[source]
        order = self.orders[source].epoch(epoch)
        return order[(survey.lengths[order] > 0) & (survey.tasks[order] == task)]


def make_streams(surveys: list[Survey], weights: list[float], ratios: tuple[float, ...] | None) -> list[Stream]:
    """The streams of some sources, those without samples or with the ratio 0 left out.

    Raises:
        UserError: no source has samples of a task that has a ratio.
    """
    sizes = np.array([[survey.counts()[task] for task in TASKS] for survey in surveys])  # (sources, tasks)
    shares = sizes * np.array(weights)[:, None]
    if ratios is not None:
        for task, ratio, total in zip(TASKS, ratios, shares.sum(0), strict=True):
            if ratio and not total:
                raise UserError(f"--ratios wants {task}, but no source has a sample of it; make its ratio 0")
        shares = shares * np.array(ratios) / np.maximum(shares.sum(0), 1e-300)
    shares = shares / shares.sum()
    return [
        Stream(int(source), int(task), int(sizes[source, task]), float(shares[source, task]))
        for source, task in np.argwhere(shares > 0)
    ]


def parse_ratios(text: str) -> tuple[float, ...]:
    """`5:4:1` -> (5.0, 4.0, 1.0).

    Raises:
        UserError: not three numbers of 0 or more, of which one is more.
    """
    try:
        ratios = tuple(float(part) for part in text.split(":"))
    except ValueError:
        ratios = ()
    if len(ratios) != len(TASKS) or not all(0 <= r < float("inf") for r in ratios) or not any(ratios):
        raise UserError(f"--ratios {text}: three numbers are wanted, {':'.join(TASKS)}, such as 5:4:1")
    return ratios
