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
    read = {os.path.realpath(path): path for path in inputs if path}  # writing follows links
    written: set[str] = set()
    for path in filter(None, outputs):
        place = os.path.realpath(path)
        if place in read:
            raise UserError(
                f"{read[place]} would be overwritten by what is written to {path}; choose another place for that"
            )
        if place in written:
            raise UserError(f"{path} is named for two results; choose another place for one of them")
        written.add(place)
        check_writable(path)


def check_readable(paths: Iterable[Path]) -> None:
    """Decode each picture once, ahead of long work that needs all of them; UnreadablePicture for a bad one."""
    for path in paths:
        open_picture(path)
