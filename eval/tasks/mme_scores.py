"""MME's numbers for lmms-eval: unimllm/metrics/mme.py's.

Of docs with `set` (the sub-task), `picture`, `question`, `answer`, and `num_questions` that a total is of.
"""

import math
import sys
from functools import partial

from unimllm.errors import UserError, ending_lmms_eval
from unimllm.metrics import mme
from unimllm.scenes.examination import MME_KINDS

NAMES = ("total", "acc", "acc_plus", *MME_KINDS)


def process_results(doc: dict, results: list[str]) -> dict[str, dict]:
    """One answer, entered under every metric of scenes_mme."""
    return dict.fromkeys([f"mme_{name}" for name in NAMES], entry_of(doc, results))


def process_results_by_group(doc: dict, results: list[str]) -> dict[str, dict]:
    """One answer, entered under the group of its sub-task: perception or cognition."""
    group = next(name for name, tasks in mme.GROUPS.items() if doc["set"] in tasks)
    return {f"mme_{group}": entry_of(doc, results)}


def entry_of(doc: dict, results: list[str]) -> dict:
    """What is kept of one answer."""
    kept = ("set", "picture", "question", "answer", "num_questions")
    return {key: doc[key] for key in kept} | {"said": results[0]}


def pairs(entries: list[dict]) -> list[mme.Answered]:
    """Entries of one sub-task or several, a picture's two after one another.

    Raises:
        UserError: a picture has other than two answers: an odd --limit.
    """
    rows = sorted(entries, key=lambda e: (e["set"], e["picture"]))
    for first, second in zip(rows[::2], [*rows[1::2], None], strict=False):
        if second is None or first["picture"] != second["picture"]:
            raise UserError(
                f"MME asks two questions about each picture, {first['set']} has one alone: make --limit even"
            )
    return [mme.Answered(e["picture"], e["question"], e["answer"], e["said"]) for e in rows]


@ending_lmms_eval
def score(entries: list[dict], task: str) -> float:
    """100 acc + 100 acc+ of one sub-task; nan: --limit left it out."""
    kept = [e for e in entries if e["set"] == task]
    return mme.score(pairs(kept))["score"] if kept else math.nan


def total(entries: list[dict]) -> float:
    """The sum over the sub-tasks; nan with a line that tells why: --limit left questions out."""
    num_questions = entries[0]["num_questions"]
    summed = sum(score(entries, task) for task in dict.fromkeys(e["set"] for e in entries))
    if len(entries) < num_questions:
        told = f"{len(entries):,} of {num_questions:,} questions of MME were asked (--limit)"
        print(f"note: {told}: a total over a part compares with no other, so there is none", file=sys.stderr)
        return math.nan
    return summed


def group_total(entries: list[dict]) -> float:
    """`total` over all sub-tasks of a group; nan with a line that tells why: the folder lacks some."""
    summed, asked = total(entries), {e["set"] for e in entries}
    group = next(name for name, tasks in mme.GROUPS.items() if asked <= set(tasks))
    lacking = [task for task in mme.GROUPS[group] if task not in asked]
    if lacking:
        print(f"note: no total of MME's {group} without {', '.join(lacking)}", file=sys.stderr)
        return math.nan
    return summed


@ending_lmms_eval
def share(entries: list[dict], name: str) -> float:
    """`acc` or `acc_plus` over all questions or pictures."""
    return mme.score(pairs(entries))[name]


acc, acc_plus = (partial(share, name=name) for name in ("acc", "acc_plus"))
existence, count, position, color = (partial(score, task=task) for task in MME_KINDS)
