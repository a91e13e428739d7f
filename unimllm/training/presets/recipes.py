"""Recipes: everything that one training program needs to know, in one object."""

import math
from dataclasses import dataclass, field, replace
from typing import Any

from transformers import SiglipConfig

from semhitok import SemHiTokConfig
from unimllm.cheers.configuration_cheers import CheersConfig, CheersVaeConfig
from unimllm.discrete.configuration_unimllm import UniMLLMConfig
from unimllm.discrete.lora import TARGETS
from unimllm.scenes.sources import WorldConfig
from unimllm.training.config import TrainConfig


@dataclass
class TeacherRecipe:
    """What `train/teacher.py` trains."""

    train: TrainConfig
    model: SiglipConfig
    world: WorldConfig = field(default_factory=WorldConfig)
    caption_weight: float = 0.25
    """Weight of the picture-caption loss beside the patch loss's 1."""

    def validate(self) -> None:
        """Raise ValueError, which names the option, for a value that cannot be."""
        check_from(0, self, "caption_weight")


@dataclass
class TokenizerRecipe:
    """What one stage of `train/tokenizer.py` trains."""

    train: TrainConfig
    model: SemHiTokConfig | CheersVaeConfig
    world: WorldConfig | None = field(default_factory=WorldConfig)
    """None: pictures that `--data` names."""
    first_step: int | None = None
    """Steps of `train.batch_size` samples passed over in the one order that all stages with such a number read, so that
    tokenizers can be trained on the same samples in the same order; None: an order of the stage's own."""
    other_share: float = 0.0
    """Share of the scenes that show objects outside `world.classes`: in tints that those are never trained in."""
    decode_threads: int = 8
    """Threads of each data worker (or of the process itself) that read and decode pictures of --data."""
    flip: float = 0.5
    """Share of the pictures of --data that are mirrored, 0..1."""
    random_crop: bool = False
    """Cut pictures of --data to a square of 0.8 to all of their shorter side, anywhere, as ADM does (arXiv 2105.05233);
    else to their centre square."""
    patch_size: int = 0
    """Pixels of a patch at which SigLIP is made to read, by scaling its patch embedding; 0: its own."""
    quantize_after: int = 0
    """Steps with continuous vectors before the stage's codebook starts at their k-means; codes that a run starts with
    go on."""
    confused_share: float = 0.0
    """Pixel and decoder stage: share of the pictures whose semantic codes are exchanged for near ones."""
    foreign_share: float = 0.0
    """Pixel stage: share of the positions that are quantised under a random semantic code instead of their own."""
    new_decoder: bool = False
    """Decoder stage: begin with an untrained decoder of `model`'s sizes where the one before has others."""
    cosine_weight: float = 1.0
    """Semantic and joint stage: weight of 1 - cosine to SigLIP's features."""
    feature_l1_weight: float = 1.0
    """Semantic and joint stage: weight of the L1 to SigLIP's features."""
    kl_weight: float = 0.0
    """VAE stage: weight of the posterior's divergence from the standard normal, in nats a latent value."""
    l1_weight: float = 1.0
    """Weight of the absolute error of pictures."""
    l2_weight: float = 2.0
    """Weight of the squared error."""
    edge_weight: float = 1.0
    """Weight of the L1 between pixel differences."""
    coarse_weight: float = 0.0
    """Weight of the L1 between averages over 2, 4 and 8 pixels: a wrong colour weighs, a shifted outline does not."""
    perceptual_weight: float = 0.0
    """Weight of LPIPS, or without `lpips_weights` of the distance in SigLIP's hidden states."""
    lpips_weights: str = ""
    """Path of torchvision's vgg16-397923af.pth or alexnet-owt-7be5be79.pth."""
    adversarial_weight: float = 0.0
    """Weight of PatchGAN's generator loss; 0 trains without a discriminator. ZeRO 0 to 2."""
    adversarial_start: int = 0
    """Steps before the discriminator begins to learn and to be listened to."""
    adaptive_adversarial: bool = False
    """Scale PatchGAN's weight by VQGAN's ratio of gradients."""
    discriminator_channels: int = 64
    """Channels of the discriminator's first layer, a multiple of 8."""
    discriminator_halvings: int = 3
    """Of the resolution in the discriminator: at 3, pix2pix's, a score sees 70 x 70 pixels; at 2, 34 x 34."""

    def validate(self) -> None:
        """Raise ValueError, which names the option, for a value that cannot be."""
        check_shares(self, "other_share", "confused_share", "foreign_share", "flip")
        check_from(0, self, *(name for name in vars(self) if name.endswith("_weight")))
        check_from(0, self, "patch_size", "quantize_after", "adversarial_start", "discriminator_halvings")
        check_from(1, self, "decode_threads", "discriminator_channels")
        if self.first_step is not None:
            check_from(0, self, "first_step")


