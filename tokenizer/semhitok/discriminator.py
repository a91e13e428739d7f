"""PatchGAN for the pixel decoder: a discriminator over patches, hinge losses, and the two of them in one backward pass.

Discriminator: pix2pix (arXiv 1611.07004), as VQGAN uses it (arXiv 2012.09841), with GroupNorm in the place of BatchNorm
so that a picture's score does not depend on the other pictures of its batch or on the number of processes.
Hinge losses: arXiv 1705.02894. Adaptive weight: VQGAN, eq. 7.

Shapes: B pictures, S pixels along a side, P patches along a side.
"""

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

MAX_ADAPTIVE_WEIGHT = 1e4
GROUPS = 8


class PatchDiscriminator(nn.Module):
    """One logit per overlapping patch, positive where it looks true: (B, 3, S, S) -> (B, 1, P, P).

    Args:
        channels: after the first halving, a multiple of 8; each further one doubles them, up to 8 times.
        num_halvings: of the resolution; 3 is pix2pix's, whose logits see 70 x 70 pixels each.
    """

    def __init__(self, channels: int = 64, num_halvings: int = 3):
        super().__init__()
        if channels % GROUPS:
            raise ValueError(f"the discriminator's channels ({channels}) must be a multiple of {GROUPS}")
        layers: list[nn.Module] = [nn.Conv2d(3, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        width = channels
        for halving in range(1, num_halvings + 1):
            before, width = width, channels * min(2**halving, 8)
            stride = 2 if halving < num_halvings else 1
            layers += [nn.Conv2d(before, width, 4, stride, padding=1, bias=False), nn.GroupNorm(GROUPS, width)]
            layers.append(nn.LeakyReLU(0.2))
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, 1, 4, padding=1))
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.02)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.layers(pixel_values)


def hinge_loss(real_logits: torch.Tensor, fake_logits: torch.Tensor) -> torch.Tensor:
    """Discriminator's loss: 0 once every true patch scores above 1 and every drawn one below -1."""
    return 0.5 * (F.relu(1 - real_logits).mean() + F.relu(1 + fake_logits).mean())


class AdversarialLoss(nn.Module):
    """Losses of the decoder and of its discriminator together, to be added up and differentiated once.

    The decoder's part goes through the discriminator's weights as constants, the discriminator's part through the
    pictures as constants: so one optimiser steps both at once, and neither sees the other's gradient. Where gradients
    are clipped, though, it is by the norm of both together. Until `active` is set nothing is computed and the losses
    are zero.

    Args:
        weight: of the decoder's part; times the adaptive factor where `adaptive` is set.
        adaptive: scale the decoder's part so that its gradient at the decoder's last layer is as long as that of the
            reconstruction losses.
        channels, num_halvings: see `PatchDiscriminator`.
    """

    def __init__(self, weight: float, adaptive: bool = False, channels: int = 64, num_halvings: int = 3):
        super().__init__()
        self.discriminator = PatchDiscriminator(channels, num_halvings)
        self.weight = weight
        self.adaptive = adaptive
        self.active = False

    def forward(
        self,
        predicted: torch.Tensor,
        target: torch.Tensor,
        reconstruction_loss: torch.Tensor,
        last_weight: nn.Parameter,
    ) -> dict[str, torch.Tensor]:
        """Both losses.

        Args:
            predicted: (B, 3, S, S), the decoder's pictures, with their gradient.
            target: (B, 3, S, S), the true ones.
            reconstruction_loss: scalar, what the adaptive weight is measured against.
            last_weight: of the decoder's last layer.

        Returns:
            Scalars: "adversarial" (of the decoder, weighted), "discriminator", and for the log "real_logit" and
            "fake_logit", the mean scores of true and drawn patches.
        """
        if not self.active:
            zero = predicted.new_zeros(())
            idle = sum(p.sum() for p in self.discriminator.parameters()) * 0  # every parameter needs a gradient
            return {"adversarial": zero, "discriminator": idle, "real_logit": zero, "fake_logit": zero}
        constants = {name: value.detach() for name, value in self.discriminator.state_dict().items()}
        adversarial = -functional_call(self.discriminator, constants, (predicted,)).float().mean()
        real = self.discriminator(target).float()
        fake = self.discriminator(predicted.detach()).float()
        weight = self.weight
        if self.adaptive:
            weight = weight * adaptive_weight(reconstruction_loss, adversarial, last_weight)
        return {
            "adversarial": weight * adversarial,
            "discriminator": hinge_loss(real, fake),
            "real_logit": real.detach().mean(),
            "fake_logit": fake.detach().mean(),
        }


def adaptive_weight(
    reconstruction_loss: torch.Tensor, adversarial_loss: torch.Tensor, last_weight: nn.Parameter
) -> torch.Tensor:
    """|d reconstruction / d last_weight| / |d adversarial / d last_weight|, at most 10,000 (VQGAN, eq. 7)."""
    reconstruction = torch.autograd.grad(reconstruction_loss, last_weight, retain_graph=True)[0].float().norm()
    adversarial = torch.autograd.grad(adversarial_loss, last_weight, retain_graph=True)[0].float().norm()
    return (reconstruction / (adversarial + 1e-4)).clamp(max=MAX_ADAPTIVE_WEIGHT)
