"""Pictures from files and to files: what a person sees is what is read, and every fault is one line."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from semhitok.errors import UserError
from semhitok.images import (
    UnreadablePicture,
    check_writable,
    decode_picture,
    open_picture,
    save_picture,
    write_atomically,
)

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and ends where its pixels should begin."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    head = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return head + struct.pack(">I", 1000) + b"IDAT"


def encoded(image: Image.Image, file_format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=file_format, **options)
    return buffer.getvalue()


def noise(size: int = 64) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8))


# ---- reading -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file_format", ["PNG", "BMP", "TIFF", "PPM"])
def test_lossless_formats_come_back_equal(tmp_path, file_format):
    path = tmp_path / "picture"  # what it is stands in the file, not in its name
    path.write_bytes(encoded(noise(), file_format))
    assert open_picture(path).mode == "RGB"
    assert np.array_equal(np.asarray(open_picture(str(path))), np.asarray(noise()))


def test_transparency_lies_on_white(tmp_path):
    pixels = np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [0, 0, 255, 51]]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.asarray(open_picture(tmp_path / "a.png")).tolist() == [[list(RED), list(WHITE), [204, 204, 255]]]
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([*RED, *BLUE])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "p.png", transparency=0)
    assert np.asarray(open_picture(tmp_path / "p.png")).tolist() == [[list(WHITE), list(BLUE)]]
    palette.save(tmp_path / "alpha.png", transparency=bytes([51, 255]))  # an alpha for each entry of the palette
    assert np.asarray(open_picture(tmp_path / "alpha.png")).tolist() == [[[255, 204, 204], list(BLUE)]]


# EXIF 2.32, tag 0x0112: where the stored picture [[1, 2], [3, 4]] belongs when it is seen upright
UPRIGHT = {
    1: [[1, 2], [3, 4]], 2: [[2, 1], [4, 3]], 3: [[4, 3], [2, 1]], 4: [[3, 4], [1, 2]],
    5: [[1, 3], [2, 4]], 6: [[3, 1], [4, 2]], 7: [[4, 2], [3, 1]], 8: [[2, 4], [1, 3]],
}  # fmt: skip


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "WEBP"])
def test_orientation_of_the_camera_is_applied(tmp_path, orientation, file_format):
    image = Image.fromarray(np.array([[1, 2], [3, 4]], np.uint8) * 60).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if file_format == "WEBP" else {}
    image.save(tmp_path / "turned", file_format, exif=exif, **options)
    assert (np.asarray(open_picture(tmp_path / "turned"))[..., 0] // 60).tolist() == UPRIGHT[orientation]


@pytest.mark.parametrize(
    "exif", [b"garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12"]
)
@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "WEBP"])
def test_damaged_exif_turns_nothing(tmp_path, exif, file_format):
    Image.new("RGB", (4, 2), RED).save(tmp_path / "x", file_format, exif=exif)
    assert open_picture(tmp_path / "x").size == (4, 2)


@pytest.mark.parametrize("file_format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_animation_gives_its_first_frame(tmp_path, file_format):
    frames = [Image.new("RGB", (4, 4), color) for color in (RED, BLUE)]
    options = {"lossless": True} if file_format == "WEBP" else {}
    frames[0].save(tmp_path / "a", file_format, save_all=True, append_images=frames[1:], **options)
    assert open_picture(tmp_path / "a").getpixel((0, 0)) == RED


@pytest.mark.parametrize("file_format", ["PNG", "TIFF", "PPM"])
@pytest.mark.parametrize("values", [[0, 0x8000, 0xFFFF], [0, 100, 200]], ids=["light", "dark"])
def test_grey_of_16_bits_is_scaled(tmp_path, file_format, values):
    """A dark picture too, whose values would all fit 8 bits."""
    Image.fromarray(np.array([values], np.uint16)).save(tmp_path / "grey", file_format)
    expected = [round(value / 257) for value in values]
    assert np.asarray(open_picture(tmp_path / "grey"))[0].tolist() == [[value] * 3 for value in expected]


def test_transparent_grey_of_16_bits_lies_on_white(tmp_path):
    Image.fromarray(np.array([[100, 0x8000]], np.uint16)).save(tmp_path / "grey.png", transparency=100)
    assert np.asarray(open_picture(tmp_path / "grey.png"))[0, :, 0].tolist() == [255, 128]


def png_of_16_bits(color_type: int, values: list[int], width: int) -> bytes:
    """One row of a 16-bit PNG in a mode that Pillow reads but does not write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, 16, color_type, 0, 0, 0))
    row = b"\0" + np.array(values, ">u2").tobytes()
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")


