"""What the flow head draws first, held to a frozen SigLIP's features of the true picture: REPA (arXiv 2410.06940).

Not in the paper of CHEERS, whose language model and SigLIP bring the meaning along. At the size of `scenes_64_cheers`
velocities alone teach Z' nothing of the prompt within an hour (docs/experiments.md): the gated detail explains them
nearly as well. Z' has SigLIP's grid and width, so it can be compared as it is.

Shapes: P pictures, L latent positions and patches, D channels of SigLIP, S pixels along a side.
"""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import SiglipVisionModel

from unimllm.cheers.vision_tokenizer import patch_features


class FeatureAlignment(nn.Module):
    """Squared error between an MLP of Z' and the features, these with mean 0 and variance 1 at each position.

    Args:
        vision_model: nobody else's; stays as it is now; reads pictures in -1..1.
    """

    def __init__(self, vision_model: SiglipVisionModel):
        super().__init__()
        width = vision_model.config.hidden_size
        self.vision_model = vision_model.requires_grad_(False).eval()
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))

    def forward(self, semantics: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        """Z' (P, L, D) and the true pictures (P, 3, S, S) -> scalar: a mean in each picture and summed over them."""
        if not len(pixel_values):
            return self.mlp(semantics).sum()  # 0: every rank of a run must touch the same weights
        with torch.no_grad():
            siglip = self.vision_model
            features = patch_features(siglip, siglip.embeddings(pixel_values.to(siglip.dtype))).float()
        errors = self.mlp(semantics).float() - F.layer_norm(features, features.shape[-1:])
        return errors.square().mean((1, 2)).sum()
