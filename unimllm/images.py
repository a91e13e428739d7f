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
from PIL import Image, ImageOps

from unimllm.errors import UserError

MAX_PIXELS = 100_000_000  # 300 MB as RGB; more than any camera of today but a few
MAX_RATIO = 100  # width : height; scaling a thinner strip by its short side would need gigabytes
READ_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")  # no format that runs a program
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


def open_picture(path: str | Path) -> Image.Image:
    """Read a picture as a person would see it.

    EXIF orientation is applied, transparency lies on white, an animation gives its first frame.

    Returns:
        an RGB image that no longer needs the file.

    Raises:
        UserError: no such file, a folder, no picture, a truncated one, or more than MAX_PIXELS; the last is seen in the
            header, before anything is decoded.
    """
    path = _expand(path)
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):
            with path.open("rb") as file:
                return _decode(file, path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(f"no such picture: {path}") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    raise UserError(f"{path} is {'a folder' if stat.S_ISDIR(mode) else 'no ordinary file'}; name a picture file")


def _decode(file, path: Path) -> Image.Image:
    """The picture in an open file; UserError if there is none."""
    Image.init()
    formats = [name for name in READ_FORMATS if name in Image.OPEN]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own limit warns, and so do harmless oddities in metadata
            with Image.open(file, formats=formats) as image:
                check_size(image.size, path)
                image.load()
                return to_rgb(ImageOps.exif_transpose(image))
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise UserError(f"{path} is too large: more than the {MAX_PIXELS:,} pixels that are read at most") from error
    except Image.UnidentifiedImageError as error:
        raise UserError(f"{path} is no picture that can be read ({', '.join(formats)})") from error
    except MemoryError as error:
        raise UserError(f"{path}: not enough memory to decode it; scale it down first") from error
    except Exception as error:  # decoders raise nearly anything on broken files, SyntaxError and struct.error included
        raise UserError(f"{path} does not decode, it is damaged or cut off: {_first_line(error)}") from error


def check_size(size: tuple[int, int], path: Path) -> None:
    """UserError if a picture of `size` (width, height) in pixels is absurdly large or thin."""
    width, height = size
    if width * height > MAX_PIXELS:
        raise UserError(f"{path} is {width} x {height} pixels; at most {MAX_PIXELS:,} in all are read: scale it down")
    if max(size) > MAX_RATIO * min(size):
        raise UserError(f"{path} is {width} x {height} pixels; a side over {MAX_RATIO} times the other is not read")


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB: 16-bit grey is scaled to 8 bits, transparency lies on white."""
    if image.mode.startswith(("I", "F")):  # convert() would clip these instead of scaling them
        pixels = np.asarray(image, np.float32)
        scale = 255 / 65535 if image.mode.startswith("I") and pixels.max() > 255 else 1.0
        image = Image.fromarray((np.nan_to_num(pixels) * scale).clip(0, 255).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        ground = Image.new("RGB", image.size, "white")
        ground.paste(image, mask=image.getchannel("A"))
        return ground
    return image.convert("RGB")


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
    partial = target.with_name(f".unimllm-{secrets.token_hex(6)}.partial")
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
        probe = target.with_name(f".unimllm-{secrets.token_hex(6)}.probe")
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


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
