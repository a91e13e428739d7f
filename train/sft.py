"""Train the unified model: captions, questions and text-to-image in one mix of packed rows.

deepspeed train/sft.py --preset scenes_64 --image-tokenizer runs/scenes_64/decoder

Without --data it trains on scenes. With --data it trains on LLaVA's JSON, on captions in JSON lines, on webdataset
tars, on parquet files or on Hugging Face datasets, several of them in one mix (unimllm/data/sample_index.py):

deepspeed train/sft.py --init-from runs/pretrain --data llava_v1_5_mix665k.json captions.jsonl:2 --image-root images

A model goes on over a tokenizer that was trained further, with --init-from MODEL --image-tokenizer TOKENIZER.
"""

import copy
from pathlib import Path

from transformers import AutoTokenizer

from semhitok.checkpoints import load_tokenizer
from semhitok.errors import first_line
from semhitok.fingerprint import code_layout
from semhitok.image_processing_semhitok import for_tokenizer
from unimllm import UniMLLMForConditionalGeneration, UniMLLMProcessor
from unimllm.conversation import ConversationTokenizer
from unimllm.data.code_cache import build_code_cache
from unimllm.data.mixture import parse_ratios
from unimllm.data.open_data import DataOptions, open_data
from unimllm.data.packed_samples import PackedSamples
from unimllm.data.picture_ids import OnlinePixels, StoredCodes
from unimllm.data.sample_index import FORMATS, find_files, parse_data
from unimllm.data.sample_tokens import SampleTokenizer
from unimllm.errors import UserError
from unimllm.inference import DEFAULT_MODEL, find_checkpoint, load
from unimllm.scenes.conversations import PackedConversations
from unimllm.scenes.text import build_text_tokenizer
from unimllm.training.checkpoint import latest, prepare_output, read_run, resolve
from unimllm.training.loop import start_processes, train
from unimllm.training.overrides import as_dict, check_taken, default_folder, parse_arguments, run_program, sizes_told
from unimllm.training.presets import SFT_PRESETS, SftRecipe
from unimllm.training.seeding import seed_everything
from unimllm.training.sft import SftTask, exchange_image_tokenizer

SCENE_SEED = 7000  # of the pictures; apart from those that trained the tokenizer


def main() -> None:
    args, recipe = parse_arguments(
        "Train the unified model on scenes, or on the data that --data names.", "sft", SFT_PRESETS,
        image_tokenizer={"help": "a SemHiTok checkpoint (default: runs/PRESET/decoder, else .../pixel)"},
        data={"nargs": "+", "action": "extend", "default": [], "metavar": "PLACE[:WEIGHT]",
              "help": "files, folders of them, or names of Hugging Face datasets, instead of scenes"},
        format={"choices": list(FORMATS), "help": "what --data is, where it is not recognised"},
        image_root={"type": Path, "help": "folder that the data's paths of pictures begin in (default: each file's)"},
        ratios={"metavar": "U:D:T", "help": "shares of understanding, drawing and text (default: the data's own)"},
        codes={"type": Path, "help": "folder of `python -m semhitok encode`, read instead of the pictures"},
        strict={"action": "store_true", "help": "stop at the first sample that cannot be used"},
        text_tokenizer={"help": "folder or hub id of a text tokenizer for --data (default: the model's)"},
    )  # fmt: skip
    check_options(args)
    world_of_scenes = None if args.data else recipe.world.open()
    text_tokenizer = open_text_tokenizer(args) if args.data else build_text_tokenizer(world_of_scenes[0])
    prepare_output(args.output_dir)
    model = build_model(args, recipe, text_tokenizer)
    check_taken(args.overrides, model.config)
    image = model.config.image_tokenizer_config
    processor = UniMLLMProcessor(for_tokenizer(image), text_tokenizer, num_positions=image.num_positions)
    rank, world_size = start_processes()
    encoder, about = None, {}
    if args.data:
        source, about = data_source(args, recipe, model, processor, rank, world_size)
        if args.codes is None and recipe.train.precision == "bf16":
            encoder = copy.deepcopy(model.image_tokenizer)
    else:
        source = scene_source(args, recipe, model, processor, *world_of_scenes, rank, world_size)

    def export(folder: Path) -> None:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)

    if recipe.train.compile:
        model.language_model.get_decoder().compile(dynamic=False)
    task = SftTask(model, {"text": recipe.text_weight}, encoder)
    train(task, source, recipe.train, args.output_dir, export, as_dict(recipe) | about)


