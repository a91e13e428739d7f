"""LPIPS 0.1 (arXiv 1801.03924) by the package `lpips`, with a backbone from a file and without any download.

The package holds all of it but the backbone's weights. It imports torchvision, so it is imported only when asked for.
"""

import hashlib
from pathlib import Path

import torch
from torch import nn

from semhitok.errors import UserError

BACKBONES = {"397923af": "vgg", "7be5be79": "alex"}
"""sha256 prefix -> LPIPS's name of torchvision's vgg16 and alexnet, as their file names say."""


class LPIPS(nn.Module):
    """Mean LPIPS of pictures, for training: (B, 3, S, S) RGB in -1..1 twice -> scalar.

    Args:
        weights: see `load_lpips`.
    """

    def __init__(self, weights: Path):
        super().__init__()
        self.network, self.backbone = load_lpips(weights)

    def train(self, mode: bool = True) -> "LPIPS":
        return super().train(False)  # frozen; lpips has dropout before its heads

    def forward(self, predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return self.network(predicted, target).mean()


def load_lpips(weights: Path) -> tuple[nn.Module, str]:
    """The network, frozen: two (B, 3, H, W) in -1..1 -> (B, 1, 1, 1); and its backbone, "vgg" or "alex".

    Args:
        weights: torchvision's vgg16-397923af.pth or alexnet-owt-7be5be79.pth.

    Raises:
        UserError: other weights, or the package or its torchvision does not work.
    """
    backbone = BACKBONES.get(checksum(weights))
    if backbone is None:
        raise UserError(
            f"{weights} is no backbone of LPIPS: its sha256 begins with {checksum(weights)}; get torchvision's "
            "vgg16-397923af.pth or alexnet-owt-7be5be79.pth (download.pytorch.org/models)"
        )
    try:
        import lpips
    except Exception as error:  # a torchvision that does not fit its torch raises RuntimeError, not ImportError
        remedy = f"pip install torch=={torch.__version__.partition('+')[0]} torchvision lpips"
        raise UserError(f"LPIPS needs lpips and a torchvision that works ({error}): {remedy}") from error
    network = lpips.LPIPS(net=backbone, pnet_rand=True, verbose=False)  # random: it would download the backbone
    state = torch.load(weights, map_location="cpu", weights_only=True)
    # The layers keep torchvision's numbers, in slices: features.5.weight is slice2.5.weight.
    network.net.load_state_dict({name: state["features." + name.split(".", 1)[1]] for name in network.net.state_dict()})
    return network.requires_grad_(False).eval(), backbone


def checksum(path: Path) -> str:
    """The first 8 hexadecimal digits of a file's sha256; UserError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:8]
    except OSError as error:
        raise UserError(f"cannot read the weights {path}: {error.strerror or error}") from error
