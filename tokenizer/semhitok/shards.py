"""Packed binary shards of codes: what a tokenizer makes of many pictures, at 3 bytes a position, memory-mapped.

A folder holds `codes-000000.bin`, `codes-000001.bin`, ..., or folders of such, `part-0-of-8`, ... A shard is one file:

    b"SEMHITOK"   uint32 length of the header   header (JSON)   rows   ends of the keys (uint64 each)   keys (UTF-8)

A row is one picture: its N semantic codes, then its N pixel codes. The header holds the fingerprint of the tokenizer
that made the codes, K, m, N, the picture size and the widths of the numbers, all little-endian: uint16 semantic codes
(uint32 where K > 65,536) and uint8 pixel codes (uint16 where m > 256). A key is the name of a picture.

Shards are written beside and renamed, so whoever looks sees whole ones only. Numpy alone is needed to read them.
"""

import json
import os
import re
import struct
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np

from semhitok.errors import UserError
from semhitok.key_index import KeyIndex, hash_keys

MAGIC = b"SEMHITOK"
FORMAT_VERSION = 1
PREFIX = struct.Struct("<8sI")  # magic, length of the header
MAX_HEADER = 2**16  # bytes
ALIGNMENT = 64  # bytes; the rows begin at a multiple of it
SHARD_NAME = re.compile(r"codes-(\d{6,})\.bin$")


@dataclass(frozen=True)
class CodeLayout:
    """What a shard says of the tokenizer that made it.

    Attributes:
        fingerprint: see `fingerprint.fingerprint`.
        num_semantic_codes: K, at most 2**32.
        num_pixel_codes: m, at most 65,536.
        num_positions: N, codes per picture.
        image_size: width and height of a picture in pixels.
        pad_to_square: whether pictures were filled up to a square, not cut to one; headers name it where they were.
    """

    fingerprint: str
    num_semantic_codes: int
    num_pixel_codes: int
    num_positions: int
    image_size: int
    pad_to_square: bool = False

    def __post_init__(self):
        limits = {"num_semantic_codes": 2**32, "num_pixel_codes": 2**16, "num_positions": 2**24, "image_size": 2**24}
        for name, limit in limits.items():
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= limit:
                raise ValueError(f"{name} is {value!r}; shards hold whole numbers from 1 to {limit:,}")
        if type(self.fingerprint) is not str:
            raise ValueError(f"the fingerprint is {self.fingerprint!r}, no text")

    @property
    def row_dtype(self) -> np.dtype:
        """One picture: fields `semantic` (N,) and `pixel` (N,), nothing between them."""
        semantic = "<u2" if self.num_semantic_codes <= 2**16 else "<u4"
        pixel = "u1" if self.num_pixel_codes <= 2**8 else "<u2"
        return np.dtype([("semantic", semantic, (self.num_positions,)), ("pixel", pixel, (self.num_positions,))])

    def header(self) -> dict:
        """What the header of a shard says of the tokenizer, the widths of the numbers included."""
        widths = {f"{name}_dtype": self.row_dtype[name].base.str for name in ("semantic", "pixel")}
        told = asdict(self) | widths
        return told if self.pad_to_square else {name: value for name, value in told.items() if name != "pad_to_square"}

    def pack(self, codes: np.ndarray) -> np.ndarray:
        """(n, N, 2) integers -> (n,) rows; ValueError for another shape, or codes outside 0..K-1 and 0..m-1."""
        codes = np.asarray(codes)
        if codes.shape[1:] != (self.num_positions, 2) or codes.dtype.kind not in "iu":
            raise ValueError(f"codes are {codes.shape} {codes.dtype}, expected (n, {self.num_positions}, 2) integers")
        self._check_range(codes)
        rows = np.empty(len(codes), self.row_dtype)
        rows["semantic"], rows["pixel"] = codes[..., 0], codes[..., 1]
        return rows

    def unpack(self, rows: np.ndarray) -> np.ndarray:
        """(n,) rows -> (n, N, 2) int64, the inverse of `pack`; ValueError for codes outside 0..K-1 and 0..m-1."""
        codes = np.stack([rows["semantic"].astype(np.int64), rows["pixel"].astype(np.int64)], -1)
        self._check_range(codes)
        return codes

    def _check_range(self, codes: np.ndarray) -> None:
        sizes = (self.num_semantic_codes, self.num_pixel_codes)
        if codes.size and (codes.min() < 0 or (codes >= sizes).any()):
            low, high = codes.min((0, 1)).tolist(), codes.max((0, 1)).tolist()
            raise ValueError(f"codes from {low} to {high} lie outside codebooks of {sizes[0]:,} x {sizes[1]:,}")

    def __str__(self) -> str:
        return (
            f"tokenizer {self.fingerprint} ({self.num_semantic_codes:,} x {self.num_pixel_codes:,} codes, "
            f"{self.num_positions} positions, {self.image_size} pixels"
            + (", padded to squares)" if self.pad_to_square else ")")
        )


