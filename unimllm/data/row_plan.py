"""Which samples share a row: best fit within a window of the mixture, so row i is a function of (seed, i) alone.

A row cannot be made from its own number without knowing the lengths: what fits is decided by all rows before it in
the window, and how many rows those windows took. With the lengths at hand (`survey`) it is cheap: some five
microseconds a sample, done for the whole run when it starts. Only the number of rows of each window is kept, so that
no plan of gigabytes lies on the disk; a window is packed again when one of its rows is asked for.
"""

from bisect import bisect_left, insort
from functools import lru_cache

import numpy as np

from unimllm.data.mixture import Due, Mixture

_ROWS = 5  # what a generator is for; the last number of its seed (see `order`)


class RowPlan:
    """Row number -> its samples.

    Args:
        mixture: gives the samples.
        max_length: ids of a row; no sample is longer.
        seed: of the order of the rows in a window.
    """

    def __init__(self, mixture: Mixture, max_length: int, seed: int):
        self.mixture, self.max_length, self.seed = mixture, max_length, seed
        self.ends: list[int] = []  # of each window looked at so far, the number of the row behind its last
        self._pack = lru_cache(maxsize=8)(self._pack_window)

    def row(self, number: int) -> list[tuple[int, int, int]]:
        """(source, number in it, epoch of its stream) of each sample of a row."""
        self.extend(number + 1)
        window = bisect_left(self.ends, number + 1)
        due, rows = self._pack(window)
        members = rows[number - (self.ends[window - 1] if window else 0)]
        return [(int(due.sources[m]), int(due.numbers[m]), int(due.epochs[m])) for m in members]

    def extend(self, num_rows: int) -> None:
        """Look at windows until so many rows are known."""
        while (self.ends[-1] if self.ends else 0) < num_rows:
            rows = self._pack(len(self.ends))[1]
            self.ends.append((self.ends[-1] if self.ends else 0) + len(rows))

    def epochs(self, num_rows: int) -> float:
        """How often the first rows go through all samples that the mixture gives, over all its sources."""
        self.extend(num_rows)
        window = bisect_left(self.ends, num_rows)
        first = self.ends[window - 1] if window else 0
        passed = window + (num_rows - first) / (self.ends[window] - first)
        return passed * self.mixture.window_size / sum(stream.size for stream in self.mixture.streams)

    def fill(self) -> float:
        """Share of the ids that samples take in the windows looked at last (of what is known: 0 to 1)."""
        due, rows = self._pack(len(self.ends) - 1)
        return float(self._lengths(due).sum()) / (len(rows) * self.max_length)

    def _pack_window(self, window: int) -> tuple[Due, list[list[int]]]:
        """The samples of a window and its rows of them, in no order of length."""
        due = self.mixture.window(window)
        rows = best_fit(self._lengths(due), self.max_length)
        order = np.random.default_rng([self.seed, window, _ROWS]).permutation(len(rows))
        return due, [rows[r] for r in order]

    def _lengths(self, due: Due) -> np.ndarray:
        """(n,) ids of each sample."""
        lengths = np.zeros(len(due), np.int64)
        for source, survey in enumerate(self.mixture.surveys):
            chosen = due.sources == source
            lengths[chosen] = survey.lengths[due.numbers[chosen]]
        return lengths


def best_fit(lengths: np.ndarray, capacity: int) -> list[list[int]]:
    """Bins of at most `capacity`: the longest first, each into the fullest bin that has room for it.

    Args:
        lengths: (n,) 1..capacity.

    Returns:
        the members of each bin.
    """
    bins: list[list[int]] = []
    rooms: list[tuple[int, int]] = []  # (room, bin), sorted
    sizes = lengths.tolist()
    for member in np.argsort(-lengths, kind="stable").tolist():
        at = bisect_left(rooms, (sizes[member], -1))
        if at == len(rooms):
            room, number = capacity, len(bins)
            bins.append([])
        else:
            room, number = rooms.pop(at)
        bins[number].append(member)
        insort(rooms, (room - sizes[member], number))
    return bins
