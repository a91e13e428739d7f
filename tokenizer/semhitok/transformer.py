"""The pre-norm ViT blocks that the encoders and decoders of both branches share (arXiv 2010.11929).

Shapes: B pictures, N positions, D channels, h heads.
"""

import torch
from einops import rearrange
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Bidirectional attention, (B, h, N, D/h) each.

    On a CPU the backward of `scaled_dot_product_attention` takes half of a training step at these lengths; two matrix
    products and a softmax do not. On a GPU it may return None for an empty batch (torch 2.11).
    """
    if not len(query) or (query.device.type == "cpu" and query.requires_grad):
        weights = (query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5).softmax(-1)  # (B, h, N, N)
        return weights @ value
    return nn.functional.scaled_dot_product_attention(query, key, value)


class Block(GradientCheckpointingLayer):
    """Self-attention and MLP (x4), each pre-normed with a residual: (B, N, D) -> (B, N, D).

    After `gradient_checkpointing_enable` of the model, training keeps its input alone and runs it twice.
    """

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


class ViTEncoder(nn.Module):
    """Pictures to one vector per patch by a plain ViT, (B, 3, S, S) -> (B, N, dim_out)."""

    def __init__(self, patch_size: int, dim: int, num_layers: int, num_heads: int, num_positions: int, dim_out: int):
        super().__init__()
        self.patches = nn.Conv2d(3, dim, patch_size, stride=patch_size)
        self.transformer = Transformer(dim, dim, num_layers, num_heads, num_positions, dim_out)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.transformer(rearrange(self.patches(pixel_values), "b d h w -> b (h w) d"))


class ViTDecoder(nn.Module):
    """One vector per patch to pictures by a plain ViT and a linear map each, (B, N, dim_in) -> (B, 3, S, S)."""

    def __init__(self, dim_in: int, dim: int, num_layers: int, num_heads: int, grid_size: int, patch_size: int):
        super().__init__()
        self.grid_size, self.patch_size = grid_size, patch_size
        self.transformer = Transformer(dim_in, dim, num_layers, num_heads, grid_size**2, 3 * patch_size**2)

    @property
    def last_weight(self) -> nn.Parameter:
        """Of the last layer, where losses on the pictures are compared."""
        return self.transformer.proj_out.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        grid, patch = self.grid_size, self.patch_size
        return rearrange(self.transformer(x), "b (h w) (p q c) -> b c (h p) (w q)", h=grid, w=grid, p=patch, q=patch)
