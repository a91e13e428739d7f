"""Samples from a JSON file: an array as LLaVA ships it, or one object on each line.

The file is looked through once for where its samples begin and end; after that any of them is read by its number, so a
file of gigabytes is never held in memory.
"""

import json
import re
from array import array
from functools import partial
from pathlib import Path

import numpy as np

from unimllm.data.picture_shards import read_at
from unimllm.data.samples import (
    PICTURE_KEYS,
    BadSample,
    Sample,
    layout_of,
    make_sample,
    picture_named,
    pictures_in_parts,
    split_names,
)
from unimllm.json_rows import json_trouble

BLOCK = 1 << 24  # bytes of a file that are looked through at a time
LONGEST_TOKEN = 16  # characters; no error of JSON lies further before the end of a text that is cut, but in a string
DECODER = json.JSONDecoder(strict=False, parse_int=str)  # an endless number spoils its own sample alone
SPACE = re.compile(r"[ \t\r\n]*")
BOM = b"\xef\xbb\xbf"
LIST_OF_FILES = (
    "a list of other files, as InternVL has it; name those under `annotation` with --data FILE:WEIGHT and --image-root"
)


class JsonSamples:
    """One file.

    Args:
        spans: (S, 3) int64: first byte, byte behind the last, line.
        layout: of `samples.LAYOUTS`; None: recognised row by row.
        image_root: folder that the paths of pictures are relative to.
    """

    kind = "JSON file"
    memory = 0

    def __init__(self, path: Path, spans: np.ndarray, layout: str | None, image_root: Path):
        self.path, self.name, self.spans, self.layout, self.image_root = path, path.name, spans, layout, image_root
        self.chunk_sizes = np.array([len(spans)], np.int64)  # any sample is as near as any other

    def key(self, i: int) -> str:
        lines = self.spans[:, 2]
        alone = lines[i] not in lines[max(i - 1, 0) : i] and lines[i] not in lines[i + 1 : i + 2]
        return f"{self.path}:{lines[i]}" + ("" if alone else f", sample {i + 1:,}")

    def read(self, i: int) -> Sample:
        start, end, _ = self.spans[i].tolist()
        data = read_at(self.path, start, end - start)
        try:
            row = json.loads(data)
        except json.JSONDecodeError as error:  # its own line would count from the sample's first
            raise BadSample("broken JSON", f"{json_trouble(error)} in column {error.colno:,}") from error
        except (ValueError, RecursionError) as error:  # no UTF-8, an endless number, brackets without end
            raise BadSample("broken JSON", json_trouble(error)) from error
        if not isinstance(row, dict):
            raise BadSample("no object", f"a {type(row).__name__} instead of an object with keys")
        layout = self.layout or layout_of(row)
        named = next((row[key] for key in PICTURE_KEYS[layout] if row.get(key)), None) or pictures_in_parts(row)
        names = named if isinstance(named, list) else [named]
        if not all(isinstance(name, str) and "\0" not in name for name in names):
            raise BadSample("no picture", f"{named!r} is no path of a picture")
        names = split_names(row, names, layout)
        return make_sample(row, [picture_named(name, self.image_root) for name in names], layout)

    def digest(self) -> bytes:
        return self.spans.tobytes()


def scan_json(path: Path) -> tuple[dict[str, np.ndarray], str]:
    """Where the samples of a file lie, {"spans": (S, 3)}, and what is wrong with the file ("" if nothing).

    Raises:
        OSError: it cannot be read at all.
    """
    with open(path, "rb") as file:
        head = file.read(1 << 16)
        first = len(BOM) if head.startswith(BOM) else 0
        if not head[first:].strip():
            return {"spans": np.zeros((0, 3), np.int64)}, "the file is empty"
        file.seek(first)
        if head[first:].lstrip().startswith(b"["):
            spans, damage = scan_array(file)
        else:
            spans, damage = scan_lines(file), ""
            # If the whole file is one object, neither its first line nor its last is one, or it has one line.
            ends = [(first + start, end - start) for start, end, _ in (spans[:3], spans[-3:])]
            may_be_one = len(spans) == 3 or not any(object_at(file, *line) is not None for line in ends)
            whole = object_at(file, first, -1) if may_be_one else None
            if whole and all(isinstance(value, dict) and "annotation" in value for value in whole.values()):
                spans, damage = [], LIST_OF_FILES
            elif whole is not None and len(spans) > 3:
                spans, damage = [], "one object; an array of samples or one a line is wanted"
    spans = np.array(spans, np.int64).reshape(-1, 3)  # a copy of its own
    spans[:, :2] += first
    return {"spans": spans}, damage


