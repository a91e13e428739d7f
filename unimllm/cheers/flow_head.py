"""The cascaded flow-matching head of CHEERS (arXiv 2603.12793, section 2.3): semantics first, then gated detail.

hidden states -> 7 DiT blocks -> pixel shuffle, Z' -> LayerNorm(Z' + g(Z') * S(D(z_t))) -> 3 DiT blocks -> velocity

The paper leaves out that LayerNorm, and has the gate's last word (a sigmoid or not) open; the released weights need
the norm and no sigmoid.

Shapes: B pictures, N positions of the language model, L = N * compression^2 latent positions, h = sqrt(L),
H channels of the language model, D of SigLIP, C of the latent.
"""

import math

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

from semhitok.transformer import attention
from unimllm.cheers.configuration_cheers import CheersConfig
from unimllm.cheers.rotary import BASE, rotary

NORM_EPS = 1e-6


def sinusoids(t: torch.Tensor, channels: int) -> torch.Tensor:
    """Times (B,) in 0..1, as they are, -> (B, channels) float32: cosines, then sines."""
    half = channels // 2
    frequencies = torch.exp(-math.log(BASE) * torch.arange(half, device=t.device).float() / half)
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], -1)


def modulate(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return x * (1 + scale) + shift


class ZeroLinear(nn.Linear):
    """A linear map that begins as zero."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


class TimeEmbedding(nn.Module):
    """t (B,) -> (B, 1, H) for the first stage and (B, 1, D) for the second, by an MLP each.

    `dtype` is that of the hidden states: a quantizer packs the weights into integers.
    """

    def __init__(self, channels: int, first_dim: int, second_dim: int):
        super().__init__()
        self.channels = channels
        self.mlp_1 = nn.Sequential(nn.Linear(channels, first_dim), nn.SiLU(), nn.Linear(first_dim, first_dim))
        self.mlp_2 = nn.Sequential(nn.Linear(channels, second_dim), nn.SiLU(), nn.Linear(second_dim, second_dim))

    def forward(self, t: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        waves = sinusoids(t, self.channels).to(dtype).unsqueeze(1)
        return self.mlp_1(waves), self.mlp_2(waves)


class Attention(nn.Module):
    """Bidirectional attention with grouped keys and rotary positions, no biases: (B, N, dim) -> the same."""

    def __init__(self, dim: int, num_heads: int, num_groups: int):
        super().__init__()
        self.head_dim = dim // num_heads
        self.q_proj = nn.Linear(dim, dim, bias=False)
        self.k_proj = nn.Linear(dim, num_groups * self.head_dim, bias=False)
        self.v_proj = nn.Linear(dim, num_groups * self.head_dim, bias=False)
        self.o_proj = nn.Linear(dim, dim, bias=False)

    def forward(self, x: torch.Tensor, positions: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        q, k, v = (
            rearrange(proj(x), "b n (h d) -> b h n d", d=self.head_dim)
            for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = apply_rotary_pos_emb(q, k, *positions)
        k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
        mixed = attention(q, k, v)
        return self.o_proj(rearrange(mixed, "b h n d -> b n (h d)"))


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)), four times as wide inside, no biases."""

    def __init__(self, dim: int):
        super().__init__()
        self.gate_proj = nn.Linear(dim, 4 * dim, bias=False)
        self.up_proj = nn.Linear(dim, 4 * dim, bias=False)
        self.down_proj = nn.Linear(4 * dim, dim, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DiTBlock(GradientCheckpointingLayer):
    """Attention and MLP, each normed, modulated by t and gated by t (adaLN-zero, arXiv 2212.09748).

    The order of the six modulations is DiT's: shift, scale and gate of the attention, then those of the MLP.
    """

    def __init__(self, dim: int, num_heads: int, num_groups: int):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(dim, eps=NORM_EPS)
        self.attn = Attention(dim, num_heads, num_groups)
        self.post_attention_layernorm = nn.RMSNorm(dim, eps=NORM_EPS)
        self.mlp = SwiGLU(dim)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), ZeroLinear(dim, 6 * dim))

    def forward(
        self, x: torch.Tensor, time: torch.Tensor, positions: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = self.adaLN_modulation(time).chunk(6, -1)
        x = x + gate * self.attn(modulate(self.input_layernorm(x), shift, scale), positions)
        return x + mlp_gate * self.mlp(modulate(self.post_attention_layernorm(x), mlp_shift, mlp_scale))


class FinalLayer(nn.Module):
    """Norm, modulation by t (shift, then scale), linear map: (B, N, dim) -> (B, N, dim_out)."""

    def __init__(self, dim: int, dim_out: int):
        super().__init__()
        self.norm_final = nn.RMSNorm(dim, eps=NORM_EPS)
        self.linear = nn.Linear(dim, dim_out)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 2 * dim))

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        return self.linear(modulate(self.norm_final(x), *self.adaLN_modulation(time).chunk(2, -1)))


