"""The autoencoder of CHEERS, FLUX.2's shape (arXiv 2603.12793, section 2.1), under the released names.

pixels -> encoder -> posterior mean -> squares of 2 x 2 latent pixels become channels -> frozen batch statistics -> z

diffusers has an AutoencoderKLFlux2 with other names for the same tensors; it would be a dependency for these few
layers, which besides must be trained here at small sizes.

Shapes: B pictures, S pixels along a side, h latent positions along a side, C channels of one of them, D channels.
"""

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from semhitok.quantization import all_reduce
from semhitok.transformer import attention
from unimllm.cheers.configuration_cheers import CheersVaeConfig

GROUP_NORM_EPS = 1e-6
STATISTICS_EPS = 1e-4
ORDER = torch.channels_last  # in memory; every convolution keeps it, and half of the decoder's training time is saved
MOMENTUM = 0.01  # of a batch in the statistics of latents that training gathers, once it has seen 1 / MOMENTUM of them


def norm(num_groups: int, dim: int) -> nn.Module:
    """A group norm, or nothing where there are no groups."""
    return nn.GroupNorm(num_groups, dim, eps=GROUP_NORM_EPS) if num_groups else nn.Identity()


class ResnetBlock(nn.Module):
    """Two convolutions, each behind a group norm and SiLU, and a shortcut: (B, D, H, W) -> (B, dim_out, H, W)."""

    def __init__(self, dim: int, dim_out: int, num_groups: int):
        super().__init__()
        self.norm1 = norm(num_groups, dim)
        self.conv1 = nn.Conv2d(dim, dim_out, 3, padding=1)
        self.norm2 = norm(num_groups, dim_out)
        self.conv2 = nn.Conv2d(dim_out, dim_out, 3, padding=1)
        if dim != dim_out:
            self.nin_shortcut = nn.Conv2d(dim, dim_out, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        residual = self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x
        x = self.conv1(F.silu(self.norm1(x)))
        return residual + self.conv2(F.silu(self.norm2(x)))


class AttentionBlock(nn.Module):
    """Self-attention of one head over all places, with a residual: (B, D, H, W) -> the same."""

    def __init__(self, dim: int, num_groups: int):
        super().__init__()
        self.norm = norm(num_groups, dim)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(dim, dim, 1) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, normed = x.shape[-2], self.norm(x)
        q, k, v = (rearrange(proj(normed), "b d h w -> b 1 (h w) d") for proj in (self.q, self.k, self.v))
        mixed = attention(q, k, v)
        return x + self.proj_out(rearrange(mixed, "b 1 (h w) d -> b d h w", h=height))


class Middle(nn.Module):
    """Block, attention, block at the lowest resolution."""

    def __init__(self, dim: int, num_groups: int):
        super().__init__()
        self.block_1 = ResnetBlock(dim, dim, num_groups)
        self.attn_1 = AttentionBlock(dim, num_groups)
        self.block_2 = ResnetBlock(dim, dim, num_groups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Downsample(nn.Module):
    """Half the side; the padding lies at the right and the bottom alone."""

    def __init__(self, dim: int):
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Twice the side: every place repeated, then a convolution of 3 x 3."""

    def __init__(self, dim: int):
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0))


class Level(nn.Module):
    """The blocks of one resolution and, where another follows, the way to it."""

    def __init__(self, widths: list[int], num_groups: int):
        super().__init__()
        self.block = nn.ModuleList(ResnetBlock(a, b, num_groups) for a, b in zip(widths, widths[1:], strict=False))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.block:
            x = block(x)
        for name in ("downsample", "upsample"):
            x = getattr(self, name)(x) if hasattr(self, name) else x
        return x


class Encoder(nn.Module):
    """Pixels (B, 3, S, S) to mean and log-variance (B, 2 latent_channels, S / 2^k, S / 2^k)."""

    def __init__(self, config: CheersVaeConfig):
        super().__init__()
        width, latent = config.channels, 2 * config.latent_channels
        self.conv_in = nn.Conv2d(3, width, 3, padding=1)
        self.down = nn.ModuleList()
        for number, multiplier in enumerate(config.channel_multipliers, 1):
            previous, width = width, config.channels * multiplier
            self.down.append(Level([previous] + [width] * config.num_blocks, config.num_groups))
            if number < len(config.channel_multipliers):
                self.down[-1].downsample = Downsample(width)
        self.mid = Middle(width, config.num_groups)
        self.norm_out = norm(config.num_groups, width)
        self.conv_out = nn.Conv2d(width, latent, 3, padding=1)
        self.quant_conv = nn.Conv2d(latent, latent, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv_in(x.to(memory_format=ORDER))
        for level in self.down:
            x = level(x)
        return self.quant_conv(self.conv_out(F.silu(self.norm_out(self.mid(x)))))


class Decoder(nn.Module):
    """Latent pixels (B, latent_channels, S / 2^k, S / 2^k) to pixels (B, 3, S, S)."""

    def __init__(self, config: CheersVaeConfig):
        super().__init__()
        width = config.channels * config.channel_multipliers[-1]
        self.post_quant_conv = nn.Conv2d(config.latent_channels, config.latent_channels, 1)
        self.conv_in = nn.Conv2d(config.latent_channels, width, 3, padding=1)
        self.mid = Middle(width, config.num_groups)
        self.up = nn.ModuleList()  # from high resolution to low, as the released names count them
        for number, multiplier in reversed(list(enumerate(config.channel_multipliers))):
            previous, width = width, config.channels * multiplier
            self.up.insert(0, Level([previous] + [width] * (config.num_blocks + 1), config.num_groups))
            if number:
                self.up[0].upsample = Upsample(width)
        self.norm_out = norm(config.num_groups, width)
        self.conv_out = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        x = self.mid(self.conv_in(self.post_quant_conv(z.to(memory_format=ORDER))))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class LatentStatistics(nn.BatchNorm2d):
    """Mean and variance of each latent channel; never updated in passing, in training neither, only by `update`."""

    def __init__(self, channels: int):
        super().__init__(channels, eps=STATISTICS_EPS, affine=False)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return F.batch_norm(z, self.running_mean, self.running_var, eps=self.eps)

    def invert(self, z: torch.Tensor) -> torch.Tensor:
        """The latents whose normalised ones are z, (B, C, h, h), in z's precision: DeepSpeed casts weights alone."""
        scale = (self.running_var + self.eps).sqrt()
        return (z * scale.view(1, -1, 1, 1) + self.running_mean.view(1, -1, 1, 1)).to(z.dtype)

    @torch.no_grad()
    def update(self, latents: torch.Tensor) -> None:
        """Follow the latents (B, C, h, h) of all ranks: the mean of all batches so far, later of the last ones."""
        latents = latents.float()
        moments = torch.stack([latents.mean((0, 2, 3)), latents.square().mean((0, 2, 3))])  # (2, C)
        sums = all_reduce(torch.cat([moments, torch.ones_like(moments[:1])]))
        mean, square = sums[:2] / sums[2]
        self.num_batches_tracked += 1
        share = max(MOMENTUM, 1 / int(self.num_batches_tracked))
        self.running_mean.lerp_(mean.to(self.running_mean), share)
        self.running_var.lerp_((square - mean.square()).to(self.running_var), share)


def patch(latents: torch.Tensor, size: int) -> torch.Tensor:
    """Squares of latent pixels become channels: (B, c, h * size, h * size) -> (B, C, h, h).

    Channels: latent channel major, then row and column within the square.
    """
    return rearrange(latents, "b c (h p) (w q) -> b (c p q) h w", p=size, q=size)


def unpatch(patched: torch.Tensor, size: int) -> torch.Tensor:
    """The inverse of `patch`."""
    return rearrange(patched, "b (c p q) h w -> b c (h p) (w q)", p=size, q=size)


class LatentDecoder(nn.Module):
    """z (B, C, h, h) to pixels (B, 3, S, S) in the autoencoder's own range: D(.) of the paper."""

    def __init__(self, config: CheersVaeConfig):
        super().__init__()
        self.patch_size = config.latent_patch_size
        self.decoder = Decoder(config)
        self.bn = LatentStatistics(config.patched_channels)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return self.decoder(unpatch(self.bn.invert(z), self.patch_size))


class CheersVae(PreTrainedModel):
    """Pictures to normalised latents and back."""

    config_class = CheersVaeConfig
    base_model_prefix = "vision_tokenizer.vae_model"  # where it lies in the checkpoint of a whole model
    _keys_to_ignore_on_load_unexpected = [r"^vision_tokenizer\.(?!vae_model\.)", r"^language_model\.", r"^flow_head\."]
    main_input_name = "pixel_values"
    # Attention of its own, whatever a model that holds it is asked to take.
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = True

    def __init__(self, config: CheersVaeConfig):
        super().__init__(config)
        config.check_sizes()
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.bn = LatentStatistics(config.patched_channels)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            module.reset_parameters()
        elif isinstance(module, nn.GroupNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, LatentStatistics):
            nn.init.zeros_(module.running_mean)
            nn.init.ones_(module.running_var)
            nn.init.zeros_(module.num_batches_tracked)

    def moments(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Mean and log-variance side by side, (B, 2 latent_channels, S / 2^k, S / 2^k), of RGB in -1..1."""
        pixels = pixel_values.to(self.dtype)
        return self.encoder((pixels + 1) / 2 if self.config.pixels_from_zero else pixels)

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) RGB in -1..1 -> z (B, C, h, h): the normalised posterior mean, no sample of it; differentiable.

        Raises:
            ValueError: pictures of another shape or of sides that latent positions do not divide, or integers.
        """
        stride, shape = self.config.stride, tuple(pixel_values.shape)
        if len(shape) != 4 or shape[1] != 3 or shape[2] % stride or shape[3] % stride:
            raise ValueError(f"pixel_values are {shape}; pictures are (B, 3, S, S) with S a multiple of {stride}")
        if not pixel_values.is_floating_point():
            raise ValueError(f"pixel_values are {pixel_values.dtype}, not floats in -1..1")
        mean = self.moments(pixel_values).chunk(2, 1)[0]
        return self.bn(patch(mean, self.config.latent_patch_size))

    def draw(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents as `moments` has them, (B, latent_channels, S / 2^k, S / 2^k) -> (B, 3, S, S) RGB in about -1..1."""
        pixels = self.decoder(latents.to(self.dtype))
        return 2 * pixels - 1 if self.config.pixels_from_zero else pixels

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """z (B, C, h, h) -> (B, 3, S, S) RGB in about -1..1."""
        return self.draw(unpatch(self.bn.invert(z.to(self.dtype)), self.config.latent_patch_size))
