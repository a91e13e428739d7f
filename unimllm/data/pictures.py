"""Training pictures from a folder, from webdataset tars or from parquet files: `--data PATH`.

A batch is a pure function of the numbers of its samples, as everywhere in this project (`training.loop`): whatever the
number of processes and workers, sample i is the same picture with the same flip and crop, so shards need not be dealt
out to ranks, nothing is lost or seen twice, and a resumed run goes on bit for bit without a position in its checkpoint.
What it takes is random access: an index that is made once (`picture_index`) and an order that any process can compute
for itself and that reads the disk in long stretches (`order`). Readers of the data are threads; Pillow and pyarrow
release Python's lock, and so a process holds each row group once.

Streaming readers were tried first. Hugging Face's `datasets` (5.2, streaming, webdataset builder) loses what lies in
its shuffle buffer when it resumes (7 of 20 samples in a small trial) and ends with an exception at a tar that is cut
off. pyarrow and the standard library's tarfile, which it builds on, read the same files.

Shapes: B pictures, S pixels along a side.
"""

import io
import math
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image

from semhitok.image_processing_semhitok import adm_center_crop, adm_resize, to_pixel_values
from unimllm.data.faults import Fault
from unimllm.data.order import EpochOrder
from unimllm.data.picture_index import PictureIndex
from unimllm.errors import UserError
from unimllm.images import UnreadablePicture, decode_picture

MAX_ATTEMPTS = 1000  # unreadable pictures in a row after which something else is wrong than a few pictures
SMALLEST_CROP = 0.8  # of a picture's shorter side; ADM's `random_crop_arr`
_SAMPLE = 1  # what a generator is for; the last number of its seed (see `order`)


class PictureSource:
    """Batches of pictures: a square of each at `image_size`, some of them mirrored.

    Args:
        index: the pictures.
        seed: decides order, flips, crops, and which picture takes the place of an unreadable one.
        num_threads: that read and decode.
        resample: interpolation by Pillow's number, the tokenizer's `config.resample`.
        flip: share of the samples that are mirrored, 0..1.
        random_crop: take a `random_square` instead of the centre one.
        strict: UserError at the first unreadable picture.
    """

    def __init__(
        self, index: PictureIndex, image_size: int, seed: int, num_threads: int = 8,
        resample: int = Image.Resampling.BICUBIC, flip: float = 0.5, random_crop: bool = False, strict: bool = False,
    ):  # fmt: skip
        self.index, self.image_size, self.seed, self.num_threads = index, image_size, seed, num_threads
        self.resample, self.flip, self.random_crop, self.strict = resample, flip, random_crop, strict
        self.order = EpochOrder(index.chunk_sizes, seed, index.num_lanes())
        warnings.filterwarnings("ignore", module=r"PIL\.")  # oddities in metadata; what matters is raised

    def __call__(self, indices: range) -> dict[str, torch.Tensor | list[Fault]]:
        """Samples by number.

        Returns:
            pixel_values (B, 3, S, S) float32 in -1..1; skipped: faults of the pictures that others stand for.
        """
        numbers = [self.order.picture(sample) for sample in indices]
        with ThreadPoolExecutor(self.num_threads) as threads:
            samples = list(threads.map(self._sample, indices, numbers))
        return {
            "pixel_values": to_pixel_values(np.stack([pixels for pixels, _ in samples])),
            "skipped": [fault for _, faults in samples for fault in faults],
        }

    def describe(self, indices: range) -> str:
        """Where the pictures of samples lie, those that cannot be read too."""
        return ", ".join(self.index.key(self.order.picture(sample)) for sample in indices)

    def epochs_at(self, number: int) -> float:
        """How often so many samples are all of the pictures."""
        return number / len(self.index)

    def _sample(self, sample: int, number: int) -> tuple[np.ndarray, list[Fault]]:
        """(S, S, 3) uint8 of a sample, and what was wrong with the pictures tried before it."""
        rng = np.random.default_rng([self.seed, sample, _SAMPLE])
        flip = rng.random() < self.flip
        place = rng.random(3) if self.random_crop else None
        faults: list[Fault] = []
        while len(faults) < MAX_ATTEMPTS:
            try:
                pixels = np.asarray(read_square(self.index.read(number), self.image_size, self.resample, place))
                return pixels[:, ::-1] if flip else pixels, faults
            except UnreadablePicture as error:
                faults.append(Fault(error.reason, self.index.key(number), str(error)))
                if self.strict:
                    raise UserError(f"--strict: {faults[0]}") from error
                number = int(rng.integers(len(self.index)))
        raise UserError(f"{MAX_ATTEMPTS:,} pictures in a row cannot be read, the last of them {faults[-1]}")


def read_square(
    data: bytes, size: int, resample: int = Image.Resampling.BICUBIC, place: np.ndarray | None = None
) -> Image.Image:
    """A square of an encoded picture at `size` x `size`, RGB: the centre one, or the `random_square` at a place.

    Raises:
        UnreadablePicture: it is none.
    """
    image = decode_picture(io.BytesIO(data), "it")
    return adm_center_crop(image, size, resample) if place is None else random_square(image, size, place, resample)


def random_square(
    image: Image.Image, size: int, place: np.ndarray, resample: int = Image.Resampling.BICUBIC
) -> Image.Image:
    """A square of SMALLEST_CROP to all of a picture's shorter side at `size` x `size`, as ADM crops in training.

    Args:
        image: RGB.
        place: (3,) in 0 to below 1, where among the possible: how large, from left to right, from top to bottom.
        resample: interpolation of `adm_resize`, by Pillow's number.
    """
    side = size + int(place[0] * (math.ceil(size / SMALLEST_CROP) - size + 1))
    image = adm_resize(image, side, resample)
    left, top = (int(at * (length - size + 1)) for at, length in zip(place[1:], image.size, strict=True))
    return image.crop((left, top, left + size, top + size))
