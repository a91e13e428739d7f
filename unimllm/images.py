"""Pictures from files and to files; they are read as the image tokenizer reads them."""

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

__all__ = [
    "UnreadablePicture", "check_readable", "check_writable", "decode_picture", "open_picture",
    "picture_format", "save_picture", "write_atomically",
]  # fmt: skip


def check_readable(paths: Iterable[Path]) -> None:
    """Decode each picture once, ahead of long work that needs all of them; UnreadablePicture for a bad one."""
    for path in dict.fromkeys(paths):
        open_picture(path)
