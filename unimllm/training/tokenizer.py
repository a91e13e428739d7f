"""A stage of `train/tokenizer.py`: the tokenizer that it starts from, and the module that trains it."""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from torch import nn

from semhitok import SemHiTokModel
from semhitok.checkpoints import load_tokenizer
from semhitok.configuration_semhitok import DECODER_SIZES, square_size
from semhitok.discriminator import AdversarialLoss
from semhitok.losses import PerceptualLoss, ReconstructionLosses, teacher_distance
from semhitok.lpips_weights import LPIPS
from semhitok.shared_index import SingleCodeModel
from semhitok.stages import DecoderStage, JointStage, PixelStage, SemanticStage
from semhitok.teacher import CONFIG_FILES, FrozenTeacher, Teacher, load_teacher, tokenizer_over
from semhitok.vision import scale_patches
from unimllm.cheers.autoencoder import CheersVae
from unimllm.cheers.vae_stage import VaeStage
from unimllm.distributed import print_once
from unimllm.errors import UserError
from unimllm.image_tokenizer import load_autoencoder
from unimllm.training.checkpoint import resolve
from unimllm.training.overrides import default_folder, sizes_told
from unimllm.training.presets import TEACHER_OF, TokenizerRecipe

TEACHER = "teacher"
BEFORE = {"semantic": TEACHER, "pixel": "semantic", "decoder": "pixel", "joint": TEACHER, "vae": TEACHER}
LOSS_WEIGHTS = ("commitment_weight", "pixel_commitment_weight")  # of a model's config; may change between stages


# ---- what a stage starts from --------------------------------------------------------------------------------------


def stage_before(recipe: TokenizerRecipe, stage: str) -> str:
    """The stage whose checkpoint a stage starts from, or TEACHER where a SigLIP is enough."""
    is_flat = stage == "pixel" and recipe.model.num_semantic_codes == 1  # pixels alone: there is no meaning to learn
    return TEACHER if is_flat else BEFORE[stage]


def check_start(args: Namespace, recipe: TokenizerRecipe, stage: str) -> None:
    """UserError for a --teacher that nothing would read, and for sharing out what cannot be."""
    if stage == "vae":
        if recipe.train.zero_stage == 3:  # its Upsample reads its convolution's weights, not its result
            raise UserError("--train.zero_stage 3 cannot share out an autoencoder; set 0, 1 or 2")
        if args.teacher and not reads_features(recipe):
            raise UserError(
                "--teacher is for the perceptual loss, which here is LPIPS or weighs nothing (--perceptual_weight): "
                "leave it out"
            )
        return
    if args.teacher and stage_before(recipe, stage) != TEACHER:
        raise UserError(
            f"--teacher is for --stage semantic and joint; the {stage} stage has the SigLIP of its --init-from: leave "
            "it out"
        )
    if args.teacher and args.init_from:
        raise UserError("--teacher and --init-from both name a SigLIP to start from; choose one")


def reads_features(recipe: TokenizerRecipe) -> bool:
    """Whether the perceptual loss needs a SigLIP."""
    return bool(recipe.perceptual_weight) and not recipe.lpips_weights


def start_model(args: Namespace, recipe: TokenizerRecipe, stage: str) -> SemHiTokModel | CheersVae:
    """The tokenizer as the stage before left it; where none comes before, an untrained one, SemHiTok's over a SigLIP.

    Args:
        args: of `parse_arguments`, with `teacher`.
        recipe: its model takes over the sizes of the teacher.
        stage: one of BEFORE.

    Raises:
        UserError: there is no such checkpoint or SigLIP, it is damaged, or it cannot be trained in this stage.
    """
    if stage == "vae":
        return start_vae(args, recipe)
    before = stage_before(recipe, stage)
    if not args.init_from and before == TEACHER:
        return start_over_teacher(args, recipe)
    remedy = f"train --stage {before} first or name its folder with --init-from"
    folder = args.init_from or resolve(default_folder(args.preset, before), remedy)
    model, _ = load_tokenizer(str(folder), "cpu", "--init-from")
    if stage != "joint" and isinstance(model, SingleCodeModel):
        raise UserError(f"{folder} holds a {model.config.model_type}, which only --stage joint trains")
    for name in LOSS_WEIGHTS:
        setattr(model.config, name, args.overrides.get(f"model.{name}", getattr(model.config, name)))
    change_parts(model, recipe, stage)
    return model


def start_vae(args: Namespace, recipe: TokenizerRecipe) -> CheersVae:
    """The autoencoder of --init-from, or an untrained one."""
    if not args.init_from:
        with sizes_told():
            return CheersVae(recipe.model)
    return load_autoencoder(str(args.init_from), "--init-from").train()


def change_parts(model: SemHiTokModel, recipe: TokenizerRecipe, stage: str) -> None:
    """Untrained parts where the recipe's are of another size than the stage before left them.

    The pixel stage may choose m anew; the decoder stage a decoder for the same codes (Enhance Decoder).
    """
    parts = {
        "pixel": ("new sub-codebooks", ("num_pixel_codes",), model.replace_pixel_codebook),
        "decoder": ("a new decoder", DECODER_SIZES, model.replace_decoder),
    }
    if stage not in parts:
        return
    what, names, replace = parts[stage]
    sizes = {name: getattr(recipe.model, name) for name in names}
    changed = {name: size for name, size in sizes.items() if size != getattr(model.config, name)}
    if changed:
        print_once(f"{what}: " + ", ".join(f"{name} {size}" for name, size in changed.items()))
        with sizes_told():
            replace(**changed)


