"""POPE's numbers for lmms-eval, of docs with `set` (the split) and `answer`; unimllm/metrics/pope.py counts."""

import math
import statistics
from functools import partial

from unimllm.metrics import pope

NAMES = ("accuracy", "precision", "recall", "yes_ratio", "f1", "f1_strict", *(f"f1_{split}" for split in pope.SPLITS))


def process_results(doc: dict, results: list[str]) -> dict[str, dict]:
    """One answer, entered under every metric that is computed from all of them."""
    return dict.fromkeys(
        [f"pope_{name}" for name in NAMES], {"set": doc["set"], "label": doc["answer"], "answer": results[0]}
    )


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
