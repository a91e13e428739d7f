"""How pictures are drawn: each family declares its options, and a checkpoint says which values suit it.

A model class has `drawing_options`, names and defaults of what its `generate(generation_mode="image")` can be told, and
`drawing_unit`, what it counts while it draws; `num_drawing_steps(options)` tells how many of those there will be. A
checkpoint's values stand under "drawing" in its generation_config.json.
"""

import math
from numbers import Integral, Real

from unimllm.errors import UserError

FLAGS = {
    "guidance_scale": "--cfg-scale", "temperature": "--temperature", "top_k": "--top-k", "num_steps": "--num-steps",
    "time_shift": "--time-shift",
}  # fmt: skip
"""Options of all families, and what the command lines call them."""


def save_drawing_options(model) -> None:
    """Let a new model's generation_config.json hold its class's options, where they can be seen and changed."""
    model.generation_config._from_model_config = False  # else transformers would not read them again
    model.generation_config.drawing = dict(model.drawing_options)


def choose_drawing(model, given: dict[str, float | None]) -> dict[str, float]:
    """Options for `generate(generation_mode="image")`: what was given, else the checkpoint's, else the family's.

    Args:
        given: by name; None counts as not given.

    Raises:
        UserError: one that this family does not have, or that is no number, or not whole where its default is.
    """
    own = getattr(model.generation_config, "drawing", None) or {}
    options = model.drawing_options | own | {name: value for name, value in given.items() if value is not None}
    for name, value in options.items():
        if name not in model.drawing_options:
            where = "is in its generation_config.json" if name in own else "leave it out"
            taken = ", ".join(map(_called, model.drawing_options))
            raise UserError(f"this model cannot draw with {_called(name)}, {where}; it takes {taken}")
        where = " of its generation_config.json" if name in own and given.get(name) is None else ""
        check_number(f"{_called(name)}{where}", value, isinstance(model.drawing_options[name], int))
    return options


def check_number(name: str, value: object, is_whole: bool = False) -> None:
    """UserError where an option is not a finite number, or not a whole one."""
    is_number = isinstance(value, Integral if is_whole else Real) and not isinstance(value, bool)
    if not is_number or not math.isfinite(value):
        raise UserError(f"{name} is {value!r}; it must be a {'whole ' if is_whole else ''}number")


def _called(name: str) -> str:
    return f"{name} ({FLAGS[name]})" if name in FLAGS else name
