"""How near a reconstruction is to its picture, in decibels."""

import numpy as np

MAX = 255.0  # the largest value of a channel
MOST = 100.0  # dB of a picture, the most that any counts in a mean: of equal ones it would be infinite


def psnr(pictures: np.ndarray, reconstructions: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio, 10 log10(255^2 / mean squared error over all pixels and channels).

    Args:
        pictures, reconstructions: (n, H, W, 3) uint8.

    Returns:
        (n,) float64 in dB, at most MOST, which equal ones have. Report the mean over pictures.

    Raises:
        ValueError: they differ in shape, or are not uint8.
    """
    check_pictures(pictures, reconstructions)
    error = (pictures.astype(np.float64) - reconstructions.astype(np.float64)) ** 2
    least = MAX**2 / 10 ** (MOST / 10)  # of a picture's mean squared error
    return 10 * np.log10(MAX**2 / np.maximum(error.mean((1, 2, 3)), least))


def check_pictures(pictures: np.ndarray, reconstructions: np.ndarray) -> None:
    """ValueError unless both are (n, H, W, 3) uint8 of one shape."""
    if pictures.shape != reconstructions.shape or pictures.ndim != 4:
        raise ValueError(f"pictures {pictures.shape} and reconstructions {reconstructions.shape} differ in shape")
    if pictures.dtype != np.uint8 or reconstructions.dtype != np.uint8:
        raise ValueError(f"pictures must be uint8, got {pictures.dtype} and {reconstructions.dtype}")
