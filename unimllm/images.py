"""Pictures from files and to files; they are read as the image tokenizer reads them."""

import os
from collections.abc import Iterable
from pathlib import Path

from semhitok.images import (
    UnreadablePicture,
    check_writable,
    decode_picture,
    open_picture,
    picture_format,
    save_picture,
    write_atomically,
)
from unimllm.errors import UserError

__all__ = [
    "UnreadablePicture", "check_outputs", "check_readable", "check_writable", "decode_picture", "open_picture",
    "picture_format", "save_picture", "write_atomically",
]  # fmt: skip


def check_outputs(outputs: Iterable[Path | None], inputs: Iterable[Path | None]) -> None:
    """`check_writable` of all files that a program will write, and that none takes the place of another.

    Args:
        outputs, inputs: what is written and what is read; None: not asked for.

    Raises:
        UserError: see `check_writable`, or a file is written twice, or read and written.
    """
    taken = {os.path.realpath(path): f"{path} would be overwritten by" for path in inputs if path}
    for path in filter(None, outputs):
        place = os.path.realpath(path)  # writing follows links
        if place in taken:
            raise UserError(f"{taken[place]} what is written to {path}; choose another place for that")
        taken[place] = f"{path} is named for two results:"
        check_writable(path)


def check_readable(paths: Iterable[Path]) -> None:
    """Decode each picture once, ahead of long work that needs all of them; UnreadablePicture for a bad one."""
    for path in dict.fromkeys(paths):
        open_picture(path)
