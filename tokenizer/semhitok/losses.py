"""Training losses of both branches. Shapes: B pictures, N positions, D channels, S pixels along a side."""

from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional as F
from transformers.utils import ModelOutput

from semhitok.discriminator import AdversarialLoss
from semhitok.psnr import MOST

COARSE_SIDES = (2, 4, 8)  # pixels over which `coarse_loss` averages


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


def coarse_loss(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """L1 between averages over 2 x 2, 4 x 4 and 8 x 8 pixels, meant over the three, (B, 3, S, S) each.

    An error that keeps its sign over an area, a wrong colour, weighs here as much as in a single pixel; one that
    changes its sign, a shifted outline or a texture, averages out. S must be a multiple of 8.
    """
    losses = [F.l1_loss(F.avg_pool2d(predicted, side), F.avg_pool2d(target, side)) for side in COARSE_SIDES]
    return torch.stack(losses).mean()


def mean_psnr(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean PSNR in dB over (B, 3, S, S) pictures in -1..1, not clamped; at most MOST each, as `psnr.psnr`."""
    errors = (predicted - target).square().flatten(1).mean(1) / 4  # (B,) on 0..1: the pixels' range is 2
    return -10 * errors.clamp(min=10 ** (-MOST / 10)).log10().mean()


class PerceptualLoss(nn.Module):
    """Distance in the hidden states of a frozen SigLIP: mean of 1 - cosine over positions and two layers.

    Stands in for LPIPS where its weights are not at hand.

    Args:
        vision_outputs: `SemHiTokModel.vision_outputs` of a model whose SigLIP is frozen by the caller, or a
            `teacher.FrozenTeacher`.
        num_layers: of that SigLIP; what is compared are its middle and its last hidden states.
    """

    def __init__(self, vision_outputs: Callable[..., ModelOutput], num_layers: int):
        super().__init__()
        self.vision_outputs = vision_outputs
        self.layers = sorted({num_layers // 2, num_layers})  # 0 is the embedding

    def features(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        states = self.vision_outputs(pixel_values, output_hidden_states=True).hidden_states
        return [states[i] for i in self.layers]

    def forward(self, predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            wanted = self.features(target)
        pairs = zip(self.features(predicted), wanted, strict=True)
        losses = [1 - F.cosine_similarity(p.float(), w.float(), dim=-1).mean() for p, w in pairs]
        return torch.stack(losses).mean()


def teacher_distance(model: nn.Module) -> PerceptualLoss:
    """`PerceptualLoss` in a SemHiTokModel's own SigLIP."""
    return PerceptualLoss(model.vision_outputs, model.config.vision_config.num_hidden_layers)


class ReconstructionLosses(nn.Module):
    """Between drawn and true pictures: L1, L2, edges, coarse colours, and where asked for a perceptual distance and
    PatchGAN.

    Args:
        l1, l2, edges, coarse, perceptual: weights; 0 leaves a part out (L2 is always shown as PSNR).
        distance: what `perceptual` weighs, `distance(predicted, target) -> scalar`.
        adversarial: None leaves PatchGAN out.
    """

    def __init__(
        self, l2: float = 1.0, edges: float = 1.0, perceptual: float = 0.0, distance: nn.Module | None = None,
        adversarial: AdversarialLoss | None = None, coarse: float = 0.0, l1: float = 1.0,
    ):  # fmt: skip
        super().__init__()
        self.weights = {"l1": l1, "l2": l2, "edges": edges, "coarse": coarse, "perceptual": perceptual}
        self.distance = distance if perceptual else None
        self.adversarial = adversarial

    def forward(
        self, predicted: torch.Tensor, target: torch.Tensor, last_weight: nn.Parameter
    ) -> dict[str, torch.Tensor]:
        """All parts, their weighted sum as "loss", and "psnr" in dB, the mean over pictures, for (B, 3, S, S) in -1..1.

        PatchGAN has a part in training alone, not where gradients are switched off.

        Args:
            last_weight: of the decoder's last layer, for PatchGAN's adaptive weight.
        """
        predicted = predicted.float()
        losses = {
            "l1": F.l1_loss(predicted, target),
            "l2": F.mse_loss(predicted, target),
            "edges": edge_loss(predicted, target),
        }
        if self.weights["coarse"]:
            losses["coarse"] = coarse_loss(predicted, target)
        if self.distance is not None:
            losses["perceptual"] = self.distance(predicted, target)
        loss = sum(self.weights[name] * value for name, value in losses.items())
        losses["psnr"] = mean_psnr(predicted.detach(), target)
        if self.adversarial is not None and torch.is_grad_enabled():
            parts = self.adversarial(predicted, target, loss, last_weight)
            loss = loss + parts["adversarial"] + parts["discriminator"]
            losses |= parts
        return losses | {"loss": loss}
