"""`train/sft.py` on scenes from nothing, at the size of a test: tiny CHEERS, hand-made glyphs, three steps.

python tests/cheers_scenes.py PARTS --output-dir OUTPUT [more options of train/sft.py]

PARTS: folder for an autoencoder and a SigLIP with a stem of convolutions, which are made where they are not there.
"""

import importlib.util
import sys
from pathlib import Path

import torch
from fake_glyphs import make_atlas

from semhitok.vision import build_vision_model
from unimllm.cheers.autoencoder import CheersVae
from unimllm.cheers.configuration_cheers import CheersConfig, tiny_config
from unimllm.scenes import GlyphAtlas
from unimllm.scenes.text import sentences, train_text_tokenizer
from unimllm.training import start_model
from unimllm.training.overrides import run_program
from unimllm.training.presets import SFT_PRESETS, SftRecipe


def tiny_model() -> CheersConfig:
    config = tiny_config()
    config.text_config.max_position_embeddings = 128
    config.vision_config.stem_channels = [8, 8]
    return config


def tiny_recipe() -> SftRecipe:
    recipe = SFT_PRESETS["scenes_64_cheers"]()
    recipe.model, recipe.world.image_size, recipe.num_scenes = tiny_model(), 16, 100
    train = recipe.train
    train.max_steps, train.batch_size, train.micro_batch_size, train.num_threads = 3, 4, 2, 1
    train.warmup_steps, train.save_minutes, train.keep_checkpoints = 1, 0, 3
    train.validate_every, train.validation_rows, train.picture_every = 3, 4, 3
    return recipe


def main() -> None:
    parts = Path(sys.argv.pop(1))
    if not parts.exists():
        torch.manual_seed(0)
        config = tiny_model()
        CheersVae(config.vae_config).save_pretrained(parts / "vae")
        build_vision_model(config.vision_config).save_pretrained(parts / "teacher")
    GlyphAtlas.from_font = lambda names, font_path=None: make_atlas()
    start_model.build_text_tokenizer = lambda world, image_tokens: train_text_tokenizer(
        sentences(world, count=300), image_tokens=image_tokens
    )
    options = ["--preset", "tiny", "--image-tokenizer", str(parts / "vae"), "--teacher", str(parts / "teacher")]
    sys.argv[1:1] = options
    program = Path(__file__).parent.parent / "train" / "sft.py"
    spec = importlib.util.spec_from_file_location("sft_program", program)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    SFT_PRESETS["tiny"] = tiny_recipe
    run_program(module.main)


if __name__ == "__main__":
    main()
