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

from semhitok.shards import check_key
from unimllm.data.sample_index import SampleIndex
from unimllm.data.samples import BadSample, Picture, PictureOnDisk, pictures_of
from unimllm.data.survey import Finding, refuse_unusable
from unimllm.errors import UserError
from unimllm.images import UnreadablePicture, decode_picture


@dataclass(frozen=True)
class NewPicture:
    """A picture to encode, as `semhitok.picture_files.Readable` has it."""

    key: str
    picture: Picture

    def open(self) -> Image.Image:
        """See `images.decode_picture`; UnreadablePicture also where it is not there."""
        return decode_picture(io.BytesIO(self.picture.read()), self.key)


class UniquePictures:
    """The new pictures of some sources in the order of their samples; with a progress bar.

    Args:
        known: keys that need no codes any more; they may become more meanwhile.
        strict: stop at the first sample that cannot be read.

    Attributes:
        num_known: pictures that were passed over.
        findings: of each source, what is wrong with its samples.
    """

    def __init__(self, indices: list[SampleIndex], known: Container[str], strict: bool = False):
        self.indices, self.known, self.strict = indices, known, strict
        self.num_known = 0
        self.findings: list[list[Finding]] = [[] for _ in indices]
        self._met: dict[str, tuple[bytes | Path, str]] = {}  # key -> what a picture is, and the sample that had it

    def __iter__(self) -> Iterator[NewPicture]:
        for index, findings in zip(self.indices, self.findings, strict=True):
            for number in tqdm(range(len(index)), desc=index.name, unit="sample", file=sys.stderr):
                try:
                    for picture in pictures_of(index.read(number).variants[0]):  # those of the other variants too
                        if not self._is_new(picture, index.key(number)):
                            continue
                        if picture.key in self.known:
                            self.num_known += 1
                        else:
                            yield NewPicture(picture.key, picture)
                except BadSample as error:
                    findings.append((number, error.reason, str(error)))
                    if self.strict:
                        refuse_unusable(findings, index)

    def _is_new(self, picture: Picture, place: str) -> bool:
        """Whether no sample before had this picture.

        Raises:
            BadSample: its key is none that shards hold.
            UserError: a sample before had another picture of this key.
        """
        try:
            check_key(picture.key)
        except ValueError as error:
            raise BadSample("no relative path", f"{error}; name a folder above it with --image-root") from error
        try:
            what = identity(picture)
        except UnreadablePicture:  # whoever opens it hears of it
            return True
        if picture.key not in self._met:
            self._met[picture.key] = what, place
            return True
        before, first = self._met[picture.key]
        if before == what or is_one_file(before, what):
            return False
        remedy = "name the folder above both with --image-root" if isinstance(what, Path) else "rename one of them"
        raise UserError(f"two pictures of one name, {picture.key!r}, in {first} and in {place}: {remedy}")


def identity(picture: Picture) -> bytes | Path:
    """The path of a file, a hash of a stored picture's bytes; UnreadablePicture where these cannot be had."""
    if isinstance(picture, PictureOnDisk):
        return picture.path
    return hashlib.blake2b(picture.read(), digest_size=8).digest()


def is_one_file(one: bytes | Path, other: bytes | Path) -> bool:
    """Whether two paths lead to the same file."""
    return isinstance(one, Path) and isinstance(other, Path) and os.path.realpath(one) == os.path.realpath(other)