class CodeShard:
    """One shard for reading; the rows stay on the disk until they are asked for.

    Raises:
        UserError: no shard, of another format version, damaged, or cut off.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            with path.open("rb") as file:
                header, start = _read_header(file)
                size = os.fstat(file.fileno()).st_size
            told = {field.name: header[field.name] for field in fields(CodeLayout) if field.default is MISSING}
            self.layout = CodeLayout(**told, pad_to_square=header.get("pad_to_square", False) is True)
            num_rows, key_bytes = header["num_rows"], header["key_bytes"]
            if not all(type(count) is int and count > 0 for count in (num_rows, key_bytes)):
                raise ValueError(f"its header speaks of {num_rows!r} pictures and {key_bytes!r} bytes of keys")
            if not self.layout.header().items() <= header.items():
                raise ValueError(f"its header does not speak of {self.layout.header()}")
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}") from error
        except KeyError as error:
            raise UserError(f"{path} is a damaged shard: its header lacks {error}") from error
        except (TypeError, ValueError) as error:
            raise UserError(f"{path} is no shard that can be read: {error}") from error
        dtype = self.layout.row_dtype
        keys_start = start + num_rows * dtype.itemsize
        expected = keys_start + 8 * num_rows + key_bytes
        if size != expected:
            what = "is cut off" if size < expected else "is too long"
            raise UserError(
                f"{path} {what}: it has {size:,} bytes, its header speaks of {expected:,}; delete it and encode again"
            )
        whole = np.memmap(path, np.uint8, "r")  # once, since each map keeps the file open
        self.rows = whole[start:keys_start].view(dtype)
        ends, text = np.split(np.asarray(whole[keys_start:]), [8 * num_rows])  # plain arrays, whose slices are cheaper
        self._key_ends, self._key_text = ends.view("<u8"), text

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def keys(self) -> list[str]:
        """The name of each row."""
        self._check_key_ends()
        text = self._key_text.tobytes()
        keys = [
            text[start:end].decode("utf-8", "surrogateescape") for start, end in pairwise([0, *self._key_ends.tolist()])
        ]
        try:
            for key in keys:
                check_key(key)
        except ValueError as error:
            raise UserError(f"{self.path} is a damaged shard: {error}") from error
        return keys

    def key(self, row: int) -> bytes:
        """The name of one row in UTF-8; whatever a damaged shard has there."""
        start, end = (int(self._key_ends[row - 1]) if row else 0), int(self._key_ends[row])
        return self._key_text[start:end].tobytes()

    def key_hashes(self) -> np.ndarray:
        """(rows,) uint64, see `key_index.hash_keys`."""
        self._check_key_ends()
        return hash_keys(self._key_text, np.diff(self._key_ends.astype(np.int64), prepend=0))

    def _check_key_ends(self) -> None:
        ends = self._key_ends.astype(np.int64)
        if ends[-1] != len(self._key_text) or np.diff(ends, prepend=0).min() <= 0:
            raise UserError(f"{self.path} is a damaged shard: the ends of its keys are wrong")

    def codes(self, rows: Sequence[int] | np.ndarray | slice) -> np.ndarray:
        """Some rows, (n, N, 2) int64: semantic and pixel code of each position."""
        try:
            return self.layout.unpack(self.rows[rows])
        except ValueError as error:
            raise UserError(f"{self.path} is a damaged shard: {error}") from error

    def check_tokenizer(self, layout: CodeLayout) -> None:
        """UserError unless the tokenizer that `layout` describes made this shard."""
        if self.layout != layout:
            raise UserError(
                f"{self.path} was made by {self.layout}, which is not {layout}: "
                f"take the tokenizer that made it, or encode the pictures again into another folder"
                + (" (--pad-to-square)" if layout.pad_to_square and not self.layout.pad_to_square else "")
            )


class CodeShards:
    """The shards of a folder as one list of pictures, by row or by key.

    Args:
        layout: of the tokenizer that the codes are for; None takes whatever made the first shard.

    Raises:
        UserError: no shard there, a bad one, or one that another tokenizer made.
    """

    def __init__(self, folder: str | Path, layout: CodeLayout | None = None):
        self.folder = Path(folder)
        self.shards = [CodeShard(path) for path in shard_paths(self.folder)]
        if not self.shards:
            raise UserError(f"no codes in {folder}: it holds no codes-000000.bin; make them with encode")
        self.layout = layout or self.shards[0].layout
        self.check_tokenizer(self.layout)
        self._starts = np.cumsum([0, *map(len, self.shards)])  # (shards + 1,)

    def check_tokenizer(self, layout: CodeLayout) -> None:
        """UserError unless the tokenizer that `layout` describes made every shard."""
        for shard in self.shards:
            shard.check_tokenizer(layout)

    def __len__(self) -> int:
        return int(self._starts[-1])

    @cached_property
    def keys(self) -> list[str]:
        """The name of each row; UserError if two are the same."""
        keys = [key for shard in self.shards for key in shard.keys]
        self._refuse_repeated(len(keys) - len(set(keys)))
        return keys

    def _refuse_repeated(self, num_repeated: int) -> None:
        if num_repeated:
            raise UserError(f"{self.folder} holds {num_repeated} keys twice; encode into one folder once")

    def key(self, row: int) -> bytes:
        """The name of one row in UTF-8, without reading the others."""
        shard = int(np.searchsorted(self._starts, row, "right")) - 1
        return self.shards[shard].key(row - int(self._starts[shard]))

    @cached_property
    def _index(self) -> KeyIndex:
        index = KeyIndex(np.concatenate([shard.key_hashes() for shard in self.shards]), self.key)
        self._refuse_repeated(index.num_repeated())
        return index

    def row(self, key: str) -> int:
        """The row of a key; KeyError if there is none, UserError if the folder holds a key twice."""
        try:
            row = self._index.find(key.encode("utf-8", "surrogateescape"))
        except UnicodeEncodeError:  # half a surrogate pair: no file system and no shard has such a name
            row = None
        if row is None:
            raise KeyError(key)
        return row

    def codes(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Some pictures, in the order asked for.

        Args:
            rows: (n,) in 0..len-1.

        Returns:
            (n, N, 2) int64, semantic and pixel code of each position.

        Raises:
            IndexError: there is no such row.
        """
        rows = np.asarray(rows, np.int64).reshape(-1)
        if rows.size and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"rows {rows.min()}..{rows.max()} of {len(self)} pictures in {self.folder}")
        codes = np.empty((len(rows), self.layout.num_positions, 2), np.int64)
        shard_of = np.searchsorted(self._starts, rows, "right") - 1
        for number in np.unique(shard_of):
            chosen = shard_of == number
            codes[chosen] = self.shards[number].codes(rows[chosen] - self._starts[number])
        return codes

    def __getitem__(self, item: int | str) -> np.ndarray:
        """(N, 2) int64 of one picture, by row or by key."""
        return self.codes([self.row(item) if isinstance(item, str) else item])[0]


