"""open_clip's SigLIP as transformers' SiglipVisionModel: one table of names, strict both ways.

open_clip keeps SigLIP's vision tower as a timm ViT with attention pooling under `visual.trunk.`. A checkpoint is
open_clip_config.json beside open_clip_model.safetensors or open_clip_pytorch_model.bin; neither open_clip nor timm is
needed to read it. Checked against open_clip_torch 3.3.0 and timm 1.0.31 (tests/test_open_clip.py).
"""

import math
import re

import torch
from safetensors import safe_open
from transformers import SiglipVisionConfig, SiglipVisionModel
from transformers.utils import cached_file

from semhitok.errors import first_line
from semhitok.vision import load_strictly

CONFIG_FILE = "open_clip_config.json"
WEIGHT_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
VISUAL, TRUNK = "visual.", "visual.trunk."
TIMM_NAME = re.compile(r"vit_(base|large|so400m|giantopt)_patch(\d+)_siglip_(\d+)")
NUM_HEADS = {"base": 12, "large": 16, "so400m": 16, "giantopt": 16}
TANH_GELU = {
    "vit_base_patch32_siglip_256", "vit_large_patch16_siglip_512", "vit_so400m_patch16_siglip_256",
    "vit_so400m_patch16_siglip_384", "vit_so400m_patch16_siglip_512", "vit_giantopt_patch16_siglip_256",
    "vit_giantopt_patch16_siglip_384",
}  # fmt: skip
"""timm gives these the tanh approximation of GELU and the other sizes the exact one; the weights do not tell."""
LAYER_NORM_EPS = 1e-6

# timm -> transformers. "{}" is the number of a block; a tensor with several names on the right is split among them.
NAMES = {
    "patch_embed.proj": ["embeddings.patch_embedding"],
    "pos_embed": ["embeddings.position_embedding.weight"],
    "blocks.{}.norm1": ["encoder.layers.{}.layer_norm1"],
    "blocks.{}.attn.qkv": [
        "encoder.layers.{}.self_attn.q_proj", "encoder.layers.{}.self_attn.k_proj", "encoder.layers.{}.self_attn.v_proj"
    ],
    "blocks.{}.attn.proj": ["encoder.layers.{}.self_attn.out_proj"],
    "blocks.{}.norm2": ["encoder.layers.{}.layer_norm2"],
    "blocks.{}.mlp.fc1": ["encoder.layers.{}.mlp.fc1"],
    "blocks.{}.mlp.fc2": ["encoder.layers.{}.mlp.fc2"],
    "norm": ["post_layernorm"],
    "attn_pool.latent": ["head.probe"],
    "attn_pool.q": ["head.q"],
    "attn_pool.kv": ["head.k", "head.v"],
    "attn_pool.proj": ["head.attention.out_proj"],
    "attn_pool.norm": ["head.layernorm"],
    "attn_pool.mlp.fc1": ["head.mlp.fc1"],
    "attn_pool.mlp.fc2": ["head.mlp.fc2"],
}  # fmt: skip


def load_open_clip(name: str, settings: dict) -> SiglipVisionModel:
    """The vision tower of an open_clip checkpoint, float32.

    Args:
        name: folder or hub id.
        settings: its open_clip_config.json.

    Raises:
        ValueError, OSError: no SigLIP, or damaged. One line.
    """
    vision = (settings.get("model_cfg") or {}).get("vision_cfg") or {}
    timm_name = vision.get("timm_model_name")
    if not isinstance(timm_name, str) or not TIMM_NAME.fullmatch(timm_name):
        raise ValueError(
            f"{name} holds an open_clip model whose vision tower is {timm_name or 'no timm model'}; only SigLIP's "
            f"(vit_..._siglip_...) have the place of a teacher"
        )
    state = read_visual(name)
    try:
        config = config_from_weights(timm_name, state)
        model = SiglipVisionModel(config)
        load_strictly(model, convert(state))
    except ValueError as error:
        raise ValueError(f"{name} does not hold the {timm_name} that {CONFIG_FILE} names: {error}") from error
    return model


def read_visual(name: str) -> dict[str, torch.Tensor]:
    """The tensors of the vision tower of an open_clip checkpoint, under open_clip's names."""
    for filename in WEIGHT_FILES:
        path = cached_file(name, filename, _raise_exceptions_for_missing_entries=False)
        if path is None:
            continue
        try:
            if filename.endswith(".bin"):
                state = torch.load(path, map_location="cpu", weights_only=True)
                return {key: value for key, value in state.items() if key.startswith(VISUAL)}
            with safe_open(path, "pt") as file:  # leaves the text tower on the disk
                return {key: file.get_tensor(key) for key in file.keys() if key.startswith(VISUAL)}  # noqa: SIM118
        except Exception as error:  # a damaged file raises nearly anything
            raise ValueError(f"cannot read {filename} of {name}: {first_line(error)}") from error
    raise OSError(f"{name} holds {CONFIG_FILE} but neither {' nor '.join(WEIGHT_FILES)}")


def config_from_weights(timm_name: str, state: dict[str, torch.Tensor]) -> SiglipVisionConfig:
    """Sizes from the shapes of the tensors; heads and activation, which have none, from the name of the model."""
    names = ("patch_embed.proj.weight", "pos_embed", "blocks.0.mlp.fc1.weight")
    missing = [TRUNK + name for name in names if TRUNK + name not in state]
    if missing:
        raise ValueError(f"it lacks {missing[0]}")
    patches, positions, mlp = (state[TRUNK + name].shape for name in names)
    kind, _, image_size = TIMM_NAME.fullmatch(timm_name).groups()
    grid = math.isqrt(positions[1])
    if int(image_size) // patches[-1] != grid or grid**2 != positions[1]:
        raise ValueError(f"it has {positions[1]} positions of {patches[-1]} pixels")
    blocks = {int(key.split(".")[3]) for key in state if key.startswith(TRUNK + "blocks.")}
    return SiglipVisionConfig(
        hidden_size=patches[0], intermediate_size=mlp[0], num_hidden_layers=len(blocks),
        num_attention_heads=NUM_HEADS[kind], image_size=int(image_size), patch_size=patches[-1],
        hidden_act="gelu_pytorch_tanh" if timm_name in TANH_GELU else "gelu", layer_norm_eps=LAYER_NORM_EPS,
    )  # fmt: skip


def convert(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """open_clip's tensors under transformers' names, float32; ValueError for one that has no place there."""
    converted = {}
    for key, tensor in state.items():
        generic = re.sub(r"^blocks\.\d+\.", "blocks.{}.", key.removeprefix(TRUNK))
        number = key.split(".")[3] if generic.startswith("blocks") else ""
        stem, _, kind = generic.rpartition(".")
        targets = NAMES.get(generic) or [f"{target}.{kind}" for target in NAMES.get(stem, ())]
        if not key.startswith(TRUNK) or not targets:
            raise ValueError(f"it has {key}, which a SigLIP has not")
        for target, part in zip(targets, tensor.float().chunk(len(targets)), strict=True):
            converted[target.format(number)] = part.squeeze(0) if generic == "pos_embed" else part
    for kind in ("weight", "bias"):  # torch's MultiheadAttention keeps the three in one
        parts = [converted.pop(f"head.{name}.{kind}") for name in "qkv" if f"head.{name}.{kind}" in converted]
        if parts:
            converted[f"head.attention.in_proj_{kind}"] = torch.cat(parts)
    return converted
