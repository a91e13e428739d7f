"""Pictures and shards of every odd and damaged kind: read right, or skipped, counted and replaced."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from picture_files import colours, encoded, pictures, write_folder, write_parquet, write_tar
from PIL import Image

from unimllm.data.faults import Fault, FaultLog
from unimllm.data.picture_index import open_pictures
from unimllm.data.picture_shards import scan_tar
from unimllm.data.pictures import PictureSource, read_square
from unimllm.errors import UserError
from unimllm.images import UnreadablePicture

# ---- pictures of every kind -----------------------------------------------------------------------------------------


def rgba(alpha: int) -> Image.Image:
    return Image.new("RGBA", (16, 16), (255, 0, 0, alpha))


def odd_pictures() -> dict[str, tuple[bytes, tuple[int, int, int]]]:
    """Names -> file, and the colour that its left upper corner must have."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise: what was at the bottom left comes to the top left
    turned = Image.new("RGB", (16, 16), "red")
    turned.paste("blue", (0, 8, 16, 16))
    sixteen = Image.fromarray(np.full((16, 16), 65535 // 2, np.uint16))
    palette = rgba(0).quantize(4)
    frames = [Image.new("RGB", (16, 16), "lime"), Image.new("RGB", (16, 16), "red")]
    return {
        "cmyk.jpg": (encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100), (254, 0, 0)),
        "sixteen.png": (encoded(sixteen), (127, 127, 127)),
        "animated.gif": (encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), (0, 255, 0)),
        "turned.png": (encoded(turned, exif=exif), (0, 0, 255)),
        "grey.png": (encoded(Image.new("L", (16, 16), 77)), (77, 77, 77)),
        "grey_alpha.png": (encoded(Image.new("LA", (16, 16), (0, 0))), (255, 255, 255)),
        "palette_alpha.png": (encoded(palette), (255, 255, 255)),
        "alpha.png": (encoded(rgba(0)), (255, 255, 255)),
        "one_bit.png": (encoded(Image.new("1", (16, 16), 1)), (255, 255, 255)),
        "line.png": (encoded(Image.new("RGB", (1, 90), "red")), (255, 0, 0)),
    }


@pytest.mark.parametrize("name", odd_pictures())
def test_odd_pictures_are_read_right(name):
    data, colour = odd_pictures()[name]
    image = read_square(data, 16)
    assert image.mode == "RGB" and image.size == (16, 16)
    assert image.getpixel((0, 0)) == pytest.approx(colour, abs=2)


def bad_pictures() -> dict[str, tuple[bytes, str]]:
    """Names -> file, and the kind of fault that it is."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    jpeg, png = encoded(noise, "JPEG"), encoded(noise)
    return {
        "empty.jpg": (b"", "empty"),
        "text.jpg": (b"<html>404</html>", "no picture"),
        "half.jpg": (jpeg[: len(jpeg) // 2], "damaged"),
        "half.png": (png[: len(png) // 2], "damaged"),
        "header.png": (png[:20], "damaged"),
        "broken.png": (png[:60] + bytes(40) + png[100:], "damaged"),
        "line.png": (encoded(Image.new("RGB", (1, 101))), "too thin"),
    }


@pytest.mark.parametrize("name", bad_pictures())
def test_bad_pictures_are_told_by_kind(name):
    data, kind = bad_pictures()[name]
    with pytest.raises(UnreadablePicture) as caught:
        read_square(data, 16)
    assert caught.value.reason == kind and str(caught.value)


@pytest.fixture
def damaged(tmp_path) -> Path:
    """Five good pictures and one of each bad kind."""
    write_folder(tmp_path, pictures(5))
    for name, (data, _) in bad_pictures().items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


def test_bad_pictures_are_replaced_and_listed(damaged):
    index = open_pictures([damaged])
    source = PictureSource(index, 8, seed=1)
    batch = source(range(len(index)))  # one epoch: as long as if all were good
    assert len(batch["pixel_values"]) == len(index) == 12
    assert set(colours(batch)) == set(range(5))
    kinds = Counter(kind for _, kind in bad_pictures().values())
    found = Counter(fault.reason for fault in batch["skipped"])
    assert all(found[kind] >= kinds[kind] for kind in kinds)  # a replacement may be bad itself
    assert {Path(fault.key).name for fault in batch["skipped"]} == set(bad_pictures())
    again = PictureSource(index, 8, seed=1, num_threads=1)(range(12))
    assert torch.equal(again["pixel_values"], batch["pixel_values"]) and again["skipped"] == batch["skipped"]


def test_a_file_that_vanished_and_a_row_without_bytes(tmp_path):
    write_folder(tmp_path / "a", pictures(3))
    rows = write_parquet(tmp_path / "b.parquet", [pictures(1)[0], None])
    index = open_pictures([tmp_path / "a", rows])
    (tmp_path / "a" / "class1" / "001.png").unlink()
    batch = PictureSource(index, 8, seed=0)(range(5))
    assert {(f.reason, f.key) for f in batch["skipped"]} == {
        ("missing", str(tmp_path / "a" / "class1" / "001.png")), ("empty", f"{rows}:row 1"),
    }  # fmt: skip


def test_nothing_readable_ends_in_one_line(tmp_path):
    write_folder(tmp_path, [b"no picture"] * 3)
    with pytest.raises(UserError, match="1,000 pictures in a row cannot be read, the last of them .*png: no picture"):
        PictureSource(open_pictures([tmp_path]), 8, seed=0)(range(1))


def test_faults_are_named_at_first_and_counted_ever_after(capsys):
    log = FaultLog()
    log.add(Fault("damaged", f"{i // 2}.png", "cut off") for i in range(99))
    log.add([Fault("empty", "e.png", "zero bytes")])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "skipped 0.png: damaged: cut off; another picture takes its place"
    assert sum("damaged: cut off" in line for line in lines) == 3 and "skipped e.png" in lines[-2]
    assert "skipped a picture 10 times so far (damaged 10)" in lines
    assert lines[-1] == "skipped a picture 100 times so far (damaged 99, empty 1)"
    assert FaultLog(log.counts).counts == {"damaged": 99, "empty": 1}


# ---- damaged shards -------------------------------------------------------------------------------------------------


def offsets_in(path: Path) -> tuple[np.ndarray, str]:
    """Where a tar's pictures begin, and what is wrong with it."""
    found, damage = scan_tar(path)
    return found["offsets"], damage


