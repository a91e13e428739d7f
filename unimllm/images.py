"""Pictures from files and to files; they are read as the image tokenizer reads them."""

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
    "UnreadablePicture", "check_writable", "decode_picture", "open_picture", "picture_format", "save_picture",
    "write_atomically",
]  # fmt: skip
