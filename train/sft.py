"""Train the unified model: captions, questions and text-to-image in one mix of packed rows.

deepspeed train/sft.py --preset scenes_64 --image-tokenizer runs/scenes_64/decoder
"""

from pathlib import Path

from semhitok.auto import read_tokenizer
from semhitok.image_processing_semhitok import for_tokenizer
from unimllm import UniMLLMForConditionalGeneration, UniMLLMProcessor
from unimllm.conversation import ConversationTokenizer
from unimllm.data.code_cache import build_code_cache
from unimllm.errors import UserError
from unimllm.scenes.conversations import PackedConversations
from unimllm.scenes.text import build_text_tokenizer
from unimllm.training.checkpoint import prepare_output, resolve
from unimllm.training.loop import start_processes, train
from unimllm.training.overrides import as_dict, default_folder, parse_arguments, run_program
from unimllm.training.presets import SFT_PRESETS, SftRecipe
from unimllm.training.seeding import seed_everything
from unimllm.training.sft import SftTask

SCENE_SEED = 7000  # of the pictures; apart from those that trained the tokenizer


def main() -> None:
    args, recipe = parse_arguments(
        "Train the unified model on scenes.", "sft", SFT_PRESETS,
        image_tokenizer={"type": Path, "help": "a SemHiTok checkpoint (default: runs/PRESET/decoder, else .../pixel)"},
    )  # fmt: skip
    world, renderer = recipe.world.open()
    text_tokenizer = build_text_tokenizer(world)
    prepare_output(args.output_dir)
    model = build_model(args, recipe, text_tokenizer)
    image = model.config.image_tokenizer_config
    processor = UniMLLMProcessor(for_tokenizer(image), text_tokenizer, num_positions=image.num_positions)
    rank, world_size = start_processes()
    codes = build_code_cache(
        model.image_tokenizer, world, renderer, SCENE_SEED, recipe.num_scenes, args.output_dir.parent / "codes",
        recipe.train.autocast(), rank, world_size,
    )  # fmt: skip
    source = PackedConversations(
        world, ConversationTokenizer(text_tokenizer, image.num_positions), codes, SCENE_SEED, model.config.image_offset,
        recipe.max_length, recipe.drawing_share, recipe.text_drop, recipe.sequential_share,
        recipe.train.seed,
    )  # fmt: skip

    def export(folder: Path) -> None:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)

    if recipe.train.compile:
        model.language_model.get_decoder().compile(dynamic=False)
    task = SftTask(model, {"text": recipe.text_weight})
    train(task, source, recipe.train, args.output_dir, export, as_dict(recipe))


def build_model(args, recipe: SftRecipe, text_tokenizer) -> UniMLLMForConditionalGeneration:
    """A new model over a trained image tokenizer, or the one of --init-from."""
    if args.init_from:
        return UniMLLMForConditionalGeneration.from_pretrained(resolve(args.init_from))
    candidates = [args.image_tokenizer] if args.image_tokenizer else [
        default_folder(args.preset, "decoder"), default_folder(args.preset, "pixel")
    ]  # fmt: skip
    for folder in candidates:
        try:
            image_tokenizer = read_tokenizer(resolve(folder))
            break
        except UserError as error:
            last = error
    else:
        raise UserError(f"{last}; train it with train/tokenizer.py or name its folder with --image-tokenizer")
    seed_everything(recipe.train.seed)
    recipe.model.image_tokenizer_config = image_tokenizer.config
    recipe.model.text_config.vocab_size = len(text_tokenizer)
    model = UniMLLMForConditionalGeneration(recipe.model)
    model.image_tokenizer.load_state_dict(image_tokenizer.state_dict())
    return model


if __name__ == "__main__":
    run_program(main)
