"""`--data FILE_OR_FOLDER_OR_NAME[:weight]`: what lies there, looked through once, its samples numbered 0..S-1.

A shard (JSON file, tar, parquet file, dataset) has, as in `picture_shards`,

    name, kind          for people and for the fingerprint
    path                the file (a dataset has `files`, several), by which validation data is told from training data
    memory              bytes that reading a sample keeps in memory, as a parquet file's largest row group; 0: none
    chunk_sizes         (C,) samples in each run of neighbours that are cheap to read together, in order
    key(i), read(i)     where sample i lies, and the sample; BadSample if it is none
    digest()            bytes that differ where the samples lie elsewhere in the file

and may have `layout` (of `samples.LAYOUTS`, for the fingerprint) and `others` (ending -> files in it, not read).
Files of another kind: a line in FORMATS and one in SHARDS (docs/extending.md).
"""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa

from semhitok.errors import first_line
from semhitok.picture_files import files_below, is_hidden
from unimllm.data.dataset_samples import ABOUT, SAVED, DatasetSamples, is_saved_dataset, may_be_dataset, open_dataset
from unimllm.data.faults import Fault
from unimllm.data.json_samples import JsonSamples, scan_json
from unimllm.data.parquet_samples import ParquetSamples
from unimllm.data.samples import BadSample, Sample
from unimllm.data.shard_index import Scan, ShardIndex, check_same_everywhere, left_alone, nothing_in, remembered
from unimllm.data.splits import check_one_split, told_split
from unimllm.data.tar_samples import TarSamples, scan_tar_samples
from unimllm.distributed import barrier
from unimllm.errors import NothingUsable, UserError

SampleShard = JsonSamples | TarSamples | ParquetSamples | DatasetSamples

FORMATS = {
    "llava": ("JSON", (".json", ".jsonl", ".ndjson")),
    "captions": ("JSON", (".json", ".jsonl", ".ndjson")),
    "webdataset": ("tar", (".tar",)),
    "parquet": ("parquet", (".parquet",)),
    "datasets": ("dataset", ()),
}
"""--format -> (kind of file, endings that such files have below a folder)."""
ENDINGS = {ending: kind for kind, endings in FORMATS.values() for ending in endings}
REMEDIES = dict.fromkeys((".csv", ".tsv"), "convert it to JSON lines or parquet")
REMEDIES |= {".arrow": "name the folder that save_to_disk wrote it into"}
COMPRESSED = (".gz", ".zst", ".bz2", ".xz")


@dataclass(frozen=True)
class DataOption:
    """One word behind --data.

    Attributes:
        place: file, folder or name of a dataset.
        weight: how many times as often as in a source of weight 1 each sample is seen.
    """

    place: str
    weight: float


def parse_data(word: str) -> DataOption:
    """`place[:weight]`; a file whose own name ends in `:2` is taken as it is.

    Raises:
        UserError: a weight that is no number above 0.
    """
    place, colon, text = word.rpartition(":")
    if not colon or os.path.exists(word):
        return DataOption(word, 1.0)
    try:
        weight = float(text)
    except ValueError:
        return DataOption(word, 1.0)
    if not 0 < weight < float("inf"):
        raise UserError(f"--data {word}: the weight {text} is not above 0; leave the source out instead")
    return DataOption(place, weight)


