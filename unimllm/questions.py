"""Many questions about pictures: each picture is opened and encoded once, however many are asked about it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tqdm import tqdm

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
    """

    texts: list[str]
    speed: dict[str, int | float | str]


def answer_questions(
    model,
    processor,
    questions: list[tuple[str | int, str]],
    open_picture: Callable[[str | int], Image.Image],
    batch_size: int,
    what: str = "answering",
) -> Answers:
    """What the model answers to every question, each in a conversation of its own; the same as one by one.

    Args:
        questions: (picture, text); pictures are told apart and asked about in the order of these names.
        open_picture: a name to its picture.
        batch_size: questions at once, about whichever pictures they are.
        what: the progress bar's word.

    Raises:
        UserError: see `answer_batch`.
    """
    started = time.perf_counter()
    texts = [""] * len(questions)
    order = sorted(range(len(questions)), key=lambda i: questions[i][0])
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
    seconds, num_pictures = time.perf_counter() - started, len({name for name, _ in questions})
    speed = {
        "num_answers": len(texts),
        "num_pictures": num_pictures,
        "seconds": seconds,
        "questions_per_second": len(texts) / seconds,
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
