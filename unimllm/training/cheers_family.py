"""CHEERS in training: latents of an autoencoder, drawn by a flow. The verbs are those of `families`."""

from argparse import Namespace
from dataclasses import dataclass
from typing import NoReturn

import torch
from torch import nn
from transformers import SiglipVisionModel

from semhitok.image_processing_semhitok import SemHiTokImageProcessor, for_size
from unimllm.cheers.autoencoder import CheersVae
from unimllm.cheers.configuration_cheers import WITHOUT_WEIGHTS, CheersConfig
from unimllm.cheers.modeling_cheers import CheersForConditionalGeneration
from unimllm.cheers.processing_cheers import CheersProcessor
from unimllm.data.picture_ids import OnlinePixels
from unimllm.discrete.varlen import NAME as VARLEN
from unimllm.errors import UserError
from unimllm.image_tokenizer import load_autoencoder
from unimllm.scenes.pictures import ScenePixels
from unimllm.training.checkpoint import resolve
from unimllm.training.cheers_sft import CheersTask
from unimllm.training.overrides import default_folder
from unimllm.training.plan import PICTURE_SHARE, saved_bytes
from unimllm.training.presets import SftRecipe
from unimllm.training.tokenizer import open_teacher

model_class, processor_class = CheersForConditionalGeneration, CheersProcessor
without_weights = WITHOUT_WEIGHTS
takes_varlen = False  # its pictures see all of themselves


@dataclass(frozen=True)
class Vision:
    """What a new model sees with: an autoencoder, and a SigLIP over what its decoder makes."""

    vae: CheersVae
    siglip: SiglipVisionModel


def check_options(args: Namespace, recipe: SftRecipe) -> None:
    if args.teacher and args.init_from:
        raise UserError("--teacher: the model of --init-from has its SigLIP; leave it out")
    if args.codes:
        raise UserError("--codes: this family reads pictures, not codes; leave it out")
    if recipe.lora_rank or recipe.quantize_base:
        raise UserError("--lora_rank and --quantize_base are for models of codes; this family is trained whole")
    if recipe.attention.startswith("flash_attention") or recipe.attention == VARLEN:
        raise UserError(f"--attention {recipe.attention}: it cannot let a picture see all of itself; use sdpa")


def open_vision(args: Namespace) -> Vision:
    """The autoencoder of --image-tokenizer (or of the preset's stage vae) and the SigLIP of --teacher."""
    teacher = open_teacher(args)
    if not isinstance(teacher.vision_model, SiglipVisionModel):
        raise UserError("--teacher: a NaFlex SigLIP 2 cannot see through CHEERS; take one of fixed resolution")
    if any(value != 0.5 for value in (*teacher.image_mean, *teacher.image_std)):
        raise UserError("--teacher: CHEERS shows its SigLIP pictures in -1..1; this one was trained on another range")
    return Vision(open_vae(args), teacher.vision_model)


def open_vae(args: Namespace) -> CheersVae:
    """An autoencoder, or that of a whole model; UserError where there is none."""
    remedy = "train it with train/tokenizer.py --stage vae or name its folder with --image-tokenizer"
    folder = args.image_tokenizer or str(resolve(default_folder(args.preset, "vae"), remedy))
    return load_autoencoder(folder, "--image-tokenizer")


def build(config: CheersConfig, vision: Vision, language_model=None) -> CheersForConditionalGeneration:
    text_config = config.text_config if language_model is None else language_model.config
    config.take_parts(text_config, vision.siglip.config, vision.vae.config)
    return CheersForConditionalGeneration.from_parts(config, language_model, vision.siglip, vision.vae)


def exchange_vision(model: CheersForConditionalGeneration, args: Namespace) -> NoReturn:
    raise UserError("--image-tokenizer: a trained model draws in its own autoencoder's latents; leave it out")


def image_processor(config: CheersConfig, pad_to_square: bool) -> SemHiTokImageProcessor:
    processor = for_size(config.image_size)
    processor.pad_to_square = pad_to_square
    return processor


def scene_pictures(
    model, world, renderer, seed: int, count: int, split: str, args: Namespace, recipe: SftRecipe, rank: int,
    world_size: int,
) -> ScenePixels:  # fmt: skip
    return ScenePixels(renderer)


def sample_pictures(args: Namespace, model, processor: CheersProcessor) -> OnlinePixels:
    return OnlinePixels(processor.image_processor, processor.drawn_image_processor)


def make_task(model: CheersForConditionalGeneration, recipe: SftRecipe) -> CheersTask:
    vision = model.vision_tokenizer
    if recipe.alignment_weight and not vision.has_siglip_of_pixels():
        raise UserError("--init-from holds a model whose SigLIP reads latents: there are no features of pictures to "
                        "hold drawings to; train it with --alignment_weight 0")  # fmt: skip
    return CheersTask(model, {"text": recipe.text_weight}, recipe.alignment_weight, recipe.time_shift)


def first_stage_keeps(model: CheersForConditionalGeneration) -> list[nn.Module]:
    vision = model.vision_tokenizer
    return [model.language_model, vision.vision_representation, vision.vae_decoder_projector]


def parts(model: CheersForConditionalGeneration) -> dict[str, nn.Module]:
    vision = model.vision_tokenizer
    return {
        "language model": model.language_model, "SigLIP": vision.vision_representation,
        "compressor": vision.und_projector, "decoder before SigLIP": vision.vae_decoder_projector,
        "flow head": model.flow_head, "image tokenizer": vision.vae_model,
    }  # fmt: skip


def random_ids(config: CheersConfig, count: int) -> torch.Tensor:
    return torch.full((count, config.num_positions), config.image_token_id)


def random_pixels(config: CheersConfig, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
    count = int((input_ids == config.image_token_id).sum()) // config.num_positions
    return {"pixel_values": torch.rand(count, 3, config.image_size, config.image_size) * 2 - 1}


def row_bytes(model: CheersForConditionalGeneration, recipe: SftRecipe, share: float) -> dict[str, float]:
    """Bytes of a row: its logits in float32, their softmax and its gradient; what its pictures keep until backward.

    Gradient checkpointing is left out of the latter: the decoder, most of it, has none.
    """
    config = model.config
    pictures = PICTURE_SHARE * recipe.max_length / config.num_positions
    z_t = torch.empty(
        1, config.vae_config.patched_channels, config.latent_size, config.latent_size, device="meta", requires_grad=True
    )
    hidden = torch.empty(1, config.num_positions, config.text_config.hidden_size, device="meta", requires_grad=True)
    details = torch.empty(1, config.latent_size**2, config.vision_config.hidden_size, device="meta")
    kept = saved_bytes(model.vision_tokenizer, z_t)
    kept += saved_bytes(model.flow_head, hidden, details, torch.empty(1, device="meta"))
    return {"pictures": share * pictures * kept, "logits": 12.0 * recipe.max_length * config.text_config.vocab_size}