class SampleIndex(ShardIndex):
    """The samples of one source.

    Args:
        name: what the user called it.
        shards: in a fixed order.
        faults: of files of which not everything is used.
    """

    def __init__(self, name: str, shards: list[SampleShard], faults: list[Fault]):
        super().__init__(shards, faults)
        self.name = name

    def read(self, number: int) -> Sample:
        """A sample; BadSample if it is none."""
        shard, i = self._locate(number)
        try:
            return shard.read(i)
        except (OSError, pa.ArrowException) as error:
            raise BadSample("not readable", getattr(error, "strerror", None) or first_line(error)) from error

    @cached_property
    def fingerprint(self) -> str:
        """Twelve hex digits that are the same wherever the same samples lie."""
        digest = hashlib.sha256()
        for shard in self.shards:
            digest.update(f"{shard.kind} {os.path.basename(shard.name)} {getattr(shard, 'layout', '')}\n".encode())
            digest.update(hashlib.sha256(shard.digest()).digest())
        return digest.hexdigest()[:12]

    def files(self) -> list[Path]:
        """The files that hold the samples."""
        return [f for s in self.shards for f in (s.files if isinstance(s, DatasetSamples) else [s.path])]

    def __str__(self) -> str:
        told = f"{self.name}: {len(self):,} samples in {self.places()}{left_alone(self.shards)}"
        folder = Path(self.name).expanduser()
        datasets = any(isinstance(shard, DatasetSamples) for shard in self.shards)
        return told + ("" if datasets else told_split(os.path.relpath(path, folder) for path in self.files()))


def open_samples(
    place: str, data_format: str | None, image_root: Path | None, cache: Path | None = None, rank: int = 0,
    world_size: int = 1,
) -> SampleIndex:  # fmt: skip
    """Look through what lies at a place; called by every rank alike.

    Args:
        place: a file, a folder of files of one kind, a folder of `save_to_disk`, or a dataset of the hub as OWNER/NAME
            or OWNER/NAME/CONFIG.
        data_format: of FORMATS; None: recognised.
        image_root: folder that paths of pictures are relative to; None: the folder of the file that names them.
        cache: folder where positions in JSON files and tars are kept, so that they are looked for once.

    Raises:
        NothingUsable: no sample lies there; on every rank.
        UserError: no such place, or another process sees something else.
    """
    layout = data_format if data_format in ("llava", "captions") else None
    paths = find_files(place, data_format)
    if paths is None:
        shards, faults = [open_dataset(place, layout, image_root or Path(place))], []
    else:
        if cache and world_size > 1:
            for path, kind in paths[rank::world_size]:
                if kind in SHARDS and SHARDS[kind][0]:
                    remembered(path, cache, SHARDS[kind][0])
            barrier()
        opened = [open_file(path, kind, layout, image_root or path.parent, cache) for path, kind in paths]
        shards, faults = [], []
        for (path, _), (shard, found) in zip(paths, opened, strict=True):
            is_empty = shard is None or not shard.chunk_sizes.sum()
            shards += [] if is_empty else [shard]
            faults += found or ([nothing_in(shard, path, "samples")] if is_empty else [])
    index = SampleIndex(place, shards, faults)
    check_same_everywhere(index, "samples")
    if not shards:
        raise NothingUsable(f"no samples in {place}" + (f"; {faults[0]}" if faults else ""))
    return index


def find_files(place: str, data_format: str | None, option: str = "--data") -> list[tuple[Path, str]] | None:
    """The files of a source, which `option` names, and the kind of each; None: a dataset of Hugging Face.

    Raises:
        UserError: no such place, another kind of file, or a folder with several kinds or several splits.
    """
    path = Path(place).expanduser()
    wanted = FORMATS[data_format][0] if data_format else None
    if path.is_dir():
        if wanted == "dataset" or (wanted is None and is_saved_dataset(path)):
            return None
        return _find_below(path, data_format, option)
    if path.exists():
        if inside(path.name):
            raise UserError(f"{option} {place} is compressed: unpack it first")
        kind = wanted or ENDINGS.get(path.suffix.lower())
        if kind is None or kind == "dataset":
            remedy = REMEDIES.get(path.suffix.lower(), "say what it is with --format")
            raise UserError(f"{option} {place} is no .json, .jsonl, .ndjson, .tar or .parquet file; {remedy}")
        return [(path, kind)]
    if wanted in (None, "dataset") and may_be_dataset(place) and path.suffix.lower() not in ENDINGS:
        return None
    pattern = "; a pattern is for the shell: leave it unquoted, or name the folder" if set(place) & set("*?{[") else ""
    raise UserError(f"{option} {place}: no such file or folder{pattern}")


