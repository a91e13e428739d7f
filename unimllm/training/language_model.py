"""What `train/pretrain.py` and `train/sft.py` share: options, the model that a run starts from, its data."""

import os
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoTokenizer

from semhitok import SemHiTokModel
from semhitok.checkpoints import load_tokenizer
from semhitok.errors import first_line
from semhitok.fingerprint import code_layout
from semhitok.image_processing_semhitok import for_tokenizer
from unimllm.chat_templates import CHAT_TEMPLATES
from unimllm.command_line import number
from unimllm.conversation import special_ids
from unimllm.data.code_cache import build_code_cache
from unimllm.data.mixture import parse_ratios
from unimllm.data.open_data import DataOptions, open_data
from unimllm.data.packed_samples import PackedSamples
from unimllm.data.picture_ids import OnlinePixels, StoredCodes
from unimllm.data.sample_index import FORMATS, find_files, parse_data
from unimllm.data.sample_tokens import SampleTokenizer
from unimllm.discrete.backbone import OnlyRows, add_image_tokens, load_backbone
from unimllm.discrete.lora import CONFIG as LORA_CONFIG
from unimllm.discrete.lora import FOLDER as LORA_FOLDER
from unimllm.discrete.lora import add_lora, import_peft, is_adapted, merged_state, save_lora
from unimllm.discrete.modeling_unimllm import UniMLLMForConditionalGeneration
from unimllm.distributed import is_first_process, print_once
from unimllm.errors import UserError
from unimllm.inference import DEFAULT_MODEL, find_checkpoint, load
from unimllm.processing_unimllm import UniMLLMProcessor
from unimllm.scenes.conversations import PackedConversations
from unimllm.scenes.text import build_text_tokenizer
from unimllm.training.batches import SampleSource
from unimllm.training.checkpoint import latest, prepare_output, read_run, resolve
from unimllm.training.language_plan import build_on_meta, describe_data, language_model_plan
from unimllm.training.loop import start_processes, train
from unimllm.training.overrides import as_dict, check_taken, default_folder, sizes_told
from unimllm.training.presets import SftRecipe
from unimllm.training.seeding import seed_everything
from unimllm.training.sft import SftTask, exchange_image_tokenizer
from unimllm.vocabulary import IMAGE_TOKENS

SCENE_SEED = 7000  # of the pictures; apart from those that trained the tokenizer

OPTIONS = {
    "image_tokenizer": {"help": "a SemHiTok checkpoint (default: runs/PRESET/decoder, else .../pixel)"},
    "language_model": {"help": "folder or hub id of a causal language model to start from (default: the preset's)"},
    "chat_template": {"help": f"of --language-model, instead of its own: {', '.join(CHAT_TEMPLATES)}, or a file"},
    "data": {"nargs": "+", "action": "extend", "default": [], "metavar": "PLACE[:WEIGHT]",
             "help": "files, folders of them, or names of Hugging Face datasets, instead of scenes"},
    "format": {"choices": list(FORMATS), "help": "what --data is, where it is not recognised"},
    "image_root": {"type": Path, "help": "folder that the data's paths of pictures begin in (default: each file's)"},
    "ratios": {"metavar": "U:D:T", "help": "shares of understanding, drawing and text (default: the data's own)"},
    "codes": {"type": Path, "help": "folder of `python -m semhitok encode`, read instead of the pictures"},
    "strict": {"action": "store_true", "help": "stop at the first sample that cannot be used"},
    "text_tokenizer": {"help": "folder or hub id of a text tokenizer for --data (default: the model's)"},
    "dry_run": {"type": number(int, 1), "nargs": "?", "const": int(os.environ.get("WORLD_SIZE", 1)),
                "metavar": "PROCESSES", "help": "print the plan for so many (default: this launch's), and stop"},
}  # fmt: skip
"""Options of both programs beside `parse_arguments`' own."""


