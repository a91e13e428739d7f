"""Presets of the emoji scenes: two CPU cores train each in minutes to hours, from nothing."""

from transformers import Qwen2Config, SiglipConfig

from semhitok import SemHiTokConfig
from unimllm.discrete.configuration_unimllm import UniMLLMConfig
from unimllm.training.config import TrainConfig
from unimllm.training.presets.recipes import SftRecipe, TeacherRecipe, TokenizerRecipe

CPU_ATTENTION = "eager"
"""The backward of SDPA takes half of a step on a CPU at these lengths."""


def scenes_64_teacher() -> TeacherRecipe:
    """`deepspeed train/teacher.py --preset scenes_64`: a 64-pixel SigLIP, patch 8."""
    width = {"hidden_size": 160, "intermediate_size": 480, "num_attention_heads": 5}
    vision = width | {"num_hidden_layers": 4, "image_size": 64, "patch_size": 8, "stem_channels": [32, 64, 128]}
    text = width | {
        "num_hidden_layers": 2, "vocab_size": 1024, "max_position_embeddings": 32, "projection_size": 160,
        "pad_token_id": 0, "bos_token_id": None, "eos_token_id": 1,
    }  # fmt: skip
    return TeacherRecipe(
        train=TrainConfig(max_steps=1400, batch_size=64, learning_rate=1.5e-3, warmup_steps=100),
        model=SiglipConfig(text_config=text, vision_config=vision, attn_implementation=CPU_ATTENTION),
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
        train=TrainConfig(max_steps=500, batch_size=64, learning_rate=2e-3, warmup_steps=30),
        model=scenes_64_semhitok(),
        quantize_after=80,
    )


def scenes_64_pixel() -> TokenizerRecipe:
    """`deepspeed train/tokenizer.py --preset scenes_64 --stage pixel`: 256 pixel codes under each of them."""
    return TokenizerRecipe(
        train=TrainConfig(max_steps=8000, batch_size=32, learning_rate=2e-3, warmup_steps=50),
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
    text = Qwen2Config(
        hidden_size=256, intermediate_size=704, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=4,
        max_position_embeddings=512, tie_word_embeddings=True, bos_token_id=None, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return SftRecipe(
        train=TrainConfig(
            max_steps=4200, batch_size=48, learning_rate=1.5e-3, warmup_steps=200, compile=True, validate_every=500
        ),
        model=UniMLLMConfig(text, scenes_64_semhitok(), image_head="factorised", attn_implementation=CPU_ATTENTION),
    )


def scenes_64_pretrain() -> SftRecipe:
    """`deepspeed train/pretrain.py --preset scenes_64 --language-model MODEL`: a quick first stage."""
    recipe = scenes_64_sft()
    recipe.train.max_steps, recipe.train.weight_decay, recipe.train.compile = 500, 0.0, False
    return recipe
