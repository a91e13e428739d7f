"""How near a reconstruction is to its picture: PSNR and SSIM of 8-bit RGB, one number per picture.

Both take the pictures as they would be saved (uint8, MAX = 255), so nothing hides in values that no file can hold.
Shapes: n pictures of H x W pixels.
"""

import numpy as np
import torch

from semhitok.psnr import MAX, MOST, check_pictures, psnr

__all__ = ["MAX", "MOST", "psnr", "ssim", "ssim_uniform"]

WINDOW, SIGMA = 11, 1.5  # of SSIM's Gaussian, in pixels
UNIFORM_WINDOW = 7  # of scikit-image's default, in pixels
K1, K2 = 0.01, 0.03


def ssim(pictures: np.ndarray, reconstructions: np.ndarray, data_range: float = MAX) -> np.ndarray:
    """Structural similarity (Wang et al. 2004): each channel alone, mean over channels and over whole windows.

    Args:
        pictures, reconstructions: (n, H, W, 3) uint8, H and W at least 11 pixels.
        data_range: 255 for 8-bit pictures; a larger one (some published code doubles it) inflates the value.

    Returns:
        (n,) float64 in -1..1.
    """
    offsets = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-((offsets / SIGMA) ** 2) / 2)
    return _ssim(pictures, reconstructions, data_range, weights / weights.sum(), 1.0)


def ssim_uniform(pictures: np.ndarray, reconstructions: np.ndarray, data_range: float = MAX) -> np.ndarray:
    """What scikit-image's structural_similarity(..., data_range=data_range, channel_axis=-1) gives; see `ssim`.

    Its window is uniform, 7 x 7, and its variances are those of samples, divided by 48.
    """
    size = UNIFORM_WINDOW**2
    weights = np.full(UNIFORM_WINDOW, 1 / UNIFORM_WINDOW)
    return _ssim(pictures, reconstructions, data_range, weights, size / (size - 1))


def _ssim(
    pictures: np.ndarray, reconstructions: np.ndarray, data_range: float, weights: np.ndarray, of_samples: float
) -> np.ndarray:
    """SSIM through windows that are `weights` down times `weights` across.

    Args:
        weights: (k,) float64, symmetric, of sum 1.
        of_samples: what turns the variance within a window into the one that is meant.
    """
    check_pictures(pictures, reconstructions)
    if min(pictures.shape[1:3]) < len(weights):
        window = f"{len(weights)} x {len(weights)}"
        raise ValueError(f"SSIM looks through {window} windows; pictures of {pictures.shape[1:3]} hold none")
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    values = []
    for pair in zip(pictures, reconstructions, strict=True):  # one by one: what is summed stays in the cache
        x, y = (torch.from_numpy(picture).permute(2, 0, 1).double() for picture in pair)  # (3, H, W)
        moments = torch.stack([x, y, x * x + y * y, x * y])  # (4, 3, H, W): SSIM needs the variances' sum alone
        mean_x, mean_y, squares, product = _means(_means(moments, weights, 2), weights, 3)
        means = mean_x * mean_x + mean_y * mean_y
        luminance = (2 * mean_x * mean_y + c1) / (means + c1)
        variances, covariance = of_samples * (squares - means), of_samples * (product - mean_x * mean_y)
        values.append((luminance * (2 * covariance + c2) / (variances + c2)).mean().item())
    return np.array(values)


def _means(x: torch.Tensor, weights: np.ndarray, dim: int) -> torch.Tensor:
    """Weighted means of whole windows along one dimension, which gets k - 1 shorter.

    Shifted sums: torch convolves float64 on a CPU ten times as slowly.
    """
    last = len(weights) - 1
    length = x.shape[dim] - last
    means = x.narrow(dim, last // 2, length) * weights[last // 2]
    for i in range(last // 2):
        means.add_(x.narrow(dim, i, length) + x.narrow(dim, last - i, length), alpha=float(weights[i]))
    return means