def train_language_model(
    args: Namespace, recipe: SftRecipe, freeze: Callable[[UniMLLMForConditionalGeneration], None] | None = None
) -> None:
    """Train on scenes, or on --data.

    Args:
        args, recipe: of `parse_arguments` with OPTIONS.
        freeze: chooses what is trained; None: all but the image tokenizer.
    """
    check_options(args, recipe)
    if args.dry_run is not None:
        return print_plan(args, recipe, freeze)
    recipe.language_model, recipe.chat_template = backbone_name(args, recipe), chat_template(args, recipe)
    args.init_from = starting_point(args)
    world_of_scenes = None if args.data else recipe.world.open()
    text_tokenizer = open_text_tokenizer(args, recipe, world_of_scenes)
    prepare_output(args.output_dir)
    model, text_tokenizer = start_model(args, recipe, text_tokenizer)
    check_taken(args.overrides, model.config)
    choose_trained(model, recipe, freeze)
    image = model.config.image_tokenizer_config
    processor = UniMLLMProcessor(for_tokenizer(image), text_tokenizer, num_positions=image.num_positions)
    rank, world_size = start_processes()
    about: dict = {"init_from": args.init_from}
    if args.data:
        source, described = data_source(args, recipe, model, processor, rank, world_size)
        about |= described
    else:
        source = scene_source(args, recipe, model, processor, *world_of_scenes, rank, world_size)

    def export(folder: Path) -> None:
        if is_adapted(model):
            model.save_pretrained(folder, state_dict=merged_state(model))
            save_lora(model, folder / LORA_FOLDER, args.init_from)
        else:
            model.save_pretrained(folder)
        processor.save_pretrained(folder)

    if recipe.train.compile:
        model.language_model.get_decoder().compile(dynamic=False)
    task = SftTask(model, {"text": recipe.text_weight}, recipe.max_length)
    train(task, source, recipe.train, args.output_dir, export, as_dict(recipe) | about)


def print_plan(
    args: Namespace, recipe: SftRecipe, freeze: Callable[[UniMLLMForConditionalGeneration], None] | None
) -> None:
    """What the run would be, for --dry-run; nothing is written."""
    if not is_first_process():
        return
    if not args.data:
        recipe.model.text_config.vocab_size = len(build_text_tokenizer(recipe.world.open()[0]))
    with sizes_told():
        model = build_on_meta(recipe)
    with torch.device("meta"):
        choose_trained(model, recipe, freeze)
    task = SftTask(model, {}, recipe.max_length)
    lines = [language_model_plan(args.preset, model, recipe, args.dry_run, task.flops_per_token())]
    print("\n".join(lines + describe_data(args)))
    if args.init_from or args.language_model or args.image_tokenizer:
        print("the sizes are the preset's; the checkpoints are read by the run itself")


def check_options(args: Namespace, recipe: SftRecipe) -> None:
    """UserError for data that is not there, before a model is built, and for options that something else decides."""
    for field in ("language_model", "chat_template"):
        if field in args.overrides:
            raise UserError(f"--{field}: write --{field.replace('_', '-')}")
    if args.language_model and args.init_from:
        raise UserError("--language-model and --init-from both name a language model to start from; choose one")
    if args.chat_template and not backbone_name(args, recipe):
        raise UserError("--chat-template is for --language-model; other models have their own")
    if args.text_tokenizer and (args.init_from or backbone_name(args, recipe)):
        raise UserError("--text-tokenizer: a trained language model reads its own tokenizer alone; leave it out")
    if recipe.lora_rank:
        import_peft()
        check_words_stay(recipe)
        if not args.init_from:
            raise UserError("LoRA tunes a unified model that was trained: name it with --init-from")
        if args.image_tokenizer:
            raise UserError("LoRA goes over a model as it is; train it whole over another --image-tokenizer first")
    for word in args.data:
        find_files(parse_data(word).place, args.format)
    if args.ratios:
        parse_ratios(args.ratios)
    for name in ("format", "image_root", "ratios", "codes", "strict", "text_tokenizer"):
        if getattr(args, name) and not args.data:
            raise UserError(f"--{name.replace('_', '-')} is about --data, which is not given: scenes need none of it")
    if recipe.world is None and not args.data:
        raise UserError(f"--preset {args.preset} trains on your data: name files, folders or datasets with --data")


# ---- the model -----------------------------------------------------------------------------------------------------


def backbone_name(args: Namespace, recipe: SftRecipe) -> str:
    """Folder or hub id of the language model that a run starts from; empty: a new one, or that of --init-from."""
    return "" if args.init_from else args.language_model or recipe.language_model