def find_teacher(args: Namespace) -> str | Path:
    """Folder or hub id of the teacher: of --teacher, where a run's folder means its newest checkpoint, or the preset's.

    Raises:
        UserError: none was named, and the preset's is not trained yet.
    """
    if args.teacher is None:
        folder = default_folder(TEACHER_OF.get(args.preset, args.preset), TEACHER)
        return resolve(folder, "run train/teacher.py first or name a SigLIP")
    is_run = Path(args.teacher).is_dir() and not any((Path(args.teacher) / file).exists() for file in CONFIG_FILES)
    return resolve(Path(args.teacher)) if is_run else args.teacher


def start_over_teacher(args: Namespace, recipe: TokenizerRecipe) -> SemHiTokModel:
    """An untrained tokenizer over the SigLIP of `find_teacher`."""
    teacher = open_teacher(args, recipe.patch_size)
    with sizes_told():
        return tokenizer_over(teacher, recipe.model)


def open_teacher(args: Namespace, patch_size: int = 0) -> Teacher:
    """The SigLIP of `find_teacher`; what it is is told.

    Args:
        patch_size: see `TokenizerRecipe`.
    """
    try:
        teacher = load_teacher(find_teacher(args))
        if patch_size:
            teacher.vision_model = scale_patches(teacher.vision_model, patch_size)
    except (ValueError, OSError) as error:
        raise UserError(f"--teacher: {error}") from error
    print_once("\n".join([teacher.describe(), *(f"note: {note}" for note in teacher.notes)]))
    return teacher


def open_features(args: Namespace, recipe: TokenizerRecipe, stage: str) -> PerceptualLoss | None:
    """The distance in a teacher's features where the tokenizer that is trained has no SigLIP of its own, else None.

    Raises:
        UserError: see `start_model`; or it reads pictures of another size.
    """
    if stage != "vae" or not reads_features(recipe):
        return None
    teacher = open_teacher(args, recipe.patch_size)
    config = teacher.vision_model.config
    if square_size(config) != recipe.model.image_size:
        raise UserError(
            f"the teacher of the perceptual loss reads {square_size(config)} pixels and the autoencoder "
            f"{recipe.model.image_size}: name another with --teacher, or go without (--perceptual_weight 0)"
        )
    return PerceptualLoss(FrozenTeacher(teacher), config.num_hidden_layers)


# ---- what trains it ------------------------------------------------------------------------------------------------


def make_stage(
    model: SemHiTokModel | CheersVae, recipe: TokenizerRecipe, stage: str, features: PerceptualLoss | None = None
) -> tuple[nn.Module, Callable[[int, dict], None]]:
    """The training module of a stage, and what it does before a step.

    Args:
        features: of `open_features`.
    """
    if stage == "semantic":
        task = SemanticStage(model)
    elif stage == "pixel":
        task = PixelStage(
            model, make_losses(recipe, teacher_distance(model)), recipe.confused_share, recipe.foreign_share
        )
    elif stage == "joint":
        task = JointStage(model, make_losses(recipe, teacher_distance(model)))
    elif stage == "vae":
        task = VaeStage(model, make_losses(recipe, features), recipe.kl_weight)
    else:
        task = DecoderStage(model, make_losses(recipe, teacher_distance(model)), recipe.confused_share)

    def before_step(step: int, batch: dict) -> None:
        if step == recipe.quantize_after and hasattr(task, "initialize_codebook"):
            task.initialize_codebook(batch["pixel_values"])
        if stage != "semantic" and task.losses.adversarial:
            task.losses.adversarial.active = step >= recipe.adversarial_start

    return task, before_step


def make_losses(recipe: TokenizerRecipe, features: PerceptualLoss | None) -> ReconstructionLosses:
    """The losses on pictures that a recipe weighs.

    Args:
        features: the perceptual loss where the recipe names no weights of LPIPS.
    """
    distance = None
    if recipe.perceptual_weight:
        distance = LPIPS(Path(recipe.lpips_weights)) if recipe.lpips_weights else features
    weight = recipe.adversarial_weight
    return ReconstructionLosses(
        recipe.l2_weight, recipe.edge_weight, recipe.perceptual_weight, distance,
        AdversarialLoss(weight, recipe.adaptive_adversarial, recipe.discriminator_channels) if weight else None,
        recipe.coarse_weight,
    )  # fmt: skip


def announce_losses(task: nn.Module, recipe: TokenizerRecipe) -> None:
    """Say what the perceptual loss is, and whether LPIPS's weights were named in vain."""
    distance = getattr(getattr(task, "losses", None), "distance", None)
    if distance is not None:
        what = f"LPIPS ({distance.backbone})" if recipe.lpips_weights else "the teacher's features (no lpips_weights)"
        print_once(f"perceptual loss: {what}, weight {recipe.perceptual_weight}")
    elif recipe.lpips_weights:
        print_once("no perceptual loss in this stage: lpips_weights are not used")
