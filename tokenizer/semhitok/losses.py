"""Training losses of both branches. Shapes: B pictures, N positions, D channels, S pixels along a side."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F
from transformers.utils import ModelOutput


def feature_distillation(predicted: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """SemHiTok's semantic loss towards SigLIP's features (B, N, D): mean of 1 - cosine, and mean L1."""
    cosine = 1 - F.cosine_similarity(predicted.float(), target.float(), dim=-1).mean()
    return cosine, F.l1_loss(predicted.float(), target.float())


def edge_loss(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean L1 between the pixel differences to the right and below, (B, 3, S, S) each: outlines weigh, not grounds."""
    loss = predicted.new_zeros(())
    for dim in (-1, -2):
        loss = loss + F.l1_loss(predicted.diff(dim=dim), target.diff(dim=dim))
    return loss


class PerceptualLoss(nn.Module):
    """Distance in the hidden states of a frozen SigLIP: mean of 1 - cosine over positions and chosen layers.

    Stands in for LPIPS where its weights are not at hand.

    Args:
        vision_outputs: `SemHiTokModel.vision_outputs` of a model whose SigLIP is frozen by the caller.
        layers: indices into its hidden states (0 is the embedding); the last is after the final block.
    """

    def __init__(self, vision_outputs: Callable[..., ModelOutput], layers: tuple[int, ...]):
        super().__init__()
        self.vision_outputs = vision_outputs
        self.layers = layers

    def features(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        states = self.vision_outputs(pixel_values, output_hidden_states=True).hidden_states
        return [states[i] for i in self.layers]

    def forward(self, predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            wanted = self.features(target)
        pairs = zip(self.features(predicted), wanted, strict=True)
        losses = [1 - F.cosine_similarity(p.float(), w.float(), dim=-1).mean() for p, w in pairs]
        return torch.stack(losses).mean()
