"""lmms-eval's tasks over files that the user has: POPE's questions with COCO's pictures, MME's release.

Environment variables name the folders, for a task's yaml takes no argument.
"""

import os
from pathlib import Path

from datasets import Dataset
from PIL import Image

from unimllm.errors import UserError, ending_lmms_eval
from unimllm.images import open_picture
from unimllm.json_rows import read_rows
from unimllm.metrics import mme


def folder_of(variable: str, what: str) -> Path:
    """The folder that an environment variable names; UserError where there is none."""
    folder = Path(os.environ.get(variable, ""))
    if variable not in os.environ or not folder.is_dir():
        raise UserError(f"{variable}={os.environ.get(variable, '')} is no folder: set it to {what}")
    return folder


@ending_lmms_eval
def pope_docs(splits: Dataset) -> Dataset:
    """Rows `split` -> POPE's questions of each.

    Raises:
        UserError: a question file or a picture is not where it is looked for.
    """
    questions = folder_of("POPE_FOLDER", "the folder of POPE's question files, such as coco_pope_random.json")
    pictures = folder_of("COCO_FOLDER", "the folder of the pictures that POPE asks about, COCO's val2014")
    docs = []
    for split in (row["split"] for row in splits):
        files = sorted(questions.glob(f"*pope*{split}.json"))
        if len(files) != 1:
            raise UserError(f"{questions} holds {len(files)} question files of the split {split!r} instead of one")
        for number, row in enumerate(read_rows(files[0], ("image", "text", "label"))):
            docs.append(doc_of(f"{split}-{number}", split, row["text"], row["label"], pictures / row["image"]))
    return Dataset.from_list(docs)


@ending_lmms_eval
def mme_docs(groups: Dataset) -> Dataset:
    """Rows `group` -> MME's questions of its sub-tasks, see `mme.read_release`.

    Every row knows the number of its group, `num_questions`.
    """
    folder = folder_of("MME_FOLDER", "the folder of MME's release, with existence, count, ... in it")
    asked, docs = mme.read_release(folder), []
    for group in (row["group"] for row in groups):
        of_group = [
            doc_of(f"{task}/{row.picture.stem}-{number % 2}", task, row.question, row.label, row.picture)
            for task in mme.GROUPS[group]
            for number, row in enumerate(asked.get(task, []))
        ]
        docs += [doc | {"num_questions": len(of_group)} for doc in of_group]
    return Dataset.from_list(docs)


def doc_of(question_id: str, group: str, question: str, answer: str, picture: Path) -> dict:
    """One row; UserError where its label or its picture is none."""
    if answer not in ("yes", "no"):
        raise UserError(f"question {question_id}: the label is {answer!r}, not yes or no")
    if not picture.is_file():
        raise UserError(f"question {question_id}: there is no picture {picture}")
    return {
        "question_id": question_id, "set": group, "question": question, "answer": answer, "picture": str(picture),
    }  # fmt: skip


def doc_to_visual(doc: dict) -> list[Image.Image]:
    return [open_picture(doc["picture"])]


def doc_to_text(doc: dict, lmms_eval_specific_kwargs: dict) -> str:
    return doc["question"] + lmms_eval_specific_kwargs["post_prompt"]
