"""Configuration of SemHiTok (arXiv 2503.06764): every size of both branches and both codebooks."""

from math import isqrt

from transformers import AutoConfig, PreTrainedConfig, Siglip2VisionConfig, SiglipVisionConfig

from semhitok.quantization import PIXEL_CODEBOOKS

PIXEL_BACKBONES = ("vit", "conv")
DECODER_SIZES = (
    "decoder_hidden_size", "decoder_layers", "decoder_heads", "conv_decoder_channels", "conv_decoder_blocks",
)  # fmt: skip
"""What no code depends on: a decoder of other sizes may take the place of a trained one."""
PIXEL_SIZES = (
    "num_pixel_codes", "pixel_codebook", "pixel_dim", "pixel_backbone", "pixel_hidden_size", "pixel_layers",
    "pixel_heads", "conv_encoder_channels", "conv_encoder_blocks", *DECODER_SIZES,
)  # fmt: skip
"""What no semantic code depends on."""
VISION_CONFIGS = (SiglipVisionConfig, Siglip2VisionConfig)


class SemHiTokConfig(PreTrainedConfig):
    """Sizes of a SemHiTok image tokenizer.

    A patch becomes one id `semantic * num_pixel_codes + pixel`. The paper fixes only the product
    (196,608 ids); K and m are given here separately.

    Args:
        vision_config: the frozen SigLIP whose features the semantic branch quantises: a SiglipVisionConfig, a
            Siglip2VisionConfig (NaFlex, read at the one square that its position grid spans), or the dict of either
            (without "model_type": of the first); it also fixes image size and patch size.
        image_mean, image_std: per RGB channel of 0..1, what that SigLIP was trained with; `pixel_values` are in -1..1
            whatever they are, and are renormalised for its eyes only.
        resample: interpolation that SigLIP was trained with, by Pillow's number (2: bilinear, 3: bicubic).
        num_semantic_codes: K, entries of the semantic codebook.
        num_pixel_codes: m, entries of the pixel sub-codebook under every semantic code.
        semantic_dim: channels of a semantic code vector.
        pixel_dim: channels of a pixel code vector.
        semantic_hidden_size, semantic_layers, semantic_heads: the semantic encoder, and its decoder back to SigLIP.
        pixel_codebook: "affine" (one set of codes, bent by a map for each semantic code) or "free" (the paper's: codes
            of its own under each); by the names of `quantization.PIXEL_CODEBOOKS`.
        pixel_backbone: "vit" (the paper's) or "conv" (small pictures, trained from nothing in minutes).
        pixel_hidden_size, pixel_layers, pixel_heads: the pixel encoder, if a ViT.
        decoder_hidden_size: channels of the pixel decoder at patch resolution, ViT or not.
        decoder_layers, decoder_heads: the pixel decoder, if a ViT.
        conv_encoder_channels, conv_encoder_blocks: channels and residual blocks after each halving, if convolutional.
        conv_decoder_channels: channels after each doubling, if convolutional.
        conv_decoder_blocks: residual blocks at patch resolution, then after each doubling.
        ema_decay: of the semantic codebook.
        commitment_weight: beta of the semantic codebook, times the squared distance of unit vectors (BEiT v2's VQ-KD
            has 1.0 times its mean over their numbers).
        pixel_commitment_weight: beta of the pixel codebook (VQ-VAE: 0.25), times such a distance too.
    """

    model_type = "semhitok"
    base_config_key = "image_tokenizer_config"
    sub_configs = {"vision_config": AutoConfig}

    def __init__(
        self,
        vision_config: SiglipVisionConfig | Siglip2VisionConfig | dict | None = None,
        image_mean: tuple[float, ...] = (0.5, 0.5, 0.5),
        image_std: tuple[float, ...] = (0.5, 0.5, 0.5),
        resample: int = 3,
        num_semantic_codes: int = 16384,
        num_pixel_codes: int = 12,
        semantic_dim: int = 32,
        pixel_dim: int = 8,
        semantic_hidden_size: int = 768,
        semantic_layers: int = 4,
        semantic_heads: int = 12,
        pixel_codebook: str = "affine",
        pixel_backbone: str = "vit",
        pixel_hidden_size: int = 768,
        pixel_layers: int = 12,
        pixel_heads: int = 12,
        decoder_hidden_size: int = 1024,
        decoder_layers: int = 24,
        decoder_heads: int = 16,
        conv_encoder_channels: tuple[int, ...] = (32, 64, 128),
        conv_encoder_blocks: tuple[int, ...] = (0, 1, 2),
        conv_decoder_channels: tuple[int, ...] = (128, 48, 24),
        conv_decoder_blocks: tuple[int, ...] = (3, 2, 2, 0),
        ema_decay: float = 0.99,
        commitment_weight: float = 1.0,
        pixel_commitment_weight: float = 0.25,
        initializer_range: float = 0.02,
        **kwargs,
    ):
        self.vision_config = as_vision_config(vision_config)
        self.image_mean, self.image_std = list(image_mean), list(image_std)
        self.resample = resample
        self.num_semantic_codes = num_semantic_codes
        self.num_pixel_codes = num_pixel_codes
        self.semantic_dim = semantic_dim
        self.pixel_dim = pixel_dim
        self.semantic_hidden_size = semantic_hidden_size
        self.semantic_layers = semantic_layers
        self.semantic_heads = semantic_heads
        if pixel_backbone not in PIXEL_BACKBONES:
            raise ValueError(f"pixel_backbone is {pixel_backbone!r}; choose one of {', '.join(PIXEL_BACKBONES)}")
        self.pixel_backbone = pixel_backbone
        if pixel_codebook not in PIXEL_CODEBOOKS:
            raise ValueError(f"pixel_codebook is {pixel_codebook!r}; choose one of {', '.join(PIXEL_CODEBOOKS)}")
        self.pixel_codebook = pixel_codebook
        self.pixel_hidden_size = pixel_hidden_size
        self.pixel_layers = pixel_layers
        self.pixel_heads = pixel_heads
        self.decoder_hidden_size = decoder_hidden_size
        self.decoder_layers = decoder_layers
        self.decoder_heads = decoder_heads
        self.conv_encoder_channels, self.conv_encoder_blocks = list(conv_encoder_channels), list(conv_encoder_blocks)
        self.conv_decoder_channels, self.conv_decoder_blocks = list(conv_decoder_channels), list(conv_decoder_blocks)
        self.ema_decay = ema_decay
        self.commitment_weight = commitment_weight
        self.pixel_commitment_weight = pixel_commitment_weight
        self.initializer_range = initializer_range
        super().__init__(**kwargs)

    def to_dict(self) -> dict:
        """As transformers', but for where SigLIP and this tokenizer were loaded from: a place on one machine."""
        return without_places(super().to_dict())

    @property
    def image_size(self) -> int:
        """Width and height of a picture in pixels."""
        return square_size(self.vision_config)

    @property
    def patch_size(self) -> int:
        """Width and height of a patch in pixels."""
        return self.vision_config.patch_size

    @property
    def grid_size(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size

    @property
    def num_positions(self) -> int:
        """Codes per picture."""
        return self.grid_size**2

    @property
    def num_codes(self) -> int:
        """K * m, the size of the block of image ids."""
        return self.num_semantic_codes * self.num_pixel_codes


def without_places(config: dict) -> dict:
    """A config's dict without the folders and hub ids that it, and the configs in it, were loaded from."""
    kept = {name: value for name, value in config.items() if name != "_name_or_path"}
    return {name: without_places(value) if isinstance(value, dict) else value for name, value in kept.items()}


def as_vision_config(config: PreTrainedConfig | dict | None) -> SiglipVisionConfig | Siglip2VisionConfig:
    """A vision config from itself or from its dict; ValueError for one that is no SigLIP's."""
    if isinstance(config, VISION_CONFIGS):
        return config
    values = dict(config or {}) if not isinstance(config, PreTrainedConfig) else config.to_dict()
    kind = values.pop("model_type", SiglipVisionConfig.model_type)
    classes = {c.model_type: c for c in VISION_CONFIGS}
    if kind not in classes:
        raise ValueError(f"vision_config is of a {kind} model; SemHiTok reads features of {' or '.join(classes)}")
    return classes[kind](**values)


def square_size(config: SiglipVisionConfig | Siglip2VisionConfig) -> int:
    """Width and height in pixels of the square that a vision model has positions for."""
    if isinstance(config, Siglip2VisionConfig):
        return isqrt(config.num_patches) * config.patch_size
    return config.image_size


def tiny_config(**changes) -> SemHiTokConfig:
    """A SemHiTok of a few thousand parameters for tests: 16 x 16 pixels, 4 positions, 10 x 3 codes."""
    vision = SiglipVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    sizes = {
        "num_semantic_codes": 10, "num_pixel_codes": 3, "semantic_dim": 4, "pixel_dim": 4,
        "semantic_hidden_size": 16, "semantic_layers": 1, "semantic_heads": 2,
        "pixel_backbone": "conv", "pixel_hidden_size": 16, "pixel_layers": 1, "pixel_heads": 2,
        "decoder_hidden_size": 16, "decoder_layers": 1, "decoder_heads": 2,
        "conv_encoder_channels": (8, 8, 16), "conv_encoder_blocks": (0, 0, 1),
        "conv_decoder_channels": (8, 8, 8), "conv_decoder_blocks": (1, 0, 0, 0),
    }  # fmt: skip
    return SemHiTokConfig(vision_config=vision, **(sizes | changes))
