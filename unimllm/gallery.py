"""What eval/report.py's page shows of drawings and answers: the first of every kind, none chosen, failures marked.

Programs put it into their JSON under "gallery": {"folder": ..., "drawings": [...], "questions": [...],
"wrong_answers": [...]}; file names are below the folder, the folder is seen from the JSON file.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from unimllm.images import save_picture

PER_TAG, PER_KIND, WRONG = 8, 2, 12  # drawings of a GenEval tag, questions of a kind, wrong answers


def first_of_each(kinds: Sequence[str], count: int) -> list[int]:
    """Indices of the first `count` of every kind, in their order."""
    left = dict.fromkeys(kinds, count)
    chosen = []
    for index, kind in enumerate(kinds):
        if left[kind]:
            left[kind] -= 1
            chosen.append(index)
    return chosen


def folder_from(json_file: Path, folder: Path) -> str:
    """Where the pictures lie, seen from the JSON file that tells of them: both can be moved together."""
    return Path(os.path.relpath(folder.resolve(), json_file.resolve().parent)).as_posix()


# ---- drawings ------------------------------------------------------------------------------------------------------


def drawing_row(file: str, metadata: dict, reasons: list[str]) -> dict:
    """One drawing under the names of GenEval's own script.

    Args:
        file: the picture.
        metadata: its prompt, see `metrics.geneval`.
        reasons: what it lacks, see `geneval.failures`.
    """
    return {
        "filename": file,
        "tag": metadata["tag"],
        "prompt": metadata["prompt"],
        "correct": not reasons,
        "reason": "\n".join(reasons),
    }


def first_drawings(
    files: list[str], prompts: list[dict], lacks: list[list[str]], found: Callable[[int], str]
) -> list[dict]:
    """The first picture of the first PER_TAG prompts of every tag, right or wrong.

    Args:
        files: in GenEval's layout, the pictures of one prompt side by side.
        prompts: of each picture, its metadata.
        lacks: see `geneval.failures`.
        found: index of a picture -> what was seen in it, see `geneval.in_words`.
    """
    folders = [file.partition("/")[0] for file in files]
    firsts = [i for i, name in enumerate(folders) if i == 0 or name != folders[i - 1]]
    chosen = (firsts[k] for k in first_of_each([prompts[i]["tag"] for i in firsts], PER_TAG))
    return [drawing_row(files[i], prompts[i], lacks[i]) | {"found": found(i)} for i in chosen]


# ---- questions -----------------------------------------------------------------------------------------------------


def kept_questions(rows: Sequence[dict]) -> dict[str, list[dict]]:
    """The first questions of every kind, and the first that were answered wrongly.

    Args:
        rows: {"filename", "kind", "question", "answer", "said", "correct"} of every question.
    """
    wrong = [row for row in rows if not row["correct"]]
    firsts = first_of_each([row["kind"] for row in rows], PER_KIND)
    return {"questions": [rows[i] for i in firsts], "wrong_answers": wrong[:WRONG]}


def save_questions(folder: Path, kept: dict[str, list[dict]], render: Callable[[str], Image.Image]) -> None:
    """The pictures of `kept_questions`, each once; `render` makes that of a file name."""
    for file in {row["filename"]: None for rows in kept.values() for row in rows}:
        save_picture(render(file), folder / file)
