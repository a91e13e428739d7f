"""Configuration of CHEERS (arXiv 2603.12793): a VAE, a SigLIP, a language model, and the head that draws.

Two sets of defaults meet here. A config without arguments has the sizes of the released model and the clean behaviour,
as our presets use it; `released_config` switches on every quirk that is a field here. The released training has more,
which docs/cheers.md lists.
"""

from math import gcd

from transformers import AutoConfig, PreTrainedConfig, Qwen2Config, SiglipVisionConfig
from transformers.image_utils import PILImageResampling

from semhitok.configuration_semhitok import without_places
from unimllm.cheers.hybrid_mask import MASKS, kinds_of_layers

HEADS = ("num_semantic_heads", "num_detail_heads", "num_flow_key_value_heads")
RELEASED_QUIRKS = {
    "repeat_detail_positions": True,
    "extra_euler_step": True,
    "flow_loss_on_read_pictures": True,
    "leading_picture_is_causal": True,
    "round_rotary_frequencies": True,
}
"""Fields of CheersConfig that the released model needs (its VAE needs `pixels_from_zero` besides)."""
WITHOUT_WEIGHTS = (*RELEASED_QUIRKS, "inject_details")
"""Switches of CheersConfig that any weights fit."""


def check_whole(config: PreTrainedConfig, lowest: dict[str, int], of: str = "") -> None:
    """ValueError where a field is no whole number, or below its lowest.

    Args:
        of: whose fields they are, in the message.
    """
    for name, least in lowest.items():
        value = getattr(config, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name}{of} is {value!r}; it must be a whole number of {least} or more")


