"""MME's scores (arXiv 2306.13394, its eval_tool/calculation.py) of yes/no answers, two questions about every picture.

A sub-task's score is 100 * acc, over its questions, + 100 * acc+, the share of its pictures with BOTH answers right: at
most 200. Perception is the sum of ten sub-tasks (2,000), cognition the sum of four (800).
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unimllm.errors import UserError
from unimllm.images import write_atomically
from unimllm.json_rows import read_text
from unimllm.metrics.intervals import resampled_sums

PERCEPTION = {  # sub-task -> questions in the release
    "existence": 60, "count": 60, "position": 60, "color": 60, "posters": 294, "celebrity": 340, "scene": 400,
    "landmark": 400, "artwork": 400, "OCR": 40,
}  # fmt: skip
COGNITION = {"commonsense_reasoning": 140, "numerical_calculation": 40, "text_translation": 40, "code_reasoning": 40}
SUFFIX = " Please answer yes or no."  # what follows each question of the release
GROUPS = {"perception": PERCEPTION, "cognition": COGNITION}


@dataclass(frozen=True)
class Answered:
    """One question of MME and what the model said; `label` is "yes" or "no"."""

    picture: str
    question: str
    label: str
    answer: str

    @property
    def right(self) -> bool:
        return parse(self.answer) == self.label


def parse(answer: str) -> str:
    """ "yes", "no" or "other": what the first four characters hold, yes before no, in any case.

    As the official script does: "I say yes" is other, "know" is no.
    """
    start = answer.lower()[:4]
    return next((word for word in ("yes", "no") if word in start), "other")


@dataclass(frozen=True)
class Asked:
    """One question of MME about a picture's file; `label` is "yes" or "no"."""

    picture: Path
    question: str
    label: str


def read_release(folder: Path) -> dict[str, list[Asked]]:
    """MME's questions by sub-task, those that the folder of its release holds, a picture's two after one another.

    Raises:
        UserError: the folder holds no sub-task, a file is no pair of questions, or its picture is missing.
    """
    asked: dict[str, list[Asked]] = {}
    for task in (task for tasks in GROUPS.values() for task in tasks):
        for path in sorted((folder / task).rglob("*.txt")):
            rows = [line.rstrip("\r").split("\t") for line in read_text(path).split("\n") if line.strip()]
            if len(rows) != 2 or any(len(row) != 2 for row in rows):
                raise UserError(f"{path} is not MME's two lines of question <tab> answer")
            for question, label in rows:
                if label.lower() not in ("yes", "no"):
                    raise UserError(f"{path}: the label is {label!r}, not Yes or No")
                asked.setdefault(task, []).append(Asked(picture_beside(path), question, label.lower()))
    if not asked:
        raise UserError(f"{folder} holds no sub-task of MME: existence, count, ..., code_reasoning")
    return asked


def with_suffix(question: str, suffix: str) -> str:
    """A question of the release with other words in the place of SUFFIX."""
    return question.rstrip().removesuffix(SUFFIX.strip()).rstrip() + suffix


def suffix_of(questions: Iterable[str]) -> str | None:
    """What follows the last question mark in most questions; None where none has one."""
    ends = Counter(end for _, mark, end in (question.rpartition("?") for question in questions) if mark)
    return ends.most_common(1)[0][0] if ends else None


def picture_beside(path: Path) -> Path:
    """The picture of MME's text file: beside it, or in the folder `images` beside its own."""
    for folder in (path.parent, path.parent.parent / "images"):
        for suffix in (".jpg", ".png", ".jpeg"):
            if (folder / f"{path.stem}{suffix}").is_file():
                return folder / f"{path.stem}{suffix}"
    raise UserError(f"{path}: its picture is neither beside it nor in {path.parent.parent / 'images'}")


def read_results(path: Path) -> list[Answered]:
    """The lines `picture <tab> question <tab> label <tab> answer` of one sub-task's file, in pairs of a picture.

    Raises:
        UserError: a line without its four fields or with another label, or two neighbours that are no pair, of two
            pictures or one question twice; the official script would go on with the latter and count them as one
            picture.
    """
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        fields = line.rstrip("\r").split("\t")
        if len(fields) != 4:
            raise UserError(
                f"{path}, line {number}: {len(fields)} fields between tabs instead of picture, question, label, answer"
            )
        if fields[2].lower() not in ("yes", "no"):
            raise UserError(f"{path}, line {number}: the label is {fields[2]!r}, not Yes or No")
        rows.append(Answered(fields[0], fields[1], fields[2].lower(), fields[3]))
    if not rows:
        raise UserError(f"{path} is empty")
    for first, second in zip(rows[::2], [*rows[1::2], None], strict=False):
        if second is None or first.picture != second.picture:
            raise UserError(
                f"{path}: {first.picture} has one question before another picture's; MME asks two about each, together"
            )
        if first.question == second.question:
            raise UserError(f"{path}: {first.picture} has the question {first.question!r} twice, not two questions")
    return rows


def write_results(path: Path, rows: list[Answered]) -> None:
    """What `read_results` and the official script read, whole or not at all."""
    lines = ["\t".join((row.picture, row.question, row.label.capitalize(), row.answer)) + "\n" for row in rows]
    write_atomically(path, lambda file: file.write("".join(lines).encode()))


def outcomes(rows: list[Answered]) -> np.ndarray:
    """Pairs of rows -> (pictures, 2) int64: right answers about each picture, and whether both are."""
    right = np.array([row.right for row in rows], np.int64).reshape(-1, 2).sum(1)
    return np.stack([right, right == 2], 1)


def rates(sums: np.ndarray, num_pictures: int) -> dict[str, np.ndarray]:
    """Summed outcomes (..., 2) of so many pictures -> `acc` and `acc_plus` in 0..1, `score` in 0..200, each (...)."""
    acc, acc_plus = sums[..., 0] / (2 * num_pictures), sums[..., 1] / num_pictures
    return {"acc": acc, "acc_plus": acc_plus, "score": 100 * acc + 100 * acc_plus}


def resampled_rates(rows: list[Answered], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """`rates` of one sub-task, each (RESAMPLES,), under resampling of its pictures."""
    counted = outcomes(rows)
    return rates(resampled_sums(counted, range(len(counted)), rng), len(counted))


def score(rows: list[Answered]) -> dict[str, float]:
    """`rates` of one sub-task, and `other_ratio`, the share of answers that are neither yes nor no."""
    counted = outcomes(rows)
    others = sum(parse(row.answer) == "other" for row in rows)
    values = {name: float(value) for name, value in rates(counted.sum(0), len(counted)).items()}
    return values | {"other_ratio": others / len(rows)}
