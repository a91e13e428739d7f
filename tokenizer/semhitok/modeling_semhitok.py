"""SemHiTok (arXiv 2503.06764): one discrete code per patch that holds meaning first and pixels under it.

    pixel_values -> frozen SigLIP -> semantic encoder -> nearest of K codes            = semantic
    pixel_values -> pixel encoder -> nearest of the m codes under that semantic code   = pixel
    [semantic vector | pixel vector] -> pixel decoder -> pixel_values

Shapes: B pictures, N positions, S pixels along a side. `pixel_values` are RGB in -1..1.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from semhitok.configuration_semhitok import DECODER_SIZES, PIXEL_SIZES, SemHiTokConfig
from semhitok.convolution import ConvDecoder, ConvEncoder
from semhitok.quantization import PIXEL_CODEBOOKS, EMACodebook, SubCodebooks, nearest_code, normalize
from semhitok.transformer import Transformer, ViTDecoder, ViTEncoder
from semhitok.vision import build_vision_model, renormalize


@dataclass
class SemHiTokOutput(ModelOutput):
    """What `SemHiTokModel.forward` returns.

    Attributes:
        reconstruction: (B, 3, S, S) in about -1..1, not clamped.
        codes: (B, N, 2) int64, the semantic and the pixel code of each position.
    """

    reconstruction: torch.Tensor | None = None
    codes: torch.Tensor | None = None


class Quantized(NamedTuple):
    """What joint training needs of a batch, with straight-through gradients.

    Attributes:
        for_features: (B, N, D) what the semantic decoder reads.
        semantic, pixel: (B, N, semantic_dim) and (B, N, pixel_dim), for `decode_vectors`.
        codes: (B, N, 2) int64.
        loss: scalar, the codebook and commitment losses as the config weighs them.
    """

    for_features: torch.Tensor
    semantic: torch.Tensor
    pixel: torch.Tensor
    codes: torch.Tensor
    loss: torch.Tensor


class SemanticBranch(nn.Module):
    """Quantises SigLIP features: encoder -> EMA codebook, and a decoder back to the features for its training."""

    def __init__(self, config: SemHiTokConfig):
        super().__init__()
        width = config.vision_config.hidden_size
        sizes = (config.semantic_hidden_size, config.semantic_layers, config.semantic_heads, config.num_positions)
        self.encoder = Transformer(width, *sizes, dim_out=config.semantic_dim)
        self.codebook = EMACodebook(config.num_semantic_codes, config.semantic_dim, config.ema_decay)
        self.decoder = Transformer(config.semantic_dim, *sizes, dim_out=width)

    def encode(self, features: torch.Tensor) -> torch.Tensor:
        """SigLIP features (B, N, D) -> unit vectors (B, N, semantic_dim) float32."""
        return normalize(self.encoder(features))


class PixelBranch(nn.Module):
    """Own encoder, the hierarchical codebook, and the decoder from [semantic vector | pixel vector] to pixels."""

    def __init__(self, config: SemHiTokConfig):
        super().__init__()
        self.encoder = build_pixel_encoder(config)
        self.codebook = build_pixel_codebook(config)
        self.decoder = build_pixel_decoder(config)

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) -> unit vectors (B, N, pixel_dim) float32."""
        return normalize(self.encoder(pixel_values.to(self.decoder.last_weight.dtype)))

    def decode(self, semantic_vectors: torch.Tensor, pixel_vectors: torch.Tensor) -> torch.Tensor:
        """(B, N, semantic_dim) and (B, N, pixel_dim) -> (B, 3, S, S), RGB in about -1..1."""
        vectors = torch.cat([semantic_vectors, pixel_vectors], -1)  # (B, N, semantic_dim + pixel_dim)
        return self.decoder(vectors.to(self.decoder.last_weight.dtype))


def build_pixel_codebook(config: SemHiTokConfig) -> SubCodebooks:
    """K sub-codebooks of m codes, of the kind that `config.pixel_codebook` names."""
    kind = PIXEL_CODEBOOKS[config.pixel_codebook]
    return kind(config.num_semantic_codes, config.num_pixel_codes, config.pixel_dim)


def build_pixel_encoder(config: SemHiTokConfig) -> ViTEncoder | ConvEncoder:
    """The encoder that `config.pixel_backbone` names."""
    if config.pixel_backbone == "conv":
        return ConvEncoder(
            config.patch_size, config.conv_encoder_channels, config.conv_encoder_blocks, config.pixel_dim
        )
    return ViTEncoder(
        config.patch_size, config.pixel_hidden_size, config.pixel_layers, config.pixel_heads, config.num_positions,
        config.pixel_dim,
    )  # fmt: skip


def build_pixel_decoder(config: SemHiTokConfig) -> ViTDecoder | ConvDecoder:
    """The decoder that `config.pixel_backbone` names."""
    dim_in, dim = config.semantic_dim + config.pixel_dim, config.decoder_hidden_size
    if config.pixel_backbone == "conv":
        return ConvDecoder(
            dim_in, dim, config.grid_size, config.patch_size, config.conv_decoder_channels, config.conv_decoder_blocks
        )
    return ViTDecoder(dim_in, dim, config.decoder_layers, config.decoder_heads, config.grid_size, config.patch_size)


