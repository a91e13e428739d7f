"""SemHiTok at the paper's size (arXiv 2503.06764): over SigLIP-L/16, 196,608 ids, on any large set of pictures.

Untrained by us. Of the paper we know the 196,608 ids, SigLIP-L for 256 pixels, the kinds of its losses and codebooks,
and that both pixel networks are ViTs. All else is taken from its nearest relatives or chosen here:

    optimiser of all stages      ILLUME+'s and TokenFlow's: AdamW 1e-4, betas 0.9 and 0.95, weight decay 0.05, gradients
                                 clipped to 1; batch 256 as ILLUME+. BEiT v2's VQ-KD, which the semantic stage is built
                                 after, has betas 0.9 and 0.99, weight decay 1e-4, batch 512 and 100 epochs
    semantic codebook            BEiT v2's: 32 channels of unit length, moving means with decay 0.99, k-means at first
    commitment_weight            1.0 as BEiT v2, but times a sum over the channels of a vector where BEiT v2 has their
                                 mean: semantic_dim (32) times as much
    losses on pictures           ILLUME+'s and TokenFlow's but for L1 instead of L2: LPIPS 1.0, hinge PatchGAN 0.5 that
                                 begins after 20,000 steps (5,000 in the decoder's stage: ours)
    pixel codes                  8 channels and commitment 0.25 as TokenFlow
    K and m, epochs, warm-up,    ours; the paper's K and m are not known. 256 and 384 pixels differ in K and m too, so
    sizes of the networks        what lies between the two is not the resolution's alone

Steps are for ImageNet-1k, 5,004 steps an epoch. Hours are estimates from the count of multiplications at 40 % of an
A100's peak. `--dry-run` prints what a stage needs before it is started.
"""

from transformers import SiglipVisionConfig

from semhitok import SemHiTokConfig
from unimllm.training.config import TrainConfig
from unimllm.training.presets.recipes import TokenizerRecipe, joined


def siglip_large(image_size: int) -> SiglipVisionConfig:
    """Sizes of google/siglip-large-patch16-256 and -384."""
    return SiglipVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16, image_size=image_size,
        patch_size=16,
    )  # fmt: skip


def _train(max_steps: int) -> TrainConfig:
    return TrainConfig(
        max_steps=max_steps, batch_size=256, micro_batch_size=32, learning_rate=1e-4, warmup_steps=2000,
        weight_decay=0.05, beta1=0.9, beta2=0.95, gradient_checkpointing=True, num_workers=2, log_every=50,
        save_minutes=30, validate_every=2500, validation_rows=2048,
    )  # fmt: skip


def semhitok_256_semantic() -> TokenizerRecipe:
    """K = 16,384 semantic codes (our guess) over SigLIP-L/16-256, 20 epochs of ImageNet.

    deepspeed train/tokenizer.py --preset semhitok_256 --stage semantic --teacher SIGLIP --data /data/imagenet/train
    8 x A100-80GB: about 2 hours (estimate). Untrained; SigLIP: google/siglip-large-patch16-256.
    """
    return TokenizerRecipe(
        train=_train(100_000),
        model=SemHiTokConfig(siglip_large(256), num_semantic_codes=16_384, num_pixel_codes=12),
        world=None,
        quantize_after=1000,
    )


def semhitok_256_pixel() -> TokenizerRecipe:
    """m = 12 pixel codes under each semantic code, 40 epochs of ImageNet.

    deepspeed train/tokenizer.py --preset semhitok_256 --stage pixel --data /data/imagenet/train
    8 x A100-80GB: about 18 hours (estimate). Untrained; the paper reports an rFID of 1.16.
    """
    recipe = semhitok_256_semantic()
    recipe.train.max_steps = 200_000
    recipe.quantize_after = 2000
    recipe.l2_weight = recipe.edge_weight = 0.0
    recipe.perceptual_weight = 1.0
    recipe.adversarial_weight = 0.5
    recipe.adversarial_start = 20_000
    return recipe


def semhitok_256_joint() -> TokenizerRecipe:
    """Both kinds of codes at once, in as many steps as the semantic and the pixel stage together, to compare.

    deepspeed train/tokenizer.py --preset semhitok_256 --stage joint --teacher SIGLIP --data /data/imagenet/train
    Untrained.
    """
    return joined(semhitok_256_semantic(), semhitok_256_pixel())


def semhitok_256_decoder() -> TokenizerRecipe:
    """A wider decoder, trained anew on codes that stay, 20 epochs of ImageNet.

    After TokenFlow's enhanced decoder; the paper has an Enhance Decoder, of which we know no more than the name.

    deepspeed train/tokenizer.py --preset semhitok_256 --stage decoder --data /data/imagenet/train
    8 x A100-80GB: about 9 hours (estimate). Untrained.
    """
    recipe = semhitok_256_pixel()
    recipe.train.max_steps = 100_000
    recipe.quantize_after = 0
    recipe.adversarial_start = 5_000
    return _enhance(recipe)


def semhitok_384_semantic() -> TokenizerRecipe:
    """K = 24,576 semantic codes (unconfirmed) over SigLIP-L/16-384, 576 positions, 20 epochs of ImageNet.

    deepspeed train/tokenizer.py --preset semhitok_384 --stage semantic --teacher SIGLIP --data /data/imagenet/train
    8 x A100-80GB: about 5 hours (estimate). Untrained; SigLIP: google/siglip-large-patch16-384.
    """
    return _at_384(semhitok_256_semantic())


def semhitok_384_pixel() -> TokenizerRecipe:
    """m = 8 pixel codes under each semantic code, 40 epochs of ImageNet.

    deepspeed train/tokenizer.py --preset semhitok_384 --stage pixel --data /data/imagenet/train
    8 x A100-80GB: about 45 hours (estimate). Untrained; the paper reports an rFID of 0.66.
    """
    return _at_384(semhitok_256_pixel())


def semhitok_384_decoder() -> TokenizerRecipe:
    """A wider decoder, trained anew on codes that stay, 20 epochs of ImageNet.

    deepspeed train/tokenizer.py --preset semhitok_384 --stage decoder --data /data/imagenet/train
    8 x A100-80GB: about 22 hours (estimate). Untrained.
    """
    return _enhance(_at_384(semhitok_256_decoder()))


def _at_384(recipe: TokenizerRecipe) -> TokenizerRecipe:
    """The same recipe for 384 pixels, and the 196,608 ids split as notes on the paper say (m = 8), unconfirmed."""
    recipe.model = SemHiTokConfig(siglip_large(384), num_semantic_codes=24_576, num_pixel_codes=8)
    recipe.train.micro_batch_size = 16
    return recipe


def _enhance(recipe: TokenizerRecipe) -> TokenizerRecipe:
    """The same recipe with a decoder of 1.6 times the parameters."""
    recipe.model.decoder_hidden_size, recipe.model.decoder_heads = 1280, 20
    recipe.new_decoder = True
    return recipe
