"""Scene programs: what is in a picture, where, in which colour, on which ground. Everything else follows from them.

The splits are held out by composition: a tint of an object, and a pair of different objects that share a picture, each
belong to one split, and the pictures of a split are made of its own compositions alone. With `i` and `j` the places of
objects in `World.classes`, `c` that of a colour in COLORS, and g = `num_groups`:

split       tints of object i       pairs i, j
test        (c + i) % 5 == 0        (i - j) % g == 0
validation  (c + i) % 10 == 1       (i + j) % g == 1, unless it is a test pair
train       the other seven         the others

Whatever is chosen by looking at scores is chosen on the validation split.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from unimllm.metrics.geneval import Box
from unimllm.scenes.glyphs import GlyphAtlas
from unimllm.scenes.objects import CLASSES_24, COLORS, OBJECTS, theme_of

SPLITS = ("train", "validation", "test")
GROUNDS: tuple[tuple[int, int, int], ...] = (
    (236, 236, 238), (226, 219, 208), (212, 222, 232), (150, 154, 160), (62, 64, 72), (44, 50, 47),
)  # fmt: skip
SHADINGS = ("plain", "from above", "from the left")
MIN_CONTRAST = 0.6  # share of a glyph that must stand out from the ground
SIZES = {1: (0.34, 0.55), 2: (0.30, 0.48), 3: (0.28, 0.42), 4: (0.26, 0.38)}  # of the width, by number of objects
KIND_WEIGHTS = {"single": 0.25, "two": 0.33, "same": 0.24, "mixed": 0.18}
REMEMBERED = 4096  # sets of objects of which a world remembers what may join them


@dataclass(frozen=True)
class SceneObject:
    """One glyph: GenEval's name, one of the ten colours or None for the emoji's own, and its box in pixels."""

    name: str
    color: str | None
    box: Box
    size: int  # longer side of the box in pixels

    @property
    def center(self) -> tuple[float, float]:
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2


@dataclass(frozen=True)
class Scene:
    """A scene program: the objects, and the index of its ground and shading."""

    objects: tuple[SceneObject, ...]
    ground: int
    shading: int

    def named(self, name: str) -> list[SceneObject]:
        return [o for o in self.objects if o.name == name]

    @property
    def names(self) -> tuple[str, ...]:
        """Distinct object names, from left to right by the leftmost object of each."""
        return tuple(dict.fromkeys(o.name for o in sorted(self.objects, key=lambda o: o.box)))


@dataclass
class World:
    """Which objects exist, how large pictures are, and how scenes are sampled from the two splits.

    Args:
        atlas: the sprites (their sizes decide the boxes).
        image_size: width and height of a picture in pixels.
        classes: names of the objects, a subset of OBJECTS.
        tints: names of further tints that any object may wear in any split; no sentence tells them.
    """

    atlas: GlyphAtlas
    image_size: int = 64
    classes: tuple[str, ...] = CLASSES_24
    tints: tuple[str, ...] = ()
    num_groups: int = field(init=False)

    def __post_init__(self):
        unknown = [name for name in self.classes if name not in OBJECTS]
        if unknown or len(self.classes) < 8:
            raise ValueError(f"a world needs at least 8 known objects; got {len(self.classes)}, unknown: {unknown}")
        self.num_groups = len(self.classes) // 4
        self._index = {name: i for i, name in enumerate(self.classes)}
        self._affinity = {s: self._affinities(s) for s in SPLITS}
        self._tints = {(name, s): [*self.colors_of(name, s), *self.tints] for name in self.classes for s in SPLITS}
        self._contrast: dict[tuple[str, str | None], list[float]] = {}
        self._kinds, self._first = Weighted(list(KIND_WEIGHTS.values())), Weighted(self.popularity)
        self._joining = lru_cache(maxsize=REMEMBERED)(self._weigh_joining)
        self.companions = lru_cache(maxsize=REMEMBERED)(self._companions)
        self.popular = lru_cache(maxsize=1)(self._popular)

    # ---- the split ---------------------------------------------------------------------------------------------

    def split_of_color(self, name: str, color: str) -> str:
        """The split to which a tint of an object belongs."""
        place = (list(COLORS).index(color) + self._index[name]) % 10
        return "test" if place % 5 == 0 else "validation" if place == 1 else "train"

    def split_of_pair(self, first: str, second: str) -> str:
        """The split to which two different objects in one picture belong."""
        i, j = self._index[first], self._index[second]
        if (i - j) % self.num_groups == 0:
            return "test"
        return "validation" if (i + j) % self.num_groups == 1 else "train"

    def colors_of(self, name: str, split: str) -> list[str]:
        """The colours in which `split` may tint `name`."""
        return [c for c in COLORS if self.split_of_color(name, c) == split]

    def _affinities(self, split: str) -> np.ndarray:
        """(classes, classes) weights with which two different objects are drawn together."""
        themes = [theme_of(name) for name in self.classes]
        weights = np.zeros((len(self.classes),) * 2)
        for i, first in enumerate(self.classes):
            for j, second in enumerate(self.classes):
                if i != j and self.split_of_pair(first, second) == split:
                    weights[i, j] = 3.0 if themes[i] == themes[j] else 1.0
        return weights

    @property
    def popularity(self) -> np.ndarray:
        """(classes,) weights with which an object is drawn: the first of the list twice as often as the last."""
        return np.linspace(2.0, 1.0, len(self.classes))

    def _popular(self) -> tuple[str, ...]:
        """All names, the most frequent in training first (POPE's popular negatives)."""
        return tuple(self.classes[i] for i in np.argsort(-self.popularity, kind="stable"))

    def _companions(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """All other names, those that most often meet `names` in training first (POPE's adversarial negatives)."""
        weight = sum(self._affinity["train"][self._index[n]] for n in names) * self.popularity
        return tuple(self.classes[i] for i in np.argsort(-weight, kind="stable") if self.classes[i] not in names)

    # ---- sampling ----------------------------------------------------------------------------------------------

    def sample(self, rng: np.random.Generator, split: str = "train") -> Scene:
        """A scene of one of SPLITS."""
        kind = list(KIND_WEIGHTS)[self._kinds.draw(rng)]
        names = self._sample_names(kind, rng, split)
        tint_all = self._sample_color(names[0], rng, split) if kind == "same" and rng.random() < 0.7 else False
        colors = [self._sample_color(n, rng, split) if tint_all is False else tint_all for n in names]
        return self.compose(list(zip(names, colors, strict=True)), rng)

    def stream(self, seed: int, split: str = "train") -> Iterator[Scene]:
        """Endless scenes; the same seed gives the same scenes."""
        rng = np.random.default_rng(seed)
        while True:
            yield self.sample(rng, split)

    def _sample_names(self, kind: str, rng: np.random.Generator, split: str) -> list[str]:
        first = self._first.draw(rng)
        if kind == "single":
            return [self.classes[first]]
        if kind == "same":
            return [self.classes[first]] * int(rng.integers(2, 5))
        chosen = [first]
        count = 2 if kind == "two" else int(rng.integers(3, 5))
        while len(chosen) < count:
            if kind == "mixed" and rng.random() < 0.35:  # "two dogs and a cat"
                chosen.append(chosen[int(rng.integers(len(chosen)))])
                continue
            joining = self._joining(split, frozenset(chosen))
            chosen.append(chosen[0] if joining is None else joining.draw(rng))
        return [self.classes[i] for i in chosen]

    def _weigh_joining(self, split: str, chosen: frozenset[int]) -> "Weighted | None":
        """What may be drawn beside every object that is already there; None if nothing may."""
        allowed = np.prod([self._affinity[split][i] for i in chosen], axis=0) * self.popularity
        return Weighted(allowed) if allowed.any() else None

    def _sample_color(self, name: str, rng: np.random.Generator, split: str) -> str | None:
        if rng.random() < 0.35:
            return None
        tints = self._tints[name, split]
        return tints[int(rng.integers(len(tints)))]

    def compose(self, wanted: list[tuple[str, str | None]], rng: np.random.Generator) -> Scene:
        """Place the wanted (name, colour) objects without overlap and choose a ground they stand out from."""
        low, high = SIZES[len(wanted)]
        for attempt in range(2000):
            # Later attempts draw smaller. Four squares of the least size lie apart in one try of 18, so 200 tries
            # would still fail about once in 100,000 scenes, somewhere in the middle of a training run.
            shrink = max(0.0, 1 - attempt / 100)
            boxes: list[Box] = []
            sizes, is_apart = [], True
            for name, _ in wanted:  # to the end, so that every try takes as many random numbers
                size = round(self.image_size * (low + (high - low) * shrink * rng.random()))
                width, height = self.atlas.box_size(name, size)
                x = int(rng.integers(self.image_size - width + 1))
                y = int(rng.integers(self.image_size - height + 1))
                box = (x, y, x + width, y + height)
                is_apart = is_apart and not any(_overlap(box, other) for other in boxes)
                boxes.append(box)
                sizes.append(size)
            if is_apart:
                break
        else:
            raise RuntimeError(f"no room for {wanted} in {self.image_size} pixels")
        objects = tuple(SceneObject(n, c, b, s) for (n, c), b, s in zip(wanted, boxes, sizes, strict=True))
        return Scene(objects, self._choose_ground(wanted, rng), int(rng.integers(len(SHADINGS))))

    def _choose_ground(self, wanted: list[tuple[str, str | None]], rng: np.random.Generator) -> int:
        contrast = [min(shares) for shares in zip(*(self.ground_contrast(*w) for w in wanted), strict=True)]
        good = [ground for ground, share in enumerate(contrast) if share >= MIN_CONTRAST]
        return good[int(rng.integers(len(good)))] if good else contrast.index(max(contrast))

    def ground_contrast(self, name: str, color: str | None) -> list[float]:
        """(grounds,) share of the glyph that stands out from each ground."""
        key = (name, color)
        if key not in self._contrast:
            self._contrast[key] = [self.atlas.contrast(name, color, rgb) for rgb in GROUNDS]
        return self._contrast[key]


class Weighted:
    """Numbers from 0 on, drawn by weight: those that `Generator.choice(p=...)` draws, without its checks each time.

    Args:
        weights: of each, to any scale.
    """

    def __init__(self, weights: np.ndarray | list[float]):
        shares = np.asarray(weights, np.float64)
        shares = shares / shares.sum()
        self.bounds = shares.cumsum()
        self.bounds /= self.bounds[-1]

    def draw(self, rng: np.random.Generator) -> int:
        return int(self.bounds.searchsorted(rng.random(), side="right"))


def _overlap(a: Box, b: Box, gap: int = 1) -> bool:
    return a[0] < b[2] + gap and b[0] < a[2] + gap and a[1] < b[3] + gap and b[1] < a[3] + gap
