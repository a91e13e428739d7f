"""Samples from a JSON file: an array as LLaVA ships it, or one object on each line.

The file is looked through once for where its samples begin and end; after that any of them is read by its number, so a
file of gigabytes is never held in memory.
"""

import json
import re
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

BLOCK = 1 << 26  # bytes that are searched for line ends at a time
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
            spans, damage = scan_array(file.read())
        else:
            spans, damage = scan_lines(file), ""
            # If the whole file is one object, neither its first line nor its last is one, or it has one line.
            ends = [(first + start, end - start) for start, end, _ in (spans[0], spans[-1])]
            may_be_one = len(spans) == 1 or not any(object_at(file, *line) is not None for line in ends)
            whole = object_at(file, first, -1) if may_be_one else None
            if whole and all(isinstance(value, dict) and "annotation" in value for value in whole.values()):
                spans, damage = [], LIST_OF_FILES
            elif whole is not None and len(spans) > 1:
                spans, damage = [], "one object; an array of samples or one a line is wanted"
    spans = np.array(spans, np.int64).reshape(-1, 3)
    spans[:, :2] += first
    return {"spans": spans}, damage


def scan_array(data: bytes) -> tuple[list[tuple[int, int, int]], str]:
    """(first byte, byte behind, line) of each element of a JSON array, and what ends it too early."""
    text = data.decode("latin-1")  # a character for each byte; what JSON is made of is ASCII
    decode = json.JSONDecoder(strict=False, parse_int=str).raw_decode  # an endless number spoils its own sample alone
    spans: list[tuple[int, int, int]] = []
    line, counted = 1, 0
    at = SPACE.match(text, text.index("[") + 1).end()
    try:
        while text[at : at + 1] != "]":
            line, counted = line + data.count(b"\n", counted, at), at
            end = decode(text, at)[1]
            spans.append((at, end, line))
            at = SPACE.match(text, end).end()
            if text[at : at + 1] == ",":
                at = SPACE.match(text, at + 1).end()
            elif text[at : at + 1] != "]":
                raise json.JSONDecodeError("the array goes on without a comma or ends without ]", text, at)
    except json.JSONDecodeError as error:
        return spans, f"broken JSON in line {error.lineno}: {json_trouble(error)}"
    except RecursionError as error:
        return spans, f"broken JSON in line {line}: {json_trouble(error)}"
    return spans, "more follows after the array" if text[at + 1 :].strip() else ""


def object_at(file, start: int, size: int) -> dict | None:
    """The JSON object that `size` bytes of a file, all the rest with -1, are; None: they are none."""
    file.seek(start)
    try:
        found = json.loads(file.read(size))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def scan_lines(file) -> list[tuple[int, int, int]]:
    """(first byte, byte behind, line) of each line that is not blank."""
    spans, start, number, rest = [], 0, 1, b""
    for block in iter(partial(file.read, BLOCK), b""):
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            if line.strip():
                spans.append((start, start + len(line), number))
            start, number = start + len(line) + 1, number + 1
    if rest.strip():
        spans.append((start, start + len(rest), number))
    return spans
