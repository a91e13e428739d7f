"""Train SemHiTok in phases: semantic codes over a frozen SigLIP, pixel codes under them, then the decoder alone.

deepspeed train/tokenizer.py --preset scenes_64 --stage semantic --teacher runs/scenes_64/teacher
deepspeed train/tokenizer.py --preset scenes_64 --stage pixel --init-from runs/scenes_64/semantic
deepspeed train/tokenizer.py --preset scenes_64 --stage decoder --init-from runs/scenes_64/pixel

--teacher takes any SigLIP or SigLIP 2 of transformers or open_clip, by folder or hub id (semhitok/teacher.py).
"""

import argparse
import os
import sys
from pathlib import Path

from torch import nn

from semhitok import SemHiTokModel
from semhitok.image_processing_semhitok import for_tokenizer
from semhitok.stages import DecoderStage, PixelStage, SemanticStage
from semhitok.teacher import CONFIG_FILES, load_teacher, tokenizer_over
from unimllm.errors import UserError
from unimllm.scenes.sources import ScenePictures
from unimllm.training.checkpoint import resolve
from unimllm.training.loop import train
from unimllm.training.overrides import as_dict, default_folder, parse_arguments, run_program
from unimllm.training.presets import DECODER_PRESETS, PIXEL_PRESETS, SEMANTIC_PRESETS, TokenizerRecipe
from unimllm.training.seeding import seed_everything

STAGES = {"semantic": SEMANTIC_PRESETS, "pixel": PIXEL_PRESETS, "decoder": DECODER_PRESETS}
BEFORE = {"semantic": "teacher", "pixel": "semantic", "decoder": "pixel"}


def main() -> None:
    stage = chosen_stage()
    args, recipe = parse_arguments(
        "Train one stage of SemHiTok.", stage, STAGES[stage],
        stage={"choices": list(STAGES), "required": True, "help": "which part to train"},
        teacher={"help": "semantic stage: folder or hub id of a SigLIP (default: runs/PRESET/teacher)"},
    )  # fmt: skip
    seed_everything(recipe.train.seed)
    model = start_model(args, recipe, stage)
    check_size(model, recipe)
    world, renderer = recipe.world.open()
    task, before_step = make_stage(model, recipe, stage)
    source = ScenePictures(world, renderer, seed=recipe.train.seed + 1000 * (1 + list(STAGES).index(stage)))

    def export(folder: Path) -> None:
        model.save_pretrained(folder)
        for_tokenizer(model.config).save_pretrained(folder)

    train(task, source, recipe.train, args.output_dir, export, as_dict(recipe), before_step)


def chosen_stage() -> str:
    """--stage, read ahead of the other options because it decides the presets."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--stage")
    stage = parser.parse_known_args()[0].stage
    if stage in STAGES or "-h" in sys.argv or "--help" in sys.argv:
        return stage or "semantic"
    raise UserError(f"--stage is {stage!r}; choose one of {', '.join(STAGES)}")


def start_model(args, recipe: TokenizerRecipe, stage: str) -> SemHiTokModel:
    """The tokenizer as the stage before left it; the semantic stage starts from a SigLIP alone."""
    before = default_folder(args.preset, BEFORE[stage])
    if args.init_from or stage != "semantic":
        folder = args.init_from or before
        try:
            return SemHiTokModel.from_pretrained(resolve(folder))
        except UserError as error:
            raise UserError(
                f"{error}; train --stage {BEFORE[stage]} first or name its folder with --init-from"
            ) from error
    try:
        teacher = load_teacher(find_teacher(args.teacher, before))
        model = tokenizer_over(teacher, recipe.model)
    except (ValueError, OSError) as error:
        raise UserError(f"--teacher: {error}") from error
    if os.environ.get("RANK", "0") == "0":
        print("\n".join([teacher.describe(), *(f"note: {note}" for note in teacher.notes)]), flush=True)
    return model


def find_teacher(name: str | None, before: Path) -> str | Path:
    """Folder or hub id of the teacher; a run's folder means its newest checkpoint."""
    if name is None:
        try:
            return resolve(before)
        except UserError as error:
            raise UserError(f"{error}; run train/teacher.py first or name a SigLIP") from error
    is_run = Path(name).is_dir() and not any((Path(name) / file).exists() for file in CONFIG_FILES)
    return resolve(Path(name)) if is_run else name


def check_size(model: SemHiTokModel, recipe: TokenizerRecipe) -> None:
    """UserError unless the preset's pictures are as large as the tokenizer reads them."""
    size, read = recipe.world.image_size, model.config.image_size
    if size != read:
        raise UserError(
            f"the preset draws pictures of {size} x {size} pixels and the tokenizer reads {read} x {read}: add "
            f"--world.image_size {read}"
        )


def make_stage(model: SemHiTokModel, recipe: TokenizerRecipe, stage: str) -> tuple[nn.Module, object]:
    """The training module of a stage, and what it does before a step."""
    weights = {"l2": recipe.l2_weight, "edges": recipe.edge_weight, "perceptual": recipe.perceptual_weight}
    if stage == "decoder":
        return DecoderStage(model, **weights), None
    task = SemanticStage(model) if stage == "semantic" else PixelStage(model, **weights)

    def before_step(step: int, batch: dict) -> None:
        if step == recipe.quantize_after:
            task.initialize_codebook(batch["pixel_values"])

    return task, before_step


if __name__ == "__main__":
    run_program(main)
