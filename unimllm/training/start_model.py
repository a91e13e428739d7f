"""What `train/pretrain.py` and `train/sft.py` start from: the model, its text tokenizer, and what is trained of it."""

import copy
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedModel

from semhitok.errors import first_line
from unimllm.chat_templates import CHAT_TEMPLATES, TRAINING_TEMPLATES
from unimllm.conversation import ConversationTokenizer, special_ids
from unimllm.discrete.backbone import OnlyRows, add_image_tokens, load_backbone, load_text_tokenizer
from unimllm.discrete.four_bits import import_bitsandbytes
from unimllm.discrete.lora import CONFIG as LORA_CONFIG
from unimllm.discrete.lora import add_lora, base_of
from unimllm.distributed import print_once
from unimllm.errors import UserError
from unimllm.inference import DEFAULT_MODEL, find_checkpoint, load
from unimllm.processing import ConversationProcessor
from unimllm.scenes.text import build_text_tokenizer
from unimllm.training.config import TrainConfig, has_fast_bf16
from unimllm.training.families import family_of
from unimllm.training.overrides import change_behaviour, sizes_told
from unimllm.training.presets import SftRecipe
from unimllm.training.seeding import seed_everything
from unimllm.vocabulary import add_tokens


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
    image_tokens = family_of(recipe.model).processor_class.image_tokens
    if world_of_scenes:
        return build_text_tokenizer(world_of_scenes[0], image_tokens)
    place = args.text_tokenizer or DEFAULT_MODEL
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
        add_tokens(tokenizer, image_tokens)
        return tokenizer
    except Exception as error:  # of the hub, of damaged files, of tokenizers' own
        raise UserError(f"--text-tokenizer {place}: {first_line(error)}") from error


def vocab_size(args: Namespace, recipe: SftRecipe) -> int:
    """Ids of the language model that a run with --data and without a backbone starts from, of which nothing is read."""
    begin = whole_model(args)
    if not begin:
        return len(open_text_tokenizer(args, recipe, None))
    return AutoConfig.from_pretrained(begin, trust_remote_code=False).text_config.vocab_size


def whole_model(args: Namespace) -> str | None:
    """The checkpoint of --init-from, or the one that its adapter belongs over; None without it."""
    begin = starting_point(args)
    return base_of(Path(begin)) if begin and (Path(begin) / LORA_CONFIG).is_file() else begin