def shard_paths(folder: Path) -> list[Path]:
    """The shards of a folder and of the parts in it, each in the order in which they were written; none where there is
    no such folder.
    """
    found = [*folder.glob("codes-*.bin"), *folder.glob("part-*-of-*/codes-*.bin")]
    found = [path for path in found if SHARD_NAME.match(path.name)]
    return sorted(found, key=lambda path: (path.parent, shard_number(path)))


def shard_number(path: Path) -> int:
    """The number in the name of a shard."""
    return int(SHARD_NAME.match(path.name)[1])


def check_key(key: str) -> None:
    """ValueError unless `key` is a relative path that stays below its folder: pictures are written under their keys."""
    if "\0" in key or not {"", ".", ".."}.isdisjoint(key.split("/")):
        raise ValueError(f"the key {key!r} is no relative path of a picture")


def header_bytes(layout: CodeLayout, num_rows: int, key_bytes: int) -> bytes:
    """Everything before the rows."""
    header = {"format_version": FORMAT_VERSION, **layout.header(), "num_rows": num_rows, "key_bytes": key_bytes}
    text = json.dumps(header).encode()
    text += b" " * (-(PREFIX.size + len(text)) % ALIGNMENT)
    return PREFIX.pack(MAGIC, len(text)) + text


def _read_header(file: BinaryIO) -> tuple[dict, int]:
    """The header of an open shard, and where its rows begin; ValueError if there is none, or of another version."""
    prefix = file.read(PREFIX.size)
    if len(prefix) < PREFIX.size:
        raise ValueError(f"it is cut off: it has {len(prefix)} bytes, a header alone more")
    magic, length = PREFIX.unpack(prefix)
    if magic != MAGIC or length > MAX_HEADER:
        raise ValueError(f"it does not begin with {MAGIC.decode()} and the length of a header")
    text = file.read(length)
    if len(text) < length:
        raise ValueError(f"it is cut off after {len(text):,} of the {length:,} bytes of its header")
    header = json.loads(text)
    if header["format_version"] != FORMAT_VERSION:
        raise ValueError(f"its format version is {header['format_version']}, this program reads {FORMAT_VERSION}")
    return header, PREFIX.size + length