class Cursor:
    """A place in a JSON file, and the file from there on as text, a block at a time.

    Attributes:
        text: a character for each byte; what JSON is made of is ASCII.
        first: of the file, the byte that the text begins with.
        at: of the text, the character that the cursor stands before.
        line: in which it is.
        is_last: whether the file ends with the text.
    """

    def __init__(self, file):
        self.file, self.text, self.first, self.at, self.line, self.is_last = file, "", 0, 0, 1, False
        self.read_on()

    def read_on(self) -> None:
        """Let go of what lies behind the cursor and read as much again as is left, a block at least."""
        left = self.text[self.at :]
        block = self.file.read(max(BLOCK, len(left)))
        self.first, self.at = self.first + self.at, 0
        self.text, self.is_last = left + block.decode("latin-1"), not block

    def go(self, to: int) -> None:
        """Move to a character of the text."""
        self.line, self.at = self.line + self.text.count("\n", self.at, to), to

    def next(self) -> str:
        """The next character that is no blank, moved to; "" at the end of the file."""
        self.go(SPACE.match(self.text, self.at).end())
        while self.at == len(self.text) and not self.is_last:
            self.read_on()
            self.go(SPACE.match(self.text, self.at).end())
        return self.text[self.at : self.at + 1]

    def element(self) -> tuple[int, int, int]:
        """(first byte, byte behind, line) of the JSON value here, moved behind; JSONDecodeError if it is none."""
        while True:
            try:
                end = DECODER.raw_decode(self.text, self.at)[1]
                if end <= len(self.text) - LONGEST_TOKEN or self.is_last:  # else it may be a number that goes on
                    break
            except json.JSONDecodeError as error:
                is_cut = error.pos > len(self.text) - LONGEST_TOKEN or error.msg.startswith("Unterminated string")
                if self.is_last or not is_cut:
                    raise
            self.read_on()
        span = self.first + self.at, self.first + end, self.line
        self.go(end)
        return span


def scan_array(file) -> tuple[array, str]:
    """(first byte, byte behind, line) of each element of the JSON array that a file holds, one number after the other,
    and what ends it too early.
    """
    spans = array("q")
    cursor = Cursor(file)
    cursor.go(cursor.text.index("[") + 1)
    try:
        following = cursor.next()
        while following != "]":
            spans.extend(cursor.element())
            following = cursor.next()
            if following == ",":
                cursor.go(cursor.at + 1)
                following = cursor.next()
            elif following != "]":
                told = "the array goes on without a comma or ends without ]"
                raise json.JSONDecodeError(told, cursor.text, cursor.at)
    except json.JSONDecodeError as error:
        line = cursor.line + cursor.text.count("\n", cursor.at, error.pos)
        return spans, f"broken JSON in line {line}: {json_trouble(error)}"
    except RecursionError as error:
        return spans, f"broken JSON in line {cursor.line}: {json_trouble(error)}"
    cursor.go(cursor.at + 1)
    return spans, "more follows after the array" if cursor.next() else ""


def object_at(file, start: int, size: int) -> dict | None:
    """The JSON object that `size` bytes of a file, all the rest with -1, are; None: they are none."""
    file.seek(start)
    try:
        found = json.loads(file.read(size))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def scan_lines(file) -> array:
    """(first byte, byte behind, line) of each line that is not blank, one number after the other."""
    spans, start, number, rest = array("q"), 0, 1, b""
    for block in iter(partial(file.read, BLOCK), b""):
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            if line.strip():
                spans.extend((start, start + len(line), number))
            start, number = start + len(line) + 1, number + 1
    if rest.strip():
        spans.extend((start, start + len(rest), number))
    return spans
