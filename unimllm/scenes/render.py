"""Drawing scene programs: a ground, then each sprite of the atlas composed over it."""

import numpy as np

from unimllm.scenes.glyphs import GlyphAtlas
from unimllm.scenes.program import GROUNDS, SHADINGS, Scene

SHADE_DEPTH = 0.03  # how much darker a shaded ground is at its far side, of full scale


class Renderer:
    """Draws scenes of one size.

    Args:
        atlas: the sprites.
        image_size: width and height in pixels.
    """

    def __init__(self, atlas: GlyphAtlas, image_size: int):
        self.atlas = atlas
        self.image_size = image_size
        self._grounds = {
            (ground, shading): self._ground(ground, shading)
            for ground in range(len(GROUNDS))
            for shading in range(len(SHADINGS))
        }

    def _ground(self, ground: int, shading: int) -> np.ndarray:
        size = self.image_size
        canvas = np.broadcast_to(np.float32(GROUNDS[ground]) / 255, (size, size, 3)).copy()
        ramp = np.linspace(SHADE_DEPTH, -SHADE_DEPTH, size, dtype=np.float32)
        if SHADINGS[shading] == "from above":
            canvas += ramp[:, None, None]
        elif SHADINGS[shading] == "from the left":
            canvas += ramp[None, :, None]
        return canvas.clip(0, 1)

    def render(self, scene: Scene) -> np.ndarray:
        """The picture of a scene, (size, size, 3) uint8 RGB."""
        canvas = self._grounds[scene.ground, scene.shading].copy()
        for item in scene.objects:
            x0, y0, x1, y1 = (int(v) for v in item.box)
            sprite = self.atlas.sprite(item.name, item.color, item.size)
            region = canvas[y0:y1, x0:x1]
            region *= 1 - sprite[..., 3:]
            region += sprite[..., :3]
        return (canvas * 255 + 0.5).astype(np.uint8)

    def render_batch(self, scenes: list[Scene]) -> np.ndarray:
        """The pictures of many scenes, (n, size, size, 3) uint8 RGB."""
        return np.stack([self.render(s) for s in scenes])