class SemHiTokPreTrainedModel(PreTrainedModel):
    config_class = SemHiTokConfig
    base_model_prefix = "image_tokenizer"
    main_input_name = "pixel_values"
    _no_split_modules = ["Block"]
    # What else lies in the checkpoint of a language model that holds this tokenizer.
    _keys_to_ignore_on_load_unexpected = [r"^language_model\.", r"^adapter\.", r"^image_head\."]
    supports_gradient_checkpointing = True
    # Attention of its own, whatever a model that holds it is asked to take; its SigLIP chooses for itself.
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Trunc-normal weights; the codebooks and the frozen SigLIP initialise themselves."""
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            module.reset_parameters()
        elif isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, Transformer):
            nn.init.normal_(module.position_embedding, std=self.config.initializer_range)
        elif isinstance(module, EMACodebook):
            module.codes.copy_(normalize(torch.randn(module.codes.shape, dtype=torch.float32)))
            module.counts.fill_(1.0)
            module.initialized.fill_(False)
        elif isinstance(module, SubCodebooks):
            module.reset_parameters()
            module.initialized.fill_(False)


class SemHiTokModel(SemHiTokPreTrainedModel):
    """The image tokenizer: `encode` pictures to codes, `decode` codes to pictures, `code_vectors` for others."""

    def __init__(self, config: SemHiTokConfig):
        super().__init__(config)
        self.vision_model = build_vision_model(config.vision_config)
        self.semantic = SemanticBranch(config)
        self.pixel = PixelBranch(config)
        self.post_init()

    def vision_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Last hidden state of the frozen SigLIP, (B, N, D)."""
        size = self.config.image_size
        if pixel_values.ndim != 4 or pixel_values.shape[1] != 3 or not len(pixel_values):
            shape = tuple(pixel_values.shape)
            raise ValueError(f"pixel_values are {shape}; pictures are (B, 3, {size}, {size}), one or more")
        if pixel_values.shape[-2:] != (size, size):
            raise ValueError(
                f"pixel_values are {tuple(pixel_values.shape[-2:])}, this tokenizer reads {size} x {size}; "
                f"resize with SemHiTokImageProcessor first"
            )
        if not pixel_values.is_floating_point():
            raise ValueError(
                f"pixel_values are {pixel_values.dtype}, not floats in -1..1: the image processor makes them"
            )
        return self.vision_outputs(pixel_values).last_hidden_state

    def vision_outputs(self, pixel_values: torch.Tensor, **kwargs) -> ModelOutput:
        """What the frozen SigLIP returns for (B, 3, S, S) RGB in -1..1, normalised as it was trained."""
        pixel_values = renormalize(pixel_values, self.config.image_mean, self.config.image_std)
        return self.vision_model(pixel_values.to(self.dtype), **kwargs)

    @torch.no_grad()
    def semantic_codes(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The semantic half of `encode`: (B, 3, S, S) -> (B, N) int64 in 0..K-1."""
        vectors = self.semantic.encode(self.vision_features(pixel_values))
        return nearest_code(vectors, self.semantic.codebook.codes.float())

    @torch.no_grad()
    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pictures to codes.

        Args:
            pixel_values: (B, 3, S, S) float, RGB in -1..1.

        Returns:
            (B, N, 2) int64: semantic code in 0..K-1 and pixel code in 0..m-1 of each patch, row by row.

        Raises:
            ValueError: pictures of another shape or size than (B, 3, S, S), or integers.
        """
        semantic = self.semantic_codes(pixel_values)
        pixel = self.pixel.codebook.search(self.pixel.encode(pixel_values), semantic)
        return torch.stack([semantic, pixel], -1)

    def code_vectors(self, codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Vectors of codes: (..., 2) int64 -> semantic (..., semantic_dim) and pixel (..., pixel_dim), unit length."""
        semantic, pixel = codes.long().unbind(-1)  # uint8 would be taken for a mask
        return self.semantic.codebook.codes.float()[semantic], self.pixel.codebook.lookup(semantic, pixel)

    def code_tables(self) -> tuple[torch.Tensor, torch.Tensor]:
        """All code vectors: semantic (K, semantic_dim) and pixel (K, m, pixel_dim)."""
        return self.semantic.codebook.codes, self.pixel.codebook.codes().detach()

    def decode_vectors(self, semantic: torch.Tensor, pixel: torch.Tensor) -> torch.Tensor:
        """Code vectors (B, N, semantic_dim) and (B, N, pixel_dim) to pictures (B, 3, S, S), not clamped."""
        return self.pixel.decode(semantic, pixel)

    def restore_features(self, semantic: torch.Tensor, pixel: torch.Tensor) -> torch.Tensor:
        """Code vectors (B, N, semantic_dim) and (B, N, pixel_dim) to the SigLIP features they stand for, (B, N, D).

        The training of the semantic codebook needs them; here the pixel vector says nothing about them.
        """
        return self.semantic.decoder(semantic.to(self.dtype))

    @torch.no_grad()
    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (B, N, 2) to pictures (B, 3, S, S), RGB clamped to -1..1.

        Raises:
            ValueError: codes of another shape, no whole numbers, or outside the codebooks.
        """
        self.check_codes(codes)
        return self.decode_vectors(*self.code_vectors(codes)).float().clamp(-1, 1)

    def check_codes(self, codes: torch.Tensor) -> None:
        """ValueError unless these are codes (B, N, 2) of this tokenizer; a negative one would index from the end."""
        positions, sizes = self.config.num_positions, (self.config.num_semantic_codes, self.config.num_pixel_codes)
        if codes.ndim != 3 or codes.shape[1:] != (positions, 2):
            raise ValueError(f"codes are {tuple(codes.shape)}; pictures of this tokenizer are (B, {positions}, 2)")
        if codes.is_floating_point() or codes.dtype == torch.bool:
            raise ValueError(f"codes are {codes.dtype}; they must be whole numbers")
        if torch.compiler.is_compiling() or not len(codes):  # a look at values would break the compiled graph
            return
        for name, values, size in zip(("semantic", "pixel"), codes.unbind(-1), sizes, strict=True):
            low, high = torch.stack(values.long().aminmax()).tolist()
            if low < 0 or high >= size:
                raise ValueError(f"{name} codes from {low} to {high}; this tokenizer has 0 to {size - 1}")

    def quantize(self, features: torch.Tensor, pixel_values: torch.Tensor) -> Quantized:
        """Both codes of a batch, differentiable; in training mode the semantic codebook moves.

        Args:
            features: (B, N, D) of SigLIP.
            pixel_values: (B, 3, S, S), the same pictures.
        """
        semantic, index, commit = self.semantic.codebook(self.semantic.encode(features))
        pixel, under, codebook_loss, pixel_commit = self.pixel.codebook(self.pixel.encode(pixel_values), index)
        loss = self.config.commitment_weight * commit
        loss = loss + codebook_loss + self.config.pixel_commitment_weight * pixel_commit
        return Quantized(semantic, semantic, pixel, torch.stack([index, under], -1), loss)

    @torch.no_grad()
    def initialize_codebooks(self, batches: list[torch.Tensor]) -> None:
        """Start both codebooks at the k-means of these pictures' vectors, and quantise from now on."""
        semantic = [self.semantic.encode(self.vision_features(pictures)) for pictures in batches]
        self.semantic.codebook.initialize(torch.cat(semantic).flatten(0, 1))
        self.pixel.codebook.initialize(torch.cat([self.pixel.encode(pictures) for pictures in batches]).flatten(0, 1))

    def _take(self, sizes: dict, known: tuple[str, ...]) -> None:
        """Write sizes of these names into the config."""
        for name, value in sizes.items():
            assert name in known, name
            setattr(self.config, name, value)

    def replace_decoder(self, **sizes) -> None:
        """An untrained pixel decoder of other sizes in the place of the old one: same codes (Enhance Decoder).

        Args:
            sizes: values of `DECODER_SIZES` of the config.
        """
        self._take(sizes, DECODER_SIZES)
        self.pixel.decoder = build_pixel_decoder(self.config).to(self.device, self.dtype)
        self.pixel.decoder.apply(self._init_weights)

    def replace_pixel_branch(self, **sizes) -> None:
        """An untrained pixel branch in the place of the old one, over the same semantic codes.

        Args:
            sizes: values of `PIXEL_SIZES` of the config.
        """
        self._take(sizes, PIXEL_SIZES)
        self.pixel = PixelBranch(self.config).to(self.device, self.dtype)
        self.pixel.apply(self._init_weights)

    def replace_pixel_codebook(self, num_pixel_codes: int) -> None:
        """New sub-codebooks of another size in the place of the old ones, to be trained in the pixel stage.

        Encoder and decoder stay; until `SubCodebooks.initialize` is called their vectors pass through unquantised.

        Args:
            num_pixel_codes: m.
        """
        self.config.num_pixel_codes = num_pixel_codes
        self.pixel.codebook = build_pixel_codebook(self.config).to(self.device, self.dtype)

    def codes_to_ids(self, codes: torch.Tensor) -> torch.Tensor:
        """(..., 2) -> (...) flat ids `semantic * m + pixel` in 0..K*m-1."""
        codes = codes.long()  # stored ones may be uint8 or int16, in which a product goes over
        return codes[..., 0] * self.config.num_pixel_codes + codes[..., 1]

    def ids_to_codes(self, ids: torch.Tensor) -> torch.Tensor:
        """(...) flat ids -> (..., 2) codes, the inverse of `codes_to_ids`."""
        ids, m = ids.long(), self.config.num_pixel_codes
        return torch.stack([ids // m, ids % m], -1)

    def forward(self, pixel_values: torch.Tensor, return_dict: bool | None = None, **kwargs) -> SemHiTokOutput:
        """Encode and decode: the reconstruction and its codes."""
        codes = self.encode(pixel_values)
        return SemHiTokOutput(reconstruction=self.decode(codes), codes=codes)
