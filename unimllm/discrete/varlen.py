"""Attention of packed rows sample by sample, `--attention varlen`: flash attention as torch brings it.

Nothing has to be installed for it, no mask is made, and no score between two samples is computed. transformers finds it
under NAME. Where the bounds of samples are not told (branches, a cache, padding) it is SDPA.

Shapes: B rows, T positions, h heads, g heads of keys and values, d channels of a head.
"""

import functools
import inspect

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from unimllm.data.packing import flash_arguments, sample_bounds
from unimllm.errors import UserError

NAME = "varlen"
HALVES = (torch.bfloat16, torch.float16)  # what torch's kernel computes in
BOUNDS_AT_ONCE = 64  # their number is a multiple of it, so that compiled blocks meet few lengths


def attention_arguments(
    config: PreTrainedConfig,
    embeds: torch.Tensor,
    attention_mask: torch.Tensor | dict | None,
    position_ids: torch.Tensor | None,
    is_cached: bool,
) -> dict:
    """What a language model is called with, so that samples and branches of its rows do not see one another.

    Args:
        config: of the language model; its attention implementation decides the form.
        embeds: (B, T, H).
        attention_mask: (B, T), 0 for padding; (B, 1, T, T) bool, True where a position may look; None; or what
            `generate` makes for a cache of fixed length, masks by kind of layer or one to be added: taken as it is.
        position_ids: (B, T); without attention_mask and cache, packed samples begin where they start again at 0.

    Raises:
        ValueError: rows with branches for flash attention, or longer than the window that the model looks back through.
    """
    if isinstance(attention_mask, dict) or (attention_mask is not None and attention_mask.is_floating_point()):
        return {"attention_mask": attention_mask}
    attention = config._attn_implementation
    is_flash = attention.startswith("flash_attention")
    has_branches = attention_mask is not None and attention_mask.dim() == 4
    if has_branches and is_flash:
        raise ValueError("flash attention knows no branches in a row: pack without them, or use sdpa")
    window = getattr(config, "sliding_window", None)
    if has_branches and window is not None and window < embeds.shape[1]:
        raise ValueError(f"rows with branches know no windows, and this model looks back {window} positions at most")
    if has_branches:  # eager attention adds it to the scores
        added = torch.zeros_like(attention_mask, dtype=embeds.dtype)
        return {"attention_mask": added.masked_fill(~attention_mask, torch.finfo(embeds.dtype).min)}
    if attention_mask is None and position_ids is not None and not is_cached:
        if is_flash:
            return {"attention_mask": None} | flash_arguments(position_ids)
        if attention == NAME:  # a mask of four dimensions, so that transformers makes none
            return {"attention_mask": embeds.new_empty(1, 1, 1, 1)} | varlen_arguments(position_ids)
    return {"attention_mask": attention_mask}


def varlen_arguments(position_ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """What tells `varlen_attention` where samples lie: `bounds` of `packing.sample_bounds`, the last repeated.

    Args:
        position_ids: (B, T) int64 of packed rows without branches.
    """
    bounds = sample_bounds(position_ids)
    return {"varlen_bounds": F.pad(bounds, (0, -len(bounds) % BOUNDS_AT_ONCE), value=position_ids.numel())}


def varlen_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    varlen_bounds: torch.Tensor | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """Causal attention inside each sample, by the words of transformers' attention interface.

    Args:
        query: (B, h, T, d).
        key, value: (B, g, T, d).
        attention_mask: for SDPA alone.
        varlen_bounds: of `varlen_arguments`; None: SDPA.
        sliding_window: positions that a query looks at, itself the last; None: all before it.

    Returns:
        (B, T, h, d) of the query's dtype, and None.

    Raises:
        ValueError: dropout or capped scores, which torch's kernel does not have.
    """
    if softcap is not None:  # SDPA would leave the cap out in silence, too
        raise ValueError("varlen attention does not cap scores (attn_logit_softcapping): use eager")
    if varlen_bounds is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )  # fmt: skip
    if dropout:
        raise ValueError("varlen attention knows no dropout: set attention_dropout 0, or use sdpa")
    groups, (rows, _, length, _) = query.shape[1] // key.shape[1], query.shape
    flat = [rearrange(x, "b h t d -> (b t) h d") for x in (query, key, value)]
    if groups > 1:  # of the flat ones, so that they are copied once
        flat[1:] = (x.repeat_interleave(groups, 1) for x in flat[1:])
    dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else query.dtype
    if query.is_cuda and dtype in HALVES:
        found = flash(*(x.to(dtype) for x in flat), varlen_bounds, length, scaling, sliding_window)
    else:
        found = one_by_one(*flat, varlen_bounds, scaling, sliding_window)
    return rearrange(found.to(query.dtype), "(b t) h d -> b t h d", b=rows), None


def flash(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: torch.Tensor, longest: int,
    scaling: float | None, window: int | None = None,
) -> torch.Tensor:  # fmt: skip
    """(B * T, h, d) each, in half precision on a GPU."""
    kernel, back = import_varlen(), -1 if window is None else window - 1
    return kernel(query, key, value, bounds, bounds, longest, longest, scale=scaling, window_size=(back, 0))


@torch.compiler.disable
def one_by_one(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: torch.Tensor, scaling: float | None,
    window: int | None = None,
) -> torch.Tensor:  # fmt: skip
    """The same where torch has no such kernel: on a CPU, or in full precision."""
    lengths = [length for length in bounds.diff().tolist() if length]
    heads_first = [rearrange(x, "t h d -> 1 h t d").split(lengths, 2) for x in (query, key, value)]
    parts = []
    for length, *sample in zip(lengths, *heads_first, strict=True):
        if window is None or length <= window:
            how = {"is_causal": True}
        else:
            how = {
                "attn_mask": torch.ones(length, length, dtype=torch.bool, device=query.device).tril().triu(1 - window)
            }
        parts.append(F.scaled_dot_product_attention(*sample, **how, scale=scaling))
    return rearrange(torch.cat(parts, 2), "1 h t d -> t h d")


@functools.cache
def import_varlen():
    """torch's kernel; UserError where this torch has none that knows windows, by which it is causal."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        varlen_attn = None
    if varlen_attn is None or "window_size" not in inspect.signature(varlen_attn).parameters:
        raise UserError(f"--attention {NAME} needs torch 2.11 or newer, this is {torch.__version__}; or use sdpa")
    return varlen_attn


AttentionInterface.register(NAME, varlen_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
