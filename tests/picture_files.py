"""Small picture files of every kind, for the tests of the readers."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def picture(number: int, size: tuple[int, int] = (16, 16)) -> Image.Image:
    """Red tells the number; the right half is blue as well, so a flip shows."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[..., 0] = number
    pixels[:, size[0] // 2 :, 2] = 255
    return Image.fromarray(pixels)


def encoded(image: Image.Image, file_format: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, file_format, **options)
    return out.getvalue()


def pictures(count: int) -> list[bytes]:
    return [encoded(picture(number)) for number in range(count)]


def write_folder(root: Path, contents: list[bytes]) -> Path:
    for number, data in enumerate(contents):
        path = root / f"class{number % 3}" / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def write_tar(path: Path, contents: list[bytes], first: int = 0, file_format=tarfile.USTAR_FORMAT) -> Path:
    """A webdataset: each picture beside its caption."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=file_format) as tar:
        for number, data in enumerate(contents, first):
            for name, content in ((f"{number:03d}.png", data), (f"{number:03d}.txt", b"a caption")):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return path


def write_parquet(path: Path, contents: list[bytes | None], rows: int = 3, column: str = "image") -> Path:
    """As Hugging Face's datasets writes images."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": data, "path": f"{number}.png"} for number, data in enumerate(contents)]
    pq.write_table(pa.table({column: images, "label": list(range(len(images)))}), path, row_group_size=rows)
    return path


def colours(batch: dict) -> list[int]:
    """The numbers of a batch's pictures."""
    return ((batch["pixel_values"][:, 0, 0, 0] + 1) * 127.5).round().int().tolist()
