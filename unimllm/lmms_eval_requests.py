"""Requests of lmms-eval (0.7) to conversations, and what the model answers, in batches. Needs no lmms-eval.

A request's arguments, in order (`multi-round` has the argument in brackets too):

    simple          context, options, doc_to_visual, [doc_to_text,] doc_id, task, split
    chat            context, doc_to_messages, options, doc_id, task, split
    loglikelihood   context, continuation, doc_to_visual, doc_id, task, split

Nothing here turns an error into an empty answer: what cannot be asked is told with its task and its number.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch.nn.utils.rnn import pad_sequence

from unimllm.conversation import Tokenized
from unimllm.errors import UserError
from unimllm.images import save_picture
from unimllm.inference import answer_batch, answer_length, check_conversations, check_length, draw
from unimllm.processing import image_parts
from unimllm.vocabulary import IGNORE, IMAGE_TOKENS

UNUSED_OPTIONS = (
    "do_sample",
    "temperature",
    "top_p",
    "top_k",
    "image_aspect_ratio",
)  # of sampling; of LLaVA's pictures


@dataclass(frozen=True)
class Asked:
    """One conversation that the model shall continue.

    Args:
        name: task and number, for messages.
        messages: that end with the user's turn.
        until: texts before which the answer ends.
        options: of `generate`; without `max_new_tokens` an answer has `inference.answer_length`.
        doc: the task's name and the document's number.
        seed: of a picture that is to be drawn: the document's "picture_seed", else its number.
        later: (answers so far, number of the round, what the last round left) -> the next round's messages, whether
            there is none, the answers to keep, what it leaves; None where the task has one round.
    """

    name: str
    messages: list[dict]
    until: tuple[str, ...] = ()
    options: dict = field(default_factory=dict)
    later: Callable | None = None
    doc: tuple[str, int] = ("", 0)
    seed: int = 0


def read_simple(arguments: tuple, task_dict: dict) -> Asked:
    """A request of the simple interface; with `doc_to_text` among its arguments, one of several rounds."""
    context, options, doc_to_visual, *doc_to_text, doc_id, task, split = arguments
    name, doc = f"question {doc_id} of {task}", task_dict[task][split][doc_id]

    def later(answers: list[str], number: int, left) -> tuple:
        pictures, text, done, answers, left = doc_to_text[0](
            doc, previous_output=answers, round_idx=number, previous_round_info=left
        )
        return None if done else user_turn(name, text, pictures), done, answers, left

    messages = user_turn(name, context, doc_to_visual(doc) if doc_to_visual else None)
    several = later if doc_to_text else None
    return Asked(name, messages, *read_options(name, options), several, (task, doc_id), seed_of(doc, doc_id))


def read_chat(arguments: tuple, task_dict: dict) -> Asked:
    """A request of the chat interface, of one round or several."""
    _, doc_to_messages, options, doc_id, task, split = arguments
    name, doc = f"question {doc_id} of {task}", task_dict[task][split][doc_id]

    def later(answers: list[str], number: int, left) -> tuple:
        messages, done, answers, left = doc_to_messages(
            doc, round_idx=number, previous_output=answers, previous_round_info=left
        )
        return None if done else chat_messages(name, messages), done, answers, left

    messages = chat_messages(name, doc_to_messages(doc))
    return Asked(name, messages, *read_options(name, options), later, (task, doc_id), seed_of(doc, doc_id))


def seed_of(doc, doc_id: int) -> int:
    """The seed that a task gives to its document's picture, else the document's number."""
    return doc.get("picture_seed", doc_id) if isinstance(doc, dict) else doc_id


def read_continuation(arguments: tuple, task_dict: dict) -> tuple[Asked, str]:
    """A request of `loglikelihood`: what was asked, and the answer whose loss is wanted."""
    context, continuation, doc_to_visual, doc_id, task, split = arguments
    doc = task_dict[task][split][doc_id]
    asked = read_simple((context, {}, doc_to_visual, doc_id, task, split), task_dict)
    return asked, continuation if isinstance(continuation, str) else continuation(doc)


def read_options(name: str, options: dict) -> tuple[tuple[str, ...], dict]:
    """A task's `generation_kwargs` -> (`until`, options of `generate`).

    Raises:
        UserError: the task asks for samples; answers here are greedy.
    """
    if options.get("do_sample", (options.get("temperature") or 0) > 0):
        raise UserError(
            f"{name}: the task samples its answers, unimllm answers greedily; "
            "say so with --gen_kwargs do_sample=False,temperature=0"
        )
    until = options.get("until") or ()
    until = (until,) if isinstance(until, str) else tuple(until)
    return until, {key: value for key, value in options.items() if key not in (*UNUSED_OPTIONS, "until")}


def user_turn(name: str, text: str, pictures: list | None) -> list[dict]:
    """One question of the user about pictures."""
    images = [{"type": "image", "image": check_picture(name, picture)} for picture in pictures or ()]
    return [{"role": "user", "content": place_pictures(name, [*images, {"type": "text", "text": text}])}]


def chat_messages(name: str, messages: list[dict]) -> list[dict]:
    """lmms-eval's messages, whose pictures are under "url", as ours."""
    ours = []
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        parts = place_pictures(name, [_chat_part(name, part) for part in parts])
        ours.append({"role": message["role"], "content": parts})
    return ours


