"""The one stage of CHEERS's autoencoder, "vae". The verbs are those of `stages`."""

from argparse import Namespace

import torch
from torch import nn

from semhitok.configuration_semhitok import square_size
from semhitok.losses import PerceptualLoss
from semhitok.teacher import FrozenTeacher
from unimllm.cheers.autoencoder import CheersVae
from unimllm.cheers.configuration_cheers import CheersVaeConfig
from unimllm.cheers.vae_stage import VaeStage
from unimllm.errors import UserError
from unimllm.image_tokenizer import load_autoencoder
from unimllm.training.overrides import sizes_told
from unimllm.training.presets import TokenizerRecipe
from unimllm.training.tokenizer import make_losses, open_teacher


def check_start(args: Namespace, recipe: TokenizerRecipe, stage: str) -> None:
    if args.teacher and not reads_features(recipe):
        raise UserError(
            "--teacher is for the perceptual loss, which here is LPIPS or weighs nothing (--perceptual_weight): "
            "leave it out"
        )


def reads_features(recipe: TokenizerRecipe) -> bool:
    """Whether the perceptual loss needs a SigLIP."""
    return bool(recipe.perceptual_weight) and not recipe.lpips_weights


def start_model(args: Namespace, recipe: TokenizerRecipe, stage: str) -> CheersVae:
    if args.init_from:
        return load_autoencoder(str(args.init_from), "--init-from").train()
    with sizes_told():
        return CheersVae(recipe.model)


def make_task(model: CheersVae, recipe: TokenizerRecipe, stage: str, args: Namespace | None = None) -> VaeStage:
    """UserError where the teacher of the perceptual loss reads pictures of another size."""
    features = None
    if args and reads_features(recipe):
        teacher = open_teacher(args, recipe.patch_size)
        config, size = teacher.vision_model.config, recipe.model.image_size
        if square_size(config) != size:
            raise UserError(
                f"the teacher of the perceptual loss reads {square_size(config)} pixels and the autoencoder {size}: "
                "name another with --teacher, or go without (--perceptual_weight 0)"
            )
        features = PerceptualLoss(FrozenTeacher(teacher), config.num_hidden_layers)
    return VaeStage(model, make_losses(recipe, features), recipe.kl_weight)


def parts(model: CheersVae) -> dict[str, nn.Module]:
    return {"encoder": model.encoder, "decoder": model.decoder}


def describe_positions(config: CheersVaeConfig) -> tuple[str, str]:
    return "latents", f"{config.patched_channels} channels"


def trained_calls(model: CheersVae, stage: str, picture: torch.Tensor) -> list[tuple[nn.Module, torch.Tensor]]:
    config = model.config
    side = config.image_size // config.stride * config.latent_patch_size
    return [(model.encoder, picture), (model.decoder, picture.new_empty(1, config.latent_channels, side, side))]
