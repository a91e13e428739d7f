"""The frozen SigLIP: transformers' own vision model, or the same with a convolutional stem for small pictures."""

import copy

import torch
from torch import nn
from transformers import SiglipVisionConfig, SiglipVisionModel

from semhitok.convolution import conv_stem


class ConvPatchEmbedding(nn.Module):
    """Convolutions in the place of SigLIP's one linear map per patch: (B, 3, S, S) -> (B, D, grid, grid).

    From nothing, on pictures of 64 pixels, it learns several times faster than linear patches.
    """

    def __init__(self, channels: list[int], patch_size: int, dim: int):
        super().__init__()
        self.layers = conv_stem(channels, patch_size, dim)

    @property
    def weight(self) -> torch.Tensor:
        """SigLIP's embeddings ask their patch embedding for its dtype."""
        return self.layers[0].weight

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.layers(pixel_values)


def add_stem(vision_model: SiglipVisionModel, config: SiglipVisionConfig) -> SiglipVisionModel:
    """Exchange the patch embedding if `config.stem_channels` asks for it (see `convolution.conv_stem`)."""
    channels = getattr(config, "stem_channels", None)
    if channels:
        embedding = ConvPatchEmbedding(channels, config.patch_size, config.hidden_size)
        getattr(vision_model, "vision_model", vision_model).embeddings.patch_embedding = embedding
    return vision_model


def build_vision_model(config: SiglipVisionConfig) -> SiglipVisionModel:
    """A SiglipVisionModel with untrained weights."""
    return add_stem(SiglipVisionModel(config), config)


@torch.no_grad()
def scale_patches(vision_model: SiglipVisionModel, patch_size: int) -> SiglipVisionModel:
    """A SigLIP that reads smaller pictures in as many positions: as if each pixel were repeated before it looks.

    A patch embedding is linear, so adding up its weights over the pixels that would be equal gives the same features.

    Args:
        patch_size: pixels of the new patches; the old size is a multiple.

    Raises:
        ValueError: it is none, or the patch embedding is more than one linear map.
    """
    config = copy.deepcopy(vision_model.config)
    if patch_size == config.patch_size:
        return vision_model
    if config.patch_size % patch_size or getattr(config, "stem_channels", None):
        raise ValueError(f"this SigLIP reads patches of {config.patch_size} pixels; they cannot be made {patch_size}")
    factor = config.patch_size // patch_size
    config.patch_size, config.image_size = patch_size, config.image_size // factor
    state = vision_model.state_dict()
    (name,) = (name for name in state if name.endswith("patch_embedding.weight"))
    state[name] = nn.functional.avg_pool2d(state[name], factor) * factor**2  # (D, 3, patch_size, patch_size)
    scaled = SiglipVisionModel(config)
    scaled.load_state_dict(state)
    return scaled
