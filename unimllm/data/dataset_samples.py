"""Samples from a Hugging Face dataset: a folder that `save_to_disk` wrote, or one of the hub by its name.

The rows stay in the library's memory-mapped Arrow files; pictures are taken from there as they were stored.
"""

import ast
import re
from pathlib import Path

from semhitok.checkpoints import may_be_hub_id
from semhitok.errors import first_line
from unimllm.data.picture_shards import TAR_CHUNK, equal_chunks
from unimllm.data.samples import Sample, make_sample, pictures_in_parts, place_of
from unimllm.data.table_rows import picture_column, pictures_in, text_columns
from unimllm.errors import UserError

SAVED = ("state.json", "dataset_dict.json")  # one of them lies in what `save_to_disk` wrote
ABOUT = ("dataset_info.json", "dataset_infos.json", *SAVED)  # JSON that lies beside data and holds none
SPLIT = "train"
CONFIGS = re.compile(r"(?:Config name is missing|BuilderConfig .* not found).*?(?P<names>\['.*?'\])", re.DOTALL)
"""How the library tells which configs a dataset has; behind them may follow an example."""
NAMED_CONFIGS = 8


class DatasetSamples:
    """One split of a dataset.

    Args:
        dataset: a `datasets.Dataset`.
        name: what the user called it.
        layout: of `samples.LAYOUTS`; None: recognised.
        image_root: folder that paths of pictures are relative to, where a row holds a path and no bytes.

    Raises:
        UserError: it has no column of text that is known, or it is unclear which column holds the pictures.
    """

    kind = "dataset"
    memory = 0

    def __init__(self, dataset, name: str, layout: str | None, image_root: Path):
        self.name, self.image_root = name, image_root
        self.place = place_of(Path(name)) if Path(name).is_dir() else name
        schema = dataset.features.arrow_schema
        texts, self.layout = text_columns(schema, layout, name)
        self.picture_column = picture_column(schema, name)
        columns = [*texts, *([self.picture_column] if self.picture_column else [])]
        self.rows = dataset.with_format("arrow", columns=columns)  # nothing is decoded
        self.files = [Path(file["filename"]) for file in dataset.cache_files]
        self.chunk_sizes = equal_chunks(len(dataset), TAR_CHUNK)
        self.about = f"{schema.names} {len(dataset)}"

    def key(self, i: int) -> str:
        return f"{self.name}:row {i}"

    def read(self, i: int) -> Sample:
        row = self.rows[i : i + 1].to_pylist()[0]
        row.setdefault("caption", row.get("txt"))
        place = f"{self.place}:row {i}"
        pictures = pictures_in(row.get(self.picture_column), place, self.image_root)
        pictures = pictures or pictures_in(pictures_in_parts(row), place, self.image_root)
        return make_sample(row, pictures, self.layout)

    def digest(self) -> bytes:
        return self.about.encode()


def is_saved_dataset(folder: Path) -> bool:
    """Whether `save_to_disk` wrote this folder."""
    return any((folder / name).is_file() for name in SAVED)


def may_be_dataset(name: str) -> bool:
    """Whether what is no folder here can be `OWNER/NAME` or `OWNER/NAME/CONFIG` of the hub."""
    owner_and_name, _, config = name.rpartition("/") if name.count("/") == 2 else (name, "", "x")
    return may_be_hub_id(owner_and_name) and all(owner_and_name.split("/")) and bool(config)


def missing_config(name: str, error: Exception) -> str:
    """What to name instead where a dataset of the hub has several configs and not the one asked for; else ""."""
    found = CONFIGS.search(str(error))
    if not found:
        return ""
    whole, configs = "/".join(name.split("/")[:2]), ast.literal_eval(found["names"])
    told = ", ".join(configs[:NAMED_CONFIGS]) + (", ..." if len(configs) > NAMED_CONFIGS else "")
    return f"{whole} has {len(configs):,} configs ({told}); name one of them, such as {whole}/{configs[0]}"


def open_dataset(name: str, layout: str | None, image_root: Path) -> DatasetSamples:
    """A folder of `save_to_disk`, or the training split of a dataset of the hub, OWNER/NAME or OWNER/NAME/CONFIG.

    Raises:
        UserError: it cannot be had, lacks a config, or has no training split.
    """
    try:
        import datasets
    except ImportError as error:
        raise UserError(f"--data {name} needs the datasets library: pip install 'unimllm[data]'") from error
    is_folder = Path(name).is_dir()
    owner, *rest = name.split("/")
    try:
        if is_folder:
            found = datasets.load_from_disk(name)
        else:
            found = datasets.load_dataset("/".join([owner, *rest[:1]]), *rest[1:])
    except Exception as error:  # of the hub, of scripts, of damaged Arrow files
        what = "cannot read it" if is_folder else "no such dataset" if len(rest) == 1 else "no such folder or dataset"
        why = missing_config(name, error) or f"{what}: {first_line(error)}"
        raise UserError(f"--data {name}: {why}") from error
    if isinstance(found, datasets.DatasetDict):
        splits = list(found)
        if SPLIT not in splits and len(splits) > 1:
            remedy = f"name one of them, {Path(name) / splits[0]}" if is_folder else "save one of them alone"
            raise UserError(f"--data {name} has the splits {', '.join(splits)} and no {SPLIT!r}; {remedy}")
        found = found[SPLIT if SPLIT in splits else splits[0]]
    return DatasetSamples(found, name, layout, image_root)
