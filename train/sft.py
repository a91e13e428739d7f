"""Train the unified model: captions, questions and text-to-image in one mix of packed rows.

deepspeed train/sft.py --preset scenes_64 --image-tokenizer runs/scenes_64/decoder

Without --data it trains on scenes. With --data it trains on LLaVA's JSON, on captions in JSON lines, on webdataset
tars, on parquet files or on Hugging Face datasets, several of them in one mix (unimllm/data/sample_index.py):

deepspeed train/sft.py --preset llava15_vicuna7b_sft --init-from runs/llava15_vicuna7b_pretrain/pretrain \
    --data llava_v1_5_mix665k.json captions.jsonl:2 --image-root images

CHEERS, which draws in continuous latents, is trained by its own presets (unimllm/training/presets/cheers.py):

deepspeed train/sft.py --preset scenes_64_cheers

A run starts from a new model, from a trained language model (--language-model), or from a checkpoint (--init-from), and
that with its own image tokenizer or with one that was trained further (--init-from MODEL --image-tokenizer TOKENIZER).
"""

from unimllm.training.language_model import train_language_model
from unimllm.training.language_options import OPTIONS
from unimllm.training.overrides import parse_arguments, run_program
from unimllm.training.presets import SFT_PRESETS


def main() -> None:
    about = "Train the unified model on scenes, or on the data that --data names."
    args, recipe = parse_arguments(about, "sft", SFT_PRESETS, **OPTIONS)
    train_language_model(args, recipe)


if __name__ == "__main__":
    run_program(main)