def tokenizer_at_hand(args: Namespace, recipe: SftRecipe):
    """The text tokenizer that a run with --data will have, as far as it lies on this machine: nothing is downloaded.

    Raises:
        UserError: it does not, or cannot be used.
    """
    name = backbone_name(args, recipe)
    if name:
        tokenizer = load_text_tokenizer(name, chat_template(args, recipe), local_files_only=True)
        add_tokens(tokenizer, family_of(recipe.model).processor_class.image_tokens)
        return tokenizer
    begin = whole_model(args)
    if not begin:
        return open_text_tokenizer(args, recipe, None)
    try:
        return AutoTokenizer.from_pretrained(begin, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # of the hub, of damaged files, of tokenizers' own
        raise UserError(f"--init-from {begin}: {first_line(error)}") from error


def start_model(args: Namespace, recipe: SftRecipe, text_tokenizer) -> tuple[PreTrainedModel, ConversationProcessor]:
    """The model that a run starts from, and its processor.

    That of --init-from, with its own image tokenizer or with that of --image-tokenizer; else what the family sees with
    under the language model of --language-model or of the recipe; else under a new one.

    Args:
        text_tokenizer: of `open_text_tokenizer`.
    """
    # An engine that computes in bf16 keeps its own float32 weights; twice the memory for loading would buy nothing.
    dtype = torch.bfloat16 if recipe.train.precision == "bf16" else torch.float32
    family = family_of(recipe.model)
    seed_everything(recipe.train.seed)  # new weights, and those of adapters that `choose_trained` adds
    if args.init_from:
        change = partial(change_behaviour, overrides=args.overrides, fields=family.without_weights)
        model, processor = load(args.init_from, "cpu", "--init-from", dtype, change)
        if family_of(model.config) is not family:
            raise UserError(
                f"--init-from {args.init_from} holds a {model.config.model_type} model, --preset {args.preset} trains "
                f"{recipe.model.model_type}: choose a preset of the model's family"
            )
        if args.image_tokenizer:
            family.exchange_vision(model, args)
        return model, keep_processor(model, processor, args, recipe)
    vision, language_model = family.open_vision(args), None
    if recipe.language_model:
        language_model, text_tokenizer = open_backbone(recipe, dtype)
        name_special_ids(recipe, language_model.config, text_tokenizer)
    else:
        recipe.model.text_config.vocab_size = len(text_tokenizer)
        name_special_ids(recipe, recipe.model.text_config, text_tokenizer)
    with sizes_told():
        model = family.build(recipe.model, vision, language_model)
    return model, make_processor(model, text_tokenizer, recipe)


def keep_processor(
    model: PreTrainedModel, processor: ConversationProcessor, args: Namespace, recipe: SftRecipe
) -> ConversationProcessor:
    """The processor of --init-from, which looks at pictures as it did, padded besides where the recipe says so.

    With --image-tokenizer it looks at them as that does. What is not every model's is told.
    """
    own = processor.image_processor
    if recipe.pad_to_square and own.fit_on_black:
        raise UserError("--pad_to_square: the model of --init-from reads pictures onto black; leave it out")
    recipe.pad_to_square = recipe.pad_to_square or own.pad_to_square
    if args.image_tokenizer:
        own = family_of(model.config).image_processor(model.config, recipe.pad_to_square)
    own.pad_to_square = recipe.pad_to_square
    processor.image_processor = own
    told = {name: getattr(processor.image_processor, name) for name in ("pad_to_square", "fit_on_black")}
    told["stand_in_picture"] = getattr(processor, "stand_in_picture", False)
    if kept := [name for name, value in told.items() if value]:
        print_once(f"pictures are prepared as the model of --init-from has them: {', '.join(kept)}")
    return processor


def make_processor(model: PreTrainedModel, text_tokenizer, recipe: SftRecipe) -> ConversationProcessor:
    """The processor of a new model."""
    family, config = family_of(model.config), model.config
    image_processor = family.image_processor(config, recipe.pad_to_square)
    return family.processor_class(image_processor, text_tokenizer, num_positions=config.num_positions)


def training_processor(processor: ConversationProcessor, recipe: SftRecipe) -> ConversationProcessor:
    """The processor that a run renders its samples with: the model's, or one with the recipe's own template."""
    if not recipe.training_template:
        return processor
    rendering = copy.copy(processor)  # checkpoints keep the model's template
    rendering.tokenizer = copy.deepcopy(processor.tokenizer)
    rendering.tokenizer.chat_template = TRAINING_TEMPLATES[recipe.training_template]
    rendering.conversation = ConversationTokenizer(
        rendering.tokenizer, processor.num_positions, processor.image_tokens
    )  # fmt: skip
    return rendering


def open_backbone(recipe: SftRecipe, dtype: torch.dtype):
    """The recipe's language model, whose vocabulary gains the family's image tokens, and its tokenizer."""
    language_model, text_tokenizer = load_backbone(recipe.language_model, recipe.chat_template, dtype)
    new = add_image_tokens(language_model, text_tokenizer, family_of(recipe.model).processor_class.image_tokens)
    print_once(
        f"language model: {recipe.language_model}, {len(text_tokenizer):,} tokens, {len(new)} of them new, {dtype}"
    )
    return language_model, text_tokenizer


def chat_template(args: Namespace, recipe: SftRecipe) -> str:
    """A name of CHAT_TEMPLATES or a template; empty: the tokenizer's own. A preset's is for its own model alone."""
    named = args.chat_template or ("" if args.language_model or args.init_from else recipe.chat_template)
    if not named or named in CHAT_TEMPLATES:
        return named
    try:
        return Path(named).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        known = ", ".join(CHAT_TEMPLATES)
        raise UserError(f"--chat-template {named} is none of {known} and no text file: {first_line(error)}") from error


def name_special_ids(recipe: SftRecipe, text_config: PreTrainedConfig, text_tokenizer) -> None:
    """Put the ids that a text tokenizer gives the special tokens into the model's config and its language model's."""
    image_tokens = family_of(recipe.model).processor_class.image_tokens
    ids = special_ids(text_tokenizer, image_tokens)
    for role in image_tokens:
        setattr(recipe.model, f"{role}_token_id", ids[role])
    for config in (recipe.model, text_config):
        config.pad_token_id, config.eos_token_id = text_tokenizer.pad_token_id, text_tokenizer.eos_token_id


def choose_trained(
    model: PreTrainedModel, recipe: SftRecipe,
    freeze: Callable[[PreTrainedModel], None] | None,
) -> None:  # fmt: skip
    """Freeze what a run leaves as it is, or adapt it with LoRA."""
    if freeze:
        freeze(model)
    if recipe.lora_rank:
        add_lora(
            model.language_model, recipe.lora_rank, recipe.lora_alpha, recipe.lora_dropout, recipe.lora_targets
        )  # fmt: skip
        train_image_tokens(model)


def freeze_language_model(model: PreTrainedModel) -> None:
    """Train what stands between pictures and words alone, and the image tokens' rows.

    LLaVA-1.5's first stage, which trains its projector alone, where pictures are also drawn; CHEERS's alignment.
    """
    for part in family_of(model.config).first_stage_keeps(model):
        part.requires_grad_(False)
    train_image_tokens(model)


def train_image_tokens(model: PreTrainedModel) -> None:
    """Train the rows of the image tokens in a language model that is frozen."""
    tables = {id(part.weight): part.weight for part in (model.get_input_embeddings(), model.get_output_embeddings())}
    for table in tables.values():
        OnlyRows(table.requires_grad_(True), model.config.picture_token_ids)


def check_four_bits(recipe: SftRecipe) -> None:
    """UserError where a language model in 4 bits is not to be had."""
    import_bitsandbytes()
    if not recipe.lora_rank:
        raise UserError("--quantize_base: what is in 4 bits cannot be trained itself; set --lora_rank")
    if recipe.train.zero_stage == 3:
        raise UserError("--quantize_base: ZeRO 3 does not share layers of 4 bits out; set --train.zero_stage 0, 1 or 2")
    if recipe.train.compile:
        raise UserError("--quantize_base: layers of 4 bits are not compiled; set --train.compile false")


def warn_of_slow_bits(train: TrainConfig) -> None:
    """Say that a model in 4 bits is slow here; where `is_slow` says the same of the whole run that is enough.

    In float16, for which older GPUs have hardware, numbers of large models overflow and gradients vanish.
    """
    if not has_fast_bf16() and not train.is_slow():
        print_once("warning: --quantize_base computes in bf16, for which this machine has no hardware: that is slow")


def check_words_stay(recipe: SftRecipe) -> None:
    """UserError where weight decay would move the rows of words in a table of which only some rows are trained."""
    if recipe.train.weight_decay:
        raise UserError("--train.weight_decay must be 0: it would move the rows of words, which are to stay")
