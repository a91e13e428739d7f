"""Train the teacher: a small SigLIP on scenes with their captions. A released SigLIP takes its place by a path.

deepspeed train/teacher.py --preset scenes_64
"""

from pathlib import Path

from safetensors.torch import load_file

from semhitok.errors import first_line
from semhitok.image_processing_semhitok import for_size
from semhitok.vision import load_strictly
from unimllm.errors import UserError
from unimllm.scenes.sources import CaptionedScenes
from unimllm.scenes.text import build_text_tokenizer
from unimllm.training.checkpoint import began_from, latest, resolve
from unimllm.training.loop import train
from unimllm.training.overrides import as_dict, check_taken, parse_arguments, run_program, sizes_told
from unimllm.training.presets import TEACHER_PRESETS
from unimllm.training.seeding import seed_everything
from unimllm.training.teacher import TeacherTask


def main() -> None:
    args, recipe = parse_arguments("Train a small SigLIP on scenes.", "teacher", TEACHER_PRESETS)
    world, renderer = recipe.world.open()
    tokenizer = build_text_tokenizer(world)
    seed_everything(recipe.train.seed)
    recipe.model.text_config.vocab_size = len(tokenizer)
    check_taken(args.overrides, recipe.model)
    with sizes_told():
        task = TeacherTask(recipe.model, len(world.classes), recipe.caption_weight)
    began = began_from(args.output_dir, args.init_from)
    if args.init_from and not latest(args.output_dir):
        load_siglip(task, resolve(args.init_from))

    def export(folder: Path) -> None:
        task.siglip.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        for_size(recipe.world.image_size).save_pretrained(folder)

    length = recipe.model.text_config.max_position_embeddings
    patch_size = recipe.model.vision_config.patch_size
    source = CaptionedScenes(world, renderer, tokenizer, recipe.train.seed, patch_size, length)
    train(task, source, recipe.train, args.output_dir, export, as_dict(recipe) | {"init_from": began})


def load_siglip(task: TeacherTask, folder: Path) -> None:
    """Start from a teacher that this program trained; transformers by itself would leave out the stem.

    Raises:
        UserError: the weights are damaged, or of another size than the preset's.
    """
    try:
        load_strictly(task.siglip, load_file(folder / "model.safetensors"))
    except Exception as error:  # a damaged file raises safetensors' own types
        raise UserError(f"cannot start from {folder}: {first_line(error)}") from error


if __name__ == "__main__":
    run_program(main)
