"""The frozen SigLIP: transformers' own vision models, behind one call on square pictures.

SiglipVisionModel          SigLIP and the SigLIP 2 of fixed resolution; with a convolutional stem for small pictures
SquareSiglip2VisionModel   SigLIP 2 NaFlex, which by itself takes patches of any shape of picture
"""

import copy
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import nn
from transformers import Siglip2VisionConfig, Siglip2VisionModel, SiglipVisionConfig, SiglipVisionModel
from transformers.utils import ModelOutput

from semhitok.convolution import conv_stem
from semhitok.misfit import misfit_of_shapes


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


class SquareSiglip2VisionModel(Siglip2VisionModel):
    """SigLIP 2 NaFlex on pictures of one size: (B, 3, S, S) -> what Siglip2VisionModel returns, N positions."""

    def forward(self, pixel_values: torch.Tensor, **kwargs) -> ModelOutput:
        patch = self.config.patch_size
        grid = [side // patch for side in pixel_values.shape[-2:]]
        patches = rearrange(pixel_values, "b c (h p) (w q) -> b (h w) (p q c)", p=patch, q=patch)
        # Shapes stay on the CPU: the model turns them into numbers. No mask: no position is padding.
        shapes = torch.tensor([grid]).expand(len(patches), 2)
        return super().forward(patches, pixel_attention_mask=None, spatial_shapes=shapes, **kwargs)


def renormalize(pixel_values: torch.Tensor, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """RGB (B, 3, S, S) in -1..1 as a SigLIP wants it that was trained with this mean and deviation of 0..1."""
    if all(value == 0.5 for value in (*mean, *std)):
        return pixel_values
    mean, std = (torch.tensor(x, device=pixel_values.device).view(3, 1, 1) for x in (mean, std))
    return ((pixel_values.float() + 1) / 2 - mean) / std


def load_strictly(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Copy weights of any precision into a model; ValueError names those that do not fit."""
    found, wanted = ({name: tensor.shape for name, tensor in d.items()} for d in (state, model.state_dict()))
    if told := misfit_of_shapes(found, wanted):
        raise ValueError(f"the checkpoint {told}")
    model.load_state_dict(state)


def build_vision_model(
    config: SiglipVisionConfig | Siglip2VisionConfig,
) -> SiglipVisionModel | SquareSiglip2VisionModel:
    """The vision model of a config, with untrained weights."""
    if isinstance(config, Siglip2VisionConfig):
        return SquareSiglip2VisionModel(config)
    return add_stem(SiglipVisionModel(config), config)


@torch.no_grad()
def scale_patches(vision_model: SiglipVisionModel, patch_size: int) -> SiglipVisionModel:
    """A SigLIP that reads smaller pictures in as many positions: as if each pixel were repeated before it looks.

    A patch embedding is linear, so adding up its weights over the pixels that would be equal gives the same features.

    Args:
        patch_size: pixels of the new patches; the old size is a multiple.

    Raises:
        ValueError: it is none, the patch embedding is more than one linear map, or the model is a NaFlex one.
    """
    if not isinstance(vision_model, SiglipVisionModel):
        raise ValueError("patches of a NaFlex SigLIP 2 cannot be scaled; take one of fixed resolution")
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
