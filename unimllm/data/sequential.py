"""Pictures one after the other, for evaluation: nothing shuffled, nothing repeated, nothing left out in silence."""

import io
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image

from semhitok.image_processing_semhitok import adm_center_crop
from semhitok.picture_files import files_below, find_pictures, is_picture, picture_suffixes
from unimllm.data.picture_index import open_pictures
from unimllm.errors import UserError
from unimllm.images import UnreadablePicture, decode_picture, open_picture

PACKED = (".tar", ".parquet")


def open_sequential(path: Path) -> "FolderPictures | PackedPictures":
    """The pictures of a folder, of a .tar or .parquet file, or of a folder of such files and no pictures.

    Raises:
        UserError: no such place, or no picture there.
    """
    path = path.expanduser()
    return PackedPictures(path) if is_packed(path) else FolderPictures(path)


def is_packed(path: Path) -> bool:
    """Whether a path is a file of PACKED, or a folder with such files and without pictures."""
    if not path.is_dir():
        return path.suffix.lower() in PACKED and path.is_file()
    suffixes, found = picture_suffixes(), False
    for name in files_below(path):
        if is_picture(name, suffixes):
            return False
        found |= os.path.splitext(name)[1].lower() in PACKED
    return found


class FolderPictures:
    """The pictures of a folder and of the folders in it, in the order of their paths.

    Iterating gives (key, RGB picture) of every one that can be read; the key is its path below the folder. A reader of
    other sources takes its place if it iterates alike, knows its most pictures (`len`), and fills `skipped`.

    Attributes:
        skipped: key -> why, of what could not be read so far.
        faults: what is wrong with files of many pictures, nothing here.
        num_other_files: files with another ending than a picture's.

    Raises:
        UserError: no such folder, or no picture in it.
    """

    def __init__(self, folder: Path):
        if not folder.is_dir():
            what = "a file, but neither .tar nor .parquet" if folder.exists() else "no such file or folder"
            raise UserError(f"--data {folder}: {what}; name a folder of pictures, such a file, or 'scenes'")
        self.faults: list[str] = []
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


class PackedPictures:
    """The pictures of tars or parquet files, in the order of the files' paths and in theirs; see `FolderPictures`.

    A key is a path below the folder, or a file's name, with the member or row.

    Attributes:
        faults: a line of each file that could not be read to its end, or holds no picture.

    Raises:
        UserError: nothing that can be read.
    """

    def __init__(self, path: Path):
        self.index = open_pictures([path])
        self.faults = [str(fault) for fault in self.index.faults]
        self.num_other_files = sum(sum(getattr(shard, "others", {}).values()) for shard in self.index.shards)
        self.skipped: dict[str, str] = {}
        self._above = os.path.join(path if path.is_dir() else path.parent, "")

    def __len__(self) -> int:
        return len(self.index)

    def __iter__(self) -> Iterator[tuple[str, Image.Image]]:
        self.skipped = {}
        for number in range(len(self.index)):
            key = self.index.key(number).removeprefix(self._above)
            try:
                yield key, decode_picture(io.BytesIO(self.index.read(number)), key)
            except UnreadablePicture as error:
                self.skipped[key] = str(error) if key in str(error) else f"{key}: {error}"


def cropped_batches(
    source: Iterable[tuple[str, Image.Image]], size: int, batch_size: int, limit: int | None,
    resample: int = Image.Resampling.BICUBIC,
) -> Iterator[tuple[list[str], np.ndarray]]:  # fmt: skip
    """(keys, (n, size, size, 3) uint8) of the first `limit` pictures, each ADM-cropped; the last batch is smaller.

    Args:
        resample: interpolation, by Pillow's number.
    """
    pictures = islice(source, limit)
    while batch := list(islice(pictures, batch_size)):
        yield [key for key, _ in batch], np.stack([np.asarray(adm_center_crop(p, size, resample)) for _, p in batch])