def _chat_part(name: str, part: dict) -> dict:
    if part["type"] == "text":
        return {"type": "text", "text": part["text"]}
    if part["type"] != "image":
        raise UserError(f"{name}: it holds {part['type']}, unimllm reads text and pictures only")
    return {"type": "image", "image": check_picture(name, part["url"])}


def place_pictures(name: str, parts: list[dict]) -> list[dict]:
    """A message's parts, its pictures moved to where its text says `<image>` if it does."""
    images = [part for part in parts if part["type"] == "image"]
    first, *rest = "".join(part["text"] for part in parts if part["type"] == "text").split(IMAGE_TOKENS["image"])
    if not rest:
        return parts
    if len(rest) != len(images):
        raise UserError(f"{name}: its text marks {len(rest)} pictures, the task gives {len(images)}")
    placed = [{"type": "text", "text": first}]
    for image, piece in zip(images, rest, strict=True):
        placed += [image, {"type": "text", "text": piece}]
    return [part for part in placed if part.get("text") != ""]


def check_picture(name: str, picture) -> Image.Image:
    """The picture; UserError for a video, a sound or a path in its place."""
    if not isinstance(picture, Image.Image):
        raise UserError(f"{name}: a picture is wanted, the task gives {type(picture).__name__}; is it about videos?")
    return picture


# ---- answers -------------------------------------------------------------------------------------------------------


def answer_asked(model, processor, asked: list[Asked], batch_size: int) -> list[str]:
    """The next answer in each conversation, greedily; in float32 the same whatever is asked beside it."""
    context = model.config.text_config.max_position_embeddings
    options = [{"max_new_tokens": answer_length(model)} | a.options for a in asked]
    lengths = [processor.prompt_length(a.messages) for a in asked]
    for a, length in zip(asked, lengths, strict=True):
        check_length(model, length + 1, a.name)

    def batched_with(i: int) -> tuple[str, int]:
        # A batch stops where its longest row fills the context: rows that come so far go with others of their length.
        tight = lengths[i] + options[i]["max_new_tokens"] > context
        return json.dumps(options[i], sort_keys=True), lengths[i] if tight else 0

    order = sorted(range(len(asked)), key=lambda i: (*batched_with(i), lengths[i]))
    answers = [""] * len(asked)
    for _, group in groupby(order, batched_with):
        for rows in batches(list(group), batch_size):
            conversations = [asked[i].messages for i in rows]
            said = answer_batch(model, processor, conversations, **options[rows[0]])
            for i, text in zip(rows, said, strict=True):
                answers[i] = cut(text, asked[i].until)
    return answers


def answer_rounds(model, processor, asked: list[Asked], batch_size: int) -> list[list[str]]:
    """All answers of conversations in several rounds; every round of all of them is answered together."""
    messages = [a.messages for a in asked]
    answers: list[list[str]] = [[] for _ in asked]
    left: list = [None] * len(asked)
    running, number = list(range(len(asked))), 0
    while running:
        number += 1
        now = [Asked(asked[i].name, messages[i], asked[i].until, asked[i].options) for i in running]
        for i, text in zip(running, answer_asked(model, processor, now, batch_size), strict=True):
            answers[i].append(text)
        finished = set()
        for i in running:
            messages[i], done, kept, left[i] = asked[i].later(list(answers[i]), number, left[i])
            answers[i] = list(kept)
            finished |= {i} if done else set()
        running = [i for i in running if i not in finished]
    return answers