def check_options(args) -> None:
    """UserError for data that is not there, before a model is built, and for options about --data without it."""
    for word in args.data:
        find_files(parse_data(word).place, args.format)
    if args.ratios:
        parse_ratios(args.ratios)
    for name in ("format", "image_root", "ratios", "codes", "strict", "text_tokenizer"):
        if getattr(args, name) and not args.data:
            raise UserError(f"--{name.replace('_', '-')} is about --data, which is not given: scenes need none of it")


def scene_source(args, recipe: SftRecipe, model, processor, world, renderer, rank: int, world_size: int):
    """Rows of conversations about scenes, whose pictures are tokenised once."""
    codes = build_code_cache(
        model.image_tokenizer, world, renderer, SCENE_SEED, recipe.num_scenes, args.output_dir.parent / "codes",
        recipe.train.autocast(), rank, world_size,
    )  # fmt: skip
    return PackedConversations(
        world, processor.conversation, codes, SCENE_SEED, model.config.image_offset, recipe.max_length,
        recipe.drawing_share, recipe.text_drop, recipe.sequential_share, recipe.train.seed,
    )  # fmt: skip


def data_source(args, recipe: SftRecipe, model, processor, rank: int, world_size: int) -> tuple[PackedSamples, dict]:
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


def open_text_tokenizer(args):
    """The text tokenizer of --text-tokenizer, else of --init-from, else of the small model that ships."""
    place = args.text_tokenizer or (find_checkpoint(args.init_from, "--init-from") if args.init_from else DEFAULT_MODEL)
    try:
        return AutoTokenizer.from_pretrained(place)
    except Exception as error:  # of the hub, of damaged files, of tokenizers' own
        raise UserError(f"--text-tokenizer {place}: {first_line(error)}") from error


def build_model(args, recipe: SftRecipe, text_tokenizer) -> UniMLLMForConditionalGeneration:
    """A new model over a trained image tokenizer, or the one of --init-from, then with its own or with that of
    --image-tokenizer."""
    if args.init_from:
        model = load(args.init_from, "cpu", "--init-from")[0]
        if args.image_tokenizer:
            exchange_image_tokenizer(model, load_tokenizer(args.image_tokenizer, "cpu", "--image-tokenizer")[0])
        return model
    image_tokenizer, _ = load_tokenizer(find_image_tokenizer(args), "cpu", "--image-tokenizer")
    seed_everything(recipe.train.seed)
    recipe.model.image_tokenizer_config = image_tokenizer.config
    recipe.model.text_config.vocab_size = len(text_tokenizer)
    if args.data:
        name_special_ids(recipe, text_tokenizer)
    with sizes_told():
        model = UniMLLMForConditionalGeneration(recipe.model)
    model.image_tokenizer.load_state_dict(image_tokenizer.state_dict())
    return model


def find_image_tokenizer(args) -> str:
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
    ids = ConversationTokenizer(text_tokenizer, 1).ids
    for name in ("image_start", "image_end", "image"):
        setattr(recipe.model, f"{name}_token_id", ids[name])
    for config in (recipe.model, recipe.model.text_config):
        config.pad_token_id, config.eos_token_id = text_tokenizer.pad_token_id, text_tokenizer.eos_token_id


if __name__ == "__main__":
    run_program(main)
