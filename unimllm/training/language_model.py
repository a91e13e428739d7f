"""What `train/pretrain.py` and `train/sft.py` share: options, data, and the run itself."""

import os
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from transformers import PreTrainedModel

from semhitok.image_processing_semhitok import to_uint8
from unimllm.chat_templates import CHAT_TEMPLATES, TRAINING_TEMPLATES
from unimllm.command_line import number
from unimllm.data.mixture import parse_ratios
from unimllm.data.open_data import DataOptions, differences, open_data, open_validation
from unimllm.data.sample_index import FORMATS, check_one_root, find_files, parse_data
from unimllm.data.sample_tokens import SampleTokenizer
from unimllm.discrete.four_bits import quantize_linear
from unimllm.discrete.lora import FOLDER as LORA_FOLDER
from unimllm.discrete.lora import import_peft, is_adapted, merged_state, save_lora
from unimllm.distributed import is_first_process, print_once
from unimllm.drawing import choose_drawing
from unimllm.errors import UserError
from unimllm.processing import ConversationProcessor
from unimllm.scenes.conversations import PackedConversations
from unimllm.scenes.text import build_text_tokenizer
from unimllm.training.batches import SampleSource
from unimllm.training.checkpoint import RUN_FILE, latest, place_of, prepare_output, read_run
from unimllm.training.families import family_of
from unimllm.training.language_plan import build_on_meta, describe_data, language_model_plan, planned_tokenizer
from unimllm.training.loop import start_processes, train
from unimllm.training.overrides import as_dict, check_taken, sizes_told
from unimllm.training.presets import SftRecipe
from unimllm.training.seeding import seed_everything
from unimllm.training.start_model import (
    backbone_name,
    chat_template,
    check_four_bits,
    check_words_stay,
    choose_attention,
    choose_trained,
    open_text_tokenizer,
    start_model,
    starting_point,
    training_processor,
    vocab_size,
)
from unimllm.training.validation import HeldOut

SCENE_SEED = 7000  # of the pictures; apart from those that trained the tokenizer
VALIDATION_SCENES = 512
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
    "strict": {"action": "store_true", "help": "stop at the first sample that cannot be used"},
    "text_tokenizer": {"help": "folder or hub id of a text tokenizer for --data (default: the model's)"},
    "dry_run": {"type": number(int, 1), "nargs": "?", "const": int(os.environ.get("WORLD_SIZE", 1)),
                "metavar": "PROCESSES", "help": "print the plan for so many (default: this launch's), and stop"},
}  # fmt: skip
"""Options of both programs beside `parse_arguments`' own."""


def train_language_model(
    args: Namespace, recipe: SftRecipe, freeze: Callable[[PreTrainedModel], None] | None = None
) -> None:
    """Train on scenes, or on --data.

    Args:
        args, recipe: of `parse_arguments` with OPTIONS.
        freeze: chooses what is trained; None: all but the image tokenizer.
    """
    check_options(args, recipe)
    if args.dry_run is not None:
        return print_plan(args, recipe, freeze)
    found = latest(args.output_dir)
    if found:
        about = go_on(args, recipe, found)
    else:
        recipe.language_model, recipe.chat_template = backbone_name(args, recipe), chat_template(args, recipe)
        args.init_from = starting_point(args)
        warn_of_stopped(args.init_from)
        about = {"init_from": args.init_from, "image_tokenizer": real_place(args.image_tokenizer)}
    about["preset"] = args.preset
    world_of_scenes = None if args.data else recipe.world.open()
    text_tokenizer = open_text_tokenizer(args, recipe, world_of_scenes)
    prepare_output(args.output_dir)
    model, processor = start_model(args, recipe, text_tokenizer)
    check_taken(args.overrides, model.config)
    if recipe.attention:
        choose_attention(model, recipe.attention)
    if recipe.quantize_base:
        quantize_linear(model.language_model)
    choose_trained(model, recipe, freeze)
    rank, world_size = start_processes()
    trained_with = training_processor(processor, recipe)
    if args.data:
        source, held_out, described = data_source(args, recipe, model, trained_with, rank, world_size)
        about |= described
    else:
        source, held_out = scene_source(args, recipe, model, processor, *world_of_scenes, rank, world_size)

    def export(folder: Path) -> None:
        if is_adapted(model):
            model.save_pretrained(folder, state_dict=merged_state(model))
            save_lora(model, folder / LORA_FOLDER, about["init_from"])
        else:
            model.save_pretrained(folder)
        processor.save_pretrained(folder)

    if recipe.train.compile:
        model.language_model.get_decoder().compile(dynamic=False)
    seed_everything(recipe.train.seed)  # a task may bring untrained weights
    task = family_of(model.config).make_task(model, recipe)
    pictures = picture_drawer(model, trained_with, recipe)
    train(
        task, source, recipe.train, args.output_dir, export, as_dict(recipe) | about, draw_pictures=pictures,
        held_out=held_out,
    )  # fmt: skip


