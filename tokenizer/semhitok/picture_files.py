"""Many pictures from files: which there are, under which keys, and reading them ahead of the model, faults counted.

Shapes: B pictures, S pixels along a side.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Protocol, TypeVar

from PIL import Image

from semhitok.command_line import one_line
from semhitok.errors import UserError
from semhitok.images import READ_FORMATS, UnreadablePicture, open_picture

if TYPE_CHECKING:  # the command lines complain without torch
    import torch

    from semhitok import SemHiTokImageProcessor

NUM_READERS = min(8, os.cpu_count() or 1)  # threads; Pillow decodes and scales without holding Python's lock
NAMED_FAULTS = 5  # unreadable pictures that are named


@dataclass(frozen=True)
class PictureFile:
    """A picture to read.

    Attributes:
        key: its path below the folder that was given, with "/" on every system; of a file that was given, its name.
    """

    key: str
    path: Path

    def open(self) -> Image.Image:
        """See `images.open_picture`."""
        return open_picture(self.path)


class Readable(Protocol):
    """A picture to read, wherever it lies."""

    @property
    def key(self) -> str: ...

    def open(self) -> Image.Image: ...


Picture = TypeVar("Picture", bound=Readable)


class Unreadable:
    """Counts the pictures that could not be read, by reason, and remembers the first few."""

    def __init__(self):
        self.counts: Counter[str] = Counter()
        self.first: list[str] = []

    def __len__(self) -> int:
        return self.counts.total()

    def add(self, error: UnreadablePicture) -> None:
        self.counts[error.reason] += 1
        if len(self.first) < NAMED_FAULTS:
            self.first.append(f"unreadable ({error.reason}): {one_line(error)}")

    def name_first(self) -> None:
        """Tell the first few on stderr, each with its path and what is wrong."""
        for line in self.first:
            print(line, file=sys.stderr)
        if len(self) > len(self.first):
            print(f"and {len(self) - len(self.first)} more", file=sys.stderr)

    def __str__(self) -> str:
        """`3 unreadable (2 damaged, 1 empty)`."""
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.counts.most_common())
        return f"{len(self)} unreadable" + (f" ({reasons})" if reasons else "")


def picture_suffixes() -> set[str]:
    """Endings of the files that are taken for pictures: those of the formats that are read."""
    return {suffix for suffix, name in Image.registered_extensions().items() if name in READ_FORMATS}


def is_hidden(name: str) -> bool:
    """Whether a file is hidden; macOS leaves ._x.jpg beside x.jpg."""
    return os.path.basename(name).startswith(".")


def is_picture(name: str, suffixes: set[str]) -> bool:
    """Whether a file or member of this name is a picture; hidden ones are none."""
    return not is_hidden(name) and os.path.splitext(name)[1].lower() in suffixes


def files_below(folder: Path) -> list[str]:
    """Paths of all files below a folder, relative to it, sorted by their bytes: the same on every machine.

    Links are followed, but for one back to a folder that holds it: what lies there is found already. Hidden folders are
    left alone.

    Raises:
        UserError: a folder that cannot be searched.
    """

    def fail(error: OSError) -> NoReturn:
        raise UserError(f"cannot search {error.filename}: {error.strerror}") from error

    def identity(path: str) -> tuple[int, int]:
        try:
            status = os.stat(path)
        except OSError as error:
            fail(error)
        return status.st_dev, status.st_ino

    found: list[str] = []
    holders = {os.fspath(folder): {identity(os.fspath(folder))}}  # folder to search -> itself and those that hold it
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=fail):
        above = holders.pop(parent)
        base = os.path.relpath(parent, folder)
        found += [name if base == "." else os.path.join(base, name) for name in names]
        ids = {name: identity(os.path.join(parent, name)) for name in folders if not is_hidden(name)}
        folders[:] = [name for name, own in ids.items() if own not in above]
        holders |= {os.path.join(parent, name): above | {ids[name]} for name in folders}
    return sorted(found, key=os.fsencode)


def find_pictures(inputs: Sequence[Path]) -> tuple[list[PictureFile], int]:
    """The pictures of some files and folders, whatever lies below them included.

    A file that is named is a picture; below a folder it needs an ending of READ_FORMATS, and hidden files are none.

    Returns:
        (pictures in the order of the inputs, below a folder in that of `files_below`; how many other files lie in the
        folders).

    Raises:
        UserError: an input that is not there, a folder that cannot be searched, no picture at all, or two pictures that
            would have the same key.
    """
    suffixes = picture_suffixes()
    found: dict[str, PictureFile] = {}
    num_others = 0
    for given in inputs:
        if not given.exists():
            raise UserError(f"no such picture or folder: {given}")
        is_folder = given.is_dir()
        for name in files_below(given) if is_folder else [given.name]:
            path, key = given / name if is_folder else given, Path(name).as_posix()
            if is_folder and not is_picture(name, suffixes):
                num_others += 1
            elif key in found and found[key].path == path:
                raise UserError(f"{path} is given twice")
            elif key in found:
                raise UserError(
                    f"{found[key].path} and {path} would both have the key {key!r}: name the folder above both instead"
                )
            else:
                found[key] = PictureFile(key, path)
    if not found:
        where = ", ".join(map(str, inputs))
        raise UserError(f"no picture in {where}: {num_others} files, none with an ending such as .png, .jpg or .webp")
    return list(found.values()), num_others


def read_batches(
    pictures: Iterable[Picture], processor: SemHiTokImageProcessor, batch_size: int, unreadable: Unreadable
) -> Iterator[tuple[list[Picture], torch.Tensor]]:
    """Pictures in batches, read by several threads ahead of whoever takes them, in order.

    Args:
        unreadable: gets the pictures that cannot be read; a batch is filled up with the next ones.

    Yields:
        the pictures of a batch, and their pixel values (B, 3, S, S) float32.
    """
    import torch

    def read(picture: Picture) -> torch.Tensor | UnreadablePicture:
        try:
            return processor(picture.open(), return_tensors="pt")["pixel_values"][0]
        except UnreadablePicture as error:
            return error

    batch: list[tuple[Picture, torch.Tensor]] = []
    for picture, values in _ahead(pictures, read, 2 * batch_size):
        if isinstance(values, UnreadablePicture):
            unreadable.add(values)
            continue
        batch.append((picture, values))
        if len(batch) == batch_size:
            yield [picture for picture, _ in batch], torch.stack([values for _, values in batch])
            batch = []
    if batch:
        yield [picture for picture, _ in batch], torch.stack([values for _, values in batch])


def _ahead(items: Iterable, work, depth: int) -> Iterator[tuple]:
    """(item, work(item)) in order, with up to `depth` items in work beyond the one that is taken."""
    waiting: deque = deque()
    with warnings.catch_warnings():  # open_picture does the same in each thread, where it alone would not be safe
        warnings.simplefilter("ignore")
        pool = ThreadPoolExecutor(NUM_READERS)
        try:
            for item in items:
                waiting.append((item, pool.submit(work, item)))
                if len(waiting) > depth:
                    item, future = waiting.popleft()
                    yield item, future.result()
            while waiting:
                item, future = waiting.popleft()
                yield item, future.result()
        finally:
            pool.shutdown(cancel_futures=True)
