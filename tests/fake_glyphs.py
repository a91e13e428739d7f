"""Glyphs of the scenes without the font."""

import numpy as np

from unimllm.scenes import CLASSES_24, GlyphAtlas


def make_atlas() -> GlyphAtlas:
    """A GlyphAtlas of hand-made blobs under the names of CLASSES_24: wide, tall and square, with soft borders."""
    glyphs = {}
    for number, name in enumerate(CLASSES_24):
        rng = np.random.default_rng(number)
        height, width = ((64, 64), (40, 64), (64, 44))[number % 3]
        y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
        alpha = ((1.05 - np.hypot(x, y)) * 12).clip(0, 1)[..., None]
        stripes = 0.75 + 0.25 * np.sin(6 * (x if number % 2 else y) * (1 + number % 4))
        glyphs[name] = np.concatenate([rng.random(3) * stripes[..., None] * alpha, alpha], -1).astype(np.float32)
    return GlyphAtlas(glyphs)
