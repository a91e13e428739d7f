"""LLaVA-1.5's two stages, and the unified model's, over released language models; pictures as ids at 256 pixels.

Untrained by us. LLaVA-1.5's numbers (arXiv 2310.03744, its scripts/v1_5): batches of 256 and 128 samples, one epoch of
558,128 and of 665,298 of them, learning rates 1e-3 and 2e-5, cosine after 3 % of warm-up, no weight decay, 2,048 ids.
What SemHiTok's own unified training used is not published beyond its model, Qwen2.5-7B-Instruct; the numbers of the
`unified_*` presets are LLaVA-1.5's, with ILLUME+'s beta2 of 0.95.

A first and a second stage, on 8 GPUs of 80 GB (`--dry-run 8` prints memory and hours; at 7B about half an hour and an
hour and a half, estimates for H100 at an MFU of 40 %):

deepspeed train/pretrain.py --preset unified_qwen25_7b_pretrain --image-tokenizer runs/semhitok_256/pixel \\
    --data reading.json captions.jsonl --image-root images
deepspeed train/sft.py --preset unified_qwen25_7b_sft --init-from runs/unified_qwen25_7b_pretrain/pretrain \\
    --data instructions.json captions.jsonl --image-root images

Our rows are packed: `batch_size` counts rows of `max_length` ids, and a row holds several samples. A sample of the
first stage has about 330 ids with its 256 of the picture, so 6 share a row and 40 rows are a batch of about 256; one of
the second about 600, so 3 share a row and 40 rows are a batch of about 128. Steps are for one epoch at those lengths.
"""

from transformers import LlamaConfig, Qwen2Config

from unimllm.discrete.configuration_unimllm import UniMLLMConfig
from unimllm.training.config import TrainConfig
from unimllm.training.presets.recipes import SftRecipe
from unimllm.training.presets.semhitok import semhitok_256_pixel

MAX_LENGTH = 2048
PRETRAIN_ROWS, PRETRAIN_STEPS = 40, 2180  # 558,128 samples / 256
SFT_ROWS, SFT_STEPS = 40, 5198  # 665,298 samples / 128


def _train(rows: int, steps: int, learning_rate: float) -> TrainConfig:
    # micro_batch_size 1: on 8, 4 or 2 GPUs, or one, the rest is accumulated. ZeRO 3, which LLaVA-1.5 tunes with, would
    # gather all weights for every row; on 8 GPUs stage 2 leaves room enough.
    return TrainConfig(
        max_steps=steps, batch_size=rows, micro_batch_size=1, learning_rate=learning_rate, final_lr_ratio=0.0,
        warmup_steps=round(0.03 * steps), weight_decay=0.0, beta1=0.9, beta2=0.999, precision="bf16",
        zero_stage=2, gradient_checkpointing=True, num_workers=4, save_minutes=30,
        validate_every=500,
    )  # fmt: skip


def vicuna_7b() -> LlamaConfig:
    """Sizes of lmsys/vicuna-7b-v1.5."""
    return LlamaConfig(
        vocab_size=32_000, hidden_size=4096, intermediate_size=11_008, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=32, max_position_embeddings=4096, tie_word_embeddings=False,
    )  # fmt: skip


def qwen25_7b() -> Qwen2Config:
    """Sizes of Qwen/Qwen2.5-7B-Instruct."""
    return Qwen2Config(
        vocab_size=152_064, hidden_size=3584, intermediate_size=18_944, num_hidden_layers=28, num_attention_heads=28,
        num_key_value_heads=4, max_position_embeddings=32_768, tie_word_embeddings=False,
    )  # fmt: skip


def qwen25_0_5b() -> Qwen2Config:
    """Sizes of Qwen/Qwen2.5-0.5B-Instruct."""
    return Qwen2Config(
        vocab_size=151_936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
        num_key_value_heads=2, max_position_embeddings=32_768, tie_word_embeddings=True,
    )  # fmt: skip


def _recipe(train: TrainConfig, text_config, language_model: str, chat_template: str = "") -> SftRecipe:
    return SftRecipe(
        train, UniMLLMConfig(text_config, semhitok_256_pixel().model, image_head="flat"), world=None,
        language_model=language_model, chat_template=chat_template, max_length=MAX_LENGTH, text_weight=1.0,
        pad_to_square=True,
    )  # fmt: skip


def llava15_vicuna7b_pretrain() -> SftRecipe:
    """LLaVA-1.5's first stage, 558K captions over a frozen Vicuna-7B; without the words that ask for them, as LLaVA's.

    The checkpoint carries Vicuna's chat template, so what starts from it speaks by that.
    """
    train = _train(PRETRAIN_ROWS, PRETRAIN_STEPS, 1e-3)
    recipe = _recipe(train, vicuna_7b(), "lmsys/vicuna-7b-v1.5", "vicuna")
    recipe.training_template = "plain"
    return recipe


def llava15_vicuna7b_sft() -> SftRecipe:
    """LLaVA-1.5's second stage, 665K conversations; the paper of SemHiTok reports POPE 82.5 to 84.2 in this setting."""
    train = _train(SFT_ROWS, SFT_STEPS, 2e-5)
    return _recipe(train, vicuna_7b(), "lmsys/vicuna-7b-v1.5", "vicuna")


def unified_qwen25_7b_pretrain() -> SftRecipe:
    """Captions read and drawn over a frozen Qwen2.5-7B-Instruct."""
    recipe = llava15_vicuna7b_pretrain()
    return _unified(_recipe(recipe.train, qwen25_7b(), "Qwen/Qwen2.5-7B-Instruct"))


def unified_qwen25_7b_sft() -> SftRecipe:
    """Instructions and drawing over Qwen2.5-7B-Instruct."""
    recipe = llava15_vicuna7b_sft()
    return _unified(_recipe(recipe.train, qwen25_7b(), "Qwen/Qwen2.5-7B-Instruct"))


def unified_qwen25_0_5b_pretrain() -> SftRecipe:
    """The first stage over Qwen2.5-0.5B-Instruct on one GPU of 80 GB, about twenty minutes (estimate for an H100)."""
    return _on_one_gpu(unified_qwen25_7b_pretrain())


def unified_qwen25_0_5b_sft() -> SftRecipe:
    """The second stage over Qwen2.5-0.5B-Instruct on one GPU of 80 GB, about an hour (estimate)."""
    return _on_one_gpu(unified_qwen25_7b_sft())


def _unified(recipe: SftRecipe) -> SftRecipe:
    recipe.train.beta2 = 0.95
    return recipe


def _on_one_gpu(recipe: SftRecipe) -> SftRecipe:
    train = recipe.train
    train.zero_stage, train.micro_batch_size, train.gradient_checkpointing = 1, 5, False
    return _unified(_recipe(train, qwen25_0_5b(), "Qwen/Qwen2.5-0.5B-Instruct"))
