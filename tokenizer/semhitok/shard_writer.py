"""Writing shards of codes: whole ones only, one writer at a time; a later one goes on after an earlier one.

Several may write side by side, each its own `Part` of the pictures.
"""

import contextlib
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from semhitok.errors import UserError
from semhitok.images import write_atomically
from semhitok.shards import CodeLayout, CodeShards, check_key, header_bytes, shard_number, shard_paths

try:
    import fcntl
except ImportError:  # Windows, where two programs that write into one folder are not noticed
    fcntl = None

ROWS_PER_SHARD = 8192


@dataclass(frozen=True)
class Part:
    """One of `count` parts of all pictures, for one of as many programs; every key is in exactly one.

    Attributes:
        number: 0..count-1.
    """

    number: int = 0
    count: int = 1

    def __contains__(self, key: str) -> bool:
        return zlib.crc32(key.encode("utf-8", "surrogatepass")) % self.count == self.number

    def folder(self, out: Path) -> Path:
        """Where the shards of this part are written, `out` itself where it is everything."""
        return out / f"part-{self.number}-of-{self.count}" if self.count > 1 else out


class ShardWriter:
    """Adds pictures to the shards of a folder; a context manager.

    A shard is written as soon as it is full, the last one at the end, also after an error or Ctrl-C: only a kill loses
    something, namely the pictures since the last shard. A later writer goes on with new shards.

    Args:
        overwrite: delete the shards that lie there first.
        rows_per_shard: pictures after which a shard is written.
        part: which pictures come; those of several have a folder each below `folder`, and know what all have written.

    Raises:
        UserError: on entering: the folder holds a shard of another tokenizer or a bad one, cannot be written, or
            another program writes into it.
    """

    def __init__(
        self, folder: str | Path, layout: CodeLayout, overwrite: bool = False, rows_per_shard: int = ROWS_PER_SHARD,
        part: Part = Part(),
    ):  # fmt: skip
        self.top, self.layout, self.overwrite = Path(folder), layout, overwrite
        self.rows_per_shard, self.part = rows_per_shard, part
        self.folder = part.folder(self.top)
        self._rows: list[np.ndarray] = []
        self._new_keys: list[str] = []

    def __enter__(self) -> "ShardWriter":
        with contextlib.ExitStack() as stack:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                if self.folder != self.top:
                    stack.enter_context(_locked(self.top, shared=True))  # with the other parts
                stack.enter_context(_locked(self.folder))
                paths = shard_paths(self.top)
                while self.overwrite and paths:
                    paths.pop().unlink()
            except OSError as error:
                raise UserError(f"cannot write into {self.folder}: {error.strerror or error}") from error
            self._next = 1 + max((shard_number(path) for path in paths if path.parent == self.folder), default=-1)
            there = CodeShards(self.top, self.layout).keys if paths else []
            self.keys = {key for key in there if key in self.part}
            self._open = stack.pop_all()
        return self

    def __exit__(self, *_) -> None:
        with self._open:
            self._write()

    def __contains__(self, key: str) -> bool:
        return key in self.keys

    def add(self, keys: Sequence[str], codes: np.ndarray) -> None:
        """Add some pictures.

        Args:
            keys: (n,) names, unique in the folder.
            codes: (n, N, 2) integers, semantic and pixel code of each position.

        Raises:
            ValueError: a key that is there already or is no relative path, or codes that do not fit the layout.
        """
        rows = self.layout.pack(codes)
        if len(rows) != len(keys):
            raise ValueError(f"{len(keys)} keys for {len(rows)} pictures")
        for key in keys:
            check_key(key)
        new = set(keys)
        if len(new) != len(keys) or new & self.keys:
            raise ValueError(f"a key comes twice: {sorted(new & self.keys or keys)[0]!r}")
        self.keys |= new
        self._new_keys += keys
        self._rows.append(rows)
        if len(self._new_keys) >= self.rows_per_shard:
            self._write()

    def _write(self) -> None:
        """Write what was added since the last shard."""
        keys, self._new_keys = [key.encode("utf-8", "surrogateescape") for key in self._new_keys], []
        parts, self._rows = self._rows, []
        if not keys:
            return
        ends = np.cumsum([len(key) for key in keys], dtype="<u8")

        def fill(file: BinaryIO) -> None:
            file.write(header_bytes(self.layout, len(keys), int(ends[-1])))
            for rows in parts:
                file.write(rows.tobytes())
            file.write(ends.tobytes() + b"".join(keys))

        write_atomically(self.folder / f"codes-{self._next:06d}.bin", fill)
        self._next += 1


@contextlib.contextmanager
def _locked(folder: Path, shared: bool = False) -> Iterator[None]:
    """Keep other writers out of a folder (shared: those that do not share it); they would take the same names.

    A killed program's lock dies with it.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UserError(f"another program writes codes into {folder}; wait for it or choose another folder") from None
    except OSError:
        pass  # a network file system without locks
    try:
        yield
    finally:
        os.close(descriptor)