def test_colour_of_16_bits_is_scaled(tmp_path):
    (tmp_path / "rgb.png").write_bytes(png_of_16_bits(2, [0, 0x8080, 0xFFFF, 0xFFFF, 0, 0], 2))
    assert np.asarray(open_picture(tmp_path / "rgb.png")).tolist() == [[[0, 128, 255], list(RED)]]
    (tmp_path / "la.png").write_bytes(png_of_16_bits(4, [0, 0xFFFF, 0, 0], 2))  # grey and alpha
    assert np.asarray(open_picture(tmp_path / "la.png"))[0, :, 0].tolist() == [0, 255]


@pytest.mark.parametrize(
    ("pixels", "expected"),
    [
        (np.float32([[0, 0.2, 1]]), [0, 51, 255]),
        (np.float32([[0, 51, 255]]), [0, 51, 255]),
        (np.float32([[0, 0x8080, 0xFFFF]]), [0, 128, 255]),
        (np.int32([[0, 1, 0]]), [0, 1, 0]),
        (np.int32([[0, 0x8080, 0xFFFF]]), [0, 128, 255]),
    ],
)
def test_wide_grey_is_scaled_by_its_range(tmp_path, pixels, expected):
    Image.fromarray(pixels).save(tmp_path / "wide.tiff")
    assert np.asarray(open_picture(tmp_path / "wide.tiff"))[0, :, 0].tolist() == expected


@pytest.mark.parametrize("pixels", [np.float32([[-1, 2]]), np.float32([[np.nan, 2]]), np.int32([[0, 1 << 20]])])
def test_grey_of_an_unknown_range_is_refused(tmp_path, pixels):
    Image.fromarray(pixels).save(tmp_path / "wide.tiff")
    with pytest.raises(UnreadablePicture, match=r"wide\.tiff holds grey values from") as caught:
        open_picture(tmp_path / "wide.tiff")
    assert caught.value.reason == "grey values"


@pytest.mark.parametrize("file_format", ["JPEG", "TIFF"])
def test_cmyk_keeps_its_colours(tmp_path, file_format):
    for color in (RED, BLUE, WHITE, (0, 0, 0)):
        Image.new("RGB", (16, 16), color).convert("CMYK").save(tmp_path / "x", file_format)
        assert np.abs(np.subtract(open_picture(tmp_path / "x").getpixel((8, 8)), color)).max() <= 2


@pytest.mark.parametrize("size", [(1, 1), (1, 100), (100, 1)])
def test_thin_pictures_are_read_up_to_a_limit(tmp_path, size):
    Image.new("RGB", size, RED).save(tmp_path / "thin.png")
    assert open_picture(tmp_path / "thin.png").size == size


@pytest.mark.parametrize("size", [(1, 101), (101, 1)])
def test_thinner_pictures_are_refused(tmp_path, size):
    Image.new("RGB", size, RED).save(tmp_path / "thin.png")
    with pytest.raises(UnreadablePicture, match="a side over 100 times the other") as caught:
        open_picture(tmp_path / "thin.png")
    assert caught.value.reason == "too thin"


@pytest.mark.parametrize("kind", ["zTXt", "iTXt", "iCCP"])
def test_large_metadata_is_no_damage_and_a_bomb_of_it_is(kind):
    def read(size: int) -> Image.Image:
        out, text = io.BytesIO(), PngInfo()
        if kind != "iCCP":
            (text.add_text if kind == "zTXt" else text.add_itxt)("workflow", "x" * size, zip=True)
        image = Image.new("RGB", (4, 4), "red")
        image.save(out, "PNG", pnginfo=text, icc_profile=bytes(size) if kind == "iCCP" else None)
        assert kind.encode() in out.getvalue()
        return decode_picture(io.BytesIO(out.getvalue()), "a.png")

    assert read(2 << 20).getpixel((0, 0)) == (255, 0, 0)
    with pytest.raises(UnreadablePicture, match="damaged or cut off: Decompressed data too large"):
        read((64 << 20) + 1)


def test_an_open_file_is_read_as_a_named_one():
    """As of a member of a tar, which has no path."""
    assert np.array_equal(np.asarray(decode_picture(io.BytesIO(encoded(noise(), "PNG")), "a.tar/1.png")), noise())
    with pytest.raises(UnreadablePicture, match=r"^a\.tar/2\.png does not decode"):
        decode_picture(io.BytesIO(encoded(noise(), "PNG")[:4000]), "a.tar/2.png")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK", "I", "F"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    Image.new("RGB", (8, 8), (200, 200, 200)).convert(mode).save(tmp_path / "x.tiff")
    opened = open_picture(tmp_path / "x.tiff")
    assert opened.mode == "RGB" and opened.size == (8, 8)
    assert np.asarray(opened).mean() > 150


