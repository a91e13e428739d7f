"""Two rivals of SemHiTok's hierarchy with one flat codebook, for comparisons: K codes, m = 1, trained jointly.

SharedIndexModel    two codebooks of K rows that share their index (the way of TokenFlow, arXiv 2412.03069)
SharedVectorModel   one codebook whose vector serves both decoders (the way of VILA-U, arXiv 2409.04429)

Everything else is SemHiTok's: the frozen SigLIP, both encoders, both decoders, the EMA codebook with its k-means start
and its restarts. So neither is a copy of its model: TokenFlow learns its codebooks by gradient over several scales, and
VILA-U has one encoder, trained with a text tower, and residual codes. Their one idea is what is compared here.

Shapes: B pictures, N positions, D channels of SigLIP, E = semantic_dim + pixel_dim.
"""

import torch

from semhitok.configuration_semhitok import SemHiTokConfig
from semhitok.modeling_semhitok import Quantized, SemHiTokModel
from semhitok.quantization import EMACodebook, nearest_code, normalize
from semhitok.transformer import Transformer


class SharedVectorConfig(SemHiTokConfig):
    """Sizes of a tokenizer with one code vector for everything.

    Args:
        num_pixel_codes: 1, because there is one code.
        kwargs: as `SemHiTokConfig`; the one codebook is `num_semantic_codes` x (semantic_dim + pixel_dim).
    """

    model_type = "semhitok_shared_vector"

    def __init__(self, num_pixel_codes: int = 1, **kwargs):
        check_single(num_pixel_codes)
        super().__init__(num_pixel_codes=num_pixel_codes, **kwargs)


class SharedIndexConfig(SemHiTokConfig):
    """Sizes of a tokenizer with two codebooks under one index.

    Args:
        semantic_weight: of the semantic half's squared distance when the nearest code is searched; the pixel half's is
            1 minus this. Above 0, below 1.
        num_pixel_codes, kwargs: as `SharedVectorConfig`.
    """

    model_type = "semhitok_shared_index"

    def __init__(self, semantic_weight: float = 0.5, num_pixel_codes: int = 1, **kwargs):
        check_single(num_pixel_codes)
        check_weight(semantic_weight)
        self.semantic_weight = semantic_weight
        super().__init__(num_pixel_codes=num_pixel_codes, **kwargs)


def check_single(num_pixel_codes: int) -> None:
    """ValueError unless there is one code per position."""
    if num_pixel_codes != 1:
        raise ValueError(f"num_pixel_codes is {num_pixel_codes}; a tokenizer with one index has 1")


def check_weight(semantic_weight: float) -> None:
    """ValueError unless both halves of a code count."""
    if not 0 < semantic_weight < 1:
        raise ValueError(f"semantic_weight is {semantic_weight}; it must be above 0 and below 1")


