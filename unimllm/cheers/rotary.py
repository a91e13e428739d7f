"""Rotary positions of the flow head, and frequencies that go with the weights into bfloat16."""

import torch
from torch import nn
from transformers import PreTrainedModel

from unimllm.cheers.configuration_cheers import CheersConfig

BASE = 10000.0  # of the rotary positions and of the sinusoids of t


def rounded(frequencies: torch.Tensor) -> torch.Tensor:
    """Float32 numbers as bfloat16 has them."""
    return frequencies.to(torch.bfloat16).float()


def round_frequencies_of(language_model: PreTrainedModel, config: CheersConfig) -> None:
    """With `round_rotary_frequencies`, ahead of each use in bfloat16: loading keeps them in float32."""
    if config.round_rotary_frequencies:
        language_model.get_decoder().rotary_emb.register_forward_pre_hook(_round)


def _round(rotary_embedding: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
    if args[0].dtype == torch.bfloat16:
        rotary_embedding.inv_freq.copy_(rounded(rotary_embedding.inv_freq))


def rotary(
    num_positions: int, head_dim: int, repeat: bool, like: torch.Tensor, is_rounded: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines (1, num_positions, head_dim) of one-dimensional rotary positions.

    Args:
        repeat: positions count to the half and then begin again, as the released second stage does.
        is_rounded: see `round_rotary_frequencies` of CheersConfig.
    """
    frequencies = BASE ** (-torch.arange(0, head_dim, 2, device=like.device).float() / head_dim)
    if is_rounded and like.dtype == torch.bfloat16:
        frequencies = rounded(frequencies)
    positions = torch.arange(num_positions, device=like.device)
    if repeat:
        positions = positions % (num_positions // 2)
    angles = (positions[:, None] * frequencies).repeat(1, 2)[None]
    return angles.cos().to(like.dtype), angles.sin().to(like.dtype)
