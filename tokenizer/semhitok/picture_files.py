"""Many pictures from files: which there are, under which keys, and reading them ahead of the model, faults counted.

Shapes: B pictures, S pixels along a side.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

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


def find_pictures(inputs: Iterable[Path]) -> tuple[list[PictureFile], int]:
    """The pictures of some files and folders, whatever lies below them included.

    A file that is named is a picture; below a folder it needs an ending of READ_FORMATS, and hidden files are none
    (macOS leaves ._x.jpg behind).

    Returns:
        (pictures in the order of the inputs, below a folder sorted by key; how many other files lie in the folders).

    Raises:
        UserError: an input that is not there, a folder that cannot be searched, no picture at all, or two pictures that
            would have the same key.
    """
    endings = {ending for ending, name in Image.registered_extensions().items() if name in READ_FORMATS}
    found: dict[str, PictureFile] = {}
    num_others = 0
    for given in inputs:
        if not given.exists():
            raise UserError(f"no such picture or folder: {given}")
        below = sorted(_walk(given)) if given.is_dir() else None
        for path in below if below is not None else [given]:
            key = path.relative_to(given).as_posix() if below is not None else path.name
            if below is not None and (path.name.startswith(".") or path.suffix.lower() not in endings):
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
        raise UserError(f"no picture there: {num_others} files, none with an ending such as .png, .jpg or .webp")
    return list(found.values()), num_others


def _walk(folder: Path) -> Iterator[Path]:
    """All files below a folder, through links too; UserError where it cannot be searched or a link leads back."""

    def fail(error: OSError) -> None:
        raise UserError(f"cannot search {error.filename}: {error.strerror}") from error

    for root, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        real = os.path.realpath(root)
        for name in folders:
            if f"{real}/".startswith(f"{os.path.realpath(os.path.join(root, name))}/"):
                raise UserError(f"{os.path.join(root, name)} links back to a folder that holds it")
        yield from (Path(root, name) for name in names)


def read_batches(
    files: Iterable[PictureFile], processor: SemHiTokImageProcessor, batch_size: int, unreadable: Unreadable, bar
) -> Iterator[tuple[list[PictureFile], torch.Tensor]]:
    """Pictures in batches, read by several threads ahead of whoever takes them, in order.

    Args:
        unreadable: gets the pictures that cannot be read; a batch is filled up with the next ones.
        bar: a tqdm that counts files.

    Yields:
        the files of a batch, and their pixel values (B, 3, S, S) float32.
    """
    import torch

    def read(file: PictureFile) -> torch.Tensor | UnreadablePicture:
        try:
            return processor(open_picture(file.path), return_tensors="pt")["pixel_values"][0]
        except UnreadablePicture as error:
            return error

    batch: list[tuple[PictureFile, torch.Tensor]] = []
    for file, values in _ahead(files, read, 2 * batch_size):
        bar.update()
        if isinstance(values, UnreadablePicture):
            unreadable.add(values)
            continue
        batch.append((file, values))
        if len(batch) == batch_size:
            yield [file for file, _ in batch], torch.stack([values for _, values in batch])
            batch = []
    if batch:
        yield [file for file, _ in batch], torch.stack([values for _, values in batch])


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