def test_a_tar_that_ends_in_the_middle(tmp_path):
    path = write_tar(tmp_path / "a.tar", pictures(6))
    whole = path.read_bytes()
    offsets, damage = offsets_in(path)
    assert len(offsets) == 6 and not damage and offsets[1] == 4 * 512  # header, picture, header, caption
    for cut, left in ((offsets[3] + 512 + 20, 3), (offsets[3] + 100, 3), (offsets[3], 3), (offsets[4] + 1024, 5)):
        path.write_bytes(whole[:cut])
        offsets_left, damage = offsets_in(path)
        assert offsets_left.tolist() == offsets[:left].tolist() and damage, cut
    index = open_pictures([path])
    assert len(index) == 5
    assert str(index.faults[0]).startswith(f"{path}: damaged tar:")
    assert str(index.faults[0]).endswith("its first 5 pictures are used")
    assert sorted(set(colours(PictureSource(index, 8, 0)(range(5))))) == [0, 1, 2, 3, 4]


def test_a_tar_with_rubbish_inside_or_behind(tmp_path):
    path = write_tar(tmp_path / "a.tar", pictures(6))
    whole = path.read_bytes()
    offset = offsets_in(path)[0][3]
    path.write_bytes(whole[:offset] + b"\xff" * 512 + whole[offset + 512 :])
    offsets, damage = offsets_in(path)
    assert len(offsets) == 3 and "no end mark" in damage
    path.write_bytes(whole + whole)
    offsets, damage = offsets_in(path)
    assert len(offsets) == 6 and "two archives in one file?" in damage


def test_a_tar_that_changed_after_it_was_indexed(tmp_path):
    path = write_tar(tmp_path / "a.tar", pictures(3))
    index = open_pictures([path])
    path.write_bytes(b"\xff" * 10_000)
    with pytest.raises(UnreadablePicture):
        index.read(1)
    path.write_bytes(b"")
    with pytest.raises(UnreadablePicture):
        index.read(1)
    assert index.key(1) == f"{path}:byte 2048"


def test_damaged_parquet_files(tmp_path):
    good = write_parquet(tmp_path / "a.parquet", pictures(6))
    bad = write_parquet(tmp_path / "b.parquet", pictures(6))
    bad.write_bytes(bad.read_bytes()[:-300])
    index = open_pictures([tmp_path])
    assert len(index) == 6
    assert str(index.faults[0]).startswith(f"{bad}: damaged parquet:")
    data = bytearray(good.read_bytes())
    data[4:400] = bytes(396)  # the first row group's pages
    good.write_bytes(data)
    index = open_pictures([good])
    batch = PictureSource(index, 8, seed=0)(range(6))
    assert {fault.key for fault in batch["skipped"]} == {f"{good}:row {i}" for i in range(3)}
    assert set(colours(batch)) <= {3, 4, 5}
