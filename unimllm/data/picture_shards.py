"""Files that hold pictures: a folder of them, a tar (webdataset), a parquet file with their bytes.

Each is looked through once; after that any of its pictures is read by its number. A shard has

    name, kind          for people and for the fingerprint
    chunk_sizes         (C,) pictures in each run of neighbours that are cheap to read together, in order
    key(i), read(i)     where picture i lies, and its bytes; UnreadablePicture if there are none
    digest()            bytes that differ where the pictures differ (contents of a folder's files are not looked at)
"""

import os
import tarfile
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from threading import Lock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from semhitok.picture_files import is_picture, picture_suffixes
from unimllm.errors import UserError
from unimllm.images import UnreadablePicture

TAR_CHUNK = 64  # neighbours in a tar that are read in one stretch
ROW_GROUP_MEMORY = 1 << 30  # bytes of parquet row groups that a process keeps


def equal_chunks(count: int, size: int) -> np.ndarray:
    """`count` pictures in chunks of `size`, the last one smaller: 10 by 4 -> [4, 4, 2]."""
    whole, rest = divmod(count, size)
    return np.array([size] * whole + [rest] * bool(rest), np.int64)


def read_at(path: Path, start: int, size: int) -> bytes:
    """These bytes of a file and no more: buffered readers fetch a whole block of the file system, megabytes on some."""
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        return file.read(size)


class FolderShard:
    """Picture files anywhere below a folder.

    Args:
        names: their paths relative to `root`, sorted.
        others: endings of the other files there and how many have them.
    """

    kind = "folder"
    memory = 0

    def __init__(self, root: Path, names: list[str], others: dict[str, int]):
        self.root, self.name, self.others = root, root.name, others
        self.names = pa.array([os.fsencode(name) for name in names], pa.large_binary())  # compact for many millions
        self.chunk_sizes = np.ones(len(names), np.int64)

    def relative(self, i: int) -> str:
        """The path of picture i below `root`."""
        return os.fsdecode(self.names[i].as_py())

    def key(self, i: int) -> str:
        return os.path.join(self.root, self.relative(i))

    def read(self, i: int) -> bytes:
        try:
            with open(self.key(i), "rb") as file:
                return file.read()
        except OSError as error:
            raise _unreadable(error) from error

    def digest(self) -> bytes:
        return b"\0".join(self.names.to_pylist())


class TarShard:
    """Picture members of a tar, found by the offsets of their headers; a webdataset's other members are left alone.

    Args:
        offsets: (P,) int64 bytes into the file.
        others: (K, 2) endings of the other members and how many have them.
    """

    kind = "tar"
    memory = 0

    def __init__(self, path: Path, offsets: np.ndarray, others: np.ndarray):
        self.path, self.name, self.offsets = path, path.name, offsets
        self.others = {ending: int(count) for ending, count in others}
        self.chunk_sizes = equal_chunks(len(offsets), TAR_CHUNK)

    def key(self, i: int) -> str:
        try:
            with open(self.path, "rb", buffering=0) as file:  # see read_at
                return f"{self.path}:{self._member(file, i)[1].name}"
        except (OSError, tarfile.TarError):
            return f"{self.path}:byte {self.offsets[i]}"

    def read(self, i: int) -> bytes:
        try:
            with open(self.path, "rb", buffering=0) as file:  # see read_at
                tar, member = self._member(file, i)
                return tar.extractfile(member).read()
        except (OSError, tarfile.TarError) as error:
            raise _unreadable(error) from error

    def _member(self, file, i: int) -> tuple[tarfile.TarFile, tarfile.TarInfo]:
        """The tar from picture i on, and that picture's header."""
        file.seek(self.offsets[i])
        tar = tarfile.TarFile(fileobj=file)
        member = tar.next()
        if member is None or not member.isreg():
            raise tarfile.ReadError("no picture begins there any more: the tar has changed")
        return tar, member

    def digest(self) -> bytes:
        return self.offsets.tobytes()


def scan_tar(path: Path) -> tuple[dict[str, np.ndarray], str]:
    """Of a tar's whole members {"offsets": (P,) int64 of pictures, "others": (K, 2) endings of the others and how many
    have them}, and what is wrong with the tar ("" if nothing).

    Raises:
        OSError: it cannot be read at all.
    """
    suffixes, offsets, others = picture_suffixes(), [], Counter()

    def take(member: tarfile.TarInfo) -> None:
        if is_picture(member.name, suffixes):
            offsets.append(member.offset)
        else:
            others[os.path.splitext(member.name)[1].lower()] += 1

    damage = scan_members(path, take)
    found = {"offsets": np.array(offsets, np.int64), "others": np.array([*others.items()], np.str_).reshape(-1, 2)}
    return found, damage


