"""Samples from a webdataset: in a tar, neighbours `key.jpg` and `key.txt` or `key.json` are one sample.

`.txt` (`.text`, `.caption`) is what the picture is drawn for; a `.json` may hold a conversation or captions instead.
"""

import json
import tarfile
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from semhitok.picture_files import picture_suffixes
from unimllm.data.picture_shards import TAR_CHUNK, equal_chunks, scan_members
from unimllm.data.samples import BadSample, Sample, StoredPicture, layout_of, make_sample
from unimllm.images import UnreadablePicture

PICTURE, TEXT, JSON = range(3)
TEXT_SUFFIXES = {"txt": TEXT, "text": TEXT, "caption": TEXT, "json": JSON}


class TarSamples:
    """One tar.

    Args:
        places: (S, 3, 2) int64: where picture, text and JSON of a sample begin, in bytes, and how long they are; -1 for
            what it has not.
        names: (S,) the members' names: the picture's, or else the key of the sample.
        layout: of the JSON, of `samples.LAYOUTS`; None: recognised.
    """

    kind = "tar"
    memory = 0

    def __init__(self, path: Path, places: np.ndarray, names: np.ndarray, layout: str | None):
        self.path, self.name, self.places, self.names, self.layout = path, path.name, places, names, layout
        self.chunk_sizes = equal_chunks(len(places), TAR_CHUNK)

    def key(self, i: int) -> str:
        return f"{self.path}:{self.names[i]}"

    def read(self, i: int) -> Sample:
        row = {}
        if self.places[i, JSON, 0] >= 0:
            row = self._json(i)
        if self.places[i, TEXT, 0] >= 0:
            row["caption"] = self._bytes(i, TEXT).decode("utf-8", "replace")
        if not row:
            raise BadSample("no text", "neither .txt nor .json lies beside the picture")
        has_picture = self.places[i, PICTURE, 0] >= 0
        pictures = [StoredPicture(str(self.names[i]), partial(self._picture, i))] if has_picture else []
        return make_sample(row, pictures, self.layout or layout_of(row))

    def _json(self, i: int) -> dict:
        try:
            row = json.loads(self._bytes(i, JSON))
        except ValueError as error:
            raise BadSample("broken JSON", str(error)) from error
        if not isinstance(row, dict):
            raise BadSample("no object", f"its .json holds a {type(row).__name__}")
        return row

    def _picture(self, i: int) -> bytes:
        try:
            return self._bytes(i, PICTURE)
        except OSError as error:
            raise UnreadablePicture("not readable", f"{self.path}: {error.strerror or error}") from error

    def _bytes(self, i: int, what: int) -> bytes:
        start, size = self.places[i, what].tolist()
        with open(self.path, "rb") as file:
            file.seek(start)
            return file.read(size)

    def digest(self) -> bytes:
        return self.places.tobytes()


def scan_tar_samples(path: Path) -> tuple[dict[str, np.ndarray], str]:
    """{"places": (S, 3, 2), "names": (S,)} of a tar's samples, and what is wrong with the tar ("" if nothing).

    Raises:
        OSError: it cannot be read at all.
    """
    suffixes = {suffix.lstrip("."): PICTURE for suffix in picture_suffixes()} | TEXT_SUFFIXES
    places: list[np.ndarray] = []
    names: list[str] = []
    current = None

    def take(member: tarfile.TarInfo) -> None:
        nonlocal current
        path = PurePosixPath(member.name)
        stem, _, ending = path.name.partition(".")  # as webdataset has it: the key ends at the first dot
        part = suffixes.get(ending.lower())
        if part is None or not stem:  # hidden files, such as macOS's ._x.jpg
            return
        key = str(path.parent / stem)
        if key != current:
            current = key
            places.append(np.full((3, 2), -1, np.int64))
            names.append(key)
        places[-1][part] = member.offset_data, member.size
        if part == PICTURE:
            names[-1] = member.name

    damage = scan_members(path, take)
    found = {"places": np.array(places, np.int64).reshape(-1, 3, 2), "names": np.array(names, np.str_)}
    return found, damage
