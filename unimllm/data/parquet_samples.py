"""Samples from a parquet file: a row is a conversation or captions, beside the bytes of its picture or pictures.

BAGEL's text-to-image rows (image, captions), Tar's conversations, and what Hugging Face writes as parquet.
"""

import os
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from semhitok.errors import first_line
from unimllm.data.picture_shards import ROW_GROUPS
from unimllm.data.samples import Picture, Sample, StoredPicture, make_sample, pictures_in_parts, place_of
from unimllm.data.table_rows import picture_column, pictures_in, text_columns
from unimllm.images import UnreadablePicture


class ParquetSamples:
    """One file. The bytes of a picture are fetched when somebody wants them, where a row surely has them: looking
    through terabytes would read them all.

    Args:
        layout: of `samples.LAYOUTS`; None: recognised.
        image_root: folder that paths of pictures are relative to, where a row holds a path and no bytes.

    Raises:
        UserError: it has no column of text that is known, or it is unclear which column holds the pictures.
        OSError, ValueError: it is damaged.
    """

    kind = "parquet file"

    def __init__(self, path: Path, layout: str | None, image_root: Path):
        self.path, self.name, self.place, self.image_root = path, path.name, place_of(path), image_root
        self.num_bytes = path.stat().st_size
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            leaves = [file.schema.column(c).path for c in range(len(file.schema))]
            groups = [file.metadata.row_group(g) for g in range(file.metadata.num_row_groups)]
        self.text_columns, self.layout = text_columns(schema, layout, str(path))
        self.picture_column = picture_column(schema, str(path))
        kind = schema.field(self.picture_column).type if self.picture_column else pa.null()
        bytes_leaf, self.path_leaf = picture_leaves(leaves, self.picture_column, kind)
        self.num_nulls = [num_nulls(group, bytes_leaf) for group in groups]
        self.stored: dict[int, bool] = {}  # row groups that were asked for -> see `_all_stored`
        self.chunk_sizes = np.array([g.num_rows for g in groups], np.int64)
        self.ends = np.cumsum(self.chunk_sizes)
        self.memory = max((g.total_byte_size for g in groups), default=0)  # bytes of its largest row group

    def key(self, i: int) -> str:
        return f"{self.path}:row {i}"

    def read(self, i: int) -> Sample:
        row = {name: self._cell(i, name) for name in self.text_columns}
        row.setdefault("caption", row.get("txt"))
        pictures = self._pictures(i) or pictures_in(pictures_in_parts(row), f"{self.place}:row {i}", self.image_root)
        return make_sample(row, pictures, self.layout)

    def _pictures(self, i: int) -> list[Picture]:
        place = f"{self.place}:row {i}"
        if not self.picture_column:
            return []
        if not self._all_stored(self._group(i)):
            return pictures_in(self._cell(i, self.picture_column), place, self.image_root)
        cell = self._cell(i, self.path_leaf) if self.path_leaf else {"path": None}
        if not isinstance(cell, list):
            return self._stored_picture(i, cell, place)
        return [p for n, part in enumerate(cell) for p in self._stored_picture(i, part, f"{place}, picture {n + 1}", n)]

    def _stored_picture(self, i: int, part: dict | None, place: str, n: int | None = None) -> list[Picture]:
        """As `pictures_in` has them, without the bytes."""
        if part is None:
            return []
        key = os.path.normpath(part["path"]) if part["path"] else place
        return [StoredPicture(key, partial(self._load, i, n, place))]

    def _all_stored(self, group: int) -> bool:
        """Whether each picture of a row group surely has bytes; without, its path counts.

        It has if its bytes are null no more often than there is no picture, be it that a list is empty.
        """
        if group not in self.stored:
            nulls = self.num_nulls[group]
            if nulls and self.path_leaf:
                nulls = max(0, nulls - num_absent(self._column(group, self.path_leaf)))
            self.stored[group] = nulls == 0
        return self.stored[group]

    def _load(self, i: int, n: int | None, place: str) -> bytes:
        """The bytes of a row's picture, or of picture n of its list."""
        try:
            cell = self._scalar(i, self.picture_column)
            found = pictures_in((cell if n is None else cell[n]).as_py(), place, self.image_root)
        except (OSError, pa.ArrowException) as error:
            raise UnreadablePicture("not readable", f"{self.path}: {first_line(error)}") from error
        if not found:
            raise UnreadablePicture("empty", "the row holds neither bytes nor a path")
        return found[0].read()

    def _group(self, i: int) -> int:
        """The row group that holds a row."""
        return int(np.searchsorted(self.ends, i, side="right"))

    def _column(self, group: int, leaf: str) -> pa.ChunkedArray:
        """Of a row group a column, or with a longer path within it what that leads to alone."""
        column = leaf if leaf in self.text_columns else self.picture_column
        return ROW_GROUPS.get(self.path, group, column, leaf)

    def _cell(self, i: int, leaf: str):
        return self._scalar(i, leaf).as_py()

    def _scalar(self, i: int, leaf: str) -> pa.Scalar:
        group = self._group(i)
        return self._column(group, leaf)[i - int(self.ends[group] - self.chunk_sizes[group])]

    def digest(self) -> bytes:
        return self.chunk_sizes.tobytes() + f"{self.picture_column} {self.num_bytes}".encode()


def picture_leaves(leaves: list[str], column: str, kind: pa.DataType) -> tuple[str, str]:
    """Paths within a file of a column's bytes and of the paths beside them, "" for what it has not.

    image, binary -> image, ""; images, list of {bytes, path} -> images.list.element.bytes, images.list.element.path

    Args:
        leaves: of the file; what stands for a list in them differs between writers.
    """
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return column, ""
    element = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind
    if not pa.types.is_struct(element) or not {"bytes", "path"} <= {field.name for field in element}:
        return "", ""
    found = [leaf for leaf in leaves if leaf.startswith(f"{column}.") and leaf.endswith(".path")]
    return (found[0].removesuffix("path") + "bytes", found[0]) if len(found) == 1 else ("", "")


def num_nulls(group: pq.RowGroupMetaData, leaf: str) -> int | None:
    """How often a leaf column of a row group is null, by its statistics; None: they do not tell."""
    for number in range(group.num_columns):
        column = group.column(number)
        if column.path_in_schema == leaf and column.statistics is not None:
            return column.statistics.null_count if column.statistics.has_null_count else None
    return None


def num_absent(column: pa.ChunkedArray) -> int:
    """How often a column of structs, or of lists of them, holds none: nulls, and lists that are null or empty."""
    if pa.types.is_struct(column.type):
        return column.null_count
    lengths = pc.fill_null(pc.list_value_length(column), 0)
    return pc.sum(pc.equal(lengths, 0)).as_py() + pc.list_flatten(column).null_count
