"""Load a model, draw, answer: what the command lines, the evaluation and a notebook share."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

from semhitok.checkpoints import choose_device, may_be_hub_id, resolve
from semhitok.errors import first_line
from semhitok.misfit import LOADING, misfit_of_report
from unimllm.drawing import START_TIME, check_edits, check_start_time, choose_drawing, choose_seeds
from unimllm.errors import UserError

if TYPE_CHECKING:  # torch and transformers are imported where they are used: the command lines complain without them
    import torch
    from PIL import Image
    from transformers import PreTrainedConfig

DEFAULT_MODEL = Path(__file__).parent / "default"
DEFAULT_NAME = "scenes"
SHIPPED_MODELS = {DEFAULT_NAME: DEFAULT_MODEL, "scenes-cheers": DEFAULT_MODEL / "cheers"}
"""By the names under which `load` knows them; a folder of that name goes first."""
MAX_NEW_TOKENS = 64  # of an answer, where neither the caller nor the checkpoint says
UNHEARD = {"return_dict_in_generate", "max_length", "num_return_sequences"}  # of `generate`, by `answer`
NEEDED_FILES = (
    "config.json", "model.safetensors", "processor_config.json", "tokenizer.json", "tokenizer_config.json",
    "chat_template.jinja",
)  # fmt: skip


def load(
    model: str | Path | None = None,
    device: str | None = None,
    option: str = "--model",
    dtype: torch.dtype | str | None = "auto",
    change: Callable[[PreTrainedConfig], None] | None = None,
):
    """Load a model and its processor.

    Args:
        model: folder or hub id of a checkpoint; an output folder of `train/sft.py` means its newest checkpoint; the
            folder `lora` of a checkpoint means the model that it was trained on with the adapter merged into it; one of
            SHIPPED_MODELS; None: the first of those.
        device: "cpu", "cuda", ...; None: a GPU if there is one.
        option: of the command line that named it, for the messages.
        dtype: of the weights, or its name, the image tokenizer's aside, which are always float32; "auto": as they are
            stored on a GPU, float32 on a CPU.
        change: called with its config before the model is built; what weights there are must stay.

    Returns:
        (model in evaluation mode, processor).

    Raises:
        UserError: the folder lacks a file or holds something else, or its tensors are not the model's.
    """
    if model is not None and (Path(model) / "adapter_config.json").is_file():
        from unimllm.discrete.lora import base_of, load_lora

        loaded, processor = load(base_of(Path(model)), device, option, dtype, change)
        load_lora(loaded, Path(model))
        return loaded, processor
    path = find_checkpoint(model, option)
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    import unimllm.auto  # noqa: F401  (registers our classes with the Auto classes)

    device = choose_device(device)
    dtype = dtype or "auto"
    if dtype == "auto" and torch.device(device).type == "cpu":
        dtype = torch.float32
    try:
        own = {"trust_remote_code": False}  # else transformers asks on stdin whether to run a folder's code
        config = AutoConfig.from_pretrained(path, **own)
        if change:
            change(config)
        processor = AutoProcessor.from_pretrained(path, **own)
        loaded, report = AutoModelForImageTextToText.from_pretrained(path, config=config, dtype=dtype, **LOADING, **own)
        if hasattr(processor, "conversation"):
            processor.conversation.drawing_prompt("anything")  # a damaged chat template shows only when it is used
    except Exception as error:  # a damaged file raises nearly anything, safetensors' and tokenizers' own types included
        raise UserError(f"cannot load a model from {path}: {first_line(error)}") from error
    if not hasattr(processor, "for_drawing"):
        raise UserError(f"{path} holds a {config.model_type} model; unimllm reads and draws with its own only")
    if told := misfit_of_report(report, is_whole=True):
        raise UserError(f"{path}: the checkpoint {told}")
    return loaded.eval().to(device), processor


def folder_of(model: str | Path) -> Path:
    """The folder that is called so, else that of the model that ships under this name, else the path as it is."""
    path = Path(model)
    return path if path.is_dir() else SHIPPED_MODELS.get(str(model), path)


def find_checkpoint(model: str | Path | None, option: str = "--model") -> str:
    """Path or hub id of what `load` was asked for; a local folder is checked for its files first."""
    path = folder_of(model) if model is not None else DEFAULT_MODEL
    if not path.is_dir():
        if model is not None and not may_be_hub_id(str(model)):
            raise UserError(f"{option} {model}: no such folder")
        return str(model) if model is not None else str(path)
    path = resolve(path)
    missing = [n for n in NEEDED_FILES if not (path / n).is_file() and not (path / f"{n}.index.json").is_file()]
    if missing:
        raise UserError(f"the checkpoint folder {path} lacks {', '.join(missing)}")
    return str(path)


def checkpoint_of(model: str | Path | None, option: str = "--model") -> str:
    """What tells the weights that `load` reads: the folder of an adapter, else what `find_checkpoint` finds."""
    is_adapter = model is not None and (Path(model) / "adapter_config.json").is_file()
    return str(model) if is_adapter else find_checkpoint(model, option)


def draw(
    model,
    processor,
    prompts: list[str],
    seeds: list[int] | None = None,
    on_step: Callable[[], None] | None = None,
    pictures: list[Image.Image] | None = None,
    start_time: float | None = None,
    **options,
) -> list[Image.Image]:
    """Draw one picture per prompt, all in one batch.

    Args:
        seeds: one per prompt (default 0 for each): the same of both give the same picture, in float32 in any batch (of
            CHEERS up to rounding, a level in a few pixels).
        on_step: called after each position or step (`drawing_unit` of the model), for progress bars.
        pictures: RGB, one for each prompt that says what to make of it; None: draw from nothing. Of CHEERS alone.
        start_time: where the way from noise (0) to the picture (1) begins: near 0 little of it is kept in place, near 1
            nearly all (default 0.1).
        options: of the model's `drawing_options`; what is left out is as its generation_config.json has it.

    Raises:
        UserError: no prompt, an empty one, or one longer than the context; an option that the model does not have or
            cannot draw with; not one seed or picture per prompt; weights that have diverged.
    """
    options = choose_drawing(model, options)
    check_prompts(model, processor, prompts, with_pictures=pictures is not None)
    seeds = choose_seeds([0] * len(prompts) if seeds is None else seeds, len(prompts))
    check_start_time(start_time, pictures is not None)
    texts = [prompt.strip() for prompt in prompts]
    if pictures is None:
        inputs = processor.for_drawing(texts)
    else:
        check_start_pictures(model, pictures, len(prompts))
        inputs = processor.for_drawing(texts, pictures)
        options["start_time"] = START_TIME if start_time is None else start_time
    drawn = model.generate(
        **inputs.to(model.device), generation_mode="image", seeds=seeds, on_step=on_step, **options,
    )  # fmt: skip
    # One by one: kernels are chosen by batch size and may round differently, but bytes shall not depend on the batch.
    return [processor.post_process_images(model.decode_image_tokens(row[None]))[0] for row in drawn]


def check_start_pictures(model, pictures: list[Image.Image], count: int) -> None:
    """UserError where a model cannot draw from pictures, or they are no list of one for each of `count` prompts."""
    from PIL import Image

    check_edits(model)
    if not isinstance(pictures, (list, tuple)) or len(pictures) != count:
        raise UserError(f"give a list of pictures, one for each prompt; there are {count} prompts")
    for picture in pictures:
        if not isinstance(picture, Image.Image):  # transformers would fetch a text
            raise UserError(f"a picture is given as {type(picture).__name__}; give PIL pictures")


def check_prompts(model, processor, prompts: list[str], with_pictures: bool = False) -> None:
    """What `draw` checks before it begins; UserError for none, an empty one, or one longer than the context.

    Args:
        with_pictures: each has a picture to draw from.
    """
    if isinstance(prompts, str):  # its letters would be drawn, one by one
        raise UserError(f"the prompts are one text: give a list of them, here ['{shorten(prompts)}']")
    if not prompts:
        raise UserError("there is no prompt: say what to draw, for example 'a photo of a red apple'")
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise UserError(f"a prompt is {prompt!r}, no text")
        if not prompt.strip():
            raise UserError("the prompt is empty: say what to draw, for example 'a photo of a red apple'")
        check_text(processor, prompt, "the prompt")
        length = len(processor.conversation.drawing_prompt(prompt.strip(), images=int(with_pictures)))
        length += 0 if with_pictures else len(processor.before([])[0])
        check_length(model, length + processor.num_positions, f"the prompt '{shorten(prompt)}'")


def answer(model, processor, picture: Image.Image | list[Image.Image] | None, question: str, **kwargs) -> str:
    """The model's answer to one question about a picture, several in a list, or a text alone (None)."""
    pictures = picture if isinstance(picture, (list, tuple)) else [picture] if picture is not None else []
    parts = [{"type": "image", "image": one} for one in pictures]
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]
    return answer_batch(model, processor, [messages], **kwargs)[0]


