"""Presets of CHEERS's autoencoder, for `train/tokenizer.py --stage vae`."""

from unimllm.cheers.configuration_cheers import CheersVaeConfig
from unimllm.training.config import TrainConfig
from unimllm.training.presets.recipes import TokenizerRecipe
from unimllm.training.presets.scenes import VALIDATION, at_128


def scenes_64_cheers_vae() -> TokenizerRecipe:
    """1.5 M parameters: 64 x 64 pixels to 8 x 8 latent positions of 32 channels, a sixth of the numbers as in FLUX.2.

    deepspeed train/tokenizer.py --preset scenes_64_cheers --stage vae
    33 minutes on two cores with AMX, half of them before the decoder became as fast as it is; 33.96 dB on 1,000 test
    scenes, every object read as from true renders (`eval/scenes.py --tokenizer-only`, 04f0946, seed 0).
    """
    return TokenizerRecipe(
        train=TrainConfig(max_steps=3500, batch_size=32, learning_rate=2e-3, warmup_steps=50, **VALIDATION),
        model=CheersVaeConfig(
            channels=24, channel_multipliers=(1, 2, 4), num_blocks=1, latent_channels=8, num_groups=0, image_size=64
        ),
        other_share=0.3,
        kl_weight=1e-4,
        perceptual_weight=0.3,
    )


def scenes_128_cheers_vae() -> TokenizerRecipe:
    """6.1 M parameters: 128 x 128 pixels to 16 x 16 latent positions of 32 channels.

    deepspeed train/tokenizer.py --preset scenes_128_cheers --stage vae
    One GPU, 8.5 GiB (estimate of `--dry-run 1`). Untrained by us.
    """
    recipe = at_128(scenes_64_cheers_vae())
    recipe.model.channels, recipe.model.image_size = 48, 128
    return recipe
