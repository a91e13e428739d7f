"""Many questions about pictures: each picture is opened and encoded once, however many are asked about it."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from unimllm.errors import UserError
from unimllm.fingerprint import code_fingerprint, json_fingerprint, settings_fingerprint
from unimllm.inference import answer_batch

if TYPE_CHECKING:
    import torch
    from PIL import Image


@dataclass(frozen=True)
class Answers:
    """What a model said to questions.

    Args:
        texts: one for each question, in their order.
        speed: how many answers and pictures, in how many seconds, opening the pictures included; for the report.
            Answers of an earlier run do not count.
    """

    texts: list[str]
    speed: dict[str, int | float | str]


class KeptAnswers:
    """Answers on the disk as they are given, so that a program that was killed asks only what is left.

    Args:
        folder: where the file is, until `remove`.
        checkpoint: that answers; its settings and the state of the code tell, with `made_by`, whose answers are taken.
        made_by: what else an answer depends on beside the picture's name and the question: the weights, the pictures.
    """

    def __init__(self, folder: Path, checkpoint: str | Path, made_by: dict):
        digits = json_fingerprint([made_by, settings_fingerprint(checkpoint), code_fingerprint()])
        self.path = folder / f".answers-{digits}.jsonl"

    def read(self) -> dict[tuple[str, str], str]:
        """(picture, question) -> answer; what a kill cut short or damaged is left out, to be asked again."""
        answers = {}
        for line in self.path.read_bytes().splitlines() if self.path.exists() else []:
            with contextlib.suppress(ValueError, TypeError):  # no JSON, not three, or not text
                picture, question, answer = json.loads(line)
                answers[picture, question] = str(answer)
        return answers

    def add(self, rows: Iterable[tuple[str, str, str]]) -> None:
        """(picture, question, answer) of more; UserError if the place cannot be written."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join("\n" + json.dumps(row) for row in rows))  # the line before may have been cut short
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror or error}") from error

    def remove(self) -> None:
        """When all answers are written where they belong."""
        self.path.unlink(missing_ok=True)


def answer_questions(
    model,
    processor,
    questions: list[tuple[str | int, str]],
    open_picture: Callable[[str | int], Image.Image],
    batch_size: int,
    what: str = "answering",
    keep: KeptAnswers | None = None,
) -> Answers:
    """What the model answers to every question, each in a conversation of its own; in float32 the same as one by one.

    Args:
        questions: (picture, text); pictures are told apart and asked about in the order of these names.
        open_picture: a name to its picture.
        batch_size: questions at once, about whichever pictures they are.
        what: the progress bar's word.
        keep: gets each batch of answers and gives what it has already; pictures' names are text then.

    Raises:
        UserError: see `answer_batch` and `KeptAnswers`.
    """
    started = time.perf_counter()
    known = keep.read() if keep else {}
    texts = [known.get(question, "") for question in questions]
    order = sorted((i for i, asked in enumerate(questions) if asked not in known), key=lambda i: questions[i][0])
    if keep and len(order) < len(questions):
        print(f"{len(questions) - len(order):,} answers of a run that was broken off: {keep.path}", file=sys.stderr)
    encoded: dict[str | int, torch.Tensor] = {}  # the pictures of the current batch
    for start in tqdm(range(0, len(order), batch_size), desc=what, unit="batch"):
        batch = order[start : start + batch_size]
        names = dict.fromkeys(questions[i][0] for i in batch)
        new = [name for name in names if name not in encoded]
        kept = {name: encoded[name] for name in names if name in encoded}
        encoded = kept | dict(zip(new, encode(model, processor, [open_picture(n) for n in new]), strict=True))
        conversations = [ask(encoded[name], text) for name, text in (questions[i] for i in batch)]
        for i, text in zip(batch, answer_batch(model, processor, conversations), strict=True):
            texts[i] = text
        if keep:
            keep.add((*questions[i], texts[i]) for i in batch)
    seconds, num_pictures = time.perf_counter() - started, len({questions[i][0] for i in order})
    speed = {
        "num_answers": len(order),
        "num_pictures": num_pictures,
        "seconds": seconds,
        "questions_per_second": len(order) / seconds,
        "pictures_per_second": num_pictures / seconds,
        "batch_size": batch_size,
        "device": str(model.device),
    }
    return Answers(texts, speed)


def encode(model, processor, pictures: list[Image.Image]) -> list[torch.Tensor]:
    """What the model makes of each picture before it reads a word; may stand for it in conversations."""
    import torch

    if not pictures:
        return []
    with torch.no_grad():
        return list(model.get_image_tokens(processor.preprocess_images(pictures).to(model.device)))


def ask(picture: Image.Image | torch.Tensor, text: str) -> list[dict]:
    """A conversation of one question about one picture."""
    return [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": text}]}]
