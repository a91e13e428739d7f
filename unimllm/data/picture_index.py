"""The index of all pictures that a run trains on: looked through once, numbered 0..P-1, compared between processes."""

import hashlib
import os
from collections import Counter
from functools import cached_property
from pathlib import Path

import pyarrow as pa

from semhitok.errors import first_line
from semhitok.picture_files import files_below, is_hidden, is_picture, picture_suffixes
from unimllm.data.faults import Fault
from unimllm.data.picture_shards import (
    FolderShard,
    ParquetShard,
    TarShard,
    scan_tar,
)
from unimllm.data.shard_index import ShardIndex, check_same_everywhere, left_alone, nothing_in, remembered
from unimllm.data.splits import check_one_split
from unimllm.distributed import barrier
from unimllm.errors import UserError

PictureShard = FolderShard | TarShard | ParquetShard
PACKED = (".tgz", ".gz", ".bz2", ".xz", ".zst", ".zip")


class PictureIndex(ShardIndex):
    """Pictures 0..P-1 of several shards.

    Args:
        shards: in a fixed order.
        faults: of files that could not be read to their end.
    """

    def read(self, number: int) -> bytes:
        """The bytes of a picture; UnreadablePicture if they cannot be had."""
        shard, i = self._locate(number)
        return shard.read(i)

    @cached_property
    def fingerprint(self) -> str:
        """Twelve hex digits that are the same wherever the same pictures lie."""
        digest = hashlib.sha256()
        for shard in self.shards:
            digest.update(f"{shard.kind} {shard.name}\n".encode(errors="surrogateescape"))
            digest.update(hashlib.sha256(shard.digest()).digest())
        return digest.hexdigest()[:12]

    def __str__(self) -> str:
        return f"{len(self):,} pictures in {self.places()}{left_alone(self.shards)}"


def open_pictures(paths: list[Path], cache: Path | None = None, rank: int = 0, world_size: int = 1) -> PictureIndex:
    """Look through folders, tars and parquet files once; called by every rank alike.

    Args:
        paths: folders of pictures, of tars or of parquet files, or such files themselves.
        cache: folder where the offsets of tars are kept, so that they are looked for once.

    Raises:
        UserError: nothing there, nothing that can be read, or another process sees other pictures.
    """
    found = [shard for path in paths for shard in find_shards(path)]
    tars = [path for path in found if isinstance(path, Path) and path.suffix.lower() == ".tar"]
    if cache and world_size > 1:
        for path in tars[rank::world_size]:
            remembered(path, cache, scan_tar)
        barrier()
    shards: list[PictureShard] = []
    faults: list[Fault] = []
    for place in found:
        shard, fault = (place, None) if isinstance(place, FolderShard) else open_shard(place, cache)
        is_empty = shard is None or not shard.chunk_sizes.sum()
        shards += [] if is_empty else [shard]
        fault = fault or (nothing_in(shard, place, "pictures") if is_empty else None)
        faults += [fault] if fault else []
    if not shards:
        why = f"; {faults[0]}" if faults else ""
        raise UserError(f"no pictures in {', '.join(map(str, paths))}{why}; see --data in --help")
    index = PictureIndex(shards, faults)
    check_same_everywhere(index)
    return index


def find_shards(path: Path) -> list[FolderShard | Path]:
    """What lies at a path: itself if it is a file, else the tars or the parquet files or the pictures below it.

    Raises:
        UserError: no such file, another kind of file, or a folder with several kinds or several splits.
    """
    path = path.expanduser()
    if path.is_dir():
        return _find_below(path)
    if path.suffix.lower() in (".tar", ".parquet") and path.is_file():
        return [path]
    if not path.exists():
        raise UserError(f"no such file or folder: {path}; name the pictures with --data")
    remedy = "unpack it" if path.suffix.lower() in PACKED else "name a folder"
    raise UserError(f"{path} is no folder, .tar or .parquet file; {remedy}")


def _find_below(folder: Path) -> list[FolderShard | Path]:
    suffixes = picture_suffixes()
    names: list[str] = []
    shards: dict[str, list[Path]] = {".tar": [], ".parquet": []}
    others: Counter[str] = Counter()
    for name in files_below(folder):
        suffix = os.path.splitext(name)[1].lower()
        if suffix in shards and not is_hidden(name):
            shards[suffix].append(folder / name)
        elif is_picture(name, suffixes):
            names.append(name)
        else:
            others[suffix] += 1
    kinds = {"pictures": len(names)} | {f"{suffix} files": len(paths) for suffix, paths in shards.items()}
    present = [f"{count:,} {kind}" for kind, count in kinds.items() if count]
    if len(present) > 1:
        raise UserError(f"{folder} holds {' and '.join(present)}; name a folder or files of one kind")
    if not present:
        packed = next((suffix for suffix in PACKED if others[suffix]), None)
        raise UserError(
            f"{folder} holds neither pictures nor .tar nor .parquet files"
            + (f", but {others[packed]:,} {packed} files: unpack them" if packed else "")
        )
    files = [os.path.relpath(path, folder) for paths in shards.values() for path in paths]
    check_one_split(str(folder), [*files, *{f"{os.path.dirname(name)}/" for name in names}])
    return shards[".tar"] or shards[".parquet"] or [FolderShard(folder, names, others)]


def open_shard(path: Path, cache: Path | None) -> tuple[PictureShard | None, Fault | None]:
    """A tar or a parquet file, and what is wrong with it; None in place of one that is damaged altogether."""
    try:
        path.open("rb").close()
        if path.suffix.lower() == ".tar":
            found, damage = remembered(path, cache, scan_tar)
            shard = TarShard(path, **found)
            fault = Fault("damaged tar", str(path), f"{damage}; its first {len(shard.offsets):,} pictures are used")
            return shard, fault if damage else None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        return ParquetShard(path), None
    except UserError:
        raise
    except (OSError, pa.ArrowException) as error:
        return None, Fault("damaged parquet", str(path), f"{first_line(error)}; none of its pictures is used")
