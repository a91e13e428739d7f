"""The options of `train/pretrain.py` and `train/sft.py`, and what cannot be asked for together."""

import os
from argparse import Namespace
from pathlib import Path

from unimllm.chat_templates import CHAT_TEMPLATES, TRAINING_TEMPLATES
from unimllm.command_line import number
from unimllm.data.mixture import parse_ratios
from unimllm.data.sample_index import FORMATS, check_one_root, find_files, parse_data
from unimllm.discrete.lora import import_peft
from unimllm.errors import UserError
from unimllm.training.checkpoint import latest
from unimllm.training.families import family_of
from unimllm.training.presets import SftRecipe
from unimllm.training.start_model import backbone_name, check_four_bits, check_words_stay

Found = dict[str, list[tuple[Path, str]] | None]

ABOUT_SCENES = {
    "drawing_share": "--ratios U:D:T sets the shares of understanding, drawing and text",
    "sequential_share": "its conversations are learnt as they are; leave it out",
    "num_scenes": "it takes all samples; leave it out",
}
"""Fields of a recipe that do nothing with --data, and what to do instead; those of `world` neither."""

OPTIONS = {
    "image_tokenizer": {"help": "a checkpoint of train/tokenizer.py (default: the last stage in runs/PRESET)"},
    "teacher": {"help": "folder or hub id of a SigLIP for a new CHEERS (default: the preset's in runs)"},
    "language_model": {"help": "folder or hub id of a causal language model to start from (default: the preset's)"},
    "chat_template": {"help": f"of --language-model, instead of its own: {', '.join(CHAT_TEMPLATES)}, or a file"},
    "data": {"nargs": "+", "action": "extend", "default": [], "metavar": "PLACE[:WEIGHT]",
             "help": "files, folders of them, or names of Hugging Face datasets, instead of scenes"},
    "validation_data": {"nargs": "+", "action": "extend", "default": [], "metavar": "PLACE",
                        "help": "as --data, never trained on: the loss on each, every --train.validate_every steps"},
    "format": {"choices": list(FORMATS), "help": "what --data is, where it is not recognised"},
    "image_root": {"type": Path, "help": "folder that the data's paths of pictures begin in (default: each file's)"},
    "ratios": {"metavar": "U:D:T", "help": "shares of understanding, drawing and text (default: the data's own)"},
    "codes": {"type": Path, "help": "folder of `python -m unimllm.encode`, read instead of the pictures"},
    "strict": {"action": "store_true", "help": "stop at the first sample that cannot be used as it is"},
    "text_tokenizer": {"help": "folder or hub id of a text tokenizer for --data (default: the model's)"},
    "dry_run": {"type": number(int, 1), "nargs": "?", "const": int(os.environ.get("WORLD_SIZE", 1)),
                "metavar": "PROCESSES", "help": "print the plan for so many (default: this launch's), and stop"},
}  # fmt: skip
"""Options of both programs beside `parse_arguments`' own."""


def check_options(args: Namespace, recipe: SftRecipe) -> None:
    """UserError for data that is not there, before a model is built, and for options that something else decides."""
    for field in ("language_model", "chat_template"):
        if field in args.overrides:
            raise UserError(f"--{field}: write --{field.replace('_', '-')}")
    family_of(recipe.model).check_options(args, recipe)
    check_about_data(args)
    if args.language_model and args.init_from:
        raise UserError("--language-model and --init-from both name a language model to start from; choose one")
    if args.chat_template and not backbone_name(args, recipe):
        raise UserError("--chat-template is for --language-model; other models have their own")
    if args.text_tokenizer and (args.init_from or backbone_name(args, recipe)):
        raise UserError("--text-tokenizer: a trained language model reads its own tokenizer alone; leave it out")
    if recipe.training_template and recipe.training_template not in TRAINING_TEMPLATES:
        raise UserError(f"--training_template {recipe.training_template} is none of {', '.join(TRAINING_TEMPLATES)}")
    if recipe.training_template and not args.data:
        raise UserError("--training_template is for --data: scenes are spoken of by the model's own chat template")
    if recipe.attention.startswith("flash_attention") and (recipe.train.compile or not args.data):
        why = "set train.compile false" if args.data else "rows of scenes have branches, which it cannot tell apart"
        raise UserError(f"--attention {recipe.attention}: {why}; or use sdpa")
    if recipe.quantize_base:
        check_four_bits(recipe)
    if recipe.lora_rank:
        import_peft()
        check_words_stay(recipe)
        if not args.init_from and not latest(args.output_dir):
            raise UserError("LoRA tunes a unified model that was trained: name it with --init-from")
        if args.image_tokenizer:
            raise UserError("LoRA goes over a model as it is; train it whole over another --image-tokenizer first")
    if recipe.world is None and not args.data:
        raise UserError(f"--preset {args.preset} trains on your data: name files, folders or datasets with --data")
    found = found_files(args)
    if args.image_root and not args.image_root.is_dir():
        raise UserError(f"--image-root {args.image_root}: no such folder")
    check_validation(args, recipe, found)
    if args.codes and not args.image_root:
        check_one_root([path for files in found.values() for path, kind in files or [] if kind == "JSON"])
    if args.ratios:
        parse_ratios(args.ratios)


def check_about_data(args: Namespace) -> None:
    """UserError for options about --data without it, and for those about scenes with it."""
    for name in ("format", "image_root", "ratios", "codes", "strict", "text_tokenizer", "validation_data"):
        if getattr(args, name) and not args.data:
            raise UserError(f"--{name.replace('_', '-')} is about --data, which is not given: scenes need none of it")
    for name in args.overrides if args.data else ():
        if name in ABOUT_SCENES or name.startswith("world."):
            remedy = ABOUT_SCENES.get(name, "leave it out")
            raise UserError(f"--{name} is about scenes, of which a run with --data has none: {remedy}")


def found_files(args: Namespace) -> Found:
    """What lies at each place of --data and --validation-data, see `find_files`: large folders are searched once."""
    places = {parse_data(word).place: "--data" for word in args.data}
    places |= {place: "--validation-data" for place in args.validation_data if place not in places}
    return {place: find_files(place, args.format, option) for place, option in places.items()}


def check_validation(args: Namespace, recipe: SftRecipe, found: Found) -> None:
    """UserError for validation data that is trained on, and where it and its steps do not meet."""
    places = [parse_data(word).place for word in args.data]
    trained_on = {name for place in places for name in real_names(place, found[place])}
    for place in args.validation_data:
        shared = real_names(place, found[place]) & trained_on
        if shared:
            raise UserError(
                f"--validation-data {place} is in --data too: {min(shared)}; hold out samples that are not trained on"
            )
    if args.validation_data and not recipe.train.validate_every:
        raise UserError("--validation-data is for every --train.validate_every steps, which is 0; set that too")
    if args.overrides.get("train.validate_every") and args.data and not args.validation_data:
        raise UserError(
            "--train.validate_every needs samples that are not trained on: name them with --validation-data"
        )


def real_names(place: str, files: list[tuple[Path, str]] | None) -> set[str]:
    """The files found at a place, links followed; of a dataset of Hugging Face (None) its folder or its name."""
    if files is None:
        folder = os.path.expanduser(place)
        return {os.path.realpath(folder) if os.path.isdir(folder) else place}
    return {os.path.realpath(path) for path, _ in files}
