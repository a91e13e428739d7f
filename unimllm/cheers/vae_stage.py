"""Training the autoencoder of CHEERS from nothing: a sample of its posterior, drawn again, against the true picture.

The released one is FLUX.2's; a small one of the same shape takes minutes on a CPU (training/presets/vae.py). The
statistics of its latents are gathered on the way, from posterior means as `encode` uses them, and no loss sees them:
so every checkpoint can be used at once, and a run that was broken off goes on with the same ones.

Shapes: B pictures, S pixels along a side.
"""

import torch
from torch import nn

from semhitok.losses import ReconstructionLosses
from unimllm.cheers.autoencoder import CheersVae, patch

LOG_VARIANCES = (-30.0, 20.0)  # what an untrained encoder says is clamped to, before it is exponentiated


def divergence(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """KL divergence from the standard normal, in nats a latent value: the mean over all of them."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()


class VaeStage(nn.Module):
    """Reconstruction losses on samples of the posterior + kl_weight * KL; in evaluation mode, of its mean.

    Args:
        model: to be trained whole.
        losses: between the decoder's pictures and the true ones.
        kl_weight: see `divergence`.
    """

    def __init__(self, model: CheersVae, losses: ReconstructionLosses, kl_weight: float):
        super().__init__()
        self.model = model
        self.losses = losses
        self.kl_weight = kl_weight

    def forward(self, pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
        model = self.model
        mean, log_variance = model.moments(pixel_values).float().chunk(2, 1)
        log_variance = log_variance.clamp(*LOG_VARIANCES)
        if self.training:
            model.bn.update(patch(mean.detach(), model.config.latent_patch_size))
        deviation = (log_variance / 2).exp()
        predicted = model.draw(mean + deviation * torch.randn_like(mean) if self.training else mean)
        losses = self.losses(predicted, pixel_values, model.decoder.conv_out.weight)
        kl = divergence(mean, log_variance)
        losses["loss"] = losses["loss"] + self.kl_weight * kl
        return losses | {"kl": kl, "deviation": deviation.detach().mean()}
