"""Convolutional parts for small pictures: a stem for SigLIP, and an encoder and a decoder for the pixel branch.

From nothing, on 64 pixels, they reach 23 dB in 110 CPU-s where plain ViT blocks reach 18 (docs/experiments.md). Without
norms: a normalised map forgets how bright it was.

Shapes: B pictures, N positions, D channels, S pixels along a side.
"""

import torch
from einops import rearrange
from torch import nn

GROUPS = 8  # of channels, in the norms of SigLIP's stem


class ResidualConv(nn.Module):
    """x + conv(gelu(conv(gelu(x)))), (B, D, H, W) -> the same.

    The second convolution does not start at zero: that fell 1.7 dB behind by step 60 (docs/experiments.md).
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv2(nn.functional.gelu(self.conv1(nn.functional.gelu(x))))


def check_stages(name: str, stages: int, patch_size: int) -> None:
    """ValueError unless `stages` halvings or doublings make one patch of one pixel."""
    if 2**stages != patch_size:
        raise ValueError(
            f"{name} has {stages} entries, so it scales {2**stages} times; patch_size {patch_size} needs "
            f"{patch_size.bit_length() - 1} entries"
        )


def check_blocks(name: str, num_blocks: list[int], expected: int) -> None:
    """ValueError unless there are `expected` numbers of blocks."""
    if len(num_blocks) != expected:
        raise ValueError(f"{name} has {len(num_blocks)} entries; it needs {expected}, one for each resolution")


def conv_stem(channels: list[int], patch_size: int, dim: int) -> nn.Sequential:
    """SigLIP's stem: pixels to patch resolution, (B, 3, S, S) -> (B, dim, grid, grid).

    Each entry of `channels` halves the resolution; all but the first then look around once more at that resolution.

    Raises:
        ValueError: they do not shrink `patch_size` times, or cannot be normalised in groups.
    """
    check_stages("stem_channels", len(channels), patch_size)
    if any(width % GROUPS for width in channels):
        raise ValueError(f"stem_channels are {channels}; each must be a multiple of {GROUPS}")
    layers: list[nn.Module] = []
    previous = 3
    for stage, width in enumerate(channels):
        for stride in (2, 1) if stage else (2,):
            layers += [nn.Conv2d(previous, width, 3, stride, padding=1), nn.GroupNorm(GROUPS, width), nn.GELU()]
            previous = width
    return nn.Sequential(*layers, nn.Conv2d(previous, dim, 1))


class ConvEncoder(nn.Module):
    """Pictures to one vector per patch, (B, 3, S, S) -> (B, N, dim_out).

    Args:
        channels: after each halving of the resolution.
        num_blocks: residual blocks after each halving.
    """

    def __init__(self, patch_size: int, channels: list[int], num_blocks: list[int], dim_out: int):
        super().__init__()
        check_stages("conv_encoder_channels", len(channels), patch_size)
        check_blocks("conv_encoder_blocks", num_blocks, len(channels))
        layers: list[nn.Module] = []
        previous = 3
        for width, count in zip(channels, num_blocks, strict=True):
            layers += [nn.GELU()] if layers else []
            layers += [nn.Conv2d(previous, width, 4, stride=2, padding=1), *(ResidualConv(width) for _ in range(count))]
            previous = width
        self.layers = nn.Sequential(*layers, nn.GELU(), nn.Conv2d(previous, dim_out, 1))

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return rearrange(self.layers(pixel_values), "b d h w -> b (h w) d")


class ConvDecoder(nn.Module):
    """One vector per patch to pictures, (B, N, dim_in) -> (B, 3, S, S).

    Args:
        dim: channels at patch resolution.
        channels: after each doubling of the resolution.
        num_blocks: residual blocks at patch resolution, then after each doubling.
    """

    def __init__(
        self, dim_in: int, dim: int, grid_size: int, patch_size: int, channels: list[int], num_blocks: list[int]
    ):
        super().__init__()
        check_stages("conv_decoder_channels", len(channels), patch_size)
        check_blocks("conv_decoder_blocks", num_blocks, 1 + len(channels))
        self.grid_size = grid_size
        layers: list[nn.Module] = [nn.Conv2d(dim_in, dim, 1), *(ResidualConv(dim) for _ in range(num_blocks[0]))]
        for width, count in zip(channels, num_blocks[1:], strict=True):
            layers += [nn.Conv2d(dim, 4 * width, 1), nn.PixelShuffle(2), *(ResidualConv(width) for _ in range(count))]
            dim = width
        self.layers = nn.Sequential(*layers, nn.GELU(), nn.Conv2d(dim, 3, 3, padding=1))

    @property
    def last_weight(self) -> nn.Parameter:
        """Of the last layer, where losses on the pictures are compared."""
        return self.layers[-1].weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(rearrange(x, "b (h w) d -> b d h w", h=self.grid_size))
