"""Presets of the emoji scenes, from nothing.

scenes_64     64 x 64 pixels, 64 positions: two CPU cores train each in minutes to hours
scenes_128    128 x 128 pixels, 256 positions, the same world and codes, wider networks, for one GPU; untrained by us.
              Memory is what `--dry-run 1` says, an estimate.
"""

from typing import TypeVar

from transformers import Qwen2Config, SiglipConfig

from semhitok import SemHiTokConfig
from unimllm.discrete.configuration_unimllm import UniMLLMConfig
from unimllm.training.config import TrainConfig
from unimllm.training.presets.recipes import SftRecipe, TeacherRecipe, TokenizerRecipe

CPU_ATTENTION = "eager"
"""The backward of SDPA takes half of a step on a CPU at these lengths."""

VALIDATION = {"validate_every": 500, "validation_rows": 256}
"""Of an image tokenizer: on so many pictures of the validation split."""

Recipe = TypeVar("Recipe", TeacherRecipe, TokenizerRecipe, SftRecipe)


def siglip(image_size: int, width: int, num_layers: int, stem_channels: list[int], **options) -> SiglipConfig:
    """A SigLIP with patches of 8 pixels, heads of 32 channels, and two layers for captions."""
    widths = {"hidden_size": width, "intermediate_size": 3 * width, "num_attention_heads": width // 32}
    vision = widths | {
        "num_hidden_layers": num_layers, "image_size": image_size, "patch_size": 8, "stem_channels": stem_channels,
    }  # fmt: skip
    text = widths | {
        "num_hidden_layers": 2, "vocab_size": 1024, "max_position_embeddings": 32, "projection_size": width,
        "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1,
    }  # fmt: skip
    return SiglipConfig(text_config=text, vision_config=vision, **options)


def qwen2(width: int, num_layers: int, context: int) -> Qwen2Config:
    """A Qwen2 with heads of 64 channels; its vocabulary comes with the text tokenizer."""
    heads = width // 64
    return Qwen2Config(
        hidden_size=width, intermediate_size=11 * width // 4, num_hidden_layers=num_layers, num_attention_heads=heads,
        num_key_value_heads=heads, max_position_embeddings=context, tie_word_embeddings=True, bos_token_id=None,
        pad_token_id=0, eos_token_id=1,
    )  # fmt: skip


def scenes_64_teacher() -> TeacherRecipe:
    """`deepspeed train/teacher.py --preset scenes_64`: a 64-pixel SigLIP, patch 8."""
    return TeacherRecipe(
        train=TrainConfig(max_steps=1400, batch_size=64, learning_rate=1.5e-3, warmup_steps=100),
        model=siglip(64, 160, 4, [32, 64, 128], attn_implementation=CPU_ATTENTION),
    )


def scenes_64_semhitok() -> SemHiTokConfig:
    """Sizes of the tokenizer over that teacher."""
    return SemHiTokConfig(
        scenes_64_teacher().model.vision_config,
        num_semantic_codes=256, num_pixel_codes=256, semantic_dim=16, pixel_dim=16,
        semantic_hidden_size=128, semantic_layers=2, semantic_heads=4,
        pixel_backbone="conv", decoder_hidden_size=160,
    )  # fmt: skip


def scenes_64_semantic() -> TokenizerRecipe:
    """`deepspeed train/tokenizer.py --preset scenes_64 --stage semantic`: 256 semantic codes over the teacher."""
    return TokenizerRecipe(
        train=TrainConfig(max_steps=500, batch_size=64, learning_rate=2e-3, warmup_steps=30, **VALIDATION),
        model=scenes_64_semhitok(),
        quantize_after=80,
    )


def scenes_64_pixel() -> TokenizerRecipe:
    """`deepspeed train/tokenizer.py --preset scenes_64 --stage pixel`: 256 pixel codes under each of them."""
    return TokenizerRecipe(
        train=TrainConfig(max_steps=8000, batch_size=32, learning_rate=2e-3, warmup_steps=50, **VALIDATION),
        model=scenes_64_semhitok(),
        quantize_after=3000,
        other_share=0.3,
        confused_share=0.2,
    )


def scenes_64_decoder() -> TokenizerRecipe:
    """`deepspeed train/tokenizer.py --preset scenes_64 --stage decoder`: the decoder alone, on codes that stay."""
    recipe = scenes_64_pixel()
    recipe.train.max_steps = 2000
    recipe.train.learning_rate = 1.5e-3
    recipe.perceptual_weight = 0.3
    recipe.edge_weight = 2.0
    return recipe


def scenes_64_sft() -> SftRecipe:
    """`deepspeed train/sft.py --preset scenes_64`: a 5 M Qwen2 on captions, questions and drawing."""
    return SftRecipe(
        train=TrainConfig(
            max_steps=4200, batch_size=48, learning_rate=1.5e-3, warmup_steps=200, compile=True, validate_every=500
        ),
        model=UniMLLMConfig(
            qwen2(256, 6, 512), scenes_64_semhitok(), image_head="factorised", attn_implementation=CPU_ATTENTION
        ),
    )


def scenes_64_pretrain() -> SftRecipe:
    """`deepspeed train/pretrain.py --preset scenes_64 --language-model MODEL`: a quick first stage."""
    recipe = scenes_64_sft()
    recipe.train.max_steps, recipe.train.weight_decay, recipe.train.compile = 500, 0.0, False
    return recipe


def at_128(recipe: Recipe) -> Recipe:
    """The same recipe on scenes of 128 x 128 pixels and a GPU: as many steps, of four times the samples."""
    recipe.world.image_size = 128
    recipe.train.batch_size *= 4
    recipe.train.num_workers, recipe.train.log_every = 4, 10
    return recipe


def scenes_128_teacher() -> TeacherRecipe:
    """`deepspeed train/teacher.py --preset scenes_128`: a 128-pixel SigLIP, patch 8; 7.5 M parameters. Untrained."""
    recipe = at_128(scenes_64_teacher())
    recipe.model = siglip(128, 256, 6, [64, 128, 256])
    return recipe


def scenes_128_semhitok() -> SemHiTokConfig:
    """Sizes of the tokenizer over that teacher."""
    config = scenes_64_semhitok()
    config.vision_config = scenes_128_teacher().model.vision_config
    config.semantic_hidden_size, config.semantic_layers, config.semantic_heads = 192, 3, 6
    config.conv_encoder_channels, config.conv_decoder_channels = [48, 96, 192], [192, 72, 36]
    config.decoder_hidden_size = 256
    return config


def scenes_128_semantic() -> TokenizerRecipe:
    """`deepspeed train/tokenizer.py --preset scenes_128 --stage semantic`. Untrained; 3.1 GiB."""
    recipe = at_128(scenes_64_semantic())
    recipe.model = scenes_128_semhitok()
    return recipe


def scenes_128_pixel() -> TokenizerRecipe:
    """`deepspeed train/tokenizer.py --preset scenes_128 --stage pixel`. Untrained; 2.4 GiB."""
    recipe = at_128(scenes_64_pixel())
    recipe.model = scenes_128_semhitok()
    return recipe


def scenes_128_decoder() -> TokenizerRecipe:
    """`deepspeed train/tokenizer.py --preset scenes_128 --stage decoder`. Untrained; 3.6 GiB."""
    recipe = at_128(scenes_64_decoder())
    recipe.model = scenes_128_semhitok()
    return recipe


def scenes_128_sft() -> SftRecipe:
    """`deepspeed train/sft.py --preset scenes_128`: a 26 M Qwen2. Untrained; 4.7 GiB.

    A row holds as many pictures as one of `scenes_64`, 1.45 on average. Text weighs four times as much as there, for
    beside it a picture has four times as many targets.
    """
    recipe = at_128(scenes_64_sft())
    recipe.model = UniMLLMConfig(qwen2(512, 8, 2048), scenes_128_semhitok(), image_head="factorised")
    recipe.train.learning_rate, recipe.train.micro_batch_size = 1e-3, 24
    recipe.num_scenes *= 4
    recipe.max_length, recipe.text_weight = 552, 4 * recipe.text_weight
    return recipe