class SingleCodeModel(SemHiTokModel):
    """What both share: one EMA codebook over unit vectors [semantic part | pixel part]. Its codes are (index, 0)."""

    def __init__(self, config: SemHiTokConfig):
        check_single(config.num_pixel_codes)  # a command line may have set it since
        super().__init__(config)
        del self.semantic.codebook, self.pixel.codebook
        self.codebook = EMACodebook(config.num_semantic_codes, config.semantic_dim + config.pixel_dim, config.ema_decay)

    def join(self, features: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        """SigLIP features (B, N, D) and their pictures (B, 3, S, S) -> unit vectors (B, N, E) float32."""
        raise NotImplementedError

    def divide(self, vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Joined vectors (..., E) -> (..., semantic_dim) and (..., pixel_dim)."""
        return vectors.split([self.config.semantic_dim, self.config.pixel_dim], -1)

    @torch.no_grad()
    def semantic_codes(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The index: (B, 3, S, S) -> (B, N) int64 in 0..K-1."""
        return nearest_code(self.join(self.vision_features(pixel_values), pixel_values), self.codebook.codes.float())

    @torch.no_grad()
    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Pictures (B, 3, S, S) to codes (B, N, 2) int64: the index, and 0."""
        index = self.semantic_codes(pixel_values)
        return torch.stack([index, torch.zeros_like(index)], -1)

    def code_vectors(self, codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Both parts of the vectors of codes: (..., 2) -> (..., semantic_dim) and (..., pixel_dim)."""
        return self.divide(self.codebook.codes.float()[codes[..., 0]])

    def code_tables(self) -> tuple[torch.Tensor, torch.Tensor]:
        """All code vectors: semantic (K, semantic_dim) and pixel (K, 1, pixel_dim)."""
        semantic, pixel = self.divide(self.codebook.codes)
        return semantic, pixel.unsqueeze(1)

    @torch.no_grad()
    def initialize_codebooks(self, batches: list[torch.Tensor]) -> None:
        """Start the codebook at the k-means of these pictures' vectors, and quantise from now on."""
        vectors = [self.join(self.vision_features(pictures), pictures) for pictures in batches]
        self.codebook.initialize(torch.cat(vectors).flatten(0, 1))

    def replace_pixel_codebook(self, num_pixel_codes: int) -> None:
        """ValueError: there is none."""
        check_single(num_pixel_codes)


class SharedVectorModel(SingleCodeModel):
    """One vector per position, of which both decoders read all; training decides how much of it says what."""

    config_class = SharedVectorConfig

    def __init__(self, config: SharedVectorConfig):
        super().__init__(config)
        dim = config.semantic_dim + config.pixel_dim
        sizes = (config.semantic_hidden_size, config.semantic_layers, config.semantic_heads, config.num_positions)
        self.semantic.decoder = Transformer(dim, *sizes, dim_out=config.vision_config.hidden_size)
        self.post_init()

    def join(self, features: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        """Both encoders' outputs side by side, normalised as one."""
        semantic = self.semantic.encoder(features)
        pixel = self.pixel.encoder(pixel_values.to(self.dtype))
        return normalize(torch.cat([semantic.float(), pixel.float()], -1))

    def restore_features(self, semantic: torch.Tensor, pixel: torch.Tensor) -> torch.Tensor:
        """As `SemHiTokModel.restore_features`, from the whole vector."""
        return self.semantic.decoder(torch.cat([semantic, pixel], -1).to(self.dtype))

    def quantize(self, features: torch.Tensor, pixel_values: torch.Tensor) -> Quantized:
        """As `SemHiTokModel.quantize`; the semantic decoder reads the whole vector."""
        quantized, index, commit = self.codebook(self.join(features, pixel_values))
        codes = torch.stack([index, torch.zeros_like(index)], -1)
        return Quantized(quantized, *self.divide(quantized), codes, self.config.commitment_weight * commit)


class SharedIndexModel(SingleCodeModel):
    """Two vectors per position under one index, each for its own decoder.

    The codebook's rows are [sqrt(w) semantic | sqrt(1 - w) pixel] with both halves of unit length before the weighting,
    so its squared distance is w d_semantic + (1 - w) d_pixel and one search finds the index.
    """

    config_class = SharedIndexConfig

    def __init__(self, config: SharedIndexConfig):
        check_weight(config.semantic_weight)  # as above
        super().__init__(config)
        self.post_init()
        self.codebook.codes.copy_(self.settle(self.codebook.codes))

    @property
    def scales(self) -> tuple[float, float]:
        """Lengths of the two halves."""
        weight = self.config.semantic_weight
        return weight**0.5, (1 - weight) ** 0.5

    def weigh(self, semantic: torch.Tensor, pixel: torch.Tensor) -> torch.Tensor:
        """Unit vectors (..., semantic_dim) and (..., pixel_dim) -> the unit vectors (..., E) that are searched."""
        return torch.cat([half * scale for half, scale in zip((semantic, pixel), self.scales, strict=True)], -1)

    def divide(self, vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The inverse of `weigh`."""
        semantic, pixel = (half / s for half, s in zip(super().divide(vectors), self.scales, strict=True))
        return semantic, pixel

    def settle(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (K, E) with each half at its own length again: a mean of vectors keeps only the length of the whole."""
        return self.weigh(*map(normalize, super().divide(codes)))

    def join(self, features: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        """Both branches' unit vectors, weighted."""
        return self.weigh(self.semantic.encode(features), self.pixel.encode(pixel_values))

    def quantize(self, features: torch.Tensor, pixel_values: torch.Tensor) -> Quantized:
        """As `SemHiTokModel.quantize`; the semantic decoder reads the semantic half alone."""
        quantized, index, commit = self.codebook(self.join(features, pixel_values))
        if self.codebook.training:
            self.codebook.codes.copy_(self.settle(self.codebook.codes))
        semantic, pixel = self.divide(quantized)
        codes = torch.stack([index, torch.zeros_like(index)], -1)
        return Quantized(semantic, semantic, pixel, codes, self.config.commitment_weight * commit)

    @torch.no_grad()
    def initialize_codebooks(self, batches: list[torch.Tensor]) -> None:
        """As the base's, with each half at its own length."""
        super().initialize_codebooks(batches)
        self.codebook.codes.copy_(self.settle(self.codebook.codes))

    def decode_vectors(self, semantic: torch.Tensor, pixel: torch.Tensor) -> torch.Tensor:
        """The pixel half alone to pictures: (B, N, pixel_dim) -> (B, 3, S, S), not clamped."""
        return self.pixel.decode(torch.zeros_like(semantic), pixel)
