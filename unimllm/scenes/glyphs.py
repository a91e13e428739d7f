"""The glyph atlas: emoji of Noto Color Emoji as small premultiplied RGBA sprites in any size and tint."""

import hashlib
import os
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from unimllm.errors import UserError
from unimllm.fingerprint import DIGITS
from unimllm.scenes.objects import COLORS, NAMELESS_TINTS, OBJECTS

FONT_ENV = "UNIMLLM_EMOJI_FONT"
BITMAP_SIZE = 109  # the one size in which the font holds its bitmaps
FONT_PATHS = (
    "/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf",
    "/usr/share/fonts/noto/NotoColorEmoji.ttf",
    "/usr/share/fonts/google-noto-emoji/NotoColorEmoji.ttf",
    "/usr/share/fonts/noto-emoji/NotoColorEmoji.ttf",
    "~/.fonts/NotoColorEmoji.ttf",
    "~/.local/share/fonts/NotoColorEmoji.ttf",
    "~/Library/Fonts/NotoColorEmoji.ttf",
    "~/AppData/Local/Microsoft/Windows/Fonts/NotoColorEmoji.ttf",
)
BITMAP_BUILD = (
    "take the build with bitmaps (CBDT), fonts/NotoColorEmoji.ttf of github.com/googlefonts/noto-emoji, and set "
    f"{FONT_ENV} to its path"
)


class FontNotFoundError(UserError):
    """Noto Color Emoji is not installed, or what is named as it is another file."""


def find_font() -> Path:
    """Path of NotoColorEmoji.ttf.

    Raises:
        FontNotFoundError: it is in none of the usual places and $UNIMLLM_EMOJI_FONT does not name it.
    """
    named = os.environ.get(FONT_ENV)
    for candidate in [named] if named else FONT_PATHS:
        path = Path(candidate).expanduser()
        if path.is_file():
            return path
    where = f"${FONT_ENV} names {named}, which is no file" if named else "Noto Color Emoji is not installed"
    raise FontNotFoundError(
        f"{where}: the emoji scenes are drawn with it. Install it (Debian, Ubuntu: apt-get install "
        f"fonts-noto-color-emoji); on macOS, Windows and new Fedora {BITMAP_BUILD}"
    )


def load_glyphs(names: tuple[str, ...], font_path: str | Path | None = None) -> dict[str, np.ndarray]:
    """The emoji of each name, cropped to what is visible.

    Returns:
        name -> (h, w, 4) float32 in 0..1, premultiplied alpha; about 128 pixels on the longer side.

    Raises:
        FontNotFoundError: no font, a file that is none, or a font that does not draw each name in colours of its own.
    """
    path = font_path or find_font()
    try:
        font = ImageFont.truetype(str(path), BITMAP_SIZE)
    except OSError as error:
        raise _wrong_font(path, str(error)) from error
    glyphs, drawn = {}, {}
    for name in names:
        image = Image.new("RGBA", (192, 192), (0, 0, 0, 0))
        ImageDraw.Draw(image).text((24, 24), OBJECTS[name], font=font, embedded_color=True)
        box = image.getbbox()
        if box is None:
            raise _wrong_font(path, f"it draws nothing for {name!r}")
        pixels = np.asarray(image.crop(box), np.float32) / 255
        colors = pixels[pixels[..., 3] > 0, :3]
        if (colors == colors[0]).all():  # a font without colours draws in that of its text
            raise _wrong_font(path, f"it draws {name!r} in one colour throughout")
        other = drawn.setdefault(pixels.tobytes(), name)
        if other != name:  # the box that stands for what a font does not have
            raise _wrong_font(path, f"it draws {name!r} as it does {other!r}")
        pixels[..., :3] *= pixels[..., 3:]
        glyphs[name] = pixels
    return glyphs


def _wrong_font(path: str | Path, reason: str) -> FontNotFoundError:
    return FontNotFoundError(f"{path} cannot be used as Noto Color Emoji: {reason}; {BITMAP_BUILD}")


