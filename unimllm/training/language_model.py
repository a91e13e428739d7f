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
from unimllm.data.open_data import DataOptions, differences, open_data, open_validation
from unimllm.data.sample_tokens import SampleTokenizer
from unimllm.discrete.four_bits import quantize_linear
from unimllm.discrete.lora import FOLDER as LORA_FOLDER
from unimllm.discrete.lora import is_adapted, merged_state, save_lora
from unimllm.distributed import is_first_process, print_once
from unimllm.drawing import choose_drawing
from unimllm.errors import UserError
from unimllm.processing import ConversationProcessor
from unimllm.scenes.conversations import PackedConversations
from unimllm.scenes.sources import check_size
from unimllm.scenes.text import build_text_tokenizer
from unimllm.training.attention import open_attention
from unimllm.training.batches import SampleSource
from unimllm.training.checkpoint import (
    index_folder,
    latest,
    place_of,
    prepare_output,
    read_run,
    warn_of_start,
    warn_of_stopped,
)
from unimllm.training.families import family_of
from unimllm.training.language_options import check_options
from unimllm.training.language_plan import build_on_meta, describe_data, language_model_plan, planned_tokenizer
from unimllm.training.loop import start_processes, train
from unimllm.training.overrides import as_dict, check_taken, sizes_told
from unimllm.training.presets import SftRecipe
from unimllm.training.seeding import seed_everything
from unimllm.training.start_model import (
    backbone_name,
    chat_template,
    choose_trained,
    open_text_tokenizer,
    start_model,
    starting_point,
    training_processor,
    vocab_size,
    warn_of_slow_bits,
)
from unimllm.training.validation import HeldOut

SCENE_SEED = 7000  # of the pictures; apart from those that trained the tokenizer
VALIDATION_SCENES = 512


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
    rank, world_size = start_processes()
    open_attention(model, recipe, has_branches=not args.data)
    if recipe.quantize_base:
        quantize_linear(model.language_model)
        warn_of_slow_bits(recipe.train)
    choose_trained(model, recipe, freeze)
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


def real_place(name: str | None) -> str | None:
    """The whole path of a folder; a hub id, or what is not there, as it is written."""
    return str(Path(name).resolve()) if name and Path(name).is_dir() else name


def named_start(args: Namespace) -> str | None:
    """What the command line names to start from; None where it names nothing, or what is not there any more."""
    try:
        return starting_point(args) or args.language_model
    except UserError:
        return None


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
    if not (args.data or args.init_from or args.image_tokenizer):
        check_size(recipe.world, model.config.image_size)
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


# ---- its data ------------------------------------------------------------------------------------------------------


def scene_source(
    args: Namespace, recipe: SftRecipe, model, processor, world, renderer, rank: int, world_size: int
) -> tuple[SampleSource, dict[str, HeldOut]]:
    """Rows of conversations about scenes, and rows of the validation split."""

    check_size(world, model.config.image_size)

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
    processes = (index_folder(args.output_dir), rank, world_size, config.num_workers)
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