def starting_point(args: Namespace) -> str | None:
    """--init-from as the one checkpoint that it means now, by its whole path or hub id; None without it."""
    if not args.init_from:
        return None
    is_adapter = (Path(args.init_from) / LORA_CONFIG).is_file()
    place = str(args.init_from) if is_adapter else find_checkpoint(args.init_from, "--init-from")
    return str(Path(place).resolve()) if Path(place).is_dir() else place


def open_text_tokenizer(args: Namespace, recipe: SftRecipe, world_of_scenes: tuple | None):
    """The text tokenizer of a new model; None where the model that a run starts from brings its own."""
    if args.init_from or backbone_name(args, recipe):
        return None
    if world_of_scenes:
        return build_text_tokenizer(world_of_scenes[0])
    place = args.text_tokenizer or DEFAULT_MODEL
    try:
        return AutoTokenizer.from_pretrained(place)
    except Exception as error:  # of the hub, of damaged files, of tokenizers' own
        raise UserError(f"--text-tokenizer {place}: {first_line(error)}") from error


def start_model(args: Namespace, recipe: SftRecipe, text_tokenizer) -> tuple[UniMLLMForConditionalGeneration, object]:
    """The model that a run starts from, and its text tokenizer.

    That of --init-from, with its own image tokenizer or with that of --image-tokenizer; else a trained image tokenizer
    under the language model of --language-model or of the recipe; else under a new one.

    Args:
        text_tokenizer: of `open_text_tokenizer`.
    """
    # An engine that computes in bf16 keeps its own float32 weights; twice the memory for loading would buy nothing.
    dtype = torch.bfloat16 if recipe.train.precision == "bf16" else torch.float32
    if args.init_from:
        model, processor = load(args.init_from, "cpu", "--init-from", dtype)
        if args.image_tokenizer:
            exchange_image_tokenizer(model, load_tokenizer(args.image_tokenizer, "cpu", "--image-tokenizer")[0])
        return model, processor.tokenizer
    image_tokenizer, _ = load_tokenizer(find_image_tokenizer(args), "cpu", "--image-tokenizer")
    seed_everything(recipe.train.seed)
    if recipe.language_model:
        return start_from_backbone(recipe, image_tokenizer, dtype)
    recipe.model.image_tokenizer_config = image_tokenizer.config
    recipe.model.text_config.vocab_size = len(text_tokenizer)
    if args.data:
        name_special_ids(recipe, text_tokenizer)
    with sizes_told():
        model = UniMLLMForConditionalGeneration(recipe.model)
    model.image_tokenizer.load_state_dict(image_tokenizer.state_dict())
    return model, text_tokenizer


def start_from_backbone(recipe: SftRecipe, image_tokenizer: SemHiTokModel, dtype: torch.dtype):
    """A unified model over the recipe's language model, whose vocabulary gains the image tokens; and its tokenizer."""
    language_model, text_tokenizer = load_backbone(recipe.language_model, recipe.chat_template, dtype)
    new = add_image_tokens(language_model, text_tokenizer)
    print_once(
        f"language model: {recipe.language_model}, {len(text_tokenizer):,} tokens, {len(new)} of them new, {dtype}"
    )
    recipe.model.text_config = language_model.config
    name_special_ids(recipe, text_tokenizer)
    with sizes_told():
        return UniMLLMForConditionalGeneration.from_parts(recipe.model, language_model, image_tokenizer), text_tokenizer


def chat_template(args: Namespace, recipe: SftRecipe) -> str:
    """A name of CHAT_TEMPLATES or a template; empty: the tokenizer's own. A preset's is for its own model alone."""
    named = args.chat_template or ("" if args.language_model or args.init_from else recipe.chat_template)
    if not named or named in CHAT_TEMPLATES:
        return named
    try:
        return Path(named).read_text()
    except (OSError, UnicodeDecodeError) as error:
        known = ", ".join(CHAT_TEMPLATES)
        raise UserError(f"--chat-template {named} is none of {known} and no text file: {first_line(error)}") from error


def find_image_tokenizer(args: Namespace) -> str:
    """Folder or hub id of the image tokenizer; UserError where none was named and the preset's is not trained yet."""
    if args.image_tokenizer:
        return args.image_tokenizer
    for stage in ("decoder", "pixel"):
        try:
            return str(resolve(default_folder(args.preset, stage)))
        except UserError as error:
            last = error
    raise UserError(f"{last}; train it with train/tokenizer.py or name its folder with --image-tokenizer")