class CheersVaeConfig(PreTrainedConfig):
    """Sizes of the autoencoder, FLUX.2's shape.

    Args:
        channels: of the convolutions at full resolution.
        channel_multipliers: of them at each resolution; every entry but the last halves the side.
        num_blocks: residual blocks at each resolution of the encoder; the decoder has one more.
        latent_channels: of the posterior mean, before latent pixels are patched together.
        latent_patch_size: side of the square of latent pixels that becomes one, its pixels as channels.
        num_groups: of the group norms; 0 leaves them out (small autoencoders learn faster without).
        image_size: pixels along the side of the pictures that it is trained on; inside a CheersConfig, of that model's.
        pixels_from_zero: the autoencoder reads and writes RGB in 0..1 (the released CHEERS) instead of -1..1 (FLUX.2);
            `pixel_values` are in -1..1 either way.
    """

    model_type = "cheers_vae"
    base_config_key = "vae_config"

    def __init__(
        self,
        channels: int = 128,
        channel_multipliers: tuple[int, ...] = (1, 2, 4, 4),
        num_blocks: int = 2,
        latent_channels: int = 32,
        latent_patch_size: int = 2,
        num_groups: int = 32,
        image_size: int = 512,
        pixels_from_zero: bool = False,
        **kwargs,
    ):
        self.channels = channels
        self.channel_multipliers = list(channel_multipliers)
        self.num_blocks = num_blocks
        self.latent_channels = latent_channels
        self.latent_patch_size = latent_patch_size
        self.num_groups = num_groups
        self.image_size = image_size
        self.pixels_from_zero = pixels_from_zero
        self.check_sizes()
        super().__init__(**kwargs)

    def check_sizes(self) -> None:
        """ValueError where a size is none, or they do not fit together; a network asks again, for they may change."""
        positive = dict.fromkeys(("channels", "num_blocks", "latent_channels", "latent_patch_size", "image_size"), 1)
        check_whole(self, positive | {"num_groups": 0})
        widths = [self.channels * multiplier for multiplier in self.channel_multipliers]
        if not widths or not all(isinstance(width, int) and width > 0 for width in widths):
            raise ValueError(f"channel_multipliers are {self.channel_multipliers}; give whole numbers of 1 or more")
        if self.num_groups and any(width % self.num_groups for width in widths):
            raise ValueError(
                f"channels {self.channels} times channel_multipliers {self.channel_multipliers} must be multiples of "
                f"num_groups ({self.num_groups})"
            )
        if self.image_size % self.stride:
            raise ValueError(
                f"image_size {self.image_size} must be a multiple of {self.stride}, a latent position's pixels"
            )

    @property
    def stride(self) -> int:
        """Pixels along the side of one latent position."""
        return 2 ** (len(self.channel_multipliers) - 1) * self.latent_patch_size

    @property
    def num_positions(self) -> int:
        """Latent positions of a picture of `image_size`."""
        return (self.image_size // self.stride) ** 2

    @property
    def patched_channels(self) -> int:
        """Channels of one latent position: what the flow head predicts."""
        return self.latent_channels * self.latent_patch_size**2

    @property
    def resample(self) -> int:
        """Pillow's number of the interpolation that resizes its pictures: bicubic."""
        return PILImageResampling.BICUBIC.value


class CheersConfig(PreTrainedConfig):
    """Sizes and behaviour of the whole model.

    The LayerNorm behind the gate and the gate without a sigmoid are the released code's, not the paper's; every
    released weight depends on them, so they are no options.

    Args:
        text_config: any config that AutoModelForCausalLM builds (or its dict with "model_type").
        vision_config: the SigLIP that reads decoded latents, of fixed resolution; it fixes the size of pictures. Its
            patches are as large as one latent position.
        vae_config: the autoencoder.
        compression: side of the square of SigLIP's patches that becomes one position of the language model (1: none).
        num_semantic_layers: DiT blocks of the first stage, as wide as the language model.
        num_detail_layers: DiT blocks of the second stage, as wide as SigLIP.
        num_semantic_heads, num_detail_heads: attention heads of each stage (None, until a model is built: those of the
            language model, of SigLIP).
        num_flow_key_value_heads: key/value heads of both (None, until a model is built: as many of the language model's
            as heads of both stages can share evenly, 2 in the released model).
        time_channels: sines and cosines of t, an even number.
        decode_before_siglip: False gives SigLIP the latents as they are, through a linear map in the place of its patch
            embedding, instead of D(.)'s pictures (the paper's ablation, Table 6; how its latents enter is not said).
        linear_details: the high frequencies come from a linear patch embedding of their own, not SigLIP's. For a SigLIP
            that begins with convolutions and norms instead (`semhitok.vision.add_stem`): those keep next to nothing
            of the noise that a velocity has to take away (docs/experiments.md).
        inject_details: False leaves the gated high frequencies out (the paper's ablation, Table 5).
        repeat_detail_positions: quirk: positions of the second stage are 0..L/2-1 twice, not 0..L-1.
        extra_euler_step: quirk: see `flow_matching.euler_schedule`.
        flow_loss_on_read_pictures: quirk: pictures that are only read have a flow loss too, with velocity 0 as target.
        leading_picture_is_causal: quirk: a picture at the very start of a row is read causally. In released training
            rows of text alone have a stand-in there, black at t = 0, which ours places nowhere; in drawing see
            `CheersProcessor`.
        round_rotary_frequencies: quirk: with weights in bfloat16, the rotary frequencies of the language model and of
            both stages are bfloat16 numbers too, in float32 as exact as ever. The released code trains and draws after
            `model.to(torch.bfloat16)`, which rounds these buffers: angles differ by up to 0.9 in its prompts.
        image_start_token_id, image_end_token_id: around every picture.
        image_token_id: the placeholder of a picture to read, once for each of its positions.
        image_gen_token_id: the placeholder of a picture to draw.
        no_text_token_id: `<no_mean>`, in the place of every text token of the unconditional prompt.
    """

    model_type = "cheers"
    sub_configs = {"text_config": AutoConfig, "vision_config": SiglipVisionConfig, "vae_config": CheersVaeConfig}

    def __init__(
        self,
        text_config: PreTrainedConfig | dict | None = None,
        vision_config: SiglipVisionConfig | dict | None = None,
        vae_config: CheersVaeConfig | dict | None = None,
        compression: int = 2,
        num_semantic_layers: int = 7,
        num_detail_layers: int = 3,
        num_semantic_heads: int | None = None,
        num_detail_heads: int | None = None,
        num_flow_key_value_heads: int | None = None,
        time_channels: int = 256,
        decode_before_siglip: bool = True,
        linear_details: bool = False,
        inject_details: bool = True,
        repeat_detail_positions: bool = False,
        extra_euler_step: bool = False,
        flow_loss_on_read_pictures: bool = False,
        leading_picture_is_causal: bool = False,
        round_rotary_frequencies: bool = False,
        image_start_token_id: int = 151667,
        image_end_token_id: int = 151668,
        image_token_id: int = 151665,
        image_gen_token_id: int = 151666,
        no_text_token_id: int = 151669,
        **kwargs,
    ):
        text_config = qwen_1_5b() if text_config is None else text_config
        if isinstance(text_config, dict):
            text_config = AutoConfig.for_model(**text_config)
        vision_config = so400m() if vision_config is None else vision_config
        if isinstance(vision_config, dict):
            vision_config = SiglipVisionConfig(**vision_config)
        if not isinstance(vae_config, CheersVaeConfig):
            vae_config = CheersVaeConfig(**(vae_config or {}))
        self.text_config, self.vision_config, self.vae_config = text_config, vision_config, vae_config
        vae_config.image_size = vision_config.image_size
        self.compression = compression
        self.num_semantic_layers, self.num_detail_layers = num_semantic_layers, num_detail_layers
        self.num_semantic_heads, self.num_detail_heads = num_semantic_heads, num_detail_heads
        self.num_flow_key_value_heads = num_flow_key_value_heads
        self.time_channels = time_channels
        self.decode_before_siglip = decode_before_siglip
        self.linear_details = linear_details
        self.inject_details = inject_details
        self.repeat_detail_positions = repeat_detail_positions
        self.extra_euler_step = extra_euler_step
        self.flow_loss_on_read_pictures = flow_loss_on_read_pictures
        self.leading_picture_is_causal = leading_picture_is_causal
        self.round_rotary_frequencies = round_rotary_frequencies
        self.image_start_token_id, self.image_end_token_id = image_start_token_id, image_end_token_id
        self.image_token_id, self.image_gen_token_id = image_token_id, image_gen_token_id
        self.no_text_token_id = no_text_token_id
        self.check_sizes()
        kwargs.setdefault("tie_word_embeddings", text_config.tie_word_embeddings)
        super().__init__(**kwargs)

    def take_parts(
        self, text_config: PreTrainedConfig, vision_config: SiglipVisionConfig, vae_config: CheersVaeConfig
    ) -> None:
        """Become the config over other parts; numbers of heads that were not chosen will follow these.

        Raises:
            ValueError: they do not fit together.
        """
        self.text_config, self.vision_config, self.vae_config = text_config, vision_config, vae_config
        self.tie_word_embeddings = text_config.tie_word_embeddings
        self.check_sizes()

    def to_dict(self) -> dict:
        """As transformers', but for where its parts were loaded from: places on one machine."""
        return without_places(super().to_dict())

    @property
    def flow_heads(self) -> tuple[int, int, int]:
        """Heads of the semantic and of the detail stage, and key/value heads of both, chosen or by the parts."""
        text, vision = self.text_config, self.vision_config
        semantic = text.num_attention_heads if self.num_semantic_heads is None else self.num_semantic_heads
        detail = vision.num_attention_heads if self.num_detail_heads is None else self.num_detail_heads
        shared = self.num_flow_key_value_heads
        if shared is None:
            shared = gcd(semantic, detail, getattr(text, "num_key_value_heads", None) or text.num_attention_heads)
        return semantic, detail, shared

    def settle(self) -> None:
        """Once a model is built over these parts: the numbers of heads stay as they are; see `check_sizes`."""
        self.check_sizes()
        self.num_semantic_heads, self.num_detail_heads, self.num_flow_key_value_heads = self.flow_heads

    def check_sizes(self) -> None:
        """ValueError where a size is none, or the parts do not fit together."""
        lowest = dict.fromkeys(HEADS, 1) | {
            "compression": 1, "num_semantic_layers": 0, "num_detail_layers": 0, "time_channels": 2,
        }  # fmt: skip
        given = {name: least for name, least in lowest.items() if name not in HEADS or getattr(self, name) is not None}
        check_whole(self, given)
        check_whole(self.vision_config, {"image_size": 1, "patch_size": 1}, " of vision_config")
        if self.time_channels % 2:
            raise ValueError(f"time_channels is {self.time_channels}; it must be even, for sines and cosines")
        patch = self.vision_config.patch_size
        if patch != self.vae_config.stride:
            raise ValueError(
                f"patch_size of vision_config is {patch}, but a latent position covers {self.vae_config.stride} pixels"
            )
        if self.image_size % (patch * self.compression):
            raise ValueError(
                f"image_size {self.image_size} must be a multiple of patch_size * compression "
                f"({patch} * {self.compression})"
            )
        if other := [kind for kind in kinds_of_layers(self.text_config) if kind not in MASKS]:
            raise ValueError(
                f"text_config ({self.text_config.model_type}) has layers of {', '.join(other)}, in which a picture "
                f"cannot see all of itself; take a language model whose layers are {' or '.join(MASKS)}"
            )
        *both, shared = self.flow_heads
        widths = (self.text_config.hidden_size, self.vision_config.hidden_size)
        for name, heads, width in zip(HEADS, both, widths, strict=False):
            if width % (2 * heads):
                raise ValueError(f"{name} is {heads}; each head needs an even share of {width} channels")
            if heads % shared:
                raise ValueError(f"num_flow_key_value_heads is {shared}, but {name} ({heads}) must be a multiple of it")

    @property
    def image_size(self) -> int:
        """Pixels along the side of a picture."""
        return self.vision_config.image_size

    @property
    def latent_size(self) -> int:
        """Latent positions along the side of a picture; SigLIP has as many patches."""
        return self.image_size // self.vae_config.stride

    @property
    def grid_size(self) -> int:
        """Positions of the language model along the side of a picture."""
        return self.latent_size // self.compression

    @property
    def num_positions(self) -> int:
        """N, positions of the language model for one picture."""
        return self.grid_size**2

    @property
    def picture_token_ids(self) -> list[int]:
        """Around and in the place of pictures and of missing text: what no answer in words holds."""
        return [
            self.image_start_token_id, self.image_end_token_id, self.image_token_id, self.image_gen_token_id,
            self.no_text_token_id,
        ]  # fmt: skip


def qwen_1_5b() -> Qwen2Config:
    """Qwen2.5-1.5B-Instruct."""
    return Qwen2Config(
        vocab_size=151936, hidden_size=1536, intermediate_size=8960, num_hidden_layers=28, num_attention_heads=12,
        num_key_value_heads=2, max_position_embeddings=32768, rms_norm_eps=1e-6, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}, bos_token_id=151643, eos_token_id=151645,
    )  # fmt: skip


