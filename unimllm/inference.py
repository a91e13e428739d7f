"""Load a model, draw, answer: what the command lines, the evaluation and a notebook share."""

from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from unimllm.errors import UserError

DEFAULT_MODEL = Path(__file__).parent / "default"
GUIDANCE_SCALE = 2.0
TEMPERATURE = 0.9
MAX_NEW_TOKENS = 64


def load(model: str | Path | None = None, device: str | None = None):
    """Load a model and its processor.

    Args:
        model: folder or hub id of a checkpoint; an output folder of `train/sft.py` means its newest checkpoint;
            None: the small model that ships with the package.
        device: "cpu", "cuda", ...; None: a GPU if there is one. On a CPU the weights are float32.

    Returns:
        (model in evaluation mode, processor).

    Raises:
        UserError: the folder lacks a file or holds something else.
    """
    path = find_checkpoint(model)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {device!r} cannot be used here: {str(error).splitlines()[0]}") from error
    try:
        config = AutoConfig.from_pretrained(path)
        processor = AutoProcessor.from_pretrained(path)
        dtype = torch.float32 if device == "cpu" else "auto"
        loaded = AutoModelForImageTextToText.from_pretrained(path, config=config, dtype=dtype)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"cannot load a model from {path}: {str(error).strip().splitlines()[0]}") from error
    return loaded.eval().to(device), processor


def find_checkpoint(model: str | Path | None) -> str:
    """Path or hub id of what `load` was asked for; a local folder is checked for its files first."""
    path = Path(model) if model is not None else DEFAULT_MODEL
    if not path.is_dir():
        if model is not None and (str(model).startswith((".", "/", "~")) or str(model).count("/") != 1):
            raise UserError(f"--model {model}: no such folder")
        return str(model) if model is not None else str(path)
    if not (path / "config.json").is_file():
        from unimllm.training.checkpoint import resolve

        path = resolve(path)
    needed = ("config.json", "model.safetensors", "tokenizer.json", "processor_config.json")
    missing = [n for n in needed if not (path / n).is_file() and not (path / f"{n}.index.json").is_file()]
    if missing:
        raise UserError(f"the checkpoint folder {path} lacks {', '.join(missing)}")
    return str(path)


def draw(
    model,
    processor,
    prompts: list[str],
    seeds: list[int] | None = None,
    guidance_scale: float = GUIDANCE_SCALE,
    temperature: float = TEMPERATURE,
    top_k: int = 0,
    on_position: Callable[[], None] | None = None,
) -> list[Image.Image]:
    """Draw one picture per prompt, all in one batch.

    Args:
        seeds: one per prompt (default 0 for each): the same prompt and seed give the same picture in any batch.
        guidance_scale: 1 switches classifier-free guidance off.
        temperature: 0 takes the most likely code.
        top_k: so many most likely codes are kept (0: all).
        on_position: called after each position, for progress bars.

    Raises:
        UserError: an empty prompt, or one longer than the context.
    """
    for prompt in prompts:
        if not prompt.strip():
            raise UserError("the prompt is empty: say what to draw, for example 'a photo of a red apple'")
    inputs = processor.for_drawing([p.strip() for p in prompts])
    check_length(model, inputs["input_ids"].shape[1] + processor.num_positions, "the prompt")
    ids = model.generate(
        **inputs.to(model.device), generation_mode="image", seeds=seeds or [0] * len(prompts),
        guidance_scale=guidance_scale, temperature=temperature, top_k=top_k, on_position=on_position,
    )  # fmt: skip
    return processor.post_process_images(model.decode_image_tokens(ids))


def answer(model, processor, picture: Image.Image | None, question: str, **kwargs) -> str:
    """The model's answer to one question about a picture (or to a text alone)."""
    parts = [{"type": "image", "image": picture}] if picture is not None else []
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]
    return answer_batch(model, processor, [messages], **kwargs)[0]


def answer_batch(
    model, processor, conversations: list[list[dict]], max_new_tokens: int = MAX_NEW_TOKENS, **kwargs
) -> list[str]:
    """What the assistant says next in each conversation, all in one batch, greedily.

    Raises:
        UserError: a conversation is longer than the context.
    """
    inputs = processor(conversations)
    length = inputs["input_ids"].shape[1]
    check_length(model, length + 1, "the conversation")
    room = model.config.text_config.max_position_embeddings - length
    ids = model.generate(
        **inputs.to(model.device), generation_mode="text", do_sample=False,
        max_new_tokens=min(max_new_tokens, room), pad_token_id=processor.tokenizer.pad_token_id,
        eos_token_id=processor.tokenizer.eos_token_id, **kwargs,
    )  # fmt: skip
    return [t.strip() for t in processor.tokenizer.batch_decode(ids[:, length:], skip_special_tokens=True)]


def check_length(model, length: int, what: str) -> None:
    """UserError if `length` ids do not fit the model's context."""
    context = model.config.text_config.max_position_embeddings
    if length > context:
        raise UserError(f"{what} is too long: {length} ids with what follows, the model's context holds {context}")