class Stage(nn.Module):
    """DiT blocks and the final layer: (B, N, dim) -> (B, N, dim_out)."""

    def __init__(
        self, dim: int, dim_out: int, num_layers: int, num_heads: int, num_groups: int, repeat_positions: bool = False,
        is_rounded: bool = False,
    ):  # fmt: skip
        super().__init__()
        self.head_dim, self.repeat_positions, self.is_rounded = dim // num_heads, repeat_positions, is_rounded
        self.diffusion_head_a = nn.ModuleList(DiTBlock(dim, num_heads, num_groups) for _ in range(num_layers))
        self.diffusion_head_b = FinalLayer(dim, dim_out)

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        positions = rotary(x.shape[1], self.head_dim, self.repeat_positions, x, self.is_rounded)
        for block in self.diffusion_head_a:
            x = block(x, time, positions)
        return self.diffusion_head_b(x, time)


class DetailGate(nn.Module):
    """LayerNorm(Z' + g(Z') * S): one number per position decides how much high frequency enters, at first none."""

    def __init__(self, dim: int):
        super().__init__()
        self.gate = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), ZeroLinear(dim, 1))
        self.layer_norm = nn.LayerNorm(dim)

    def forward(self, semantics: torch.Tensor, details: torch.Tensor | None) -> torch.Tensor:
        """Z' (B, L, D) and S(D(z_t)) (B, L, D), None to inject nothing, -> (B, L, D)."""
        if details is not None:
            semantics = semantics + self.gate(semantics) * details
        return self.layer_norm(semantics)


class FlowHead(nn.Module):
    """Hidden states of pictures, high frequencies and t to velocities."""

    def __init__(self, config: CheersConfig):
        super().__init__()
        hidden, width = config.text_config.hidden_size, config.vision_config.hidden_size
        self.side, self.grid_size, self.inject_details = config.compression, config.grid_size, config.inject_details
        semantic_heads, detail_heads, shared_heads = config.flow_heads
        self.time_embed = TimeEmbedding(config.time_channels, hidden, width)
        self.gen_projector = Stage(
            hidden, width * self.side**2, config.num_semantic_layers, semantic_heads, shared_heads,
            is_rounded=config.round_rotary_frequencies,
        )  # fmt: skip
        self.hi_gate = DetailGate(width)
        self.hi_projector = Stage(
            width, config.vae_config.patched_channels, config.num_detail_layers, detail_heads, shared_heads,
            config.repeat_detail_positions, config.round_rotary_frequencies,
        )  # fmt: skip

    def semantics(self, hidden: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """First stage and pixel shuffle, Z': (B, N, H) -> (B, L, D), row by row.

        Channels of a position: place in its square major (row by row), channel minor.
        """
        squares = self.gen_projector(hidden, time)
        return rearrange(squares, "b (h w) (p q d) -> b (h p w q) d", h=self.grid_size, p=self.side, q=self.side)

    def forward(
        self, hidden: torch.Tensor, details: torch.Tensor, t: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Velocities at x_t, and what was drawn of them first.

        Args:
            hidden: (B, N, H) final hidden states of the pictures' positions.
            details: (B, L, D) of `VisionTokenizer`.
            t: (B,).

        Returns:
            (B, C, h, h) and Z', (B, L, D).
        """
        first, second = self.time_embed(t, hidden.dtype)
        semantics = self.semantics(hidden, first)
        velocities = self.hi_projector(self.hi_gate(semantics, details if self.inject_details else None), second)
        return rearrange(velocities, "b (h w) c -> b c h w", h=self.grid_size * self.side), semantics
