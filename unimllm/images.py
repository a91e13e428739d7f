"""Pictures from files and to files; they are read as the image tokenizer reads them."""

from semhitok.images import (
    MAX_PIXELS,
    READ_FORMATS,
    UnreadablePicture,
    check_size,
    check_writable,
    decode_picture,
    open_picture,
    picture_format,
    save_picture,
    to_rgb,
    write_atomically,
)

__all__ = [
    "MAX_PIXELS", "READ_FORMATS", "UnreadablePicture", "check_size", "check_writable", "decode_picture", "open_picture",
    "picture_format", "save_picture", "to_rgb", "write_atomically",
]  # fmt: skip