def cut(text: str, until: tuple[str, ...]) -> str:
    """The text before the first of the texts that end it."""
    return text[: min((text.index(stop) for stop in until if stop and stop in text), default=None)].strip()


def batches(rows: list, batch_size: int) -> Iterator[list]:
    for start in range(0, len(rows), batch_size):
        yield rows[start : start + batch_size]


def draw_asked(
    model, processor, asked: list[Asked], batch_size: int, folder: Path, sampling: dict[str, float] | None = None
) -> list[str]:
    """A picture of each prompt, written into a folder; the answers are JSON, as lmms-eval's tasks of drawing read them.

    Prompts that repeat have other seeds, and so get other pictures.

    Args:
        sampling: see `choose_drawing`; None: the checkpoint's own.

    Raises:
        UserError: a task that shows pictures: they are not edited.
    """
    answers = []
    for rows in batches(asked, batch_size):
        prompts = [prompt_of(a) for a in rows]
        seeds = [a.seed for a in rows]
        for a, picture in zip(rows, draw(model, processor, prompts, seeds, **(sampling or {})), strict=True):
            path = folder / f"{a.doc[0]}_{a.doc[1]:05d}.png"
            save_picture(picture, path)
            answers.append(json.dumps({"text": "", "images": [str(path)]}))
    return answers


def prompt_of(asked: Asked) -> str:
    """What shall be drawn: the user's words."""
    parts = [part for message in asked.messages for part in message["content"]]
    if any(part["type"] == "image" for part in parts):
        raise UserError(f"{asked.name}: it shows a picture; unimllm draws from words alone")
    return "".join(part["text"] for part in parts)


# ---- losses --------------------------------------------------------------------------------------------------------


def continuation_losses(model, processor, wanted: list[tuple[Asked, str]], batch_size: int) -> list[tuple[float, bool]]:
    """For each answer its loss and whether it is what the model would say.

    The loss is the mean of the negative log-probabilities of its tokens, the end token included: lmms-eval takes the
    choice with the LOWEST value, and its own models return this mean.
    """
    return [pair for rows in batches(wanted, batch_size) for pair in _batch_losses(model, processor, rows)]


@torch.no_grad()
def _batch_losses(model, processor, rows: list[tuple[Asked, str]]) -> list[tuple[float, bool]]:
    whole = [
        [*asked.messages, {"role": "assistant", "content": [{"type": "text", "text": text}]}] for asked, text in rows
    ]
    check_conversations(processor, whole)
    before = [processor.before(messages) for messages in whole]
    tokenized = [
        Tokenized(ids + sample.input_ids, [False] * len(ids) + sample.is_target)
        for (ids, _), sample in zip(before, map(processor.conversation, whole), strict=True)
    ]
    for (asked, _), sample in zip(rows, tokenized, strict=True):
        check_length(model, len(sample), asked.name)
    ids = [torch.tensor(sample.input_ids) for sample in tokenized]
    labels = [i.where(torch.tensor(s.is_target), IGNORE) for i, s in zip(ids, tokenized, strict=True)]
    mask = _pad_left([torch.ones_like(row) for row in ids], 0)
    keep = 1 + max(len(sample) - sample.is_target.index(True) for sample in tokenized)
    images = [
        image
        for (_, first), messages in zip(before, whole, strict=True)
        for image in [*first, *(part["image"] for part in image_parts(messages))]
    ]
    outputs = model(
        input_ids=_pad_left(ids, processor.tokenizer.pad_token_id).to(model.device),
        pixel_values=processor.preprocess_images(images).to(model.device) if images else None,
        attention_mask=mask.to(model.device),
        position_ids=(mask.cumsum(-1) - 1).clamp(min=0).to(model.device),
        logits_to_keep=keep,
    )
    logits = outputs.logits[:, :-1].float().cpu()  # (B, keep - 1, vocabulary)
    targets = _pad_left(labels, IGNORE)[:, 1 - keep :]  # (B, keep - 1)
    is_target = targets != IGNORE
    losses = F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=IGNORE, reduction="none").sum(1)
    logits[..., model.config.picture_token_ids] = -torch.inf  # `generate` says none of them in text
    greedy = ((logits.argmax(-1) == targets) | ~is_target).all(1)
    return list(zip((losses / is_target.sum(1)).tolist(), greedy.tolist(), strict=True))


def _pad_left(rows: list[torch.Tensor], value: int) -> torch.Tensor:
    return pad_sequence(rows, batch_first=True, padding_value=value, padding_side="left")
