"""GenEval's scoring rules (github.com/djghosh13/geneval, evaluate_images.py) over any detector's boxes.

A detection is `Detection(name, box, score, color)`; a prompt's metadata is GenEval's own dict
`{"tag", "include": [{"class", "count"[, "color"][, "position": [relation, index]]}][, "exclude": [...]], "prompt"}`.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unimllm.metrics.intervals import bootstrap, wilson

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
RELATIONS = ("left of", "right of", "above", "below")
THRESHOLD = 0.3  # a detection counts above this score ...
COUNTING_THRESHOLD = 0.9  # ... and above this one where the prompt counts
MAX_OBJECTS = 16  # per class
POSITION_MARGIN = 0.1  # of the summed sizes: nearer than that, two objects are in no relation

Box = tuple[float, float, float, float]  # x0, y0, x1, y1 in pixels, x to the right and y down


@dataclass(frozen=True)
class Detection:
    """One object that a detector reports; `color` is None where the detector sees none of the ten."""

    name: str
    box: Box
    score: float = 1.0
    color: str | None = None


def relations(subject: Box, other: Box) -> set[str]:
    """How `subject` lies to `other`: none, one or two of RELATIONS, by GenEval's rule (its `relative_position`).

    The offset of the centres is shrunk on each axis by a tenth of both boxes' sizes; a relation holds if what is left
    on its axis is more than half of the length of the offset BEFORE shrinking.
    """
    offset, shrunk = center_offset(subject, other)
    if max(abs(o) for o in shrunk) < 1e-3:
        return set()
    return directions(shrunk, (offset[0] ** 2 + offset[1] ** 2) ** 0.5)


def center_offset(subject: Box, other: Box) -> tuple[list[float], list[float]]:
    """(x, y) from the centre of `other` to that of `subject` in pixels, and the same shrunk by POSITION_MARGIN."""
    offset, shrunk = [], []
    for low, high in ((0, 2), (1, 3)):
        distance = (subject[low] + subject[high] - other[low] - other[high]) / 2
        margin = POSITION_MARGIN * (subject[high] - subject[low] + other[high] - other[low])
        offset.append(distance)
        shrunk.append(max(abs(distance) - margin, 0.0) * (1 if distance > 0 else -1))
    return offset, shrunk


def directions(offset: list[float], length: float) -> set[str]:
    """The RELATIONS whose axis carries more than half of `length`."""
    dx, dy = offset[0] / length, offset[1] / length
    holds = {"left of": dx < -0.5, "right of": dx > 0.5, "above": dy < -0.5, "below": dy > 0.5}
    return {name for name, true in holds.items() if true}


def is_correct(detections: list[Detection], metadata: dict) -> bool:
    """Whether a picture with these detections fulfils every clause of the prompt."""
    return not failures(detections, metadata)


def failures(detections: list[Detection], metadata: dict) -> list[str]:
    """What a picture with these detections lacks, one line for each clause of the prompt that does not hold.

    The surest `count` boxes of a class are the ones whose colour and position are judged; a clause whose count or
    colour fails has no boxes for others to lie beside.
    """
    found = kept(detections, metadata)
    groups: list[list[Detection] | None] = []
    reasons = []
    for clause in metadata["include"]:
        group = found[clause["class"]][: clause["count"]]
        reason = _failure(clause, group, groups)
        groups.append(None if reason else group)
        reasons += [reason] if reason else []
    for clause in metadata.get("exclude", []):
        number = len(found[clause["class"]])
        if number >= clause["count"]:
            reasons.append(f"{number} {clause['class']} found, fewer than {clause['count']} wanted")
    return reasons


def kept(detections: list[Detection], metadata: dict) -> dict[str, list[Detection]]:
    """What counts under a prompt: by class, the surest first, above the tag's threshold, at most MAX_OBJECTS."""
    threshold = COUNTING_THRESHOLD if metadata["tag"] == "counting" else THRESHOLD
    found: dict[str, list[Detection]] = defaultdict(list)
    for detection in sorted(detections, key=lambda d: -d.score):
        if detection.score > threshold and len(found[detection.name]) < MAX_OBJECTS:
            found[detection.name].append(detection)
    return found


def in_words(detections: list[Detection], metadata: dict) -> str:
    """What counts of the detections under a prompt, such as "red apple, 2 dog"; "nothing" where none does."""
    names = Counter(f"{d.color or ''} {d.name}".strip() for group in kept(detections, metadata).values() for d in group)
    return ", ".join(f"{count} {name}" if count > 1 else name for name, count in names.items()) or "nothing"


def _failure(clause: dict, group: list[Detection], groups: list[list[Detection] | None]) -> str | None:
    """Why an include clause does not hold for the surest boxes of its class, None if it does.

    Args:
        groups: the boxes of the clauses before it, None for those that do not hold.
    """
    name, count = clause["class"], clause["count"]
    if len(group) < count:
        return f"{len(group)} {name} found, {count} wanted"
    if "color" in clause:
        colored = sum(d.color == clause["color"] for d in group)
        if colored < count:
            return f"{colored} {clause['color']} {name} found, {count} wanted"
    if "position" in clause:
        relation, index = clause["position"]
        if groups[index] is None:
            return f"nothing for the {name} to be {relation}"
        if not all(relation in relations(d.box, t.box) for d in group for t in groups[index]):
            return f"{name} not {relation} its target"
    return None


def summarize(tags: list[str], correct: list[bool]) -> dict[str, float | None]:
    """Share of correct pictures per tag, and `overall`, their unweighted mean (GenEval's rule).

    `overall` is None where one of TAGS does not occur: the mean of those that a part of the prompts happens to reach is
    not comparable.
    """
    scores: dict[str, float | None] = {}
    for tag in dict.fromkeys((*TAGS, *tags)):
        of_tag = [c for t, c in zip(tags, correct, strict=True) if t == tag]
        if of_tag:
            scores[tag] = sum(of_tag) / len(of_tag)
    scores["overall"] = sum(scores.values()) / len(scores) if scores.keys() >= set(TAGS) else None
    return scores


def intervals(tags: list[str], correct: list[bool], prompts: Sequence[int]) -> dict[str, tuple[float, float] | None]:
    """95 % intervals of `summarize`: Wilson's for a tag, the bootstrap over prompts for `overall` if there is one.

    All pictures of a prompt are one trial of Wilson's: rather too wide than too narrow, for they are not independent.

    Args:
        prompts: number of each picture's prompt.
    """
    scores, shares = summarize(tags, correct), {}
    for tag in dict.fromkeys(tags):
        num_prompts = len({prompt for prompt, t in zip(prompts, tags, strict=True) if t == tag})
        shares[tag] = wilson(scores[tag] * num_prompts, num_prompts)

    def overall(picked: np.ndarray) -> float:
        drawn = summarize([tags[i] for i in picked], [correct[i] for i in picked])  # a small tag may be left out
        return float(np.mean([share for tag, share in drawn.items() if tag != "overall"]))

    return shares | {"overall": None if scores["overall"] is None else bootstrap(overall, prompts)}
