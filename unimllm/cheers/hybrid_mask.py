"""Who may look at whom (arXiv 2603.12793, section 2.2): text is causal, every picture sees all of itself.

transformers builds the mask from the number of each position's picture: for FlexAttention block by block, so that
blocks in which nobody may look are not computed, for SDPA as one (B, 1, T, T) bool tensor that all heads share. Rows
with branches bring that tensor along. Where layers look back through a window (Mistral, Gemma), words see that far and
a picture sees all of itself all the same.

Shapes: B rows, T positions, P positions in the cache, H hidden channels.
"""

import torch
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import Cache, PreTrainedConfig
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

FLEX = "flex_attention"
TEXT = -1
FULL, SLIDING = "full_attention", "sliding_attention"
MASKS = {FULL: create_causal_mask, SLIDING: create_sliding_window_causal_mask}
"""Kinds of layers by transformers' names, and what makes their masks."""


def kinds_of_layers(config: PreTrainedConfig) -> list[str]:
    """What transformers calls the attention of a language model's layers, each kind once."""
    told = getattr(config, "layer_types", None)
    if told is not None:
        return sorted(set(told))
    if getattr(config, "attention_chunk_size", None) is not None:
        return ["chunked_attention"]
    return [SLIDING if getattr(config, "sliding_window", None) is not None else FULL]


def picture_numbers(is_picture: torch.Tensor, is_text: torch.Tensor | None = None) -> torch.Tensor:
    """(B, T) bool -> (B, T) int64: 0, 1, ... for each contiguous picture of a row, TEXT elsewhere.

    Args:
        is_text: (B, T) bool; where given, a picture before all text of its row counts as text, as
            `leading_picture_is_causal` has it.
    """
    begins = is_picture & ~F.pad(is_picture[:, :-1], (1, 0))
    numbers = begins.cumsum(1) - 1
    if is_text is not None:
        is_picture = is_picture & (is_text.cumsum(1) > 0)
    return numbers.masked_fill(~is_picture, TEXT)


def hybrid_mask(
    config: PreTrainedConfig,
    inputs_embeds: torch.Tensor,
    numbers: torch.Tensor | None,
    attention_mask: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
    cache: Cache | None = None,
):
    """The mask that a language model's decoder takes as it is; where its layers differ, a dict of one for each kind.

    Args:
        config: of the language model; its attention implementation decides the form.
        inputs_embeds: (B, T, H); its values do not matter.
        numbers: (B, P + T) of `picture_numbers`; None: text alone.
        attention_mask: (B, P + T), 0 for padding, or (B, 1, T, T) bool, True where a position may look.
        position_ids: (B, T); without attention_mask and cache, packed samples begin where they start again at 0. In
            rows with branches windows are measured by them.
        cache: what was read before, P positions.
    """

    def mask_of(kind: str):
        if attention_mask is not None and attention_mask.dim() == 4:
            may_look = attention_mask if kind == FULL else within_window(attention_mask, position_ids, config)
            return with_pictures(may_look, numbers, config, inputs_embeds.dtype)
        return MASKS[kind](
            config=config, inputs_embeds=inputs_embeds, attention_mask=attention_mask, cache=cache,
            position_ids=position_ids, block_sequence_ids=numbers,
        )  # fmt: skip

    masks = {kind: mask_of(kind) for kind in kinds_of_layers(config)}
    return masks if len(masks) > 1 else next(iter(masks.values()))


def within_window(may_look: torch.Tensor, position_ids: torch.Tensor | None, config: PreTrainedConfig) -> torch.Tensor:
    """What of (B, 1, T, T) bool lies less than `sliding_window` positions back, by `position_ids` (B, T)."""
    if position_ids is None:
        position_ids = torch.arange(may_look.shape[-1], device=may_look.device)[None]
    back = position_ids[:, :, None] - position_ids[:, None, :]  # (B, T, T)
    return may_look & (back < config.sliding_window).unsqueeze(1)


def with_pictures(
    may_look: torch.Tensor, numbers: torch.Tensor | None, config: PreTrainedConfig, dtype: torch.dtype
) -> torch.Tensor | BlockMask:
    """A mask of rows with branches, in which every picture sees all of itself besides.

    Args:
        may_look: (B, 1, T, T) bool.
        numbers, config: as in `hybrid_mask`.
        dtype: of the mask that eager attention adds to the scores.
    """
    if numbers is not None:
        same = (numbers[:, :, None] == numbers[:, None, :]) & (numbers != TEXT)[:, None]
        may_look = may_look | same.unsqueeze(1)
    if config._attn_implementation == FLEX:
        rows, _, asking, asked = may_look.shape
        return create_block_mask(
            lambda row, head, at, other: may_look[row, 0, at, other], rows, None, asking, asked, may_look.device
        )  # fmt: skip
    if config._attn_implementation == "eager":
        return torch.zeros_like(may_look, dtype=dtype).masked_fill(~may_look, torch.finfo(dtype).min)
    return may_look
