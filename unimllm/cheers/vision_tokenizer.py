"""The unified vision tokenizer of CHEERS (arXiv 2603.12793, section 2.1): one way in for reading and for drawing.

z_t -> D(z_t), pixels -> SigLIP -> 2 x 2 space to depth -> positions of the language model       what it looks like
                |-> SigLIP's patch embedding alone, S(D(z_t)) -> the gate of the flow head         high frequencies
                    (`linear_details`: one of its own)

Reading is t = 1: SigLIP sees the reconstruction, never the picture itself. Without D(.), an ablation, it sees z_t.

Shapes: B pictures, L = h * h latent positions and patches, N = L / compression^2 positions of the language model,
D channels of SigLIP, H of the language model.
"""

import copy

import torch
from einops import rearrange
from torch import nn
from transformers import SiglipVisionModel

from semhitok.vision import add_stem
from unimllm.cheers.autoencoder import CheersVae, LatentDecoder
from unimllm.cheers.configuration_cheers import CheersConfig
from unimllm.cheers.picture_checks import check_pixels


class Compressor(nn.Module):
    """Norm, space to depth, MLP: (B, L, D) -> (B, N, H).

    The channels of a square stand side by side: place in the square major (row by row), channel minor.
    """

    def __init__(self, config: CheersConfig):
        super().__init__()
        width = config.vision_config.hidden_size
        self.side, self.grid_size = config.compression, config.grid_size
        self.layernorm = nn.LayerNorm(width)
        wide = width * self.side**2
        self.mlp = nn.Sequential(nn.Linear(wide, wide), nn.GELU(), nn.Linear(wide, config.text_config.hidden_size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        squares = rearrange(
            self.layernorm(x), "b (h p w q) d -> b (h w) (p q d)", h=self.grid_size, p=self.side, q=self.side
        )
        return self.mlp(squares)


def patch_features(siglip: SiglipVisionModel, embedded: torch.Tensor) -> torch.Tensor:
    """What SigLIP makes of embedded patches (B, L, D), without its pooling head, which nothing here reads."""
    return siglip.post_layernorm(siglip.encoder(inputs_embeds=embedded).last_hidden_state)


class VisionTokenizer(nn.Module):
    """Pictures to latents, noisy latents to positions and to high frequencies, latents to pictures."""

    def __init__(self, config: CheersConfig):
        super().__init__()
        self.image_size = config.image_size
        self.pixel_embedding: list[nn.Module] = []  # in a list, so that no checkpoint holds it
        self.vae_model = CheersVae(config.vae_config).requires_grad_(False)
        self.vae_decoder_projector: nn.Module = nn.Identity()
        self.vision_representation = add_stem(SiglipVisionModel(config.vision_config), config.vision_config)
        if config.decode_before_siglip:
            self.vae_decoder_projector = LatentDecoder(config.vae_config)  # D(.): begins as the VAE's, then trains
        else:
            self.let_siglip_read_latents()
        self.und_projector = Compressor(config)
        if config.linear_details and config.decode_before_siglip:  # without D(.) SigLIP's own is linear
            patch = config.vision_config.patch_size
            self.detail_embedding = nn.Conv2d(3, config.vision_config.hidden_size, patch, patch)

    def let_siglip_read_latents(self) -> None:
        """An untrained linear map of one latent position becomes SigLIP's patch embedding."""
        channels, width = self.vae_model.config.patched_channels, self.vision_representation.config.hidden_size
        self.vision_representation.embeddings.patch_embedding = nn.Conv2d(channels, width, 1)

    def take(self, vision_model: SiglipVisionModel, vae: CheersVae) -> None:
        """Begin with a trained SigLIP and VAE."""
        self.vision_representation, self.vae_model = vision_model, vae.requires_grad_(False)
        if isinstance(self.vae_decoder_projector, nn.Identity):
            self.pixel_embedding = [vision_model.embeddings.patch_embedding]
            self.let_siglip_read_latents()
        self.start_decoder()

    def has_siglip_of_pixels(self) -> bool:
        """Whether `siglip_of_pixels` can be had."""
        reads_pixels = not isinstance(self.vae_decoder_projector, nn.Identity)
        return reads_pixels or bool(self.pixel_embedding) or self.vision_representation.device.type == "meta"

    def siglip_of_pixels(self) -> SiglipVisionModel:
        """A copy of SigLIP that sees pictures, also where this one has read latents since `take`.

        Raises:
            ValueError: it has read latents ever since it was loaded.
        """
        if not self.has_siglip_of_pixels():
            raise ValueError("its SigLIP reads latents, so there are no features of pictures")
        siglip = copy.deepcopy(self.vision_representation)
        if not isinstance(self.vae_decoder_projector, nn.Identity):
            return siglip
        if self.pixel_embedding:
            siglip.embeddings.patch_embedding = copy.deepcopy(self.pixel_embedding[0])
        else:
            width, patch = siglip.config.hidden_size, siglip.config.patch_size
            siglip.embeddings.patch_embedding = nn.Conv2d(3, width, patch, patch, device="meta")
        return siglip

    def start_decoder(self) -> None:
        """D(.), where there is one, takes over the VAE's decoder and statistics, as before training."""
        if isinstance(self.vae_decoder_projector, nn.Identity):
            return
        self.vae_decoder_projector.decoder.load_state_dict(self.vae_model.decoder.state_dict())
        self.vae_decoder_projector.bn.load_state_dict(self.vae_model.bn.state_dict())

    @torch.no_grad()
    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pictures (B, 3, S, S) in -1..1 -> z_1 (B, C, h, h), in the autoencoder's precision whatever a step runs in.

        Raises:
            ValueError: pictures of another shape, or of another size than `image_size`.
        """
        check_pixels(pixel_values, self.image_size)
        with torch.autocast(pixel_values.device.type, enabled=False):
            return self.vae_model.encode(pixel_values)

    @torch.no_grad()
    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """z (B, C, h, h) -> pictures (B, 3, S, S), clamped to -1..1, through the frozen decoder."""
        return self.vae_model.decode(z).clamp(-1, 1)

    def forward(self, z_t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """z_t (B, C, h, h) -> positions (B, N, H) and high frequencies S(D(z_t)) (B, L, D).

        The decoder and the patch embedding run once for both.
        """
        siglip = self.vision_representation
        decoded = self.vae_decoder_projector(z_t)
        details = embedded = siglip.embeddings(decoded)
        if hasattr(self, "detail_embedding"):
            details = rearrange(self.detail_embedding(decoded), "b d h w -> b (h w) d")
            details = details + siglip.embeddings.position_embedding.weight
        return self.und_projector(patch_features(siglip, embedded)), details
