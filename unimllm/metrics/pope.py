"""POPE's scores (github.com/RUCAIBox/POPE, evaluate.py) of yes/no answers; positive = "yes".

Two ways to read an answer, because they tell different things of a model that says neither word:

- official: POPE's own parsing, in which whatever does not say no counts as yes. Comparable with published numbers.
- strict: the answer must be "yes" or "no" and nothing else (case and a final period aside); anything else is wrong.
"""

from collections.abc import Callable


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
    if set(labels) - {"yes", "no"}:
        raise ValueError(f"POPE labels are yes or no, got {sorted(set(labels) - {'yes', 'no'})}")
    pairs = list(zip(labels, map(PARSERS[parsing], answers), strict=True))
    hits = pairs.count(("yes", "yes"))
    predicted_yes = hits + pairs.count(("no", "yes"))
    precision = hits / max(1, predicted_yes)
    recall = hits / max(1, labels.count("yes"))
    total = max(1, len(pairs))
    return {
        "accuracy": (hits + pairs.count(("no", "no"))) / total,
        "precision": precision,
        "recall": recall,
        "f1": 2 * precision * recall / (precision + recall) if hits else 0.0,
        "yes_ratio": predicted_yes / total,
        "other_ratio": sum(prediction == "other" for _, prediction in pairs) / total,
    }
