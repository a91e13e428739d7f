"""Real photographs at 128 x 128 pixels: a small SemHiTok for one GPU and any folder of pictures.

No SigLIP is released for pictures so small. A released SigLIP-B/16-256 reads them at twice their size: `patch_size`
scales its patch embedding to 8 pixels, so its 16 x 16 positions remain.
"""

from transformers import SiglipVisionConfig

from semhitok import SemHiTokConfig
from unimllm.training.config import TrainConfig
from unimllm.training.presets.recipes import TokenizerRecipe, joined


def photos_128_semantic() -> TokenizerRecipe:
    """4,096 semantic codes over SigLIP-B, 256 positions.

    deepspeed train/tokenizer.py --preset photos_128 --stage semantic --teacher SIGLIP --data PICTURES
    One GPU: minutes (estimate). Untrained; SigLIP: google/siglip-base-patch16-256.
    """
    vision = SiglipVisionConfig(
        hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12, image_size=128,
        patch_size=8,
    )  # fmt: skip
    return TokenizerRecipe(
        train=TrainConfig(
            max_steps=3000, batch_size=64, learning_rate=5e-4, warmup_steps=300, num_workers=2, log_every=10,
            validate_every=500, validation_rows=512,
        ),
        model=SemHiTokConfig(
            vision, num_semantic_codes=4096, num_pixel_codes=16, semantic_dim=32, pixel_dim=16,
            semantic_hidden_size=384, semantic_layers=3, semantic_heads=6, pixel_backbone="conv",
            conv_encoder_channels=(64, 128, 256), conv_encoder_blocks=(1, 2, 2),
            decoder_hidden_size=384, conv_decoder_channels=(256, 128, 64), conv_decoder_blocks=(4, 2, 2, 1),
        ),
        world=None,
        patch_size=8,
        quantize_after=300,
    )  # fmt: skip


def photos_128_pixel() -> TokenizerRecipe:
    """16 pixel codes under each semantic code.

    deepspeed train/tokenizer.py --preset photos_128 --stage pixel --data PICTURES
    One GPU of A100's class: about 40 minutes (estimate). Untrained.
    """
    recipe = photos_128_semantic()
    recipe.train.max_steps = 20_000
    recipe.train.learning_rate = 1e-3
    recipe.quantize_after = 2000
    return recipe


def photos_128_joint() -> TokenizerRecipe:
    """Both kinds of codes at once, in as many steps as the semantic and the pixel stage together, to compare.

    deepspeed train/tokenizer.py --preset photos_128 --stage joint --teacher SIGLIP --data PICTURES
    Untrained.
    """
    return joined(photos_128_semantic(), photos_128_pixel())


def photos_128_decoder() -> TokenizerRecipe:
    """The decoder alone on codes that stay.

    deepspeed train/tokenizer.py --preset photos_128 --stage decoder --data PICTURES
    One GPU of A100's class: about 15 minutes (estimate). Untrained.
    """
    recipe = photos_128_pixel()
    recipe.train.max_steps = 6000
    recipe.quantize_after = 0
    recipe.perceptual_weight = 0.3
    return recipe
