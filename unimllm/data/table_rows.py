"""What parquet files and Hugging Face datasets share: which columns hold texts and pictures, and cells as pictures."""

import os
from pathlib import Path

import pyarrow as pa

from unimllm.data.samples import (
    CAPTION_KEYS,
    CONVERSATION_KEYS,
    PICTURE_KEYS,
    SYSTEM_KEYS,
    UNREAD_KEYS,
    BadSample,
    Picture,
    StoredPicture,
    layout_of,
    picture_named,
)
from unimllm.errors import UserError

TEXT_COLUMNS = ("id", *CONVERSATION_KEYS, *CAPTION_KEYS, *SYSTEM_KEYS, "label")
PICTURE_COLUMNS = ("image", "images", "jpg", "png", "jpeg", "webp")


def text_columns(schema: pa.Schema, layout: str | None, place: str) -> tuple[list[str], str]:
    """The columns to read besides the pictures', and the layout that they make.

    Raises:
        UserError: there is none that is known, or a caption's has answers beside it.
    """
    known = {"txt": "caption"}  # a webdataset that became a table
    unread = [name for name in UNREAD_KEYS if name in schema.names and holds_paths(schema.field(name).type)]
    found = [name for name in schema.names if name in TEXT_COLUMNS or name in known or name in unread]
    try:
        return found, layout or layout_of([known.get(name, name) for name in schema.names])
    except BadSample as error:
        if error.reason != "unknown layout":
            raise UserError(f"{place}: {error}") from error
        wanted = ", ".join(CONVERSATION_KEYS + CAPTION_KEYS)
        raise UserError(f"{place} has the columns {', '.join(schema.names)}, none of {wanted}") from None


def picture_column(schema: pa.Schema, place: str) -> str:
    """The column that holds the pictures, as bytes or as paths; "" if there is none. One that is called so comes first.

    Raises:
        UserError: several columns of bytes and none of them is called as pictures usually are.
    """
    named = [name for name in PICTURE_COLUMNS if name in schema.names]
    stored = [field.name for field in schema if holds_bytes(field.type)]
    for name in named:
        if name in stored:
            return name
    for name in named:
        if holds_paths(schema.field(name).type):
            return name
    if len(stored) > 1:
        raise UserError(f"{place} has several columns of bytes ({', '.join(stored)}); call the pictures' one 'image'")
    paths = [*named, *(name for name in PICTURE_KEYS["captions"] if name in schema.names)]
    return (stored or paths or [""])[0]


def holds_bytes(kind: pa.DataType) -> bool:
    """Whether a column of this type can hold encoded pictures: bytes, Hugging Face's {bytes, path}, or lists."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return holds_bytes(kind.value_type)
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and holds_bytes(field.type) for field in kind)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def holds_paths(kind: pa.DataType) -> bool:
    """Whether a column of this type can name pictures: texts, or lists of them."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return holds_paths(kind.value_type)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def pictures_in(cell, place: str, image_root: Path) -> list[Picture]:
    """The pictures of one cell: none, bytes, {bytes, path}, a path, or a list of those.

    Args:
        place: their key where they have no path.
    """
    if isinstance(cell, list):
        return [p for n, part in enumerate(cell, 1) for p in pictures_in(part, f"{place}, picture {n}", image_root)]
    data, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
    if isinstance(data, str):
        data, path = None, data
    if data is not None:
        return [StoredPicture(os.path.normpath(path) if path else place, lambda: data)]
    return [picture_named(path, image_root)] if path else []
