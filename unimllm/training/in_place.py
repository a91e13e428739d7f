"""Trained weights that something else than the optimiser overwrites."""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import nn


@contextlib.contextmanager
def written_in_place(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """A context in which every rank writes the same to some trained parameters.

    ZeRO and bf16 weights have the optimiser work on copies of its own, which would bring the old numbers back with the
    next step: they follow. ZeRO 3, which keeps a part of each parameter, gathers them meanwhile.
    """
    import deepspeed
    from deepspeed.utils import safe_set_full_fp32_param

    cut = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    with deepspeed.zero.GatheredParameters(cut, modifier_rank=0) if cut else contextlib.nullcontext():
        yield
        written = [parameter.detach().to(torch.float32, copy=True) for parameter in parameters]
    for parameter, values in zip(parameters, written, strict=True):
        safe_set_full_fp32_param(parameter, values)
