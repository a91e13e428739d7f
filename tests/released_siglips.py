"""Small random SigLIPs in every format that they are released in, each with the features its own library computes.

transformers writes its own; open_clip's are written by hand under open_clip's names (tests/test_open_clip.py writes
them with open_clip, where that is installed).
"""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import (
    Siglip2Config,
    Siglip2Model,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipConfig,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

WIDTH = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3}
TEXT = WIDTH | {"vocab_size": 30, "max_position_embeddings": 8, "projection_size": 24}
SQUARE = WIDTH | {"image_size": 16, "patch_size": 8}
NAFLEX = WIDTH | {"num_patches": 4, "patch_size": 8}
MEAN, STD = [0.4, 0.5, 0.3], [0.2, 0.3, 0.25]
PICTURES = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)


def spread(model: torch.nn.Module) -> torch.nn.Module:
    """Random biases and norms too: an exchanged or forgotten one must show."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2:
                parameter.add_(torch.randn_like(parameter) * 0.3)
            elif "position" in name or "pos_embed" in name:
                parameter.normal_()
    return model.eval()


@torch.no_grad()
def through_siglip(model: SiglipVisionModel, processor: SiglipImageProcessorPil) -> torch.Tensor:
    """Features as transformers computes them from the pictures."""
    pixel_values = processor(list(PICTURES), return_tensors="pt")["pixel_values"]
    return model(pixel_values.to(model.dtype)).last_hidden_state.float()


@torch.no_grad()
def through_siglip2(model: Siglip2VisionModel, processor: Siglip2ImageProcessorPil) -> torch.Tensor:
    return model(**processor(list(PICTURES), return_tensors="pt")).last_hidden_state


def siglip_whole(folder: Path) -> torch.Tensor:
    model = spread(SiglipModel(SiglipConfig(text_config=TEXT, vision_config=SQUARE)))
    processor = SiglipImageProcessorPil(size={"height": 16, "width": 16})
    model.save_pretrained(folder), processor.save_pretrained(folder)
    return through_siglip(model.vision_model, processor)


def siglip_alone(folder: Path) -> torch.Tensor:
    model = spread(SiglipVisionModel(SiglipVisionConfig(**SQUARE)))
    processor = SiglipImageProcessorPil(size={"height": 16, "width": 16}, image_mean=MEAN, image_std=STD, resample=2)
    model.save_pretrained(folder), processor.save_pretrained(folder)
    return through_siglip(model, processor)


def siglip_without_head(folder: Path) -> torch.Tensor:
    model = spread(SiglipVisionModel(SiglipVisionConfig(**SQUARE, vision_use_head=False)))
    processor = SiglipImageProcessorPil(size={"height": 16, "width": 16}, do_normalize=False)
    model.save_pretrained(folder), processor.save_pretrained(folder)
    return through_siglip(model, processor)


def siglip2_whole(folder: Path) -> torch.Tensor:
    model = spread(Siglip2Model(Siglip2Config(text_config=TEXT, vision_config=NAFLEX)))
    processor = Siglip2ImageProcessorPil(patch_size=8, max_num_patches=4)
    model.save_pretrained(folder), processor.save_pretrained(folder)
    return through_siglip2(model.vision_model, processor)


def siglip2_alone(folder: Path) -> torch.Tensor:
    """Its processor inside processor_config.json, where processors of transformers 5 put it."""
    model = spread(Siglip2VisionModel(Siglip2VisionConfig(**NAFLEX)))
    processor = Siglip2ImageProcessorPil(patch_size=8, max_num_patches=4, image_mean=MEAN, image_std=STD)
    model.save_pretrained(folder)
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": processor.to_dict()}, default=str))
    return through_siglip2(model, processor)


OPEN_CLIP = {
    "model_cfg": {
        "embed_dim": 24,
        "vision_cfg": {
            "image_size": 16, "timm_model_name": "vit_base_patch8_siglip_16", "timm_pool": "map", "timm_proj": "none",
        },
        "text_cfg": {"context_length": 8, "vocab_size": 30},
    },
    "preprocess_cfg": {"mean": MEAN, "std": STD, "interpolation": "bilinear", "resize_mode": "squash"},
}  # fmt: skip


def open_clip_state(depth: int = 2, dim: int = 24, mlp: int = 40) -> dict[str, torch.Tensor]:
    """Random tensors under the names that open_clip gives SigLIP's towers."""
    block = {
        "norm1": (dim,), "attn.qkv": (3 * dim, dim), "attn.proj": (dim, dim),
        "norm2": (dim,), "mlp.fc1": (mlp, dim), "mlp.fc2": (dim, mlp),
    }  # fmt: skip
    modules = {"patch_embed.proj": (dim, 3, 8, 8), "norm": (dim,)}
    modules |= {f"blocks.{i}.{name}": shape for i in range(depth) for name, shape in block.items()}
    modules |= {"attn_pool.q": (dim, dim), "attn_pool.kv": (2 * dim, dim), "attn_pool.proj": (dim, dim)}
    modules |= {"attn_pool.norm": (dim,), "attn_pool.mlp.fc1": (mlp, dim), "attn_pool.mlp.fc2": (dim, mlp)}
    tensors = {"pos_embed": torch.randn(1, 4, dim), "attn_pool.latent": torch.randn(1, 1, dim)}
    for name, shape in modules.items():
        tensors[f"{name}.weight"] = torch.randn(shape) * (0.3 if len(shape) > 1 else 1.0)
        tensors[f"{name}.bias"] = torch.randn(shape[0])
    tensors = {f"visual.trunk.{name}": tensor for name, tensor in tensors.items()}
    return tensors | {"text.token_embedding.weight": torch.randn(30, dim), "logit_scale": torch.tensor(1.0)}


def timm_features(state: dict[str, torch.Tensor], x: torch.Tensor, depth: int = 2, heads: int = 12) -> torch.Tensor:
    """timm's `forward_features` written out over timm's names: pre-norm blocks, fused qkv, exact GELU, eps 1e-6."""
    state = {key.removeprefix("visual.trunk."): value for key, value in state.items()}

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    x = F.conv2d(x, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=8)
    x = x.flatten(2).transpose(1, 2) + state["pos_embed"]
    for i in range(depth):
        qkv = linear(f"blocks.{i}.attn.qkv", norm(f"blocks.{i}.norm1", x))  # (B, N, 3 D)
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in qkv.chunk(3, -1))
        mixed = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1) @ v
        x = x + linear(f"blocks.{i}.attn.proj", mixed.transpose(1, 2).flatten(2))
        hidden = F.gelu(linear(f"blocks.{i}.mlp.fc1", norm(f"blocks.{i}.norm2", x)))
        x = x + linear(f"blocks.{i}.mlp.fc2", hidden)
    return norm("norm", x)


def open_clip_folder(folder: Path) -> torch.Tensor:
    state = open_clip_state()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps(OPEN_CLIP))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return timm_features(state, (torch.from_numpy(PICTURES).permute(0, 3, 1, 2) / 255 - mean) / std)


def open_clip_pickle(folder: Path) -> torch.Tensor:
    features = open_clip_folder(folder)
    weights = folder / "open_clip_model.safetensors"
    torch.save(load_file(weights), folder / "open_clip_pytorch_model.bin")
    weights.unlink()
    return features


FORMATS = {
    f.__name__: f
    for f in (
        siglip_whole, siglip_alone, siglip_without_head, siglip2_whole, siglip2_alone, open_clip_folder,
        open_clip_pickle,
    )
}  # fmt: skip
