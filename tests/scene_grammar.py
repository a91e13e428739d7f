"""A small grammar of the scenes' language, for tests: what a sentence claims, and whether the boxes bear it out.

It shares no code with unimllm/scenes/language.py beyond the word lists, so a mistake would have to be made twice.
"""

import re
from collections import Counter

import numpy as np

from unimllm.metrics.geneval import RELATIONS
from unimllm.scenes import COLORS, Scene, SceneObject
from unimllm.scenes.objects import CLASSES_24, plural

NUMBERS = {"a": 1, "an": 1, "two": 2, "three": 3, "four": 4}
SINGULAR = {form: name for name in CLASSES_24 for form in (name, plural(name))}
OPENINGS = ("a photo of", "a picture of", "an image of", "please draw", "draw", "a drawing of")


def read_phrase(text: str) -> tuple[str, str | None, int]:
    """`two red dogs` -> (dog, red, 2)."""
    number, rest = text.split(" ", 1)
    if number in ("a", "an"):
        assert (number == "an") == (rest[0] in "aeiou"), text
    color, _, tail = rest.partition(" ")
    if color in COLORS and tail in SINGULAR:
        name_form = tail
    else:
        color, name_form = None, rest
    name, count = SINGULAR[name_form], NUMBERS[number]
    assert name_form == (name if count == 1 else plural(name)), text
    return name, color, count


def read_list(text: str) -> list[tuple[str, str | None, int]]:
    return [read_phrase(part) for part in re.split(", | and ", text)]


def read_caption(text: str) -> tuple[list[tuple[str, str | None, int]], str | None]:
    """A caption -> what it names, and the relation of the first thing to the second if it tells one."""
    opening = next((o for o in OPENINGS if text.startswith(f"{o} ")), None)
    body = text.removeprefix(f"{opening} ") if opening else text
    for relation in RELATIONS:
        if f" {relation} " in body:
            return [read_phrase(part) for part in body.split(f" {relation} ")], relation
    return read_list(body), None


def lies(first: SceneObject, second: SceneObject, relation: str) -> bool:
    """GenEval's relation as captions tell it, from the boxes: an axis less its margin as a share of the offset."""
    kept, whole = [], []
    for low, high in ((0, 2), (1, 3)):
        sides = first.box[high] - first.box[low] + second.box[high] - second.box[low]
        middle = (first.box[low] + first.box[high]) / 2 - (second.box[low] + second.box[high]) / 2
        whole.append(middle)
        kept.append(np.sign(middle) * max(0.0, abs(middle) - sides / 10))
    x, y = np.array(kept) / max(np.linalg.norm(whole), 1e-9)
    return {"left of": x < -0.5, "right of": x > 0.5, "above": y < -0.5, "below": y > 0.5}[relation]


def ninth(item: SceneObject, size: int) -> str:
    column = ("left", "", "right")[int(3 * (item.box[0] + item.box[2]) / 2 / size)]
    row = ("top", "", "bottom")[int(3 * (item.box[1] + item.box[3]) / 2 / size)]
    return " ".join(w for w in (row, column) if w) or "center"


def answer_from_boxes(scene: Scene, text: str, size: int) -> str:
    """The answer to any question of the scenes, from its words and the program alone."""
    counts = Counter(o.name for o in scene.objects)

    def the(name: str) -> SceneObject:
        assert counts[name] == 1, f"'the {name}' of {counts[name]}: {text}"
        return next(o for o in scene.objects if o.name == name)

    def say(truth: bool) -> str:
        return "yes" if truth else "no"

    if found := re.fullmatch(r"Is there only one (.+) in the image\?", text):
        return say(counts[found[1]] == 1)
    if found := re.fullmatch(r"Is there (an? .+) in the image\?", text):
        return say(counts[read_phrase(found[1])[0]] > 0)
    if found := re.fullmatch(r"Are there (\w+) (.+) in the image\?", text):
        return say(counts[SINGULAR[found[2]]] == NUMBERS[found[1]])
    if found := re.fullmatch(r"How many (.+) are there\?", text):
        return ["zero", "one", "two", "three", "four"][counts[SINGULAR[found[1]]]]
    if found := re.fullmatch(r"What color is the (.+)\?", text):
        return the(found[1]).color
    if found := re.fullmatch(r"Where is the (.+)\?", text):
        return ninth(the(found[1]), size)
    if found := re.fullmatch(rf"Is the (.+) ({'|'.join(RELATIONS)}) the (.+)\?", text):
        return say(lies(the(found[1]), the(found[3]), found[2]))
    if found := re.fullmatch(rf"Is the (.+) ({'|'.join(COLORS)})\?", text):
        return say(the(found[1]).color == found[2])
    raise AssertionError(f"no grammar for {text!r}")


def named(scene: Scene) -> Counter:
    return Counter((o.name, o.color) for o in scene.objects)
