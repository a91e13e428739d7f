"""The pictures of training data, each once, under the keys by which training looks for their codes."""

import hashlib
import io
import os
import sys
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from semhitok.command_line import one_line
from semhitok.shards import check_key
from unimllm.data.sample_index import SampleIndex
from unimllm.data.samples import BadSample, Picture, PictureOnDisk, pictures_of
from unimllm.data.survey import Finding, refuse_faulty
from unimllm.errors import UserError
from unimllm.images import UnreadablePicture, decode_picture


@dataclass(frozen=True)
class NewPicture:
    """A picture to encode, as `semhitok.picture_files.Readable` has it.

    Attributes:
        data: what a stored one holds; None: it is a file, to be read when it is opened.
    """

    key: str
    picture: Picture
    data: bytes | None

    def open(self) -> Image.Image:
        """See `images.decode_picture`; UnreadablePicture also where it is not there."""
        data = self.picture.read() if self.data is None else self.data
        return decode_picture(io.BytesIO(data), self.picture.path if self.data is None else self.key)


class UniquePictures:
    """The new pictures of some sources in the order of their samples; with a progress bar.

    What tars, parquet files and datasets hold is read for it, known or not: a key must be that of one picture.

    Args:
        wanted: all keys of interest; pictures of others are not looked at.
        known: keys that need no codes any more; they may become more meanwhile.
        strict: stop at the first sample that cannot be used.

    Attributes:
        num_known: pictures that were passed over.
        findings: of each source, what is wrong with its samples.
    """

    def __init__(self, indices: list[SampleIndex], wanted: Container[str], known: Container[str], strict: bool = False):
        self.indices, self.wanted, self.known, self.strict = indices, wanted, known, strict
        self.num_known = 0
        self.findings: list[list[Finding]] = [[] for _ in indices]
        self._met: dict[str, tuple[bytes | Path, int, int]] = {}  # key -> identity, and the sample that had it

    def __iter__(self) -> Iterator[NewPicture]:
        for source, (index, findings) in enumerate(zip(self.indices, self.findings, strict=True)):
            for number in tqdm(range(len(index)), desc=index.name, unit="sample", file=sys.stderr):
                try:
                    for picture in pictures_of(index.read(number).variants[0]):  # those of the other variants too
                        yield from self._new(picture, source, number)
                except (BadSample, UnreadablePicture) as error:
                    findings.append((number, error.reason, one_line(error)))
                    if self.strict:
                        refuse_faulty(findings, index)

    def _new(self, picture: Picture, source: int, number: int) -> Iterator[NewPicture]:
        """The picture, unless an earlier sample had it or its codes are there.

        Raises:
            BadSample: its key is none that shards hold.
            UnreadablePicture: its bytes cannot be had.
            UserError: an earlier sample had another picture of this key.
        """
        try:
            check_key(picture.key)
        except ValueError as error:
            raise BadSample("no relative path", f"{error}; name a folder above it with --image-root") from error
        if picture.key not in self.wanted:
            return
        is_file = isinstance(picture, PictureOnDisk)
        data = None if is_file else picture.read()
        identity = picture.path if is_file else hashlib.blake2b(data, digest_size=8).digest()
        if picture.key not in self._met:
            self._met[picture.key] = identity, source, number
            if picture.key in self.known:
                self.num_known += 1
            else:
                yield NewPicture(picture.key, picture, data)
            return
        before, *first = self._met[picture.key]
        if before != identity and not is_one_file(before, identity):
            places = " and in ".join(self.indices[s].key(n) for s, n in (first, (source, number)))
            remedy = "rename one" if is_file else "rename one, or train on the pictures themselves, without --codes"
            raise UserError(f"two pictures of one name, {picture.key!r}, in {places}: {remedy}")


def is_one_file(one: bytes | Path, other: bytes | Path) -> bool:
    """Whether two paths lead to the same file."""
    return isinstance(one, Path) and isinstance(other, Path) and os.path.realpath(one) == os.path.realpath(other)