def resize_sprite(sprite: np.ndarray, size: int) -> np.ndarray:
    """Resize a premultiplied (h, w, 4) sprite so that its longer side has `size` pixels (area average)."""
    target = size_within(sprite, size)
    planes = [Image.fromarray(sprite[..., i]).resize(target, Image.Resampling.BOX) for i in range(4)]
    return np.stack([np.asarray(p) for p in planes], -1).clip(0, 1)


def size_within(sprite: np.ndarray, size: int) -> tuple[int, int]:
    """(width, height) in pixels of a sprite (h, w, 4) once its longer side has `size`."""
    height, width = sprite.shape[:2]
    scale = size / max(height, width)
    return max(2, round(width * scale)), max(2, round(height * scale))


def tint_sprite(sprite: np.ndarray, rgb: tuple[int, int, int]) -> np.ndarray:
    """Colour a premultiplied sprite with `rgb`, keeping its shading and outline.

    The sprite's own luminance, spread to a fixed contrast around its mean, darkens or lightens the colour: so the mean
    stays the colour that was asked for whatever the emoji's own colours were.
    """
    alpha = sprite[..., 3:]
    luminance = (sprite[..., :3] @ np.float32([0.299, 0.587, 0.114]))[..., None] / np.maximum(alpha, 1e-3)
    weight = alpha.sum()
    mean = (luminance * alpha).sum() / weight
    spread = np.sqrt((((luminance - mean) ** 2) * alpha).sum() / weight)
    shade = ((luminance - mean) / max(float(spread), 0.04) * 0.22).clip(-0.5, 0.4)
    color = np.float32(rgb) / 255
    lighter = color + (1 - color) * shade.clip(0) * 1.2
    darker = color * (1 + shade.clip(max=0))
    # White cannot get lighter nor black darker: shift them so that shading still shows.
    dark = float(color.max()) < 0.25
    tinted = (color + 0.28 * (shade + 0.15).clip(0)) if dark else np.where(shade > 0, lighter, darker)
    return np.concatenate([tinted.clip(0, 1) * alpha, alpha], -1).astype(np.float32)


KEPT_SPRITES = 8192
"""All that the 24 classes of a training split need at 64 or 128 pixels; 90 and 350 MB."""


class GlyphAtlas:
    """Sprites by (name, colour, size), made on first use; the KEPT_SPRITES last used are kept.

    Args:
        glyphs: name -> (h, w, 4) float32 premultiplied, as `load_glyphs` returns; tests pass hand-made ones.
    """

    def __init__(self, glyphs: dict[str, np.ndarray]):
        self.glyphs = glyphs
        self.sprite = lru_cache(maxsize=KEPT_SPRITES)(self._sprite)
        self.box_size = lru_cache(maxsize=KEPT_SPRITES)(self._box_size)

    @classmethod
    def from_font(cls, names: tuple[str, ...], font_path: str | Path | None = None) -> "GlyphAtlas":
        return cls(load_glyphs(names, font_path))

    def digest(self) -> str:
        """What tells these glyphs from those of another font, or of another version of it."""
        sha256 = hashlib.sha256()
        for name, glyph in sorted(self.glyphs.items()):
            sha256.update(f"{name} {glyph.shape}".encode())
            sha256.update(np.ascontiguousarray(glyph).data)
        return sha256.hexdigest()[:DIGITS]

    def _sprite(self, name: str, color: str | None, size: int) -> np.ndarray:
        if color is None:
            return resize_sprite(self.glyphs[name], size)
        return tint_sprite(self.sprite(name, None, size), COLORS.get(color) or NAMELESS_TINTS[color])

    def _box_size(self, name: str, size: int) -> tuple[int, int]:
        """(width, height) in pixels of the sprite whose longer side is `size`."""
        return size_within(self.glyphs[name], size)

    def contrast(self, name: str, color: str | None, rgb: tuple[int, int, int]) -> float:
        """Share (0..1) of the glyph that stands out from a ground of colour `rgb`."""
        sprite = self.sprite(name, color, 32)
        alpha = sprite[..., 3]
        own = sprite[..., :3] / np.maximum(sprite[..., 3:], 1e-3)
        distance = np.abs(own - np.float32(rgb) / 255).max(-1)
        return float(((distance > 0.18) * alpha).sum() / alpha.sum())
