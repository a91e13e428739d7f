"""What can be said about a scene: captions, questions with their answers, all exact by construction.

Every question has a kind; `KINDS` lists them. Yes/no questions come as MME-style pairs (one yes, one no about the same
picture) where the scene allows it.
"""

from dataclasses import dataclass

import numpy as np

from unimllm.metrics.geneval import RELATIONS, relations
from unimllm.scenes.objects import COLORS, NUMBER_WORDS, plural, with_article
from unimllm.scenes.program import Scene, SceneObject, World

KINDS = ("existence", "color", "color_yes_no", "count", "count_yes_no", "position_yes_no", "where", "identity")
CAPTION_OPENINGS = ("a picture of {}", "an image of {}", "{}", "draw {}", "please draw {}", "a drawing of {}")
WHERE_MARGIN = 0.06  # of the picture: an object nearer than that to the border of two ninths is not asked about


@dataclass(frozen=True)
class Question:
    """One question about a scene and its one right answer."""

    kind: str
    text: str
    answer: str


def phrase(name: str, color: str | None, count: int = 1) -> str:
    """`a red apple`, `two dogs`."""
    tinted = f"{color} " if color else ""
    return with_article(tinted + name) if count == 1 else f"{NUMBER_WORDS[count]} {tinted}{plural(name)}"


def groups(objects: list[SceneObject]) -> list[tuple[str, str | None, int]]:
    """(name, color, count) of objects that look alike, from left to right by the leftmost of each."""
    counts: dict[tuple[str, str | None], int] = {}
    for item in sorted(objects, key=lambda o: o.box):
        counts[item.name, item.color] = counts.get((item.name, item.color), 0) + 1
    return [(name, color, count) for (name, color), count in counts.items()]


def join(phrases: list[str]) -> str:
    """`a, b and c`."""
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def describe(scene: Scene) -> str:
    """Every object with its colour and count, from left to right: the answer to "What is in the picture?"."""
    return join([phrase(*g) for g in groups(list(scene.objects))])


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """A caption that is true of the scene and names every object; GenEval's phrasing two times in three."""
    with_colors = rng.random() < 0.85
    items = groups(list(scene.objects))
    if not with_colors:
        counts: dict[str, int] = {}
        for name, _, count in items:
            counts[name] = counts.get(name, 0) + count
        items = [(name, None, count) for name, count in counts.items()]
    rng.shuffle(items)
    text = join([phrase(*item) for item in items])
    if len(scene.objects) == 2 and scene.objects[0].name != scene.objects[1].name and rng.random() < 0.6:
        first, second = scene.objects if rng.random() < 0.5 else scene.objects[::-1]
        holding = sorted(relations(first.box, second.box))
        if holding:
            relation = holding[int(rng.integers(len(holding)))]
            colors = (first.color, second.color) if with_colors and rng.random() < 0.6 else (None, None)
            text = f"{phrase(first.name, colors[0])} {relation} {phrase(second.name, colors[1])}"
    if rng.random() < 0.67:
        return f"a photo of {text}"
    return CAPTION_OPENINGS[int(rng.integers(len(CAPTION_OPENINGS)))].format(text)


def existence(name: str, answer: bool) -> Question:
    """POPE's question."""
    return Question("existence", f"Is there {with_article(name)} in the image?", "yes" if answer else "no")


def absent_name(scene: Scene, world: World, rng: np.random.Generator, how: str = "mixed") -> str:
    """A name that is not in the scene, chosen as POPE chooses it: `random`, `popular`, `adversarial`, or a mix."""
    if how == "mixed":
        how = ("random", "popular", "adversarial")[int(rng.integers(3))]
    present = set(scene.names)
    if how == "random":
        candidates = [n for n in world.classes if n not in present]
        return candidates[int(rng.integers(len(candidates)))]
    ranked = world.popular() if how == "popular" else world.companions(scene.names)
    candidates = [n for n in ranked if n not in present][:3]
    return candidates[int(rng.integers(len(candidates)))]


def ask(scene: Scene, world: World, rng: np.random.Generator, kind: str | None = None) -> list[Question]:
    """Questions of one kind (a random one if None): one, or a yes/no pair; none if the scene allows none."""
    kind = kind or KINDS[int(rng.integers(len(KINDS)))]
    return _ASKERS[kind](scene, world, rng)


def _ask_existence(scene: Scene, world: World, rng: np.random.Generator) -> list[Question]:
    there = scene.names[int(rng.integers(len(scene.names)))]
    pair = [existence(there, True), existence(absent_name(scene, world, rng), False)]
    return pair if rng.random() < 0.5 else pair[::-1]


def _tinted(scene: Scene) -> list[SceneObject]:
    """Objects whose name occurs once and which wear one of the ten colours: only those have a colour to ask for."""
    return [o for o in scene.objects if o.color and len(scene.named(o.name)) == 1]


