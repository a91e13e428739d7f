"""Pictures one after the other, for evaluation: nothing shuffled, nothing repeated, nothing left out in silence."""

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from semhitok.image_processing_semhitok import adm_center_crop
from semhitok.picture_files import find_pictures
from unimllm.errors import UserError
from unimllm.images import UnreadablePicture, open_picture


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
        self.files, self.num_other_files = find_pictures([folder])
        self.skipped: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.files)

    def __iter__(self) -> Iterator[tuple[str, Image.Image]]:
        self.skipped = {}
        for file in self.files:
            try:
                yield file.key, open_picture(file.path)
            except UnreadablePicture as error:
                self.skipped[file.key] = str(error)


def cropped_batches(
    source: Iterable[tuple[str, Image.Image]], size: int, batch_size: int, limit: int | None
) -> Iterator[tuple[list[str], np.ndarray]]:
    """(keys, (n, size, size, 3) uint8) of the first `limit` pictures, each ADM-cropped; the last batch is smaller."""
    pictures = islice(source, limit)
    while batch := list(islice(pictures, batch_size)):
        yield [key for key, _ in batch], np.stack([np.asarray(adm_center_crop(p, size)) for _, p in batch])