def answer_length(model) -> int:
    """Tokens that an answer may have: `max_new_tokens` of the checkpoint's generation_config.json, else 64."""
    return getattr(model.generation_config, "max_new_tokens", None) or MAX_NEW_TOKENS


def answer_batch(
    model, processor, conversations: list[list[dict]], max_new_tokens: int | None = None,
    on_cut: Callable[[int, int], None] | None = None, **kwargs,
) -> list[str]:  # fmt: skip
    """What the assistant says next in each conversation, all in one batch, greedily unless told otherwise.

    Args:
        max_new_tokens: of an answer, at most; None: `answer_length`.
        on_cut: called with the number of a conversation and of tokens where its answer was to go on behind these.
        kwargs: of transformers' `generate`, for example do_sample=True; none of those that change what it returns.

    Returns:
        the answers without the model's own marks, so that each can stand in the conversation that goes on; each at
        most as long as its own conversation leaves room in the context.

    Raises:
        UserError: a question is empty, a conversation no list of messages, or one longer than the context; or see
            `kwargs`.
    """
    for name in UNHEARD & kwargs.keys():
        raise UserError(f"{name}: one answer, a text, comes of each conversation; call model.generate for others")
    check_conversations(processor, conversations)
    inputs = processor(conversations)
    length = inputs["input_ids"].shape[1]
    check_length(model, length + 1, "the conversation")
    max_new_tokens = answer_length(model) if max_new_tokens is None else max_new_tokens
    rooms = (model.config.text_config.max_position_embeddings - inputs["attention_mask"].sum(1)).tolist()
    options = {
        "do_sample": False, "pad_token_id": processor.tokenizer.pad_token_id,
        "eos_token_id": processor.tokenizer.eos_token_id,
    }  # fmt: skip
    ids = model.generate(
        **inputs.to(model.device), generation_mode="text", max_new_tokens=min(max_new_tokens, max(rooms)),
        **options | kwargs,
    )  # fmt: skip
    answers = [row[length : length + room] for row, room in zip(ids, rooms, strict=True)]
    options |= kwargs
    ends = {options["pad_token_id"], *(eos if isinstance(eos := options["eos_token_id"], list) else [eos])}
    for number, (row, room) in enumerate(zip(answers, rooms, strict=True) if on_cut else ()):
        if len(row) == min(max_new_tokens, room) and int(row[-1]) not in ends:
            on_cut(number, len(row))
    said = processor.tokenizer.batch_decode(answers, skip_special_tokens=True)
    return [without_marks(processor, text).strip() for text in said]


