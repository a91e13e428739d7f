"""Pictures from files and to files: whatever is wrong with one ends in one line, and nothing is ever half-written."""

import contextlib
import os
import secrets
import stat
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps, PngImagePlugin

from semhitok.errors import UserError, first_line

MAX_PIXELS = 100_000_000  # 300 MB as RGB; more than any camera of today but a few
MAX_RATIO = 100  # width : height; scaling a thinner strip by its short side would need gigabytes
READ_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")  # no format that runs a program
PngImagePlugin.MAX_TEXT_CHUNK = 1 << 26  # bytes, for the whole process: over Pillow's 1 MB a PNG counts as damaged
WRITE_FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".ppm": "PPM",
}


class UnreadablePicture(UserError):
    """A picture that cannot be read.

    Attributes:
        reason: two or three words to count by, such as "damaged"; the message says it in full, with the path.
    """

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


def open_picture(path: str | Path) -> Image.Image:
    """Read a picture as a person would see it: see `decode_picture`.

    Raises:
        UnreadablePicture: no such file, a folder, or no picture that `decode_picture` reads.
    """
    path = _expand(path)
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):
            with path.open("rb") as file:
                return decode_picture(file, path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UnreadablePicture("missing", f"no such picture: {path}") from error
    except OSError as error:
        raise UnreadablePicture("not readable", f"cannot read {path}: {error.strerror or error}") from error
    what = "a folder" if stat.S_ISDIR(mode) else "no ordinary file"
    raise UnreadablePicture("no file", f"{path} is {what}; name a picture file")


def decode_picture(file: BinaryIO, name: str | Path) -> Image.Image:
    """The picture in an open file, as a person would see it.

    EXIF orientation is applied, transparency lies on white, an animation gives its first frame, 16 bits are scaled to
    8. Damaged EXIF turns nothing.

    Args:
        name: of the picture, for the messages.

    Returns:
        an RGB image that no longer needs the file.

    Raises:
        UnreadablePicture: empty, no picture, a truncated one, an absurdly large or thin one (seen in the header, before
            anything is decoded), or grey values of an unknown range.
    """
    Image.init()
    formats = [format_name for format_name in READ_FORMATS if format_name in Image.OPEN]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own limit warns, and so do harmless oddities in metadata
            with Image.open(file, formats=formats) as image:
                check_size(image.size, name)
                image.load()
                return as_seen(image, name)
    except UnreadablePicture:
        raise
    except Image.DecompressionBombError as error:
        message = f"{name} is too large: more than the {MAX_PIXELS:,} pixels that are read at most"
        raise UnreadablePicture("too large", message) from error
    except Image.UnidentifiedImageError as error:
        file.seek(0)
        if not file.read(1):
            raise UnreadablePicture("empty", f"{name} is empty, so it is no picture") from error
        message = f"{name} is no picture that can be read ({', '.join(formats)})"
        raise UnreadablePicture("no picture", message) from error
    except MemoryError as error:
        message = f"{name}: not enough memory to decode it; scale it down first"
        raise UnreadablePicture("not enough memory", message) from error
    except Exception as error:  # decoders raise nearly anything on broken files, SyntaxError and struct.error included
        message = f"{name} does not decode, it is damaged or cut off: {first_line(error)}"
        raise UnreadablePicture("damaged", message) from error


def check_size(size: tuple[int, int], name: str | Path) -> None:
    """UnreadablePicture if a picture of `size` (width, height) in pixels is absurdly large or thin."""
    width, height = size
    if width * height > MAX_PIXELS:
        message = f"{name} is {width} x {height} pixels; at most {MAX_PIXELS:,} in all are read: scale it down"
        raise UnreadablePicture("too large", message)
    if 0 in size:
        raise UnreadablePicture("empty", f"{name} is {width} x {height} pixels")
    if max(size) > MAX_RATIO * min(size):
        message = f"{name} is {width} x {height} pixels; a side over {MAX_RATIO} times the other is not read"
        raise UnreadablePicture("too thin", message)


def as_seen(image: Image.Image, name: str | Path = "the picture") -> Image.Image:
    """A picture the way up that EXIF says, as `to_rgb` has it."""
    return to_rgb(ImageOps.exif_transpose(image) if _is_turned(image) else image, name)


def to_rgb(image: Image.Image, name: str | Path = "the picture") -> Image.Image:
    """Any mode to RGB: wide grey is scaled to 8 bits, transparency lies on white.

    Raises:
        UnreadablePicture: grey values of an unknown range.
    """
    if image.mode.startswith(("I", "F")):  # convert() would clip these instead of scaling them
        image = _eight_bits(image, name)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        ground = Image.new("RGB", image.size, "white")
        ground.paste(image, mask=image.getchannel("A"))
        return ground
    return image.convert("RGB")


def _eight_bits(image: Image.Image, name: str | Path) -> Image.Image:
    """Grey of 16 or 32 bits or floats to 8 bits.

    Where the mode does not tell which value is white, the values do: the smallest of 1 (floats), 255 and 65535 that
    none exceeds.
    """
    pixels = np.array(image, np.float32)
    low, high = float(pixels.min()), float(pixels.max())
    if not 0 <= low <= high <= 65535:  # also where one is not a number
        message = f"{name} holds grey values from {low:g} to {high:g}; what lies outside 0..65535 is not read"
        raise UnreadablePicture("grey values", message)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        white = 65535
    else:
        white = next(limit for limit in (1, 255, 65535) if high <= limit and (limit > 1 or image.mode == "F"))
    if isinstance(image.info.get("transparency"), int):
        pixels[pixels == image.info["transparency"]] = white
    return Image.fromarray((pixels * (255 / white)).round().astype(np.uint8))


def _is_turned(image: Image.Image) -> bool:
    """Whether EXIF says that the picture must be turned or mirrored to be seen upright."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    except Exception:  # as diverse as those of damaged pictures
        return False


def save_picture(image: Image.Image, path: str | Path) -> None:
    """Write a picture in the format of the name's ending; whoever looks sees the whole file or the one before.

    Missing parent folders are made.

    Raises:
        UserError: unknown ending, or the place cannot be written.
    """
    path = _expand(path)
    file_format = picture_format(path)
    write_atomically(path, lambda file: image.save(file, format=file_format))


def picture_format(path: Path) -> str:
    """Pillow's name of the format that the ending of `path` asks for; UserError if there is none."""
    try:
        return WRITE_FORMATS[path.suffix.lower()]
    except KeyError:
        what = f"the ending {path.suffix!r}" if path.suffix else "no ending"
        raise UserError(f"{path} has {what}; pictures are written as {', '.join(WRITE_FORMATS)}") from None


def write_atomically(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Make the parent folders, let `write(file)` fill a binary file beside `path`, then move it there.

    Raises:
        UserError: the place cannot be written; nothing is left of the attempt but folders that were made.
    """
    target = _file_target(path)
    partial = target.with_name(f".semhitok-{secrets.token_hex(6)}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("xb") as file:
                write(file)
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise _cannot_write(path, error) from error


def check_writable(path: str | Path) -> None:
    """See that `path` can be written before hours are spent on what goes there; leaves no trace.

    Raises:
        UserError: it cannot, or it is no ordinary file.
    """
    target = _file_target(_expand(path))
    made: list[Path] = []
    try:
        for folder in reversed(target.parents):
            if not folder.is_dir():
                folder.mkdir()
                made.append(folder)
        probe = target.with_name(f".semhitok-{secrets.token_hex(6)}.probe")
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        with contextlib.suppress(OSError):  # another program may have used the folder meanwhile
            for folder in reversed(made):
                folder.rmdir()


def _file_target(path: Path) -> Path:
    """Where writing to `path` ends: links are followed, so they stay; UserError if something else than a file is there.

    A device is refused because moving a file onto it would replace the device.
    """
    target = Path(os.path.realpath(path))
    try:
        mode = target.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return target
    except OSError as error:  # a name that is too long, a folder that cannot be searched
        raise _cannot_write(path, error) from error
    if not stat.S_ISREG(mode):
        raise UserError(f"cannot write {path}: it is {'a folder' if stat.S_ISDIR(mode) else 'no ordinary file'}")
    return target


def _expand(path: str | Path) -> Path:
    """With `~` replaced; UserError for what no file system can name."""
    text = os.path.expanduser(path)
    try:
        name = os.fsencode(text)
    except UnicodeEncodeError:
        name = b""
    if not name or b"\0" in name:
        raise UserError(f"{text!r} is no file name")
    return Path(text)


def _cannot_write(path: str | Path, error: OSError) -> UserError:
    return UserError(f"cannot write {path}: {error.strerror or error}; choose another place")
