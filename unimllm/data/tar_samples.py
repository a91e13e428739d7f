"""Samples from a webdataset: in a tar, neighbours `key.jpg` and `key.txt` or `key.json` are one sample.

`.txt` (`.text`, `.caption`) is what the picture is drawn for; a `.json` may hold a conversation instead, or captions
(alone or beside it, each is drawn for then).
"""

import json
import posixpath
import tarfile
from collections import Counter
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from semhitok.picture_files import picture_suffixes
from unimllm.data.picture_shards import TAR_CHUNK, equal_chunks, read_at, scan_members
from unimllm.data.samples import (
    BadSample,
    Sample,
    StoredPicture,
    caption_texts,
    layout_of,
    make_sample,
    place_of,
)
from unimllm.images import UnreadablePicture
from unimllm.json_rows import json_trouble

PICTURE, TEXT, JSON = range(3)
TEXT_SUFFIXES = {"txt": TEXT, "text": TEXT, "caption": TEXT, "json": JSON}


class TarSamples:
    """One tar.

    Args:
        places: (S, 3, 2) int64: where picture, text and JSON of a sample begin, in bytes, and how long they are; -1 for
            what it has not.
        names: (S,) the members' names: the picture's, or else the key of the sample.
        others: (K, 2) endings that are not read and how many members have them.
        layout: of the JSON, of `samples.LAYOUTS`; None: recognised.
        image_root: as the other kinds have it; the pictures of a tar lie in it.
    """

    kind = "tar"
    memory = 0

    def __init__(
        self, path: Path, places: np.ndarray, names: np.ndarray, others: np.ndarray, layout: str | None,
        image_root: Path | None = None,
    ):  # fmt: skip
        self.path, self.name, self.places, self.names, self.layout = path, path.name, places, names, layout
        self.place = place_of(path)
        self.others = {ending: int(count) for ending, count in others}
        self.chunk_sizes = equal_chunks(len(places), TAR_CHUNK)

    def key(self, i: int) -> str:
        return f"{self.path}:{self.names[i]}"

    def read(self, i: int) -> Sample:
        row = {}
        if self.places[i, JSON, 0] >= 0:
            row = self._json(i)
        if self.places[i, TEXT, 0] >= 0:
            texts = caption_texts(self._text(i))
            if texts or not row:  # a blank text takes nothing from the JSON beside it
                row["caption"] = texts + caption_texts(row.get("caption"))
        if not row:
            raise BadSample("no text", "neither .txt nor .json lies beside the picture")
        has_picture = self.places[i, PICTURE, 0] >= 0
        key = posixpath.normpath(f"{self.place}/{self.names[i]}")  # `tar cf x.tar .` writes ./0.png
        pictures = [StoredPicture(key, partial(self._picture, i))] if has_picture else []
        return make_sample(row, pictures, self.layout or layout_of(row))

    def _text(self, i: int) -> str:
        try:
            return self._bytes(i, TEXT).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise BadSample(
                "no UTF-8", f"its text, {error.reason} at byte {error.start:,}; save it as UTF-8"
            ) from error

    def _json(self, i: int) -> dict:
        try:
            row = json.loads(self._bytes(i, JSON))
        except json.JSONDecodeError as error:
            where = f"in its line {error.lineno:,}, column {error.colno:,}"
            raise BadSample("broken JSON", f"{json_trouble(error)} {where}") from error
        except (ValueError, RecursionError) as error:
            raise BadSample("broken JSON", json_trouble(error)) from error
        if not isinstance(row, dict):
            raise BadSample("no object", f"its .json holds a {type(row).__name__}")
        return row

    def _picture(self, i: int) -> bytes:
        try:
            return self._bytes(i, PICTURE)
        except OSError as error:
            raise UnreadablePicture("not readable", f"{self.path}: {error.strerror or error}") from error

    def _bytes(self, i: int, what: int) -> bytes:
        return read_at(self.path, *self.places[i, what].tolist())

    def digest(self) -> bytes:
        return self.places.tobytes()


def scan_tar_samples(path: Path) -> tuple[dict[str, np.ndarray], str]:
    """{"places": (S, 3, 2), "names": (S,)} of a tar's samples, and what is wrong with the tar ("" if nothing).

    Members that are not read are counted in "others" (K, 2) by their endings: `.cls`, or `.seg.png` beside others of
    its key. Those that are lost are told as "faults" (F, 2), the reason and a message: those whose keys hold a dot, and
    those that another one of their key takes the place of.

    Raises:
        OSError: it cannot be read at all.
    """
    suffixes = {suffix.lstrip("."): PICTURE for suffix in picture_suffixes()} | TEXT_SUFFIXES
    places: list[np.ndarray] = []
    names: list[str] = []
    keys: set[str] = set()
    dotted: list[tuple[str, str, str]] = []  # key, ending and name of members that only their last ending makes known
    replaced: list[str] = []
    others: Counter[str] = Counter()
    current = None

    def take(member: tarfile.TarInfo) -> None:
        nonlocal current
        path = PurePosixPath(member.name)
        stem, _, ending = path.name.partition(".")  # as webdataset has it: the key ends at the first dot
        if not stem:  # hidden files, such as macOS's ._x.jpg
            return
        key, part = str(path.parent / stem), suffixes.get(ending.lower())
        if part is None:
            if path.suffix.lstrip(".").lower() in suffixes:
                dotted.append((key, ending.lower(), member.name))
            else:
                others[path.suffix.lower()] += 1
            return
        if key != current:
            current = key
            keys.add(key)
            places.append(np.full((3, 2), -1, np.int64))
            names.append(key)
        if places[-1][part, 0] >= 0:
            replaced.append(member.name)
        places[-1][part] = member.offset_data, member.size
        if part == PICTURE:
            names[-1] = member.name

    damage = scan_members(path, take)
    faults, lost = [], []
    for key, ending, name in dotted:
        if key in keys:  # x.seg.png beside x.jpg is of another use
            others[f".{ending}"] += 1
        else:
            lost.append((ending, name))
    if lost:
        ending, first = lost[0]
        faults.append(("dots in keys", f"of its members {len(lost):,} belong to no sample, the first {first}: a key "
                       f"ends at the first dot, so this one's ending is {ending}; rename them"))  # fmt: skip
    if replaced:
        faults.append(("two of one key", f"of its members {len(replaced):,} went over one before them, the first "
                       f"{replaced[0]}: a sample has one picture, one text and one JSON"))  # fmt: skip
    found = {"places": np.array(places, np.int64).reshape(-1, 3, 2), "names": np.array(names, np.str_)}
    told = {"faults": faults, "others": [*others.items()]}
    return found | {name: np.array(rows, np.str_).reshape(-1, 2) for name, rows in told.items()}, damage
