"""LoRA (arXiv 2106.09685) on the language model, through peft; adapter, image head and image tokens in full beside it.

A checkpoint of such a run is the merged model, which needs no peft to be used, and in it `lora/`: what was trained
alone, small, to be laid over the model that the run started from (`load_lora`).
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from semhitok.errors import first_line
from unimllm.discrete.four_bits import dequantize, four_bit_layers
from unimllm.errors import UserError

FOLDER = "lora"
CONFIG, WEIGHTS, IN_FULL = "adapter_config.json", "adapter_model.safetensors", "trained_in_full.safetensors"
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""The linear layers of a block, by the names that Llama, Qwen2, Mistral and their like share."""


def add_lora(
    language_model: nn.Module, rank: int, alpha: float, dropout: float, targets: tuple[str, ...] = TARGETS
) -> None:
    """Freeze a language model and put trainable A and B beside its linear layers; B is 0, so nothing changes yet.

    Args:
        rank: of both.
        alpha: B A is scaled by alpha / rank; 0: by 2.
        dropout: of what goes into A.
        targets: last part of the names of the layers.

    Raises:
        UserError: peft is not installed, or the model lacks one of those layers.
    """
    peft = import_peft()
    config = peft.LoraConfig(
        r=rank, lora_alpha=alpha or 2 * rank, lora_dropout=dropout, target_modules=list(targets), bias="none"
    )
    linear = {name.rpartition(".")[2] for name, m in language_model.named_modules() if isinstance(m, nn.Linear)}
    missing = [name for name in targets if name not in linear]
    if missing:
        raise UserError(
            f"LoRA: the language model has no layers {', '.join(missing)}; name those to adapt with --lora_targets, of "
            f"{', '.join(sorted(linear))}"
        )
    language_model.requires_grad_(False)
    peft.inject_adapter_in_model(config, language_model)
    for name, parameter in language_model.named_parameters():
        if ".lora_" in name:  # over 4 bits peft takes the type that those are computed in
            parameter.data = parameter.data.to(language_model.dtype)
    language_model.lora_config = config


def import_peft():
    """peft; UserError where it is not installed."""
    try:
        import peft
    except ImportError as error:
        raise UserError("LoRA needs peft: pip install 'unimllm[lora]'") from error
    return peft


def layers(model: nn.Module) -> dict[str, nn.Module]:
    """The adapted linear layers of a model by name."""
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def is_adapted(model: nn.Module) -> bool:
    """Whether a model was given LoRA."""
    return hasattr(model.language_model, "lora_config")


@torch.no_grad()
def merged_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The weights of a plain model that computes the same: W + scale * B A in the place of W, A and B.

    W in 4 bits is written as the numbers that it stands for.
    """
    adapted, quantized = layers(model), four_bit_layers(model)
    merged = {}
    for name, value in model.state_dict().items():
        owner, _, rest = name.partition(".weight")
        if ".lora_" in name or (owner in quantized and rest):  # the scales of 4 bits
            continue
        if owner in quantized:
            value = dequantize(quantized[owner])
        plain = name.replace(".base_layer.", ".")
        layer = adapted.get(plain.removesuffix(".weight"))
        if layer is not None and plain.endswith(".weight"):
            value = (value.float() + layer.get_delta_weight("default").float()).to(value.dtype).cpu()
        merged[plain] = value
    return merged


def save_lora(model: nn.Module, folder: Path, base: str) -> None:
    """Write what was trained: peft's own two files, and the other trained weights.

    Args:
        folder: is made.
        base: folder or hub id of the model that it belongs over.
    """
    peft = import_peft()
    folder.mkdir(parents=True, exist_ok=True)
    config = model.language_model.lora_config
    config.base_model_name_or_path = base
    config.save_pretrained(folder)
    state = peft.get_peft_model_state_dict(model.language_model, adapter_name="default", save_embedding_layers=False)
    save_file({name: value.contiguous() for name, value in state.items()}, folder / WEIGHTS)
    in_full = {name: p.data for name, p in model.named_parameters() if p.requires_grad and ".lora_" not in name}
    for name, table in tables(model).items():  # of these a few rows alone
        in_full[name] = table[model.config.picture_token_ids]
    save_file({name: value.contiguous() for name, value in in_full.items()}, folder / IN_FULL)


def tables(model: nn.Module) -> dict[str, torch.Tensor]:
    """Embeddings and an untied head by name."""
    wanted = {id(part.weight) for part in (model.get_input_embeddings(), model.get_output_embeddings())}
    return {name: p.data for name, p in model.named_parameters() if id(p) in wanted}


def base_of(folder: Path) -> str:
    """The model that a folder of `save_lora` belongs over; UserError where it tells none, or peft alone wrote it."""
    if (folder / CONFIG).is_file() and not (folder / IN_FULL).is_file():
        raise UserError(
            f"{folder} has no {IN_FULL}: it is an adapter of peft's own save_pretrained, not one that train/ saved; "
            f"lay it over its model in Python, PeftModel.from_pretrained(model, {str(folder)!r}).merge_and_unload(), "
            "and save the model that this returns, with its processor"
        )
    try:
        return json.loads((folder / CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / CONFIG} does not tell the model that the adapter belongs over") from error


@torch.no_grad()
def load_lora(model: nn.Module, folder: Path) -> None:
    """Lay a folder of `save_lora` over the model that it was trained on, and merge it.

    Raises:
        UserError: peft is not installed, a file is missing or damaged, or the model is another.
    """
    peft = import_peft()
    try:
        config = peft.LoraConfig.from_pretrained(str(folder))
        peft.inject_adapter_in_model(config, model.language_model)
        result = peft.set_peft_model_state_dict(model.language_model, load_file(folder / WEIGHTS))
        own, whole = dict(model.named_parameters()), tables(model)
        for name, value in load_file(folder / IN_FULL).items():
            if name in whole:
                whole[name][model.config.picture_token_ids] = value.to(whole[name])
            else:
                own[name].copy_(value)
    except Exception as error:  # a damaged file raises nearly anything
        raise UserError(f"cannot lay the adapter {folder} over its model: {first_line(error)}") from error
    if result.unexpected_keys:
        raise UserError(f"the adapter {folder} has {result.unexpected_keys[0]}, which its model lacks; is it another?")
    for name, layer in layers(model.language_model).items():
        parent, _, child = name.rpartition(".")
        layer.merge()
        setattr(model.language_model.get_submodule(parent), child, layer.get_base_layer())
    del model.language_model.peft_config  # a plain model again, for LoRA anew or for being trained whole
    model.language_model.requires_grad_(True)
