"""What the models of both families are called with, as transformers has it: ids, and what else they shall return.

Shapes: B rows, T positions.
"""

import torch
from transformers.utils import ModelOutput

CAPTURED = ("output_hidden_states", "output_attentions")


def given_ids(
    input_ids: torch.Tensor | None, inputs: torch.Tensor | None = None, inputs_embeds: torch.Tensor | None = None
) -> torch.Tensor:
    """The ids (B, T), called `inputs` by some; ValueError for none, for both, and for vectors in their place."""
    if inputs_embeds is not None:
        raise ValueError("inputs_embeds cannot be read: pictures are told by their ids; give input_ids")
    if (input_ids is None) == (inputs is None):
        raise ValueError(f"{'no ids' if input_ids is None else 'input_ids and inputs'} were given; give input_ids")
    return inputs if input_ids is None else input_ids


def captured(kwargs: dict) -> dict:
    """Of a call's other arguments those by which a language model also returns `hidden_states` and `attentions`."""
    return {name: kwargs[name] for name in CAPTURED if name in kwargs}


def states(outputs: ModelOutput) -> dict:
    """What a model hands on of its language model's output, whatever was asked for."""
    return {name: outputs[name] for name in ("last_hidden_state", "hidden_states", "attentions") if name in outputs}