def check_conversations(processor, conversations: list[list[dict]]) -> None:
    """UserError for what is no conversation, an empty question, and for a text that `check_text` refuses."""
    for messages in conversations:
        if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
            raise UserError(f"a conversation is {shorten(repr(messages))}; give a list of messages for each")
    for message in (m for messages in conversations for m in messages):
        check_message(processor, message)
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        runs = [list(run) for kind, run in groupby(parts, itemgetter("type")) if kind == "text"]
        texts = ["".join(part["text"] for part in run) for run in runs]  # a mark may lie across two parts
        if message["role"] == "user" and not "".join(texts).strip():
            raise UserError("the question is empty: ask something, for example 'What is in the picture?'")
        for text in texts:
            check_text(processor, text, "the question" if message["role"] == "user" else "an answer")


def check_message(processor, message: dict) -> None:
    """UserError for a message of another form, or of a role that the chat template does not know."""
    role, content = message.get("role"), message.get("content")
    roles = ["user", "assistant", *(["system"] if processor.conversation.has_system else [])]
    if role not in roles:
        raise UserError(f"a message has the role {role!r}; this model knows {', '.join(roles)}")
    parts = content if isinstance(content, list) else []
    is_good = [isinstance(p, dict) and (p.get("type") == "image" or is_text(p)) for p in parts]
    if not isinstance(content, (str, list)) or not all(is_good):
        raise UserError(
            f"a message of {role} holds {shorten(repr(content))}; it is a text or a list of parts, "
            '{"type": "text", "text": ...} or {"type": "image", "image": a PIL picture}'
        )


def is_text(part: dict) -> bool:
    return part.get("type") == "text" and isinstance(part.get("text"), str)


def check_length(model, length: int, what: str) -> None:
    """UserError if `length` ids do not fit the model's context."""
    context = model.config.text_config.max_position_embeddings
    if length > context:
        raise UserError(f"{what} is too long: {length} ids with what follows, the model's context holds {context}")


def check_text(processor, text: str, what: str) -> None:
    """UserError if `text` is no Unicode or holds one of the model's own marks, such as the one of a picture."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{what} is not valid text: character {error.start + 1} is no Unicode") from error
    for mark in processor.tokenizer.all_special_tokens:
        if mark in text:
            raise UserError(f"{what} holds {mark}, a mark that the model uses for itself: leave it out")


def without_marks(processor, text: str) -> str:
    """A text less the model's own marks, which a model can also spell in pieces and `check_text` refuses."""
    marks = [mark for mark in processor.tokenizer.all_special_tokens if mark]
    while any(mark in text for mark in marks):  # what surrounded one may make another
        for mark in marks:
            text = text.replace(mark, "")
    return text


def shorten(text: str, length: int = 40) -> str:
    """The beginning of a text, in one line."""
    text = " ".join(text.split())
    return text if len(text) <= length else f"{text[: length - 3]}..."