def go_on(args: Namespace, recipe: SftRecipe, found: Path) -> dict:
    """Have a run begin from its own checkpoint, with what it began from in the recipe; returns that for run.json.

    --init-from is not read again; but for LoRA, which lies over it, and for CHEERS's alignment, which is with the
    SigLIP that the run began with. It may have another place then.
    """
    before = read_run(found)["recipe"]
    if recipe.lora_rank or recipe.alignment_weight:
        args.init_from = args.init_from or before.get("init_from")
        args.init_from = starting_point(args)
        about = {"init_from": args.init_from}
        if "init_from" in before and args.init_from != before["init_from"]:
            print_once(f"what the run began from is read from {args.init_from}, no more from {before['init_from']}: it "
                       "must be the same model")  # fmt: skip
    else:
        warn_of_start(before, named_start(args), found)
        asked = real_place(args.image_tokenizer)
        if asked and Path(asked).is_dir() and asked != before.get("image_tokenizer", asked):
            print_once(f"warning: --image-tokenizer {asked} is not read: {found} has its own; name a new --output-dir")
        args.init_from = str(found)
        args.image_tokenizer = None  # the checkpoint has it
        about = {name: before[name] for name in ("init_from", "model") if name in before}
    about |= {"image_tokenizer": before["image_tokenizer"]} if "image_tokenizer" in before else {}
    for name in ("language_model", "chat_template"):
        setattr(recipe, name, before.get(name, ""))
    return about


def warn_of_stopped(start: str | None) -> None:
    """Say so where a new run begins from one that was stopped before its end."""
    if start and (Path(start) / RUN_FILE).is_file():
        began = read_run(Path(start))
        step, max_steps = began["step"], began["recipe"]["train"]["max_steps"]
        if step < max_steps:
            print_once(f"warning: --init-from {start} was stopped at step {step:,} of {max_steps:,}")


def real_place(name: str | None) -> str | None:
    """The whole path of a folder; a hub id, or what is not there, as it is written."""
    return str(Path(name).resolve()) if name and Path(name).is_dir() else name


def named_start(args: Namespace) -> str | None:
    """What the command line names to start from; None where it names nothing, or what is not there any more."""
    try:
        return starting_point(args) or args.language_model
    except UserError:
        return None


def warn_of_start(before: dict, asked: str | None, found: Path) -> None:
    """Say so where a run began from something else than is asked for now, for that is not read.

    Args:
        before: the recipe of the run, which is gone on with from `found`.
        asked: of `named_start`.
    """
    began = before.get("init_from") or before.get("language_model") or "an untrained model"
    if "init_from" in before and asked and began != asked:
        print_once(f"warning: this run goes on from {found}, which began from {began}; {asked} is not read: name a new "
                   "--output-dir to begin from it")  # fmt: skip


def picture_drawer(
    model: PreTrainedModel, processor: ConversationProcessor, recipe: SftRecipe
) -> Callable[[], np.ndarray] | None:
    """What draws the recipe's prompts side by side, (S, prompts * S, 3) uint8, with the same seeds; None: nothing.

    Under ZeRO 3 nothing is drawn: between two steps it would have to gather every weight for every position.
    """
    if not (recipe.train.picture_every and recipe.shown_prompts):
        return None
    if recipe.train.zero_stage == 3:
        print_once("no drawings are shown (train.picture_every): ZeRO 3 would gather every weight at every position")
        return None
    inputs, options = processor.for_drawing(list(recipe.shown_prompts)), choose_drawing(model, {})

    def draw_pictures() -> np.ndarray:
        with torch.compiler.set_stance("force_eager"):  # every length would be compiled anew
            drawn = model.generate(
                **inputs.to(model.device), generation_mode="image", seeds=[0] * len(recipe.shown_prompts), **options
            )  # fmt: skip
        return rearrange(to_uint8(model.decode_image_tokens(drawn)), "b h w c -> h (b w) c")

    return draw_pictures


