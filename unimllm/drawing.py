"""How pictures are drawn: each family declares its options, and a checkpoint says which values suit it.

A model class has `drawing_options`, names and defaults of what its `generate(generation_mode="image")` can be told, and
`drawing_unit`, what it counts while it draws; `num_drawing_steps(options)` tells how many of those there will be, and
`edits_pictures` whether a drawing may begin from a picture. A checkpoint's values stand under "drawing" in its
generation_config.json.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING, SupportsIndex

from unimllm.errors import UserError

if TYPE_CHECKING:  # the command lines, which complain before torch is there, import this file
    import torch

FLAGS = {
    "guidance_scale": "--cfg-scale", "temperature": "--temperature", "top_k": "--top-k", "num_steps": "--num-steps",
    "time_shift": "--time-shift",
}  # fmt: skip
"""Options of all families, and what the command lines call them."""

LOWEST = {"temperature": 0, "top_k": 0, "num_steps": 1, "time_shift": 1e-3}
START_TIME = 0.1
"""Where a drawing from a picture begins, between noise (0) and the picture (1), unless told otherwise: as the released
CHEERS edits."""
SMALLEST_TEMPERATURE = 1e-4  # above 0, which takes the most likely; logits are divided by it
SEEDS = range(-(2**63), 2**64)  # what torch takes


def save_drawing_options(model) -> None:
    """Let a new model's generation_config.json hold its class's options, where they can be seen and changed."""
    model.generation_config._from_model_config = False  # else transformers would not read them again
    model.generation_config.drawing = dict(model.drawing_options)


def choose_drawing(model, given: dict[str, float | None]) -> dict[str, float]:
    """Options for `generate(generation_mode="image")`: what was given, else the checkpoint's, else the family's.

    Args:
        given: by name; None counts as not given.

    Raises:
        UserError: one that this family does not have, or see `check_option`.
    """
    own = getattr(model.generation_config, "drawing", None) or {}
    options = model.drawing_options | own | {name: value for name, value in given.items() if value is not None}
    for name, value in options.items():
        if name not in model.drawing_options:
            where = "is in its generation_config.json" if name in own else "leave it out"
            taken = ", ".join(map(_called, model.drawing_options))
            raise UserError(f"this model cannot draw with {_called(name)}, {where}; it takes {taken}")
        where = " of its generation_config.json" if name in own and given.get(name) is None else ""
        check_option(name, value, isinstance(model.drawing_options[name], int), f"{_called(name)}{where}")
    return options


def check_option(name: str, value: object, is_whole: bool = False, called: str | None = None) -> None:
    """UserError where an option is no number, not whole where it must be, or one with which nothing can be drawn.

    Args:
        called: in the message, in place of the name.
    """
    called = called or name
    check_number(called, value, is_whole)
    if value < LOWEST.get(name, -math.inf):
        raise UserError(f"{called} is {value!r}; it must be {LOWEST[name]} or more")
    if name == "temperature" and 0 < value < SMALLEST_TEMPERATURE:
        raise UserError(f"{called} is {value!r}, too small to divide by; 0 takes the most likely code")


def check_number(name: str, value: object, is_whole: bool = False) -> None:
    """UserError where an option is not a finite number, or not a whole one."""
    is_number = isinstance(value, Integral if is_whole else Real) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value):
        raise UserError(f"{name} is {value!r}; it must be a {'whole ' if is_whole else ''}number")


def check_start_time(start_time: object, has_pictures: bool, called: str = "start_time") -> None:
    """UserError for a start time, None where it was left out, that is outside 0..1 or has no picture to begin from.

    Args:
        called: in the message, in place of the name.
    """
    if start_time is None:
        return
    if not has_pictures:
        raise UserError(f"{called} is for drawings from a picture, and there is none: give one or leave it out")
    check_number(called, start_time)
    if not 0 <= start_time < 1:
        raise UserError(f"{called} is {start_time!r}; it must be at least 0 (noise) and below 1 (the picture itself)")


def check_edits(model) -> None:
    """UserError where a model cannot begin a drawing from a picture."""
    if not model.edits_pictures:
        raise UserError(f"a {model.config.model_type} model cannot draw from a picture; a cheers model can")


def check_prompt_ids(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> None:
    """UserError where there are no prompts (B, T), or one is empty or padded on the right, where a picture begins."""
    if not len(input_ids):
        raise UserError("there is no prompt; give one row of input_ids for each picture")
    if not attention_mask[:, -1:].any(1).all():
        raise UserError("a prompt is empty or ends with padding; pad on the left, its picture follows it at once")


def choose_seeds(seeds: Sequence[SupportsIndex] | None, count: int) -> list[int]:
    """One for each of `count` prompts, by default 0, 1, ...; UserError for another number, or what is no seed."""
    seeds = range(count) if seeds is None else seeds
    if not hasattr(seeds, "__len__"):
        raise UserError(f"the seeds are {seeds!r}; give a list of one for each prompt")
    if len(seeds) != count:
        raise UserError(f"{len(seeds)} seeds for {count} prompts; give one for each")
    try:
        whole = [operator.index(seed) for seed in seeds]
    except TypeError as error:
        raise UserError(f"the seeds are {list(seeds)}; they must be whole numbers") from error
    for seed in whole:
        if seed not in SEEDS:
            raise UserError(f"the seed {seed} is not within -2**63..2**64 - 1, as torch needs it")
    return whole


def check_finite(is_finite: torch.Tensor) -> None:
    """UserError unless all numbers that a drawing was made of were finite, () bool; it waits for the device."""
    if not is_finite:
        raise UserError(
            "what the model computed is not finite, so nothing is drawn: its weights have diverged, guidance_scale is "
            "far too large, or float16 is too narrow (load the model with dtype bfloat16 or float32)"
        )


def _called(name: str) -> str:
    return f"{name} ({FLAGS[name]})" if name in FLAGS else name
