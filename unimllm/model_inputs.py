"""What the models of both families are called with and return, as transformers has it.

Shapes: B rows, T positions, V text ids, H hidden channels.
"""

from dataclasses import dataclass

import torch
from transformers.cache_utils import Cache
from transformers.utils import ModelOutput

CAPTURED = ("output_hidden_states", "output_attentions")


@dataclass
class UnifiedOutput(ModelOutput):
    """What `forward` returns.

    Attributes:
        loss: scalar, where labels were given.
        losses: its parts by name, each a mean over its own targets, or over `num_items`.
        logits: (B, T or fewer, V) over text ids; pictures have none here (see `generate`).
        cache: the cache.
        last_hidden_state: (B, T, H).
        hidden_states, attentions: of the language model's layers, where `output_hidden_states`, `output_attentions`.
    """

    loss: torch.Tensor | None = None
    losses: dict[str, torch.Tensor] | None = None
    logits: torch.Tensor | None = None
    cache: Cache | None = None
    last_hidden_state: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


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
