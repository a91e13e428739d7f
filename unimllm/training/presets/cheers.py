"""CHEERS: beside SemHiTok on the emoji scenes, and the four stages of the paper (arXiv 2603.12793, Table 1).

    stage            trained                                  learning rate    samples a step    steps     our program
    I   align        compressor, flow head and its gate       1e-4             512               30,000    pretrain.py
    II  general      all but the autoencoder                  1e-4             512               60,000    sft.py
    III refined      all but the autoencoder                  4e-5             512               65,000    sft.py
    IV  sft          all but the autoencoder                  2e-5, cosine     128               30,000    sft.py

Constant rates but for IV; AdamW, warm-up over 0.02 of the steps, gradients clipped to 1, 512 x 512 pixels, 128 A100;
from the released code: betas 0.9 and 0.95, no weight decay, 20 % of the drawing prompts left out, loss = text + flow.
Samples of understanding, drawing and text: II and III 3:6:1, IV 1:1:0 (--ratios 3:6:1). Data: I 4.5 M captions, and
1.3 M pictures of ImageNet recaptioned, ten times; II 30 M, III 33 M, IV 3.8 M samples; most of it is not published.

Not published: hours; the lengths to which samples are packed or padded in III and IV; how many texts IV has; the
autoencoder's training (FLUX.2's is taken as it is); whether "all but VAE" spares the decoder before SigLIP, which the
released code trains from II on, as here. That code also trains all token embeddings in I; here the rows of the image
tokens are trained. Its labels besides answers are line breaks and marks of turns and pictures in questions, too, and
prompts that are left out keep theirs; here answers alone are targets. Untrained by us.

deepspeed train/pretrain.py --preset cheers_1_5b_align --image-tokenizer AUTOENCODER \\
    --teacher google/siglip2-so400m-patch16-512 --data captions.jsonl
deepspeed train/sft.py --preset cheers_1_5b_general --init-from runs/cheers_1_5b_align/pretrain --ratios 3:6:1 \\
    --data captions.jsonl drawings.jsonl texts.json

AUTOENCODER: a checkpoint that holds one; the released model's, once `python -m unimllm.convert` has made it ours.
"""

from unimllm.cheers.configuration_cheers import CheersConfig, CheersVaeConfig
from unimllm.training.config import TrainConfig
from unimllm.training.presets.recipes import SftRecipe
from unimllm.training.presets.scenes import CPU_ATTENTION, scenes_64_sft, scenes_128_sft
from unimllm.training.presets.vae import scenes_64_cheers_vae, scenes_128_cheers_vae

ROWS, MAX_LENGTH = 128, 1408  # four samples of a picture and about 90 ids of text share a row: 512 a step
SFT_ROWS, SFT_MAX_LENGTH = 32, 2048  # four samples of about 500 ids: 128 a step


def scenes_64_cheers() -> SftRecipe:
    """CHEERS beside `scenes_64`: the same teacher, language model and scenes, 16 positions a picture for 64.

    deepspeed train/sft.py --preset scenes_64_cheers

    Eight conversations of ten draw. A step takes about 4 CPU-s with AMX where that of `scenes_64` takes 1.9: three
    hours on two cores. The model that ships was trained in another order (unimllm/default/cheers/README.md).
    """
    recipe = _over_scenes(scenes_64_sft(), scenes_64_cheers_vae().model, attn_implementation=CPU_ATTENTION)
    recipe.max_length = 80
    return recipe


def scenes_128_cheers() -> SftRecipe:
    """CHEERS beside `scenes_128`: the same teacher, language model and scenes, 64 positions a picture for 256.

    deepspeed train/sft.py --preset scenes_128_cheers
    One GPU, 8.8 GiB (estimate of `--dry-run 1`). Untrained by us.
    """
    recipe = _over_scenes(scenes_128_sft(), scenes_128_cheers_vae().model)
    recipe.max_length = 176
    return recipe


def _over_scenes(recipe: SftRecipe, vae: CheersVaeConfig, **options) -> SftRecipe:
    """The other family's recipe with an autoencoder in the place of its image tokenizer, over the same teacher."""
    model = recipe.model
    recipe.model = CheersConfig(
        model.text_config, model.image_tokenizer_config.vision_config, vae, num_semantic_layers=4, num_detail_layers=6,
        num_flow_key_value_heads=1, linear_details=True, **options,
    )  # fmt: skip
    recipe.text_weight, recipe.text_drop = 1.0, 0.2
    recipe.alignment_weight, recipe.drawing_share = 1.0, 0.8  # a velocity teaches less of the prompt than codes do
    recipe.time_shift = 0.4  # shapes are made before t = 0.4 (docs/experiments.md)
    recipe.train.max_steps = 5000
    return recipe


def cheers_1_5b_align() -> SftRecipe:
    """Stage I: compressor, flow head and the rows of the image tokens, over Qwen2.5-1.5B-Instruct and SigLIP 2."""
    return SftRecipe(
        train=TrainConfig(
            max_steps=30_000, batch_size=ROWS, micro_batch_size=1, learning_rate=1e-4, final_lr_ratio=1.0,
            warmup_steps=600, weight_decay=0.0, beta1=0.9, beta2=0.95, precision="bf16", zero_stage=2,
            gradient_checkpointing=True, num_workers=4, save_minutes=30, validate_every=500,
        ),
        model=CheersConfig(), world=None, language_model="Qwen/Qwen2.5-1.5B-Instruct", max_length=MAX_LENGTH,
        text_weight=1.0, text_drop=0.2,
    )  # fmt: skip


def cheers_1_5b_general() -> SftRecipe:
    """Stage II: all but the autoencoder. `--init-from` the first stage."""
    return _stage(60_000, 1e-4)


def cheers_1_5b_refined() -> SftRecipe:
    """Stage III: as II, on chosen data. `--init-from` the second stage."""
    return _stage(65_000, 4e-5)


def cheers_1_5b_sft() -> SftRecipe:
    """Stage IV: instructions and drawing, one to one. `--init-from` the third stage."""
    recipe = _stage(30_000, 2e-5)
    recipe.train.batch_size, recipe.max_length, recipe.train.final_lr_ratio = SFT_ROWS, SFT_MAX_LENGTH, 0.0
    return recipe


def _stage(max_steps: int, learning_rate: float) -> SftRecipe:
    recipe = cheers_1_5b_align()
    recipe.train.max_steps, recipe.train.learning_rate = max_steps, learning_rate
    recipe.train.warmup_steps = round(0.02 * max_steps)
    return recipe
