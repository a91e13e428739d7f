"""The discrete family in training: SemHiTok's codes, drawn one after the other. The verbs are those of `families`."""

from argparse import Namespace

import torch
from torch import nn

from semhitok import SemHiTokModel
from semhitok.checkpoints import load_tokenizer
from semhitok.fingerprint import code_layout
from semhitok.image_processing_semhitok import SemHiTokImageProcessor, for_tokenizer
from unimllm.data.code_cache import build_code_cache
from unimllm.data.picture_ids import OnlinePixels, StoredCodes
from unimllm.discrete.configuration_unimllm import UniMLLMConfig
from unimllm.discrete.modeling_unimllm import UniMLLMForConditionalGeneration
from unimllm.discrete.processing_unimllm import UniMLLMProcessor
from unimllm.errors import UserError
from unimllm.scenes.pictures import SceneCodes
from unimllm.training.checkpoint import resolve
from unimllm.training.overrides import default_folder
from unimllm.training.plan import PICTURE_SHARE
from unimllm.training.presets import SftRecipe
from unimllm.training.sft import SftTask, exchange_image_tokenizer

model_class, processor_class = UniMLLMForConditionalGeneration, UniMLLMProcessor
without_weights = ()
takes_varlen = True


def check_options(args: Namespace, recipe: SftRecipe) -> None:
    if args.teacher:
        raise UserError("--teacher: an image tokenizer of codes has its SigLIP in it; leave it out")
    if recipe.alignment_weight or recipe.time_shift != 1:
        raise UserError("--alignment_weight and --time_shift are for CHEERS; leave them out")


def open_vision(args: Namespace) -> SemHiTokModel:
    return load_tokenizer(find_image_tokenizer(args), "cpu", "--image-tokenizer")[0]


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


def build(config: UniMLLMConfig, vision: SemHiTokModel, language_model=None) -> UniMLLMForConditionalGeneration:
    if language_model is not None:
        return UniMLLMForConditionalGeneration.from_parts(config, language_model, vision)
    config.image_tokenizer_config = vision.config
    model = UniMLLMForConditionalGeneration(config)
    model.image_tokenizer.load_state_dict(vision.state_dict())
    return model


def exchange_vision(model: UniMLLMForConditionalGeneration, args: Namespace) -> None:
    exchange_image_tokenizer(model, load_tokenizer(args.image_tokenizer, "cpu", "--image-tokenizer")[0])


def image_processor(config: UniMLLMConfig, pad_to_square: bool) -> SemHiTokImageProcessor:
    return for_tokenizer(config.image_tokenizer_config, pad_to_square)


def scene_pictures(
    model, world, renderer, seed: int, count: int, split: str, args: Namespace, recipe: SftRecipe, rank: int,
    world_size: int,
) -> SceneCodes:  # fmt: skip
    """Codes of all scenes, made by all ranks together where they are not there yet."""
    if torch.cuda.is_available():
        model.image_tokenizer.cuda()  # ahead of the engine, which brings the rest
    codes = build_code_cache(
        model.image_tokenizer, world, renderer, seed, count, args.output_dir.parent / "codes",
        rank, world_size, split,
    )  # fmt: skip
    return SceneCodes(codes, model.config.image_offset)


def sample_pictures(args: Namespace, model, processor: UniMLLMProcessor) -> StoredCodes | OnlinePixels:
    if args.codes:
        layout = code_layout(model.image_tokenizer, processor.image_processor.pad_to_square)
        return StoredCodes(args.codes, layout, model.config.image_offset)
    return OnlinePixels(processor.image_processor)


def make_task(model: UniMLLMForConditionalGeneration, recipe: SftRecipe) -> SftTask:
    return SftTask(model, {"text": recipe.text_weight}, recipe.max_length)


def first_stage_keeps(model: UniMLLMForConditionalGeneration) -> list[nn.Module]:
    return [model.language_model]


def parts(model: UniMLLMForConditionalGeneration) -> dict[str, nn.Module]:
    return {
        "language model": model.language_model, "adapter": model.adapter, "image head": model.image_head,
        "image tokenizer": model.image_tokenizer,
    }  # fmt: skip


def random_ids(config: UniMLLMConfig, count: int) -> torch.Tensor:
    return torch.randint(config.image_offset, config.vocab_size, (count, config.num_positions))


def random_pixels(config: UniMLLMConfig, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
    return {}  # pictures are their ids


def row_bytes(model: UniMLLMForConditionalGeneration, recipe: SftRecipe, share: float) -> dict[str, float]:
    """Bytes that a row's logits take: float32, their softmax and its gradient; the wider head where pictures go."""
    image, text = model.config.image_tokenizer_config, model.config.text_config
    width = image.num_codes if model.config.image_head == "flat" else image.num_semantic_codes + image.num_pixel_codes
    return {"logits": 12.0 * recipe.max_length * max(PICTURE_SHARE * width, text.vocab_size)}