def name_special_ids(recipe: SftRecipe, text_tokenizer) -> None:
    """Put the ids that a text tokenizer gives the special tokens into the model's config."""
    ids = special_ids(text_tokenizer)
    for name in IMAGE_TOKENS:
        setattr(recipe.model, f"{name}_token_id", ids[name])
    for config in (recipe.model, recipe.model.text_config):
        config.pad_token_id, config.eos_token_id = text_tokenizer.pad_token_id, text_tokenizer.eos_token_id


def choose_trained(
    model: UniMLLMForConditionalGeneration, recipe: SftRecipe,
    freeze: Callable[[UniMLLMForConditionalGeneration], None] | None,
) -> None:  # fmt: skip
    """Freeze what a run leaves as it is, or adapt it with LoRA."""
    if freeze:
        freeze(model)
    if recipe.lora_rank:
        add_lora(
            model.language_model, recipe.lora_rank, recipe.lora_alpha, recipe.lora_dropout, recipe.lora_targets
        )  # fmt: skip
        train_image_tokens(model)


def freeze_language_model(model: UniMLLMForConditionalGeneration) -> None:
    """Train what stands between pictures and words alone: adapter, image head, and the image tokens' rows.

    LLaVA-1.5's first stage, which trains its projector alone, where pictures are also drawn.
    """
    model.language_model.requires_grad_(False)
    train_image_tokens(model)


def train_image_tokens(model: UniMLLMForConditionalGeneration) -> None:
    """Train the rows of the image tokens in a language model that is frozen."""
    tables = {id(part.weight): part.weight for part in (model.get_input_embeddings(), model.get_output_embeddings())}
    for table in tables.values():
        OnlyRows(table.requires_grad_(True), model.config.image_token_rows)


def check_words_stay(recipe: SftRecipe) -> None:
    """UserError where weight decay would move the rows of words in a table of which only some rows are trained."""
    if recipe.train.weight_decay:
        raise UserError("--train.weight_decay must be 0: it would move the rows of words, which are to stay")


# ---- its data ------------------------------------------------------------------------------------------------------


def scene_source(
    args: Namespace, recipe: SftRecipe, model, processor, world, renderer, rank: int, world_size: int
) -> SampleSource:
    """Rows of conversations about scenes, whose pictures are tokenised once."""
    codes = build_code_cache(
        model.image_tokenizer, world, renderer, SCENE_SEED, recipe.num_scenes, args.output_dir.parent / "codes",
        recipe.train.autocast(), rank, world_size,
    )  # fmt: skip
    return PackedConversations(
        world, processor.conversation, codes, SCENE_SEED, model.config.image_offset, recipe.max_length,
        recipe.drawing_share, recipe.text_drop, recipe.sequential_share, recipe.train.seed,
    )  # fmt: skip


def data_source(
    args: Namespace, recipe: SftRecipe, model, processor, rank: int, world_size: int
) -> tuple[PackedSamples, dict]:
    """Rows of the samples of --data, and what run.json notes of them."""
    offset = model.config.image_offset
    if len(processor.tokenizer) > offset:
        raise UserError(f"the text tokenizer has {len(processor.tokenizer):,} ids, the model {offset:,}; name its own")
    pictures = (
        StoredCodes(args.codes, code_layout(model.image_tokenizer), offset)
        if args.codes
        else OnlinePixels(processor.image_processor)
    )
    context = model.config.text_config.max_position_embeddings
    tokenizer = SampleTokenizer(processor.conversation, min(recipe.max_length, context))
    config = recipe.train
    source, about = open_data(
        DataOptions(args.data, args.format, args.image_root, args.ratios, args.strict), tokenizer, pictures,
        recipe.max_length, recipe.text_drop, config.seed, config.max_steps * config.batch_size,
        args.output_dir.parent / "index", rank, world_size, config.num_workers,
    )  # fmt: skip
    found = latest(args.output_dir)
    before = read_run(found)["recipe"].get("data") if found else None
    if rank == 0 and before and before["fingerprint"] != about["fingerprint"]:
        print(f"warning: {found.name} was trained on other data ({before['samples']:,} samples, {about['samples']:,} "
              "now); from here on the run differs from one without a break", flush=True)  # fmt: skip
    return source, {"data": about}
