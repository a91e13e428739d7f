"""POPE's scores (github.com/RUCAIBox/POPE, evaluate.py) of yes/no answers; positive = "yes".

Two ways to read an answer, because they tell different things of a model that says neither word:

- official: POPE's own parsing, in which whatever does not say no counts as yes. Comparable with published numbers.
- strict: the answer must be "yes" or "no" and nothing else (case and a final period aside); anything else is wrong.
"""

from collections.abc import Callable, Sequence

import numpy as np

from unimllm.metrics.intervals import resampled_sums

SPLITS = ("random", "popular", "adversarial")  # how the objects that are not there were chosen
FULL, OLDER_RANDOM = 3000, 2910  # questions of a split today, and of the first random file
OUTCOMES = tuple((label, prediction) for label in ("yes", "no") for prediction in ("yes", "no", "other"))


def parse_official(answer: str) -> str:
    """ "yes" or "no": no if No, not or no is a word of the first sentence, else yes ("NO" and "" are yes, as there)."""
    first_sentence = answer.split(".")[0].replace(",", "")
    return "no" if {"No", "not", "no"} & set(first_sentence.split(" ")) else "yes"


def parse_strict(answer: str) -> str:
    """ "yes", "no", or "other" for every answer that is not exactly one of them."""
    word = answer.strip().lower().removesuffix(".").rstrip()
    return word if word in ("yes", "no") else "other"


PARSERS: dict[str, Callable[[str], str]] = {"official": parse_official, "strict": parse_strict}


def score(labels: list[str], answers: list[str], parsing: str = "official") -> dict[str, float]:
    """Score answers against labels.

    Args:
        labels: "yes" or "no" for each question.
        answers: what the model said.
        parsing: a key of PARSERS.

    Returns:
        `accuracy`, `precision`, `recall`, `f1` (0 where undefined), and two shares of all answers: `yes_ratio`, those
        PREDICTED yes, and `other_ratio`, those that are neither (0 under official parsing). An answer that is neither
        is wrong: it lowers recall where the label is yes, and only accuracy where it is no.

    Raises:
        ValueError: a label that is neither yes nor no, or unequally many labels and answers.
    """
    return {name: float(value) for name, value in rates(outcomes(labels, answers, parsing).sum(0)).items()}


def outcomes(labels: list[str], answers: list[str], parsing: str) -> np.ndarray:
    """(n, 6) int64, one in every row: its (label, prediction) among OUTCOMES; raises as `score`."""
    if set(labels) - {"yes", "no"}:
        raise ValueError(f"POPE labels are yes or no, got {sorted(set(labels) - {'yes', 'no'})}")
    pairs = zip(labels, map(PARSERS[parsing], answers), strict=True)
    return np.eye(len(OUTCOMES), dtype=np.int64)[[OUTCOMES.index(pair) for pair in pairs]]


def rates(sums: np.ndarray) -> dict[str, np.ndarray]:
    """What `score` returns, of summed OUTCOMES (..., 6) -> (...)."""
    hits, missed, missed_by_other, false_alarms, right_no, no_by_other = np.moveaxis(sums, -1, 0)
    total = np.maximum(1, sums.sum(-1))
    predicted_yes, labelled_yes = hits + false_alarms, hits + missed + missed_by_other
    return {
        "accuracy": (hits + right_no) / total,
        "precision": hits / np.maximum(1, predicted_yes),
        "recall": hits / np.maximum(1, labelled_yes),
        "f1": 2 * hits / np.maximum(1, predicted_yes + labelled_yes),
        "yes_ratio": predicted_yes / total,
        "other_ratio": (missed_by_other + no_by_other) / total,
    }


def resampled_rates(
    splits: Sequence[tuple[list[str], list[str]]], pictures: Sequence, parsing: str, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Each of `rates` (RESAMPLES, splits) under resampling of whole pictures, with their questions of all splits.

    Args:
        splits: (labels, answers) of each.
        pictures: what each question is about, split after split.
        parsing: a key of PARSERS.
        rng: of the resampling.
    """
    width = len(OUTCOMES)
    counts = np.zeros((len(pictures), len(splits) * width))
    start = 0
    for s, (labels, answers) in enumerate(splits):
        counts[start : start + len(labels), s * width : (s + 1) * width] = outcomes(labels, answers, parsing)
        start += len(labels)
    sums = resampled_sums(counts, pictures, rng)
    return rates(sums.reshape(len(sums), len(splits), width))


def edition(split: str, num_questions: int) -> str:
    """What a question file is, by its length: numbers on different files are not comparable."""
    if split == "random" and num_questions == OLDER_RANDOM:
        return f"older random file of {OLDER_RANDOM:,} questions (POPE at commit e3e3926, as LLaVA-1.5 reports)"
    if is_full(split, num_questions):
        return f"full split of {FULL:,} questions"
    return f"{num_questions:,} questions, not a full split of {FULL:,}"


def is_full(split: str, num_questions: int) -> bool:
    """Whether so many are all questions of one of POPE's splits, today's or the older random one's."""
    return split in SPLITS and (num_questions == FULL or (split, num_questions) == ("random", OLDER_RANDOM))
