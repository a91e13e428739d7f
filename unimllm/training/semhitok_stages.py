"""SemHiTok's stages: codes of meaning, codes of pixels under them, the decoder; or both codes at once. The verbs are
those of `stages`.
"""

from argparse import Namespace

import torch
from torch import nn

from semhitok import SemHiTokConfig, SemHiTokModel
from semhitok.checkpoints import load_tokenizer
from semhitok.configuration_semhitok import DECODER_SIZES, PIXEL_SIZES
from semhitok.losses import teacher_distance
from semhitok.shared_index import SingleCodeModel
from semhitok.stages import DecoderStage, JointStage, PixelStage, SemanticStage
from semhitok.teacher import tokenizer_over
from unimllm.distributed import print_once
from unimllm.errors import UserError
from unimllm.training.checkpoint import resolve
from unimllm.training.overrides import default_folder, sizes_told
from unimllm.training.presets import TokenizerRecipe
from unimllm.training.tokenizer import TEACHER, as_list, make_losses, open_teacher

BEFORE = {"semantic": TEACHER, "pixel": "semantic", "decoder": "pixel", "joint": TEACHER}
LOSS_WEIGHTS = ("commitment_weight", "pixel_commitment_weight")  # of a model's config; may change between stages


def stage_before(recipe: TokenizerRecipe, stage: str) -> str:
    """The stage whose checkpoint a stage starts from, or TEACHER where a SigLIP is enough."""
    is_flat = stage == "pixel" and recipe.model.num_semantic_codes == 1  # pixels alone: there is no meaning to learn
    return TEACHER if is_flat else BEFORE[stage]


def check_start(args: Namespace, recipe: TokenizerRecipe, stage: str) -> None:
    if args.teacher and stage_before(recipe, stage) != TEACHER:
        raise UserError(
            f"--teacher is for the first stage of a preset; the {stage} stage has the SigLIP of its --init-from: leave "
            "it out"
        )
    if args.teacher and args.init_from:
        raise UserError("--teacher and --init-from both name a SigLIP to start from; choose one")


def start_model(args: Namespace, recipe: TokenizerRecipe, stage: str) -> SemHiTokModel:
    """What the stage before left; where none comes before, an untrained model over a SigLIP, in the recipe's sizes."""
    before = stage_before(recipe, stage)
    if not args.init_from and before == TEACHER:
        teacher = open_teacher(args, recipe.patch_size)
        with sizes_told():
            return tokenizer_over(teacher, recipe.model)
    remedy = f"train --stage {before} first or name its folder with --init-from"
    folder = args.init_from or resolve(default_folder(args.preset, before), remedy)
    model, _ = load_tokenizer(str(folder), "cpu", "--init-from")
    if stage != "joint" and isinstance(model, SingleCodeModel):
        raise UserError(f"{folder} holds a {model.config.model_type}, which only --stage joint trains")
    needs_codes = stage in ("pixel", "decoder") and model.config.num_semantic_codes != 1
    if needs_codes and not bool(model.semantic.codebook.initialized):
        raise UserError(f"{folder}: its semantic codes were never trained; let its stage run beyond --quantize_after")
    for name in LOSS_WEIGHTS:
        setattr(model.config, name, args.overrides.get(f"model.{name}", getattr(model.config, name)))
    if stage in ("pixel", "decoder"):
        change_parts(model, args, recipe, stage)
    return model


def change_parts(model: SemHiTokModel, args: Namespace, recipe: TokenizerRecipe, stage: str) -> None:
    """Untrained parts in the place of those that the stage before left.

    A pixel branch without codes becomes the recipe's. One with codes stays as it is, whatever the preset says, but for
    what an option asks for: the pixel stage takes another m, the decoder stage another decoder for the same codes. A
    recipe with `new_decoder` asks for its own.
    """
    asked = {key.removeprefix("model.") for key in args.overrides if key.startswith("model.")}
    if not bool(model.pixel.codebook.initialized):
        what, names, replace = "the pixel branch is new", PIXEL_SIZES, model.replace_pixel_branch
        asked |= set(PIXEL_SIZES)
    elif stage == "pixel":
        what, names, replace = "new sub-codebooks", ("num_pixel_codes",), model.replace_pixel_codebook
    else:
        what, names, replace = "a new decoder", DECODER_SIZES, model.replace_decoder
        asked |= set(DECODER_SIZES) if recipe.new_decoder else set()
    sizes = {name: as_list(getattr(recipe.model, name)) for name in names if name in asked}
    changed = {name: size for name, size in sizes.items() if size != getattr(model.config, name)}
    if changed:
        print_once(f"{what}: " + ", ".join(f"{name} {size}" for name, size in changed.items()))
        with sizes_told():
            replace(**changed)


def make_task(model: SemHiTokModel, recipe: TokenizerRecipe, stage: str, args: Namespace | None = None) -> nn.Module:
    features = (recipe.cosine_weight, recipe.feature_l1_weight)
    if stage == "semantic":
        return SemanticStage(model, *features)
    losses = make_losses(recipe, teacher_distance(model))
    if stage == "pixel":
        return PixelStage(model, losses, recipe.confused_share, recipe.foreign_share)
    if stage == "joint":
        return JointStage(model, losses, *features)
    return DecoderStage(model, losses, recipe.confused_share)


def parts(model: SemHiTokModel) -> dict[str, nn.Module]:
    found = {"SigLIP": model.vision_model}
    for branch in ("semantic", "pixel"):
        found |= {f"{branch} {name}": part for name, part in getattr(model, branch).named_children()}
    return found | ({"shared codebook": model.codebook} if hasattr(model, "codebook") else {})


def describe_positions(config: SemHiTokConfig) -> tuple[str, str]:
    return "ids", f"{config.num_semantic_codes:,} x {config.num_pixel_codes} = {config.num_codes:,}"


def trained_calls(model: SemHiTokModel, stage: str, picture: torch.Tensor) -> list[tuple[nn.Module, torch.Tensor]]:
    config = model.config
    vectors = torch.empty(1, config.num_positions, config.semantic_dim + config.pixel_dim, device="meta")
    features = torch.empty(1, config.num_positions, config.vision_config.hidden_size, device="meta")
    for_features = vectors[..., : model.semantic.decoder.proj_in.in_features]
    semantic = [(model.semantic.encoder, features), (model.semantic.decoder, for_features)]
    pixel = [(model.pixel.encoder, picture), (model.pixel.decoder, vectors)]
    return {"semantic": semantic, "pixel": pixel, "decoder": pixel[1:], "joint": semantic + pixel}[stage]
