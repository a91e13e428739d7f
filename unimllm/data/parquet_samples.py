"""Samples from a parquet file: a row is a conversation or captions, beside the bytes of its picture or pictures.

BAGEL's text-to-image rows (image, captions), Tar's conversations, and what Hugging Face writes as parquet.
"""

import os
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from semhitok.errors import first_line
from unimllm.data.picture_shards import ROW_GROUPS
from unimllm.data.samples import Picture, Sample, StoredPicture, make_sample, pictures_in_parts, place_of
from unimllm.data.table_rows import picture_column, pictures_in, text_columns
from unimllm.images import UnreadablePicture


class ParquetSamples:
    """One file. The bytes of a picture are fetched when somebody wants them, where a row surely has one.

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
            groups = [file.metadata.row_group(g) for g in range(file.metadata.num_row_groups)]
        self.text_columns, self.layout = text_columns(schema, layout, str(path))
        self.picture_column = picture_column(schema, str(path))
        kind = schema.field(self.picture_column).type if self.picture_column else pa.null()
        self.has_paths = pa.types.is_struct(kind) and any(field.name == "path" for field in kind)
        self.chunk_sizes = np.array([g.num_rows for g in groups], np.int64)
        self.ends = np.cumsum(self.chunk_sizes)
        self.stored = [no_nulls(group, f"{self.picture_column}.bytes") for group in groups]
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
        if self.has_paths and self._all_stored(i):  # read without the bytes beside it
            cell = self._cell(i, self.picture_column, ".path")
            if cell is None:
                return []
            key = os.path.normpath(cell["path"]) if cell["path"] else place
            return [StoredPicture(key, partial(self._load, i, place))]
        return pictures_in(self._cell(i, self.picture_column), place, self.image_root)

    def _all_stored(self, i: int) -> bool:
        """Whether each row of a row's group surely has bytes; without, its path counts."""
        return bool(self.stored[np.searchsorted(self.ends, i, side="right")])

    def _load(self, i: int, place: str) -> bytes:
        try:
            found = pictures_in(self._cell(i, self.picture_column), place, self.image_root)
        except (OSError, pa.ArrowException) as error:
            raise UnreadablePicture("not readable", f"{self.path}: {first_line(error)}") from error
        if not found:
            raise UnreadablePicture("empty", "the row holds neither bytes nor a path")
        return found[0].read()

    def _cell(self, i: int, column: str, leaf: str = ""):
        group = int(np.searchsorted(self.ends, i, side="right"))
        values = ROW_GROUPS.get(self.path, group, column, column + leaf)
        return values[i - int(self.ends[group] - self.chunk_sizes[group])].as_py()

    def digest(self) -> bytes:
        return self.chunk_sizes.tobytes() + f"{self.picture_column} {self.num_bytes}".encode()


def no_nulls(group: pq.RowGroupMetaData, leaf: str) -> bool:
    """Whether a row group's statistics tell that a leaf column has a value in every row."""
    for number in range(group.num_columns):
        column = group.column(number)
        if column.path_in_schema == leaf and column.statistics is not None:
            return column.statistics.has_null_count and column.statistics.null_count == 0
    return False