def joined(semantic: TokenizerRecipe, pixel: TokenizerRecipe) -> TokenizerRecipe:
    """The recipe of a joint stage: the pixel stage's, over as many steps as both stages have."""
    steps = semantic.train.max_steps + pixel.train.max_steps
    quantize_after = semantic.quantize_after + pixel.quantize_after
    return replace(pixel, train=replace(pixel.train, max_steps=steps), quantize_after=quantize_after)


@dataclass
class SftRecipe:
    """What `train/pretrain.py` or `train/sft.py` trains."""

    train: TrainConfig
    model: UniMLLMConfig | CheersConfig
    world: WorldConfig | None = field(default_factory=WorldConfig)
    """None: samples that `--data` names."""
    language_model: str = ""
    """Folder or hub id of the causal language model that a run without --init-from starts from; empty: a new one."""
    chat_template: str = ""
    """Of that model, instead of its tokenizer's own: a name of `chat_templates.CHAT_TEMPLATES`."""
    training_template: str = ""
    """Renders what is trained on instead of the model's chat template, which its checkpoints keep: a name of
    `chat_templates.TRAINING_TEMPLATES`; for --data."""
    attention: str = ""
    """Of the language model, by transformers' name: sdpa, eager, flex_attention (CHEERS, on a GPU), varlen (torch's
    flash attention, `discrete.varlen`) or flash_attention_2 (needs flash-attn and a GPU; for --data, whose rows have no
    branches); empty: the model's own."""
    lora_rank: int = 0
    """Rank of LoRA on the language model, whose own weights then stay; 0: they are trained."""
    lora_alpha: float = 0.0
    """LoRA's product is scaled by alpha / rank; 0: by 2."""
    lora_dropout: float = 0.0
    """Of what goes into LoRA's first matrix."""
    lora_targets: tuple[str, ...] = TARGETS
    """Linear layers that LoRA adapts, by the last part of their names."""
    quantize_base: bool = False
    """Hold the linear layers that LoRA goes over in 4 bits (QLoRA; `discrete.four_bits`); ZeRO 0 to 2."""
    pad_to_square: bool = False
    """Fill pictures of --data to a square instead of cutting their middle out; a checkpoint that does so goes on so."""
    num_scenes: int = 80_000
    """Scenes whose pictures are trained on."""
    max_length: int = 168
    """Ids of a packed row."""
    drawing_share: float = 0.55
    """Share of the conversations that draw; the others answer questions."""
    text_drop: float = 0.1
    """Share of the drawing prompts that are left out, for classifier-free guidance."""
    sequential_share: float = 0.2
    """Share of the pictures asked about in one conversation of several turns; the others in branches (data/packing)."""
    shown_prompts: tuple[str, ...] = (
        "a photo of a red apple", "a photo of two dogs", "a photo of a cat and a car", "a photo of three clocks",
        "a photo of a blue bus", "a photo of a bird above a boat", "a photo of a yellow cake and a green chair",
        "a photo of a horse",
    )  # fmt: skip
    """What TensorBoard shows a drawing of every `train.picture_every` steps."""
    text_weight: float = 2.0
    """Weight of a text target beside an image target's 1 (its parts: semantic 1, pixel 1); of CHEERS, whose text and
    pictures are counted apart, that of the mean over text beside the mean over pictures."""
    alignment_weight: float = 0.0
    """CHEERS: weight of `cheers.alignment` beside the flow's 1, with the SigLIP that the run starts with."""
    time_shift: float = 1.0
    """CHEERS: the times of pictures to draw are uniform, then shifted so; below 1: more of them near the noise."""

    def validate(self) -> None:
        """Raise ValueError, which names the option, for a value that cannot be."""
        check_shares(self, "drawing_share", "text_drop", "sequential_share", "lora_dropout")
        check_from(0, self, "text_weight", "alignment_weight", "lora_rank", "lora_alpha")
        check_from(1, self, "num_scenes", "max_length")
        if not 0 < self.time_shift < math.inf:
            raise ValueError(f"--time_shift {self.time_shift}: it must be above 0 (1: uniform times)")


def check_shares(recipe: Any, *names: str) -> None:
    """ValueError for the first of these fields that is no share."""
    for name in names:
        if not 0 <= getattr(recipe, name) <= 1:
            raise ValueError(f"--{name} {getattr(recipe, name)}: a share is from 0 to 1")


def check_from(low: int, recipe: Any, *names: str) -> None:
    """ValueError for the first of these fields that is below `low`, infinite or none."""
    for name in names:
        if not low <= getattr(recipe, name) < math.inf:
            raise ValueError(f"--{name} {getattr(recipe, name)}: it must be {low} or more")
