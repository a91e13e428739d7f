"""Files of several splits below one folder: whoever names the folder would train on its test data unawares."""

import os
import re
from collections.abc import Iterable

from unimllm.errors import UserError

SPLIT = r"(train|test|validation|valid|val|dev)"
ALIASES = {"val": "validation", "valid": "validation"}
FILE = re.compile(rf"{SPLIT}[-.]")  # as files of parquet on the hub begin
FOLDER = re.compile(rf"(?:partial-)?{SPLIT}\d*")  # as its converted branches call them, and COCO (train2017)


def split_of(name: str) -> str | None:
    """The split that a file's name or else the nearest folder in its path tells; a name that ends in "/" has no file.

    train-0.parquet -> train; default/test/0000.parquet -> test; images/0.png -> None
    """
    *folders, file = name.lower().replace(os.sep, "/").split("/")
    found = (FILE.match(file), *(FOLDER.fullmatch(folder) for folder in reversed(folders)))
    split = next((match[1] for match in found if match), None)
    return ALIASES.get(split, split)


def check_one_split(place: str, names: Iterable[str]) -> None:
    """UserError if paths below a folder, which `place` names, are of several splits."""
    splits = sorted({split for name in names if (split := split_of(name))})
    if len(splits) > 1:
        raise UserError(f"{place} holds the splits {' and '.join(splits)}; name the files or folders that you want")
