"""Pictures one after the other, for evaluation: nothing shuffled, nothing repeated, nothing left out in silence."""

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from semhitok.image_processing_semhitok import adm_center_crop
from unimllm.errors import UserError
from unimllm.images import open_picture

ENDINGS = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".avif")


class FolderPictures:
    """The pictures of a folder and of the folders in it, in the order of their paths.

    Iterating gives (key, RGB picture) of every one that can be read; the key is its path below the folder. A reader of
    other sources takes its place if it iterates alike, knows its most pictures (`len`), and fills `skipped`.

    Attributes:
        skipped: key -> why, of what could not be read so far.
        num_other_files: files with another ending than a picture's.

    Raises:
        UserError: no such folder, or no picture in it.
    """

    def __init__(self, folder: Path):
        if not folder.is_dir():
            what = "a file, but only folders are read here" if folder.exists() else "no such folder"
            raise UserError(f"--data {folder}: {what}; name a folder of pictures, or 'scenes'")
        files = [Path(parent, name) for parent, _, names in os.walk(folder) for name in names]
        self.folder = folder
        self.paths = sorted(path for path in files if path.suffix.lower() in ENDINGS)
        self.num_other_files = len(files) - len(self.paths)
        self.skipped: dict[str, str] = {}
        if not self.paths:
            raise UserError(f"no picture in {folder}: none of its {len(files)} files ends in {', '.join(ENDINGS)}")

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[tuple[str, Image.Image]]:
        self.skipped = {}
        for path in self.paths:
            key = str(path.relative_to(self.folder))
            try:
                yield key, open_picture(path)
            except UserError as error:
                self.skipped[key] = str(error)


def cropped_batches(
    source: Iterable[tuple[str, Image.Image]], size: int, batch_size: int, limit: int | None
) -> Iterator[tuple[list[str], np.ndarray]]:
    """(keys, (n, size, size, 3) uint8) of the first `limit` pictures, each ADM-cropped; the last batch is smaller."""
    pictures = islice(source, limit)
    while batch := list(islice(pictures, batch_size)):
        yield [key for key, _ in batch], np.stack([np.asarray(adm_center_crop(p, size)) for _, p in batch])
