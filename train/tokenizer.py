"""Train an image tokenizer.

SemHiTok in phases, semantic codes over a frozen SigLIP, pixel codes under them, then the decoder alone:

deepspeed train/tokenizer.py --preset scenes_64 --stage semantic --teacher runs/scenes_64/teacher
deepspeed train/tokenizer.py --preset scenes_64 --stage pixel --init-from runs/scenes_64/semantic
deepspeed train/tokenizer.py --preset scenes_64 --stage decoder --init-from runs/scenes_64/pixel

--stage joint trains both branches at once, to compare (unimllm/training/presets/ablation.py):

deepspeed train/tokenizer.py --preset ablation --stage joint --teacher runs/scenes_64/teacher

CHEERS's autoencoder; the teacher's features are its perceptual loss (--perceptual_weight 0 goes without):

deepspeed train/tokenizer.py --preset scenes_64_cheers --stage vae

With --data it trains on pictures: folders of them, webdataset tars, parquet files (unimllm/data/pictures.py);
--validation-data HELD_OUT --train.validate_every 1000 tells the losses on others.
--dry-run 8 prints what a stage would need on eight GPUs, and stops:

python train/tokenizer.py --preset semhitok_256 --stage pixel --data /data/imagenet/train --dry-run 8

--teacher takes any SigLIP or SigLIP 2 of transformers or open_clip, by folder or hub id (semhitok/teacher.py).
"""

import argparse
import os
import sys
from pathlib import Path

import torch

from semhitok.image_processing_semhitok import for_tokenizer
from unimllm.command_line import number
from unimllm.data.picture_index import open_pictures
from unimllm.distributed import is_first_process
from unimllm.errors import UserError
from unimllm.scenes.sources import check_size
from unimllm.training.checkpoint import began_from
from unimllm.training.loop import train
from unimllm.training.overrides import as_dict, check_taken, parse_arguments, run_program, sizes_told
from unimllm.training.picture_data import check_apart, check_places, make_source, open_held_out, open_index
from unimllm.training.plan import build_on_meta, tokenizer_plan
from unimllm.training.presets import (
    DECODER_PRESETS,
    JOINT_PRESETS,
    PIXEL_PRESETS,
    SEMANTIC_PRESETS,
    VAE_PRESETS,
    TokenizerRecipe,
)
from unimllm.training.seeding import seed_everything
from unimllm.training.stages import stages_of
from unimllm.training.tokenizer import (
    announce_losses,
    announce_positions,
    announce_unused,
    before_step,
    check_losses,
    check_options,
    check_quantize_after,
    go_on,
    reconstructions,
)

STAGES = {"semantic": SEMANTIC_PRESETS, "pixel": PIXEL_PRESETS, "decoder": DECODER_PRESETS, "joint": JOINT_PRESETS,
          "vae": VAE_PRESETS}  # fmt: skip


def main() -> None:
    stage = chosen_stage()
    args, recipe = parse_arguments(
        "Train one stage of an image tokenizer; `--stage pixel --help` shows that stage's presets.",
        stage, STAGES[stage],
        stage={"choices": list(STAGES), "required": True, "help": "which part to train"},
        teacher={"help": "in a preset's first stage: folder or hub id of a SigLIP (default: the preset's in runs)"},
        data={"type": Path, "nargs": "+", "action": "extend", "default": [], "metavar": "PATH",
              "help": "pictures to train on: folders of pictures, of .tar or of .parquet files, or such files"},
        validation_data={"type": Path, "nargs": "+", "action": "extend", "default": [], "metavar": "PATH",
                         "help": "as --data, never trained on: losses on them, every --train.validate_every steps"},
        strict={"action": "store_true", "help": "stop at the first picture or file that cannot be read"},
        dry_run={"type": number(int, 1), "nargs": "?", "const": int(os.environ.get("WORLD_SIZE", 1)),
                 "metavar": "PROCESSES", "help": "print the plan for so many (default: this launch's), and stop"},
    )  # fmt: skip
    stages = stages_of(recipe.model)
    stages.check_start(args, recipe, stage)
    check_losses(recipe)
    check_options(recipe)
    check_places(args, recipe)
    if args.dry_run is not None:
        return print_plan(args, recipe, stage)
    index = open_index(args) if args.data else None
    scenes = None if index else recipe.world.open()
    began = began_from(args.output_dir, args.init_from)
    gone_on = go_on(args, recipe)
    seed_everything(recipe.train.seed)
    model = stages.start_model(args, recipe, stage)
    check_taken(args.overrides, model.config)
    if scenes:
        check_size(scenes[0], model.config.image_size)
    with sizes_told():
        task = stages.make_task(model, recipe, stage, args)
    if not gone_on:
        announce_unused(recipe.model, model.config)
        check_quantize_after(task, recipe, stage)
    announce_losses(task, recipe)
    source = make_source(index, scenes, recipe, stage, model.config, args.strict)
    held_out = open_held_out(args, recipe, index, scenes, model.config)
    announce_positions(model.config, stage, held_out)
    about = (
        as_dict(recipe)
        | {"model": as_dict(model.config)}
        | gone_on
        | {"preset": args.preset, "stage": stage, "init_from": began}
    )
    if index:
        about["data"] = {"paths": [str(path) for path in args.data], "pictures": len(index),
                         "fingerprint": index.fingerprint}  # fmt: skip

    def export(folder: Path) -> None:
        model.save_pretrained(folder)
        for_tokenizer(model.config).save_pretrained(folder)

    pictures = None if stage == "semantic" else reconstructions(model, recipe, source, held_out)
    prepare = before_step(task, recipe, source)
    train(task, source, recipe.train, args.output_dir, export, about, prepare, pictures, held_out,
          recipe.first_step or 0)  # fmt: skip


def print_plan(args, recipe: TokenizerRecipe, stage: str) -> None:
    """What the run would be, for --dry-run; nothing is written."""
    if not is_first_process():
        return
    index = open_pictures(args.data) if args.data else None
    with torch.device("meta"), sizes_told():
        task = stages_of(recipe.model).make_task(build_on_meta(recipe.model), recipe, stage)
    if recipe.world and not (args.data or args.init_from or args.teacher):
        check_size(recipe.world, recipe.model.image_size)
    print(tokenizer_plan(args.preset, stage, task, recipe, args.dry_run, len(index) if index else None))
    if index:
        print(f"data: {index}", *index.faults, sep="\n")
    if args.validation_data:
        held_out = open_pictures(args.validation_data)
        check_apart(held_out, index)
        print(f"validation data: {held_out}", *held_out.faults, sep="\n")
    print("the sizes are the preset's; --teacher and --init-from are read by the run itself")


def chosen_stage() -> str:
    """--stage, read ahead of the other options because it decides the presets."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--stage", nargs="?")
    stage = parser.parse_known_args()[0].stage
    if stage in STAGES or "-h" in sys.argv or "--help" in sys.argv:
        return stage or "semantic"
    raise UserError(f"--stage is {stage!r}; choose one of {', '.join(STAGES)}")


if __name__ == "__main__":
    run_program(main)
