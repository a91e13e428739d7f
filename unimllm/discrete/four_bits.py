"""QLoRA (arXiv 2305.14314): the language model's linear layers in 4 bits under LoRA, through bitsandbytes.

NF4 with quantised scales, 4.1 bits a weight, computed in bf16; embeddings, head, norms and biases stay as they are.
"""

import torch
from torch import nn

from unimllm.errors import UserError

BITS = 4 + 8 / 64 + 32 / (64 * 256)
"""A weight: 4 bits, its share of a scale of 8 bits for 64 of them, and of one of 32 bits for 256 scales."""


def import_bitsandbytes():
    """bitsandbytes; UserError where it is not installed."""
    try:
        import bitsandbytes
    except ImportError as error:
        raise UserError("--quantize_base needs bitsandbytes: pip install 'unimllm[qlora]'") from error
    return bitsandbytes


def linear_layers(language_model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers of a language model's blocks by name, without LoRA's own."""
    modules = language_model.get_decoder().named_modules()
    return {name: layer for name, layer in modules if isinstance(layer, nn.Linear) and ".lora_" not in name}


def quantize_linear(language_model: nn.Module) -> None:
    """Exchange the linear layers of a language model's blocks for frozen ones of 4 bits.

    The numbers are quantised when they are next moved to a device, as the training loop does: on a GPU where there is
    one, since a CPU core takes about two minutes for a billion.
    """
    bitsandbytes, decoder = import_bitsandbytes(), language_model.get_decoder()
    for name, layer in linear_layers(language_model).items():
        made = bitsandbytes.nn.Linear4bit(
            layer.in_features, layer.out_features, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4",
            compress_statistics=True, device="meta",
        )  # fmt: skip
        made.weight = bitsandbytes.nn.Params4bit(
            layer.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True, module=made
        )
        made.bias = layer.bias
        decoder.set_submodule(name, made)
    language_model.requires_grad_(False)
    language_model.is_loaded_in_4bit = True  # by this peft chooses the layers that it puts around them


def four_bit_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers of 4 bits by name; told by what they alone have, since bitsandbytes may not be installed."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "quant_state")}


@torch.no_grad()
def dequantize(layer: nn.Module) -> torch.Tensor:
    """The (out, in) weights that a layer of 4 bits stands for, in the type that they had."""
    return import_bitsandbytes().functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
