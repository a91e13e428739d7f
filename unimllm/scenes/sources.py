"""Training data from scenes, made on the fly: sample `i` of a seed is always the same scene (see training.loop)."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from semhitok.image_processing_semhitok import to_pixel_values
from unimllm.errors import UserError
from unimllm.fingerprint import json_fingerprint
from unimllm.scenes.glyphs import GlyphAtlas
from unimllm.scenes.language import caption
from unimllm.scenes.objects import CLASSES_24, NAMELESS_TINTS, OBJECTS
from unimllm.scenes.program import Scene, World
from unimllm.scenes.render import Renderer
from unimllm.scenes.text import encode_padded
from unimllm.training.checkpoint import RUN_FILE, read_run

OWNED_SHARE = 0.3  # of a patch's pixels: so much of an object makes the patch its own


@dataclass
class WorldConfig:
    """Which world a run trains on."""

    image_size: int = 64
    """Width and height of a picture in pixels."""
    classes: tuple[str, ...] = CLASSES_24
    """GenEval names of the objects."""

    def open(self) -> tuple[World, Renderer]:
        """The world and its renderer; FontNotFoundError where Noto Color Emoji is missing."""
        return self._open(tuple(self.classes))

    def open_others(self) -> tuple[World, Renderer]:
        """The same with the objects that `classes` leaves out, also in tints that have no name."""
        others = tuple(name for name in OBJECTS if name not in self.classes)
        if len(others) < 8:
            raise UserError(f"the world's {len(self.classes)} classes leave too few others; set --other_share 0")
        return self._open(others, tuple(NAMELESS_TINTS))

    def _open(self, names: tuple[str, ...], tints: tuple[str, ...] = ()) -> tuple[World, Renderer]:
        atlas = GlyphAtlas.from_font(names)
        return World(atlas, self.image_size, names, tints), Renderer(atlas, self.image_size)


def world_told(world: World) -> dict[str, int | str]:
    """What tells the worlds of results apart; the digests are of the objects in their order and of their glyphs."""
    classes = {"num_classes": len(world.classes), "classes_digest": json_fingerprint(list(world.classes))}
    return {"image_size": world.image_size} | classes | {"glyphs_digest": world.atlas.digest()}


def check_size(world: World | WorldConfig, read: int) -> None:
    """UserError unless the world's pictures are as large as the pictures that are read."""
    size = world.image_size
    if size != read:
        raise UserError(
            f"the preset draws pictures of {size} x {size} pixels, but {read} x {read} are read: add "
            f"--world.image_size {read}"
        )


def trained_classes(folder: Path) -> tuple[str, ...] | None:
    """The objects of the world that a checkpoint was trained on; None where it does not tell them."""
    world = read_run(folder)["recipe"].get("world") if (folder / RUN_FILE).is_file() else None
    return tuple(world["classes"]) if world else None


def sample_rng(seed: int, index: int) -> np.random.Generator:
    """The random numbers of one sample."""
    return np.random.default_rng([seed, index])


class ScenePictures:
    """Pictures alone: `pixel_values` (B, 3, S, S) in -1..1.

    Args:
        world, renderer: of the pictures.
        seed: of the scenes.
        others: world and renderer of other objects.
        other_share: share of the pictures that show those.
        split: of the worlds.
    """

    def __init__(
        self, world: World, renderer: Renderer, seed: int, others: tuple[World, Renderer] | None = None,
        other_share: float = 0.0, split: str = "train",
    ):  # fmt: skip
        self.own, self.others = (world, renderer), others
        self.seed, self.other_share, self.split = seed, other_share, split

    def __call__(self, indices: range) -> dict[str, torch.Tensor]:
        return {"pixel_values": to_pixel_values(np.stack([self.picture(i) for i in indices]))}

    def picture(self, index: int) -> np.ndarray:
        """(S, S, 3) uint8."""
        rng = sample_rng(self.seed, index)
        world, renderer = self.others if self.others and rng.random() < self.other_share else self.own
        return renderer.render(world.sample(rng, self.split))


class CaptionedScenes:
    """Pictures, their captions, and for each patch the class of the object that owns it.

    Batch: `pixel_values` (B, 3, S, S); `input_ids` (B, T) captions; `owners` (B, N) int64 into `world.classes`, or
    their number where a patch shows the ground.
    """

    def __init__(self, world: World, renderer: Renderer, tokenizer, seed: int, patch_size: int, max_length: int):
        self.world, self.renderer, self.tokenizer, self.seed = world, renderer, tokenizer, seed
        self.patch_size, self.max_length = patch_size, max_length

    def __call__(self, indices: range) -> dict[str, torch.Tensor]:
        captions, scenes = [], []
        for i in indices:
            rng = sample_rng(self.seed, i)
            scenes.append(self.world.sample(rng))
            captions.append(caption(scenes[-1], rng))
        return {
            "pixel_values": to_pixel_values(self.renderer.render_batch(scenes)),
            "input_ids": encode_padded(self.tokenizer, captions, self.max_length),
            "owners": torch.from_numpy(
                np.stack([patch_owners(s, self.world, self.renderer, self.patch_size) for s in scenes])
            ),
        }


def patch_owners(scene: Scene, world: World, renderer: Renderer, patch_size: int) -> np.ndarray:
    """(N,) int64 index of the class in `world.classes` that each patch shows, row by row; their number: the ground."""
    size, grid = renderer.image_size, renderer.image_size // patch_size
    owner = np.full((grid, grid), len(world.classes))
    most = np.full((grid, grid), OWNED_SHARE, np.float32)
    for item in scene.objects:
        x0, y0, x1, y1 = (int(v) for v in item.box)
        mask = np.zeros((size, size), np.float32)
        mask[y0:y1, x0:x1] = renderer.atlas.sprite(item.name, item.color, item.size)[..., 3]
        share = mask.reshape(grid, patch_size, grid, patch_size).mean((1, 3))
        owner[share > most] = world.classes.index(item.name)
        most = np.maximum(most, share)
    return owner.reshape(-1)
