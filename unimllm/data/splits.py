"""Files of several splits below one folder: whoever names the folder would train on its test data unawares."""

import os
import re
from collections.abc import Iterable

from unimllm.errors import UserError

ALIASES = {"val": "validation", "valid": "validation"}
# A word of its own: train-0, llava_train, captions_val2017, partial-test; not training, latest, trainval.
SPLIT = re.compile(r"(?:^|[-_.])(train|test|validation|valid|val|dev|eval)\d*(?=[-_.]|$)")


def split_of(name: str) -> str | None:
    """The split that a file's name or else the nearest folder in its path tells; a name that ends in "/" has no file.

    train-0.parquet -> train; default/test/0000.parquet -> test; images/0.png -> None
    """
    *folders, file = name.lower().replace(os.sep, "/").split("/")
    stem = file.rpartition(".")[0]
    found = (SPLIT.search(part) for part in (stem, *reversed(folders)))
    split = next((match[1] for match in found if match), None)
    return ALIASES.get(split, split)


def check_one_split(place: str, names: Iterable[str]) -> None:
    """UserError if paths below a folder, which `place` names, are of several splits."""
    splits = sorted({split for name in names if (split := split_of(name))})
    if len(splits) > 1:
        raise UserError(f"{place} holds the splits {' and '.join(splits)}; name the files or folders that you want")


def told_split(names: Iterable[str]) -> str:
    """` (by its name of the split eval: a/eval.json)` of the first path of a split that is not train, beside paths that
    tell none: nobody is refused for it, but it is told; "" without such.
    """
    splits = {name: split_of(name) for name in names}
    if None not in splits.values():
        return ""
    held_out = ((name, split) for name, split in splits.items() if split not in (None, "train"))
    return next((f" (by its name of the split {split}: {name})" for name, split in held_out), "")