def scan_members(path: Path, take: Callable[[tarfile.TarInfo], None]) -> str:
    """Show each file that a tar holds whole to `take`; returns what is wrong with the tar ("" if nothing).

    Raises:
        OSError: it cannot be read at all.
    """
    with open(path, "rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(0)
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while member := tar.next():
                    tar.members.clear()  # it would keep them all
                    if member.isreg() and member.offset_data + member.size <= end:
                        take(member)
                file.seek(tar.offset)
                tail = file.read(1 << 20)
            if not tail.startswith(bytes(tarfile.BLOCKSIZE)):
                return f"no end mark after byte {tar.offset:,} of {end:,}"
            if tail.strip(b"\0"):
                return f"more follows after its end mark at byte {tar.offset:,}; two archives in one file?"
        except (tarfile.TarError, ValueError, OverflowError) as error:
            return str(error)
    return ""


class ParquetShard:
    """Rows of a parquet file with a column of encoded pictures: bytes, or Hugging Face's {bytes, path}.

    Raises:
        UserError: it has no such column, or several and none is called "image".
        OSError, ValueError: it is damaged.
    """

    kind = "parquet file"

    def __init__(self, path: Path):
        self.path, self.name = path, path.name
        self.num_bytes = path.stat().st_size
        with pq.ParquetFile(path) as file:
            self.column, self.leaf = picture_column(file.schema_arrow, path)
            groups = [file.metadata.row_group(g) for g in range(file.metadata.num_row_groups)]
        self.chunk_sizes = np.array([g.num_rows for g in groups], np.int64)
        self.ends = np.cumsum(self.chunk_sizes)
        self.memory = max((g.total_byte_size for g in groups), default=0)  # bytes of its largest row group

    def key(self, i: int) -> str:
        return f"{self.path}:row {i}"

    def read(self, i: int) -> bytes:
        group = int(np.searchsorted(self.ends, i, side="right"))
        try:
            column = ROW_GROUPS.get(self.path, group, self.column, self.leaf)
        except (OSError, pa.ArrowException) as error:
            raise _unreadable(error) from error
        value = column[i - int(self.ends[group] - self.chunk_sizes[group])].as_py()
        value = value["bytes"] if isinstance(value, dict) else value
        if value is None:
            raise UnreadablePicture("empty", "the row holds no bytes")
        return value

    def digest(self) -> bytes:
        return self.chunk_sizes.tobytes() + f"{self.leaf} {self.num_bytes}".encode()


def picture_column(schema: pa.Schema, path: Path) -> tuple[str, str]:
    """(name, path of the bytes within it) of the column that holds the pictures."""
    found = {}
    for field in schema:
        if _is_bytes(field.type):
            found[field.name] = field.name
        elif pa.types.is_struct(field.type) and any(f.name == "bytes" and _is_bytes(f.type) for f in field.type):
            found[field.name] = f"{field.name}.bytes"
    name = "image" if "image" in found else next(iter(found), "")
    if not found or (len(found) > 1 and name != "image"):
        raise UserError(
            f"{path} has {'several columns' if found else 'no column'} of bytes ({', '.join(found or schema.names)}); "
            f"the pictures must be the only one or be called 'image'"
        )
    return name, found[name]


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


class RowGroupCache:
    """The columns of the row groups read lately: at most `max_bytes`, those of the newest row group at any rate."""

    def __init__(self, max_bytes: int):
        self.max_bytes = max_bytes
        self.lock = Lock()
        self.groups: dict[tuple[Path, int, str], Future] = {}  # the longest unused first

    def get(self, path: Path, group: int, column: str, leaf: str) -> pa.ChunkedArray:
        """The column of one row group; several threads that want the same one read it once."""
        with self.lock:
            waiting = self.groups.pop((path, group, leaf), None)
            future = self.groups[path, group, leaf] = waiting or Future()
        if waiting is None:
            try:
                with pq.ParquetFile(path) as file:
                    future.set_result(file.read_row_group(group, [leaf], use_threads=False).column(column))
            except BaseException as error:  # whoever waits for it must hear of it; the next one tries again
                with self.lock:
                    self.groups.pop((path, group, leaf), None)
                future.set_exception(error)
            self._make_room()
        return future.result()

    def _make_room(self) -> None:
        with self.lock:
            done = {key: f.result().nbytes for key, f in self.groups.items() if f.done()}
            total = sum(done.values())
            lately = list(dict.fromkeys(key[:2] for key in reversed(self.groups)))  # the newest row group first
            while total > self.max_bytes and len(lately) > 1:
                oldest = lately.pop()
                for key in [key for key in done if key[:2] == oldest]:
                    total -= done[key]
                    del self.groups[key]


ROW_GROUPS = RowGroupCache(ROW_GROUP_MEMORY)  # one for all shards of a process: memory is the process's


def _unreadable(error: Exception) -> UnreadablePicture:
    reason = "missing" if isinstance(error, FileNotFoundError) else "not readable"
    return UnreadablePicture(reason, getattr(error, "strerror", None) or str(error))
