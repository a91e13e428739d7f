"""What the indices of pictures and of samples share: things numbered through shards that lie one after the other."""

import hashlib
import os
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch.distributed as dist

from unimllm.data.faults import Fault
from unimllm.data.order import NUM_LANES
from unimllm.data.picture_shards import ROW_GROUP_MEMORY
from unimllm.errors import UserError
from unimllm.images import write_atomically

Scan = Callable[[Path], tuple[dict[str, np.ndarray], str]]
"""A file -> arrays by name of what lies in it, and what is wrong with it."""


class ShardIndex:
    """Things 0..P-1 of several shards.

    Args:
        shards: in a fixed order; each has `kind`, `chunk_sizes`, `memory` and `key(i)` (see `picture_shards`).
        faults: of files that could not be read to their end.
    """

    def __init__(self, shards: Sequence, faults: list[Fault]):
        self.shards, self.faults = shards, faults
        self.ends = np.cumsum([int(shard.chunk_sizes.sum()) for shard in shards])
        self.chunk_sizes = np.concatenate([np.zeros(0, np.int64), *(shard.chunk_sizes for shard in shards)])  # (C,)

    def __len__(self) -> int:
        return int(self.ends[-1]) if self.shards else 0

    def key(self, number: int) -> str:
        """Where a thing lies: a file and its line, its row or its member."""
        shard, i = self._locate(number)
        return shard.key(i)

    def _locate(self, number: int) -> tuple:
        """The shard that holds a thing, and its number there."""
        shard = int(np.searchsorted(self.ends, number, side="right"))
        return self.shards[shard], number - (int(self.ends[shard - 1]) if shard else 0)

    @property
    def memory(self) -> int:
        """Bytes of the largest row group, 0 where everything can be read alone."""
        return max(shard.memory for shard in self.shards)

    def num_lanes(self, num_sharing: int = 1) -> int:
        """Chunks that are read side by side: fewer if row groups are so large that memory would not hold them.

        It holds two for each lane, since what is shuffled together reaches from one to the next. With room for one, a
        row group would be read some seventy times.

        Args:
            num_sharing: indices with row groups that share the memory.
        """
        room = ROW_GROUP_MEMORY // (2 * num_sharing)
        return max(1, min(NUM_LANES, room // self.memory)) if self.memory else NUM_LANES

    def places(self) -> str:
        """How many shards of which kind."""
        kinds = Counter(shard.kind for shard in self.shards)
        return " and ".join(f"{count:,} {kind}{'' if count == 1 else 's'}" for kind, count in kinds.items())


def left_alone(shards: Iterable) -> str:
    """What lies in shards beside what is read, ` (other files left alone: 3 .heic)`; "" if nothing."""
    others = sum((Counter(getattr(shard, "others", {})) for shard in shards), Counter())
    told = ", ".join(f"{count:,} {suffix or 'without ending'}" for suffix, count in others.most_common(5))
    return f" (other files left alone: {told})" if told else ""


def nothing_in(shard, path: Path, what: str) -> Fault:
    """The fault of a file that is not damaged and yet gives no `what`."""
    return Fault(f"no {what}", str(path), f"nothing of it is used{left_alone([shard])}")


def remembered(path: Path, cache: Path | None, scan: Scan) -> tuple[dict[str, np.ndarray], str]:
    """What `scan` finds in a file, kept in `cache` for as long as the file's size and time of change stay."""
    if cache is None:
        return scan(path)
    status = path.stat()
    # The number changes with what a scan finds.
    words = f"{scan.__name__} 4 {path.resolve()} {status.st_size} {status.st_mtime_ns}"
    file = cache / f"{hashlib.sha256(words.encode(errors='surrogateescape')).hexdigest()[:24]}.npz"
    if file.exists():
        with np.load(file) as kept:
            return {name: kept[name] for name in kept.files if name != "damage"}, str(kept["damage"])
    found, damage = scan(path)
    keep(file, lambda out: np.savez(out, **found, damage=np.array(damage)))
    return found, damage


def keep(file: Path, write: Callable[[BinaryIO], None]) -> None:
    """Write a file that spares a later look; where none can be written, that is told once, and there is none."""
    try:
        write_atomically(file, write)
    except UserError as error:
        _tell_unkept(file.parent, getattr(error.__cause__, "strerror", None) or str(error))


@lru_cache
def _tell_unkept(folder: Path, why: str) -> None:
    if os.environ.get("LOCAL_RANK", "0") == "0":  # once on each machine
        print(f"what was found in the data cannot be kept in {folder} ({why}): the next start looks again", flush=True)


def check_same_everywhere(index, what: str = "pictures") -> None:
    """See that every process of the run has the same data; called by all of them.

    Args:
        index: has a length and a fingerprint.
        what: its length counts.

    Raises:
        UserError: they differ; on every rank.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    seen: list = [None] * dist.get_world_size()
    dist.all_gather_object(seen, (socket.gethostname(), len(index), index.fingerprint))
    compare_indices(seen, what)


def compare_indices(seen: list[tuple[str, int, str]], what: str = "pictures") -> None:
    """UserError unless all (host, how many, fingerprint), one for each rank, agree in the last."""
    for rank, (host, count, fingerprint) in enumerate(seen):
        if fingerprint != seen[0][2]:
            raise UserError(
                f"the processes see different {what}: {seen[0][1]:,} ({seen[0][2]}) for rank 0 on {seen[0][0]}, "
                f"{count:,} ({fingerprint}) for rank {rank} on {host}; give every machine the same files"
            )
