"""The pre-norm ViT blocks that the encoders and decoders of both branches share (arXiv 2010.11929).

Shapes: B pictures, N positions, D channels, h heads.
"""

import torch
from einops import rearrange
from torch import nn


def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Bidirectional attention, (B, h, N, D/h) each.

    On a CPU the backward of `scaled_dot_product_attention` takes half of a training step at these lengths; two matrix
    products and a softmax do not.
    """
    if query.device.type == "cpu" and query.requires_grad:
        weights = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1)  # (B, h, N, N)
        return weights @ value
    return nn.functional.scaled_dot_product_attention(query, key, value)


class Block(nn.Module):
    """Self-attention and MLP (x4), each pre-normed with a residual: (B, N, D) -> (B, N, D)."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"hidden size ({dim}) must be divisible by the number of heads ({num_heads})")
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value = rearrange(
            self.qkv(self.norm1(x)), "b n (three h d) -> three b h n d", three=3, h=self.num_heads
        )
        x = x + self.proj(rearrange(attention(query, key, value), "b h n d -> b n (h d)"))
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    """Linear in, learned positions, blocks, norm, linear out: (B, N, dim_in) -> (B, N, dim_out).

    Args:
        dim_out: None leaves out the last map, so the output has `dim` channels.
    """

    def __init__(self, dim_in: int, dim: int, num_layers: int, num_heads: int, num_positions: int, dim_out: int | None):
        super().__init__()
        self.proj_in = nn.Linear(dim_in, dim)
        self.position_embedding = nn.Parameter(torch.zeros(num_positions, dim))
        self.blocks = nn.ModuleList(Block(dim, num_heads) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim)
        self.proj_out = nn.Linear(dim, dim_out) if dim_out else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.proj_in(x) + self.position_embedding
        for block in self.blocks:
            x = block(x)
        return self.proj_out(self.norm(x))


def conv_stem(channels: list[int], patch_size: int, dim: int) -> nn.Sequential:
    """Convolutions from pixels to patch resolution, (B, 3, S, S) -> (B, dim, grid, grid).

    Each entry of `channels` halves the resolution; all but the first then look around once more at that resolution.

    Raises:
        ValueError: they do not shrink `patch_size` times.
    """
    if 2 ** len(channels) != patch_size:
        raise ValueError(
            f"a stem of {len(channels)} stages shrinks {2 ** len(channels)} times; patch_size {patch_size} needs "
            f"{patch_size.bit_length() - 1} of them, or none for linear patches"
        )
    layers: list[nn.Module] = []
    previous = 3
    for stage, width in enumerate(channels):
        for stride in (2, 1) if stage else (2,):
            layers += [nn.Conv2d(previous, width, 3, stride, padding=1), nn.GroupNorm(8, width), nn.GELU()]
            previous = width
    return nn.Sequential(*layers, nn.Conv2d(previous, dim, 1))


class PatchStem(nn.Module):
    """Pictures to patch features, (B, 3, S, S) -> (B, N, dim): convolutions, or one linear map of each patch."""

    def __init__(self, patch_size: int, channels: list[int], dim: int):
        super().__init__()
        linear = nn.Conv2d(3, dim, patch_size, stride=patch_size)
        self.layers = conv_stem(channels, patch_size, dim) if channels else linear

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return rearrange(self.layers(pixel_values), "b d h w -> b (h w) d")


class PixelHead(nn.Module):
    """Patch features to pixels, (B, N, D) -> (B, 3, H, W): doubling convolutions, or one linear map of each patch."""

    def __init__(self, dim: int, grid_size: int, patch_size: int, channels: list[int]):
        super().__init__()
        if channels and 2 ** len(channels) != patch_size:
            raise ValueError(
                f"decoder_conv_channels has {len(channels)} entries, so it enlarges {2 ** len(channels)} times; "
                f"patch_size {patch_size} needs {patch_size.bit_length() - 1} entries, or none for a linear head"
            )
        self.grid_size = grid_size
        layers: list[nn.Module] = []
        for width in channels:
            layers += [nn.Conv2d(dim, 4 * width, 1), nn.PixelShuffle(2), ResidualConv(width)]
            dim = width
        if channels:
            self.layers = nn.Sequential(*layers, nn.GELU(), nn.Conv2d(dim, 3, 3, padding=1))
        else:
            self.layers = nn.Sequential(nn.Conv2d(dim, 3 * patch_size**2, 1), nn.PixelShuffle(patch_size))

    @property
    def last(self) -> nn.Conv2d:
        """The map to pixels."""
        return [layer for layer in self.layers if isinstance(layer, nn.Conv2d)][-1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(rearrange(x, "b (h w) d -> b d h w", h=self.grid_size))


class ResidualConv(nn.Module):
    """x + conv(gelu(x)), the resolution kept."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(nn.functional.gelu(x))