def check_one_root(files: list[Path]) -> None:
    """UserError where paths of pictures begin in several folders: the same path, and so one key, would name several.

    Args:
        files: JSON; the paths in them begin beside them.
    """
    folders = sorted({os.path.realpath(path.parent) for path in files})
    if len(folders) > 1:
        raise UserError(
            f"codes go by paths of pictures, which begin in {folders[0]} and in {folders[1]} here, beside the JSON "
            "files; name the one folder above all pictures with --image-root"
        )


def _find_below(folder: Path, data_format: str | None, option: str) -> list[tuple[Path, str]]:
    endings = FORMATS[data_format][1] if data_format else ENDINGS
    kinds: dict[str, list[Path]] = {}
    found, packed, saved = [], [], []
    for name in files_below(folder):
        ending = os.path.splitext(name)[1].lower()
        if is_hidden(name):
            continue
        if os.path.basename(name) in ABOUT:
            saved += [os.path.dirname(name)] if os.path.basename(name) in SAVED else []
        elif ending in endings:
            kinds.setdefault(ENDINGS[ending], []).append(folder / name)
            found.append(name)
        elif inside(name) in endings:
            packed.append((folder / name, "compressed"))
    if len(kinds) > 1:
        present = " and ".join(f"{len(paths):,} {kind} files" for kind, paths in kinds.items())
        raise UserError(f"{option} {folder} holds {present}; say with --format which of them, or name the files")
    if not kinds and not packed:
        if saved:
            told = f"folders that save_to_disk wrote; name one of them, such as {folder / min(saved)}"
            raise UserError(f"{option} {folder} holds {told}")
        raise UserError(f"{option} {folder} holds no {', '.join(endings)} files; see --data in --help")
    check_one_split(f"{option} {folder}", found)
    return [(path, kind) for kind, paths in kinds.items() for path in paths] + packed


def inside(name: str) -> str:
    """The ending, of ENDINGS, of the file that a compressed one holds: a.jsonl.gz -> .jsonl; "" if it is none."""
    stem, ending = os.path.splitext(name.lower())
    held = ".tar" if ending == ".tgz" else os.path.splitext(stem)[1] if ending in COMPRESSED else ""
    return held if held in ENDINGS else ""


SHARDS: dict[str, tuple[Scan | None, Callable[..., SampleShard]]] = {
    "JSON": (scan_json, JsonSamples),
    "tar": (scan_tar_samples, TarSamples),
    "parquet": (None, ParquetSamples),
}
"""Kind of file, as FORMATS has it -> what looks through one, whose finding is kept in the cache (None: nothing does),
and its class, called with the path, what was found by name, `layout` and `image_root`."""


def open_file(
    path: Path, kind: str, layout: str | None, image_root: Path, cache: Path | None
) -> tuple[SampleShard | None, list[Fault]]:
    """One file, and what is wrong with it; None in place of one that nothing is used of."""
    if kind == "compressed":
        return None, [Fault("compressed", str(path), "unpack it first; nothing of it is used")]
    scan, make = SHARDS[kind]
    try:
        path.open("rb").close()
        found, damage = remembered(path, cache, scan) if scan else ({}, "")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    faults = [Fault(reason, str(path), message) for reason, message in found.pop("faults", ())]
    try:
        shard = make(path, **found, layout=layout, image_root=image_root)
    except (OSError, pa.ArrowException) as error:
        return None, [Fault(f"damaged {kind} file", str(path), f"{first_line(error)}; nothing of it is used")]
    count = int(shard.chunk_sizes.sum())
    if damage:
        used = f"its first {count:,} samples are used" if count else "nothing of it is used"
        faults.insert(0, Fault(f"damaged {kind} file", str(path), f"{damage}; {used}"))
    return shard, faults
