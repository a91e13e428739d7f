"""lmms-eval's tasks over emoji scenes: pictures and questions are made when a task is loaded.

The file that a task names as its data holds one line for each set of questions: how many, and from which seed.
"""

import math
import statistics
from functools import cache, partial

import numpy as np
from datasets import Dataset, Features, Image, Value

from unimllm.metrics import pope
from unimllm.scenes import GlyphAtlas, Renderer, World
from unimllm.scenes.examination import pope_set
from unimllm.scenes.reader import DEFAULT_READER, SceneReaderConfig

FEATURES = Features(
    {name: Value("string") for name in ("question_id", "set", "question", "answer")} | {"image": Image()}
)


@cache
def open_world() -> tuple[World, Renderer]:
    """The world of the reader that ships, which is that of the model that ships."""
    config = SceneReaderConfig.from_pretrained(DEFAULT_READER)
    names = tuple(config.class_names)
    atlas = GlyphAtlas.from_font(names)
    return World(atlas, config.image_size, names), Renderer(atlas, config.image_size)


def pope_docs(sets: Dataset) -> Dataset:
    """Rows `negatives`, `count`, `seed` -> one row for each question, on held-out compositions."""
    world, renderer = open_world()
    rows = []
    for wanted in sets:
        questions = pope_set(world, wanted["seed"], wanted["negatives"], wanted["count"])
        pictures: list[np.ndarray] = renderer.render_batch(questions.scenes)
        for number, (scene, question) in enumerate(questions.asked):
            rows.append(
                {
                    "question_id": f"{wanted['negatives']}-{number}",
                    "set": wanted["negatives"],
                    "question": question.text,
                    "answer": question.answer,
                    "image": pictures[scene],
                }
            )
    return Dataset.from_list(rows, features=FEATURES)


def doc_to_visual(doc: dict) -> list:
    return [doc["image"]]


def pope_results(doc: dict, results: list[str]) -> dict[str, dict]:
    """One answer, entered under every metric that is computed from all of them."""
    entry = {"set": doc["set"], "label": doc["answer"], "answer": results[0]}
    names = ("accuracy", "precision", "recall", "yes_ratio", "f1", "f1_strict", *(f"f1_{s}" for s in pope.SPLITS))
    return {f"pope_{name}": entry for name in names}


def pope_score(entries: list[dict], name: str, parsing: str = "official", split: str | None = None) -> float:
    """One of `unimllm.metrics.pope.score`'s numbers, over one split (nan: --limit left it out) or all answers."""
    kept = [e for e in entries if split in (None, e["set"])]
    if not kept:
        return math.nan
    return pope.score([e["label"] for e in kept], [e["answer"] for e in kept], parsing)[name]


def mean_f1(entries: list[dict], parsing: str = "official") -> float:
    """Mean over the splits that were asked (all three without --limit)."""
    splits = sorted({e["set"] for e in entries})
    return statistics.mean(pope_score(entries, "f1", parsing, split) for split in splits)


def mean_f1_strict(entries: list[dict]) -> float:
    return mean_f1(entries, "strict")


accuracy, precision, recall, yes_ratio = (
    partial(pope_score, name=name) for name in ("accuracy", "precision", "recall", "yes_ratio")
)
f1_random, f1_popular, f1_adversarial = (partial(pope_score, name="f1", split=split) for split in pope.SPLITS)