@pytest.mark.parametrize(
    ("content", "reason", "message"),
    [
        (b"", "empty", "is empty, so it is no picture"),
        (b"not a picture", "no picture", "is no picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "no picture", "is no picture"),  # would start Ghostscript
        (encoded(noise(), "PNG")[:4000], "damaged", "damaged or cut off"),
        (encoded(noise(), "JPEG")[:1500], "damaged", "damaged or cut off"),
        (encoded(noise(), "GIF")[:1000], "damaged", "damaged or cut off"),
        (encoded(noise(), "WEBP")[:300], "damaged|no picture", "damaged or cut off|is no picture"),
        (png_header(64, 64), "damaged", "damaged or cut off"),
        (png_header(100_000, 100_000), "too large", "is too large"),
        (b"P6 100000 100000 255\n", "too large", "is too large"),
        # below the limit of Pillow itself
        (png_header(12_000, 9_000), "too large", "12000 x 9000 pixels; at most 100,000,000"),
        (png_header(20_000, 10), "too thin", "a side over 100 times the other"),
    ],
    ids=[
        "empty", "text", "postscript", "cut-png", "cut-jpeg", "cut-gif", "cut-webp", "header-alone", "huge-png",
        "huge-ppm", "large", "thin",
    ],
)  # fmt: skip
def test_bad_pictures_are_refused(tmp_path, content, reason, message):
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    with pytest.raises(UnreadablePicture, match=message) as caught:
        open_picture(path)
    assert caught.value.reason in reason.split("|")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM"])
def test_truncated_pictures_are_refused_in_every_format(tmp_path, file_format, share):
    whole = encoded(noise(), file_format)
    (tmp_path / "cut").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UnreadablePicture, match="damaged or cut off|is no picture"):
        open_picture(tmp_path / "cut")


def test_broken_bytes_never_end_in_another_error(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "bad"
    for file_format in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"):
        good = np.frombuffer(encoded(noise(16), file_format), np.uint8)
        for _ in range(20):
            bad = good.copy()
            bad[rng.integers(0, min(len(bad), 200), 4)] = rng.integers(0, 256, 4)
            path.write_bytes(bad.tobytes())
            try:
                assert open_picture(path).mode == "RGB"
            except UserError as error:
                assert "\n" not in str(error)


def test_what_is_no_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
    for name, message in [
        ("none.png", "no such picture"),
        ("file/x.png", "no such picture"),
        ("", "is a folder"),
        ("pipe", "is no ordinary file"),
        ("a" * 300, "cannot read"),
        ("nul\0.png", "is no file name"),
        ("\ud800.png", "is no file name"),
    ]:
        with pytest.raises(UserError, match=message):
            open_picture(f"{tmp_path}/{name}")
    with pytest.raises(UserError, match="is no file name"):
        open_picture("")


# ---- writing -------------------------------------------------------------------------------------------------------


def test_save_and_open_again(tmp_path):
    path = tmp_path / "new" / "folders" / "a.PNG"
    save_picture(noise(), path)
    assert np.array_equal(np.asarray(open_picture(path)), np.asarray(noise()))
    assert [p.name for p in path.parent.iterdir()] == ["a.PNG"]
    for ending in ("jpg", "jpeg", "webp", "bmp", "tif", "tiff", "ppm"):
        save_picture(noise(), tmp_path / f"a.{ending}")
        assert open_picture(tmp_path / f"a.{ending}").size == (64, 64)


@pytest.mark.parametrize("name", ["a", "a.xyz", "a.png.", ".png"])
def test_unknown_endings_are_refused(tmp_path, name):
    with pytest.raises(UserError, match=r"pictures are written as \.png"):
        save_picture(noise(), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def half(file):
        file.write(b"new")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"cannot write .*a\.png: No space left on device"):
        write_atomically(path, half)
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_a_link_keeps_pointing(tmp_path):
    save_picture(noise(), tmp_path / "real.png")
    (tmp_path / "link.png").symlink_to("real.png")
    save_picture(Image.new("RGB", (2, 2)), tmp_path / "link.png")
    assert (tmp_path / "link.png").is_symlink() and open_picture(tmp_path / "real.png").size == (2, 2)


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_bytes(b"x")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")  # moving a file onto it would replace it
    for name in ("file/a.png", "file/b/a.png", "folder.png", "pipe.png", f"{'a' * 300}.png", "nul\0.png"):
        for attempt in (check_writable, lambda path: save_picture(noise(), path)):
            with pytest.raises(UserError, match="cannot write|no file name") as caught:
                attempt(f"{tmp_path}/{name}")
            assert "\n" not in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder.png", "pipe.png"]


def test_checking_leaves_no_trace(tmp_path):
    (tmp_path / "a.png").write_bytes(b"old")
    check_writable(tmp_path / "a.png")
    check_writable(tmp_path / "b.png")
    check_writable(tmp_path / "new" / "folders" / "a.png")
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"] and (tmp_path / "a.png").read_bytes() == b"old"
