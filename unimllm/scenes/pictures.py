"""From a scene to its picture in a row: codes looked up in the cache, or pixels rendered now.

Siblings with the same verbs, as in data/picture_ids.py: `load` gets a scene's picture, `place` puts what was loaded
into a batch.
"""

import numpy as np

from semhitok.image_processing_semhitok import to_pixel_values
from unimllm.data.picture_ids import place_ids
from unimllm.scenes.program import Scene
from unimllm.scenes.render import Renderer


class SceneCodes:
    """Codes that were made of every scene once.

    Args:
        codes: (scenes, N) flat codes.
        image_offset: the first image id.
    """

    def __init__(self, codes: np.ndarray, image_offset: int):
        self.codes, self.image_offset = codes, image_offset

    def load(self, number: int, scene: Scene) -> np.ndarray:
        """(N,) int64 ids of the scene of this number."""
        return self.codes[number].astype(np.int64) + self.image_offset

    def place(self, batch: dict, loaded: list[np.ndarray], placeholder: int) -> None:
        """See `place_ids`."""
        place_ids(batch, loaded, placeholder)


class ScenePixels:
    """Pictures rendered when they are asked for, 0.14 ms each at 64 pixels."""

    def __init__(self, renderer: Renderer):
        self.renderer = renderer

    def load(self, number: int, scene: Scene) -> np.ndarray:
        """(S, S, 3) uint8 RGB."""
        return self.renderer.render(scene)

    def place(self, batch: dict, loaded: list[np.ndarray], placeholder: int) -> None:
        """Add `pixel_values` as `place_pixels` does, (pictures, 3, S, S) float32 in -1..1."""
        if loaded:
            batch["pixel_values"] = to_pixel_values(np.stack(loaded)).contiguous()
