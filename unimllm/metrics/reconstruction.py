"""How near a reconstruction is to its picture: PSNR and SSIM of 8-bit RGB, one number per picture.

Both take the pictures as they would be saved (uint8, MAX = 255), so nothing hides in values that no file can hold.
Shapes: n pictures of H x W pixels.
"""

import numpy as np
import torch
from torch.nn import functional as F

from semhitok.psnr import MAX, check_pictures, psnr

__all__ = ["MAX", "psnr", "ssim"]

WINDOW, SIGMA = 11, 1.5  # of SSIM's Gaussian, in pixels
K1, K2 = 0.01, 0.03


def ssim(pictures: np.ndarray, reconstructions: np.ndarray, data_range: float = MAX) -> np.ndarray:
    """Structural similarity (Wang et al. 2004): each channel alone, mean over channels and over whole windows.

    Args:
        pictures, reconstructions: (n, H, W, 3) uint8, H and W at least 11 pixels.
        data_range: 255 for 8-bit pictures; a larger one (some published code doubles it) inflates the value.

    Returns:
        (n,) float64 in -1..1.
    """
    check_pictures(pictures, reconstructions)
    if min(pictures.shape[1:3]) < WINDOW:
        raise ValueError(f"SSIM looks through {WINDOW} x {WINDOW} windows; pictures of {pictures.shape[1:3]} hold none")
    x, y = (torch.from_numpy(p).permute(0, 3, 1, 2).double() for p in (pictures, reconstructions))  # (n, 3, H, W)
    mean_x, mean_y = _blur(x), _blur(y)
    variance_x, variance_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return (luminance * structure).mean((1, 2, 3)).numpy()


def _blur(x: torch.Tensor) -> torch.Tensor:
    """Gaussian means of whole windows: (n, 3, H, W) -> (n, 3, H - 10, W - 10)."""
    offsets = torch.arange(WINDOW, dtype=x.dtype) - WINDOW // 2
    weights = torch.exp(-((offsets / SIGMA) ** 2) / 2)
    weights = (weights / weights.sum()).expand(x.shape[1], 1, -1)
    rows = F.conv2d(x, weights[:, :, :, None], groups=x.shape[1])
    return F.conv2d(rows, weights[:, :, None, :], groups=x.shape[1])
