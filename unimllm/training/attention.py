"""Which implementation computes a language model's attention in training."""

from collections.abc import Callable

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from semhitok.errors import first_line
from unimllm.discrete.varlen import NAME as VARLEN
from unimllm.discrete.varlen import flash, import_varlen, one_by_one
from unimllm.distributed import print_once
from unimllm.errors import UserError
from unimllm.training.families import family_of
from unimllm.training.presets import SftRecipe

TOLERANCE = 0.05  # of values and gradients of unit variance, in half precision
LENGTHS = (5, 120, 3)  # of the samples of the trial


def choose_attention(model: PreTrainedModel, name: str) -> None:
    """Compute the language model's attention by another implementation; UserError where it is not to be had."""
    if name == "flex_attention" and not torch.cuda.is_available():
        raise UserError(f"--attention {name}: it trains on a GPU alone, and there is none; use sdpa")
    if name == VARLEN and torch.cuda.is_available():
        import_varlen()
    try:
        model.language_model.set_attn_implementation(name)
    except (ImportError, ValueError) as error:
        raise UserError(f"--attention {name}: {first_line(error)}") from error


def open_attention(model: PreTrainedModel, recipe: SftRecipe, has_branches: bool) -> None:
    """Choose the recipe's attention; where it names none, varlen on a GPU where that fits and passes a trial.

    Args:
        has_branches: rows have them, as those of scenes do: varlen would be SDPA there.
    """
    if recipe.attention:
        choose_attention(model, recipe.attention)
    elif torch.cuda.is_available() and not has_branches and may_be_varlen(model, recipe):
        fault = fault_of_varlen(model.language_model.config, recipe)
        if fault:
            print_once(f"warning: attention is sdpa, which makes masks, for {VARLEN} failed its trial here: {fault}")
        else:
            choose_attention(model, VARLEN)
            print_once(f"attention: {VARLEN}, sample by sample without masks (--attention sdpa: with them)")


def may_be_varlen(model: PreTrainedModel, recipe: SftRecipe) -> bool:
    """Whether nothing in the model or its precision stands against varlen."""
    config = model.language_model.config
    return (
        family_of(model.config).takes_varlen
        and recipe.train.resolved_precision() in ("autocast", "bf16")
        and config._attn_implementation == "sdpa"
        and not getattr(config, "attention_dropout", 0)
    )


def fault_of_varlen(config: PreTrainedConfig, recipe: SftRecipe) -> str:
    """What torch's kernel lacks on this GPU, in words; nothing where it computes what it should."""
    dtype = torch.bfloat16 if recipe.train.precision == "bf16" else torch.get_autocast_dtype("cuda")
    try:
        difference = try_varlen(config, dtype, recipe.train.compile)
    except Exception as error:  # of the GPU, its driver, a compiler that is missing: nearly anything
        return first_line(error)
    return "" if difference <= TOLERANCE else f"it is off by {difference:.2g}"


def try_varlen(config: PreTrainedConfig, dtype: torch.dtype, is_compiled: bool, device: str = "cuda") -> float:
    """The largest difference of values and gradients between torch's kernel and attention sample by sample.

    Args:
        config: of the language model: its heads and their size.
        dtype: in which the kernel computes, half precision.
        is_compiled: the kernel inside torch.compile.
    """
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    bounds = torch.tensor([0, *LENGTHS], device=device).cumsum(0).to(torch.int32)
    length, generator = sum(LENGTHS), torch.Generator().manual_seed(0)
    inputs, above = (torch.randn(n, length, heads, size, generator=generator).to(device) for n in (3, 1))
    window = getattr(config, "sliding_window", None)

    def kernel(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        halves = (x.to(dtype) for x in (query, key, value))
        return flash(*halves, bounds, length, None, window).float()

    found = values_and_gradients(torch.compile(kernel, dynamic=False) if is_compiled else kernel, inputs, above[0])
    wanted = values_and_gradients(lambda *x: one_by_one(*x, bounds, None, window), inputs, above[0])
    return max((one - other).abs().max().item() for one, other in zip(found, wanted, strict=True))


def values_and_gradients(
    attend: Callable[..., torch.Tensor], inputs: torch.Tensor, above: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(T, h, d) and (3, T, h, d) of `attend` at `inputs` (3, T, h, d), with the gradient `above` (T, h, d)."""
    leaf = inputs.clone().requires_grad_(True)
    values = attend(*leaf)
    return values.detach(), torch.autograd.grad(values, leaf, above)[0]