def so400m() -> SiglipVisionConfig:
    """google/siglip2-so400m-patch16-512."""
    return SiglipVisionConfig(
        hidden_size=1152, intermediate_size=4304, num_hidden_layers=27, num_attention_heads=16, image_size=512,
        patch_size=16, hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6,
    )  # fmt: skip


def released_config(**changes) -> CheersConfig:
    """The released CHEERS: its sizes, and RELEASED_QUIRKS. Its training differs in more (docs/cheers.md)."""
    return CheersConfig(**({"vae_config": CheersVaeConfig(pixels_from_zero=True)} | RELEASED_QUIRKS | changes))


def tiny_config(**changes) -> CheersConfig:
    """A model of a few ten thousand parameters for tests: 16 x 16 pixels, 4 x 4 latent positions, 4 in the text."""
    text = Qwen2Config(
        vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, tie_word_embeddings=True, pad_token_id=0, eos_token_id=1,
        bos_token_id=None,
    )  # fmt: skip
    vision = SiglipVisionConfig(
        hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=4,
        vision_use_head=False,
    )  # fmt: skip
    vae = CheersVaeConfig(channels=8, channel_multipliers=(1, 2), num_blocks=1, latent_channels=4, num_groups=4)
    sizes = {
        "num_semantic_layers": 2, "num_detail_layers": 1, "time_channels": 16, "image_start_token_id": 4,
        "image_end_token_id": 5, "image_token_id": 6, "image_gen_token_id": 7, "no_text_token_id": 8,
        "pad_token_id": 0, "eos_token_id": 1,
    }  # fmt: skip
    return CheersConfig(**({"text_config": text, "vision_config": vision, "vae_config": vae} | sizes | changes))
