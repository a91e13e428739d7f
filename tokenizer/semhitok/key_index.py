"""Finding the rows of keys among many millions: 16 bytes a key in two arrays, which forked processes share.

A dictionary of as many strings takes some 250 bytes a key, and soon a copy of its own in each process, which counts
references in it.
"""

from collections.abc import Callable, Sequence

import numpy as np

FACTOR = 0x9E3779B97F4A7C15  # odd; 2**64 divided by the golden ratio


class KeyIndex:
    """Rows by key.

    Args:
        hashes: (n,) uint64, `hash_keys` of the keys in the order of their rows.
        key_of: row -> key, UTF-8; asked for the few rows whose hashes fit.
    """

    def __init__(self, hashes: np.ndarray, key_of: Callable[[int], bytes]):
        self.key_of = key_of
        self.rows = np.argsort(hashes, kind="stable")
        self.hashes = hashes[self.rows]

    def find(self, key: bytes) -> int | None:
        """The first row of a key, None if no row has it."""
        if not key:
            return None
        wanted = np.uint64(hash_key(key))
        place = int(np.searchsorted(self.hashes, wanted))
        while place < len(self.hashes) and self.hashes[place] == wanted:
            row = int(self.rows[place])
            if self.key_of(row) == key:
                return row
            place += 1
        return None

    def num_repeated(self) -> int:
        """How many rows have a key that an earlier row has too."""
        alike = self.hashes[1:] == self.hashes[:-1]
        suspects = self.rows[np.flatnonzero(np.r_[alike, False] | np.r_[False, alike])]
        return len(suspects) - len({self.key_of(int(row)) for row in suspects})


def hash_key(key: bytes) -> int:
    """What `hash_keys` gives a single key, by Horner's rule."""
    number = 0
    for byte in reversed(key):
        number = (number * FACTOR + byte + 1) % 2**64
    return number


def hash_keys(text: np.ndarray, lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    """Numbers of keys, equal for equal keys and for hardly any others: sum of (byte + 1) FACTOR^place, modulo 2^64.

    Args:
        text: (sum of lengths,) uint8, the keys one after the other.
        lengths: (n,) bytes of each, none 0.

    Returns:
        (n,) uint64.
    """
    lengths = np.asarray(lengths, np.int64)
    if not len(lengths):
        return np.empty(0, np.uint64)
    starts = np.cumsum(lengths) - lengths
    places = np.arange(len(text)) - np.repeat(starts, lengths)
    powers = np.full(int(lengths.max()), FACTOR, np.uint64)
    powers[0] = 1
    powers = np.multiply.accumulate(powers)
    return np.add.reduceat((text.astype(np.uint64) + np.uint64(1)) * powers[places], starts)
