"""Trained weights that something else than the optimiser reads or overwrites."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import nn


def gathered(parameters: Iterable[nn.Parameter], modifier_rank: int | None = None) -> contextlib.AbstractContextManager:
    """A context in which every rank holds these parameters whole, of which ZeRO 3 keeps parts; entered by all ranks.

    Args:
        modifier_rank: whose numbers all have afterwards; None: nobody writes any.
    """
    cut = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not cut:
        return contextlib.nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(cut, modifier_rank=modifier_rank)


@contextlib.contextmanager
def written_in_place(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """A context in which every rank writes the same to some trained parameters.

    ZeRO and bf16 weights have the optimiser work on copies of its own, which would bring the old numbers back with the
    next step: they follow. ZeRO 3, which keeps a part of each parameter, gathers them meanwhile.
    """
    from deepspeed.utils import safe_set_full_fp32_param

    with gathered(parameters, modifier_rank=0):
        yield
        written = [parameter.detach().to(torch.float32, copy=True) for parameter in parameters]
    for parameter, values in zip(parameters, written, strict=True):
        safe_set_full_fp32_param(parameter, values)