def print_plan(args: Namespace, recipe: SftRecipe, freeze: Callable[[PreTrainedModel], None] | None) -> None:
    """What the run would be, for --dry-run; nothing is written."""
    if not is_first_process():
        return
    if not args.data:
        image_tokens = family_of(recipe.model).processor_class.image_tokens
        recipe.model.text_config.vocab_size = len(build_text_tokenizer(recipe.world.open()[0], image_tokens))
    elif not (args.language_model or recipe.language_model):
        recipe.model.text_config.vocab_size = vocab_size(args, recipe)
    with sizes_told():
        model = build_on_meta(recipe)
    with torch.device("meta"):
        choose_trained(model, recipe, freeze)
    task = family_of(model.config).make_task(model, recipe)
    flops = task.flops_per_token() if hasattr(task, "flops_per_token") else None
    print(language_model_plan(args.preset, model, recipe, args.dry_run, flops))
    if args.data:
        tokenizer, notes = planned_tokenizer(args, recipe)
        num_ids = recipe.train.max_steps * recipe.train.batch_size * recipe.max_length
        print("\n".join(notes + describe_data(args, tokenizer, num_ids)))
    if args.init_from or args.language_model or args.image_tokenizer:
        print("the sizes are the preset's; the checkpoints are read by the run itself")


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


# ---- its data ------------------------------------------------------------------------------------------------------


def scene_source(
    args: Namespace, recipe: SftRecipe, model, processor, world, renderer, rank: int, world_size: int
) -> tuple[SampleSource, dict[str, HeldOut]]:
    """Rows of conversations about scenes, and rows of the validation split."""

    def rows(split: str, num_scenes: int, text_drop: float, seed: int) -> PackedConversations:
        pictures = family_of(model.config).scene_pictures(
            model, world, renderer, SCENE_SEED, num_scenes, split, args, recipe, rank, world_size
        )  # fmt: skip
        return PackedConversations(
            world, processor.conversation, pictures, SCENE_SEED, num_scenes, recipe.max_length, recipe.drawing_share,
            text_drop, recipe.sequential_share, seed, split,
        )  # fmt: skip

    held_out = {}
    if recipe.train.validate_every:
        held_out["scenes"] = HeldOut(rows("validation", VALIDATION_SCENES, 0.0, 0), recipe.train.validation_rows)
    return rows("train", recipe.num_scenes, recipe.text_drop, recipe.train.seed), held_out


def data_source(
    args: Namespace, recipe: SftRecipe, model, processor, rank: int, world_size: int
) -> tuple[SampleSource, dict[str, HeldOut], dict]:
    """Rows of the samples of --data, those of each place of --validation-data, and what run.json notes of the data."""
    held = model.config.text_config.vocab_size
    if len(processor.tokenizer) > held:
        raise UserError(f"the text tokenizer has {len(processor.tokenizer):,} ids, the model {held:,}; name its own")
    pictures = family_of(model.config).sample_pictures(args, model, processor)
    context = model.config.text_config.max_position_embeddings
    tokenizer = SampleTokenizer(processor.conversation, recipe.max_length, context)
    config = recipe.train
    options = DataOptions(args.data, args.format, args.image_root, args.ratios, args.strict)
    processes = (args.output_dir.parent / "index", rank, world_size, config.num_workers)
    found = latest(args.output_dir)
    run = read_run(found) if found else None
    place = place_of(run, config.batch_size)
    end = place.later(config.batch_size, max(0, config.max_steps - place.step))
    source, about = open_data(
        options, tokenizer, pictures, recipe.max_length, recipe.text_drop, config.seed, end.sample, *processes
    )
    held_out = {
        name: HeldOut(*open_validation(
            place, options, tokenizer, pictures, recipe.max_length, config.validation_rows, *processes
        ))
        for name, place in name_places(args.validation_data).items()
    }  # fmt: skip
    before = run["recipe"].get("data") if run else None
    about |= {"validation": args.validation_data, "codes": str(args.codes) if args.codes else None}
    if rank == 0 and before and before["fingerprint"] != about["fingerprint"]:
        told = differences(before, about) or [f"{before['samples']:,} samples, {about['samples']:,} now"]
        print(f"warning: {found.name} was trained on other data: {'; '.join(told)}; from here on the run differs from "
              "one without a break", flush=True)  # fmt: skip
    if rank == 0 and config.validate_every and not held_out:
        print("nothing is validated: --validation-data names samples that are not trained on", flush=True)
    return source, held_out, {"data": about}


def name_places(places: list[str]) -> dict[str, str]:
    """Each place under the last part of its path, or under the whole of it where two end alike."""
    names = [os.path.basename(place.rstrip("/")) for place in places]
    return {place if names.count(name) > 1 else name: place for name, place in zip(names, places, strict=True)}