def _ask_color(scene: Scene, world: World, rng: np.random.Generator) -> list[Question]:
    candidates = _tinted(scene)
    if not candidates:
        return []
    item = candidates[int(rng.integers(len(candidates)))]
    return [Question("color", f"What color is the {item.name}?", item.color or "")]


def _ask_color_yes_no(scene: Scene, world: World, rng: np.random.Generator) -> list[Question]:
    candidates = _tinted(scene)
    if not candidates:
        return []
    item = candidates[int(rng.integers(len(candidates)))]
    others = [c for c in COLORS if c != item.color]
    wrong = others[int(rng.integers(len(others)))]
    pair = [
        Question("color_yes_no", f"Is the {item.name} {item.color}?", "yes"),
        Question("color_yes_no", f"Is the {item.name} {wrong}?", "no"),
    ]
    return pair if rng.random() < 0.5 else pair[::-1]


def _ask_count(scene: Scene, world: World, rng: np.random.Generator) -> list[Question]:
    name = scene.names[int(rng.integers(len(scene.names)))]
    return [Question("count", f"How many {plural(name)} are there?", NUMBER_WORDS[len(scene.named(name))])]


def _ask_count_yes_no(scene: Scene, world: World, rng: np.random.Generator) -> list[Question]:
    name = scene.names[int(rng.integers(len(scene.names)))]
    count = len(scene.named(name))
    wrong = [n for n in (1, 2, 3, 4) if n != count][int(rng.integers(3))]
    pair = [_count_question(name, count, "yes"), _count_question(name, wrong, "no")]
    return pair if rng.random() < 0.5 else pair[::-1]


def _count_question(name: str, count: int, answer: str) -> Question:
    thing = f"Is there only one {name}" if count == 1 else f"Are there {NUMBER_WORDS[count]} {plural(name)}"
    return Question("count_yes_no", f"{thing} in the image?", answer)


def _ask_position_yes_no(scene: Scene, world: World, rng: np.random.Generator) -> list[Question]:
    unique = [o for o in scene.objects if len(scene.named(o.name)) == 1]
    if len(unique) < 2:
        return []
    first, second = (unique[i] for i in rng.permutation(len(unique))[:2])
    true = relations(first.box, second.box)
    false = [r for r in RELATIONS if r not in true]
    if not true:
        return []
    pair = [
        Question("position_yes_no", f"Is the {first.name} {r} the {second.name}?", answer)
        for r, answer in ((sorted(true)[int(rng.integers(len(true)))], "yes"), (_any(false, rng), "no"))
    ]
    return pair if rng.random() < 0.5 else pair[::-1]


def _any(items: list[str], rng: np.random.Generator) -> str:
    return items[int(rng.integers(len(items)))]


def where_in(center: tuple[float, float], image_size: int) -> str | None:
    """Ninth of the picture (`top left`, `center`, ...), or None where the centre is too near to the next ninth."""
    words = []
    for value, names in zip(center, (("left", "", "right"), ("top", "", "bottom")), strict=True):
        place = value / image_size
        if min(abs(place - 1 / 3), abs(place - 2 / 3)) < WHERE_MARGIN / 2:
            return None
        words.append(names[int(place * 3)])
    return f"{words[1]} {words[0]}".strip() or "center"


def _ask_where(scene: Scene, world: World, rng: np.random.Generator) -> list[Question]:
    candidates = [
        (o.name, place)
        for o in scene.objects
        if len(scene.named(o.name)) == 1 and (place := where_in(o.center, world.image_size))
    ]
    if not candidates:
        return []
    name, place = candidates[int(rng.integers(len(candidates)))]
    return [Question("where", f"Where is the {name}?", place)]


def _ask_identity(scene: Scene, world: World, rng: np.random.Generator) -> list[Question]:
    texts = ["What is in the picture?", "What is in the image?", "Describe the picture."]
    if len(scene.objects) == 1:
        texts.append("What is this?")
    return [Question("identity", _any(texts, rng), describe(scene))]


_ASKERS = {
    "existence": _ask_existence,
    "color": _ask_color,
    "color_yes_no": _ask_color_yes_no,
    "count": _ask_count,
    "count_yes_no": _ask_count_yes_no,
    "position_yes_no": _ask_position_yes_no,
    "where": _ask_where,
    "identity": _ask_identity,
}


def pope_questions(scene: Scene, world: World, rng: np.random.Generator, split: str) -> list[Question]:
    """POPE's questions about one scene: as many absent names as present ones, chosen by `split`.

    Of popular and adversarial names three are candidates, so the fourth of a scene of four objects comes twice.
    """
    asked = []
    absent: set[str] = set()
    for name in scene.names:
        asked.append(existence(name, True))
        for _ in range(20):
            other = absent_name(scene, world, rng, split)
            if other not in absent:
                break
        absent.add(other)
        asked.append(existence(other, False))
    return asked
