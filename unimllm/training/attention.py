"""Which implementation computes a language model's attention in training."""

from collections.abc import Callable

import torch
from torch import distributed as dist
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel

from semhitok.errors import first_line
from unimllm.discrete.varlen import BOUNDS_AT_ONCE, flash, import_varlen, one_by_one
from unimllm.discrete.varlen import NAME as VARLEN
from unimllm.distributed import print_once
from unimllm.errors import UserError
from unimllm.training.families import family_of
from unimllm.training.presets import SftRecipe

TAKING_VARLEN = ("llama", "mistral", "qwen2", "qwen3")  # their layers call what `varlen` is, with heads of one size
LENGTHS = (5, 120, 3)  # of the samples of the trial
TOLERANCE = 0.1  # of values and gradients of inputs of unit variance in bfloat16; a right kernel is off by 0.05


def choose_attention(model: PreTrainedModel, name: str) -> None:
    """Compute the language model's attention by another implementation; UserError where it is not to be had."""
    if name == "flex_attention" and not torch.cuda.is_available():
        raise UserError(f"--attention {name}: it trains on a GPU alone, and there is none; use sdpa")
    if name == VARLEN and torch.cuda.is_available():
        import_varlen()
    config = model.language_model.config
    try:
        model.language_model.set_attn_implementation(name)
    except (ImportError, ValueError) as error:
        raise UserError(f"--attention {name}: {first_line(error)}") from error
    if config._attn_implementation != name:  # transformers has warned
        raise UserError(f"--attention {name}: a {config.model_type} has its own alone; leave the option out")


def open_attention(model: PreTrainedModel, recipe: SftRecipe, has_branches: bool) -> None:
    """Choose the recipe's attention; where it names none, varlen on a GPU where that fits and passes a trial.

    All processes call it, and choose alike.

    Args:
        has_branches: rows have them, as those of scenes do: varlen would be SDPA there.
    """
    if recipe.attention:
        choose_attention(model, recipe.attention)
    elif torch.cuda.is_available() and not has_branches and may_be_varlen(model, recipe):
        faults = {rank: fault for rank, fault in enumerate(faults_of_varlen(model, recipe)) if fault}
        if faults:
            rank, fault = min(faults.items())
            told = f"{VARLEN} failed its trial on the GPU of process {rank}: {fault}"
            print_once(f"warning: attention is sdpa, which makes masks, for {told}")
        else:
            choose_attention(model, VARLEN)
            print_once(f"attention: {VARLEN}, sample by sample without masks (--attention sdpa: with them)")


def may_be_varlen(model: PreTrainedModel, recipe: SftRecipe) -> bool:
    """Whether nothing in the model or its precision stands against varlen."""
    config = model.language_model.config
    return (
        family_of(model.config).takes_varlen
        and recipe.train.resolved_precision() in ("autocast", "bf16")
        and config.model_type in TAKING_VARLEN
        and config._attn_implementation == "sdpa"
        and not config.attention_dropout
    )


def faults_of_varlen(model: PreTrainedModel, recipe: SftRecipe) -> list[str]:
    """What torch's kernel lacks on the GPU of each process, in words; nothing where it computes what it should."""
    try:
        difference = try_varlen(model.language_model.config, recipe.train.compile)
        fault = "" if difference <= TOLERANCE else f"it is off by {difference:.2g}"
    except Exception as error:  # of the GPU, its driver, a compiler that is missing: nearly anything
        fault = first_line(error)
    if not dist.is_initialized():
        return [fault]
    faults = [fault] * dist.get_world_size()
    dist.all_gather_object(faults, fault)
    return faults


def try_varlen(config: PreTrainedConfig, is_compiled: bool, device: str = "cuda") -> float:
    """The largest difference of values and gradients between torch's kernel and attention sample by sample.

    In bfloat16, as all training with half precision here.

    Args:
        config: of the language model: its heads and their size.
        is_compiled: the kernel inside torch.compile.
    """
    heads, length = config.num_attention_heads, sum(LENGTHS)
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    bounds = torch.tensor([0, *LENGTHS], device=device).cumsum(0).to(torch.int32)
    bounds = F.pad(bounds, (0, BOUNDS_AT_ONCE - len(bounds)), value=length)  # as in training
    generator, window = torch.Generator().manual_seed(0), getattr(config, "sliding_window", None)
    drawn = torch.randn(4, length, heads, size, generator=generator).bfloat16().float().to(device)
    inputs, above = drawn[:3], drawn[3]

    def kernel(*inputs: torch.Tensor) -> torch.Tensor:
        return flash(*(x.bfloat16() for x in inputs), bounds, length, None, window).float()

    found = values_and_gradients(torch.compile(kernel, dynamic=False) if is_compiled else kernel, inputs, above)
    wanted = values_and_gradients(lambda *x: one_by_one(*x, bounds, None, window), inputs, above)
    return max((one - other).abs().max().item() for one, other in zip(found, wanted, strict=True))


def values_and_gradients(
    attend: Callable[..., torch.Tensor], inputs: torch.Tensor, above: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(T, h, d) and (3, T, h, d) of `attend` at `inputs` (3, T, h, d), with the gradient `above` (T, h, d)."""
    leaf = inputs.clone().requires_grad_(True)
    values = attend(*leaf)
    return values.detach(), torch.autograd.grad(values, leaf, above)[0]
