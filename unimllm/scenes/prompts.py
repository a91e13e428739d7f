"""GenEval-style prompts of a split, in GenEval's own format and phrasing (its create_prompts.py)."""

import numpy as np

from unimllm.metrics.geneval import RELATIONS, TAGS, Detection, is_correct
from unimllm.scenes.language import phrase
from unimllm.scenes.objects import COLORS, NUMBER_WORDS, plural
from unimllm.scenes.program import Scene, World


def all_prompts(world: World, tag: str, split: str = "test") -> list[dict]:
    """Every prompt of one GenEval tag that the split's compositions allow, in a fixed order."""
    if tag == "single_object":
        return [_metadata(tag, [_clause(n)], f"a photo of {phrase(n, None)}") for n in world.classes]
    if tag == "counting":
        return [
            _metadata(
                tag, [_clause(n, count)], f"a photo of {NUMBER_WORDS[count]} {plural(n)}", [_clause(n, count + 1)]
            )
            for n in world.classes
            for count in (2, 3, 4)
        ]
    if tag == "colors":
        return [
            _metadata(tag, [_clause(n, color=c)], f"a photo of {phrase(n, c)}")
            for n in world.classes
            for c in world.colors_of(n, split)
        ]
    pairs = [(a, b) for a in world.classes for b in world.classes if a != b and world.split_of_pair(a, b) == split]
    if tag == "two_object":
        return [
            _metadata(tag, [_clause(a), _clause(b)], f"a photo of {phrase(a, None)} and {phrase(b, None)}")
            for a, b in pairs
        ]
    if tag == "position":
        return [
            _metadata(
                tag,
                [_clause(b), _clause(a, position=(relation, 0))],
                f"a photo of {phrase(a, None)} {relation} {phrase(b, None)}",
            )
            for a, b in pairs
            for relation in RELATIONS
        ]
    if tag == "color_attr":
        return [
            _metadata(
                tag,
                [_clause(a, color=first), _clause(b, color=second)],
                f"a photo of {phrase(a, first)} and {phrase(b, second)}",
            )
            for a, b in pairs
            for first in world.colors_of(a, split)
            for second in world.colors_of(b, split)
            if first != second
        ]
    raise ValueError(f"unknown GenEval tag {tag!r}; known: {', '.join(TAGS)}")


def sample_prompts(world: World, seed: int, split: str = "test", at_most: int = 142) -> list[dict]:
    """At most `at_most` distinct prompts of every tag, drawn by `seed`; those that the official file could hold."""
    chosen = []
    for index, tag in enumerate(TAGS):
        prompts = all_prompts(world, tag, split)
        order = np.random.default_rng([seed, index]).permutation(len(prompts))[:at_most]
        chosen += [prompts[i] for i in sorted(order)]
    return chosen


def covered_by(world: World, metadata: dict) -> bool:
    """Whether the world has every object that a prompt of GenEval names."""
    return all(clause["class"] in world.classes for clause in metadata["include"])


def _clause(name: str, count: int = 1, color: str | None = None, position: tuple[str, int] | None = None) -> dict:
    clause: dict = {"class": name, "count": count}
    if color:
        clause["color"] = color
    if position:
        clause["position"] = list(position)
    return clause


def _metadata(tag: str, include: list[dict], prompt: str, exclude: list[dict] | None = None) -> dict:
    return {"tag": tag, "include": include} | ({"exclude": exclude} if exclude else {}) | {"prompt": prompt}


def true_detections(scene: Scene) -> list[Detection]:
    """What a perfect reader reports about a scene."""
    return [Detection(o.name, o.box, 1.0, o.color) for o in scene.objects]


def scene_for_prompt(world: World, metadata: dict, rng: np.random.Generator) -> Scene:
    """A scene that fulfils a prompt and holds nothing else: what a perfect model would draw.

    Colours that the prompt leaves open are drawn at random, one per clause.

    Raises:
        ValueError: the world lacks an object of the prompt.
        RuntimeError: no such scene was found (the prompt contradicts itself).
    """
    if not covered_by(world, metadata):
        raise ValueError(f"the world has not every object of the prompt {metadata['prompt']!r}")
    for _ in range(500):
        wanted: list[tuple[str, str | None]] = []
        for clause in metadata["include"]:
            any_color = None if rng.random() < 0.35 else list(COLORS)[int(rng.integers(len(COLORS)))]
            wanted += [(clause["class"], clause.get("color", any_color))] * clause["count"]
        scene = world.compose(wanted, rng)
        if is_correct(true_detections(scene), metadata):
            return scene
    raise RuntimeError(f"found no scene that fulfils {metadata['prompt']!r}")
