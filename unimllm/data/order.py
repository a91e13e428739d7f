"""In which order an endless stream visits its pictures: a pure function of the seed, whoever asks.

An epoch visits every picture once, in three steps that any process can compute for any sample by itself:

1. The chunks are shuffled (a chunk is a run of neighbours that are cheap to read together: a row group of a parquet
   file, a stretch of a tar, one file of a folder), and so is the inside of each.
2. What results is cut into `num_lanes` lanes of equal length.
3. The lanes are read side by side, RUN pictures of each in turn.

So neighbours in a batch come from as many places as there are lanes, sorted data included, and yet a chunk is used up
by one lane in one go: with as many processes as divide the lanes, each row group is read by one process, once.
"""

from functools import lru_cache

import numpy as np

NUM_LANES = 64
RUN = 4  # pictures that a lane gives in a row; 64 x 4 = 256 is the usual batch

_CHUNKS, _INSIDE = 2, 3  # what a generator is for; the last number of its seed


class EpochOrder:
    """Sample number -> picture number.

    Args:
        chunk_sizes: (C,) pictures in each chunk, in the order in which the pictures are numbered.
        seed: decides every shuffle.
        num_lanes: chunks that are open at a time.
    """

    def __init__(self, chunk_sizes: np.ndarray, seed: int, num_lanes: int = NUM_LANES):
        self.chunk_sizes = np.asarray(chunk_sizes, np.int64)
        self.first = np.cumsum(self.chunk_sizes) - self.chunk_sizes  # (C,) number of each chunk's first picture
        self.num_pictures = int(self.chunk_sizes.sum())
        self.seed, self.num_lanes = seed, num_lanes
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def picture(self, sample: int) -> int:
        """The picture of a sample: samples e * P ... (e + 1) * P - 1 visit each of the P pictures once."""
        epoch, position = divmod(sample, self.num_pictures)
        place = across_lanes(position, self.num_pictures, self.num_lanes)
        chunks, ends = self._shuffled_chunks(epoch)
        number = int(np.searchsorted(ends, place, side="right"))
        chunk = int(chunks[number])
        size = int(self.chunk_sizes[chunk])
        inside = place - (int(ends[number]) - size)
        return int(self.first[chunk] + _shuffled_inside(self.seed, epoch, chunk, size)[inside])

    def epoch(self, epoch: int) -> np.ndarray:
        """(P,) the pictures of all samples of an epoch, in order: what `picture` gives for each of them."""
        chunks, _ = self._shuffled_chunks(epoch)
        sizes = self.chunk_sizes[chunks].tolist()
        parts = [
            self.first[chunk] + _shuffled_inside(self.seed, epoch, chunk, size)
            for chunk, size in zip(chunks.tolist(), sizes, strict=True)
        ]
        places = np.arange(self.num_pictures)
        return np.concatenate(parts)[lane_places(places, self.num_pictures, self.num_lanes)]

    def _shuffled_chunks(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Of an epoch: (C,) its chunks in order, and (C,) the places at which they end."""
        if epoch not in self._epochs:
            chunks = np.random.default_rng([self.seed, epoch, _CHUNKS]).permutation(len(self.chunk_sizes))
            self._epochs = {e: v for e, v in self._epochs.items() if e == epoch - 1}  # a batch may straddle two
            self._epochs[epoch] = chunks, np.cumsum(self.chunk_sizes[chunks])
        return self._epochs[epoch]


@lru_cache(maxsize=4 * NUM_LANES)
def _shuffled_inside(seed: int, epoch: int, chunk: int, size: int) -> np.ndarray:
    """(size,) the order inside a chunk."""
    return np.random.default_rng([seed, epoch, chunk, _INSIDE]).permutation(size)


def across_lanes(position: int, total: int, num_lanes: int, run: int = RUN) -> int:
    """Where the reader of `num_lanes` lanes stands: a bijection of 0..total-1.

    With 3 lanes of two runs each, [a b | c d | e f] is read a c e b d f. Pictures that fill no run are read last.
    """
    return int(lane_places(np.array([position]), total, num_lanes, run)[0])


def lane_places(positions: np.ndarray, total: int, num_lanes: int, run: int = RUN) -> np.ndarray:
    """`across_lanes` of many positions, (n,) int64."""
    num_runs = total // run
    number, inside = np.divmod(positions, run)
    offset, lane = np.divmod(number, num_lanes)
    length, longer = divmod(num_runs, num_lanes)  # the first `longer` lanes hold one run more
    places = (lane * length + np.minimum(lane, longer) + offset) * run + inside
    return np.where(number >= num_runs, positions, places)
