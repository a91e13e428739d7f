"""What the stages of `train/tokenizer.py` share: the SigLIP that they start from, their losses on pictures."""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from torch import nn

from semhitok.discriminator import AdversarialLoss
from semhitok.losses import PerceptualLoss, ReconstructionLosses
from semhitok.lpips_weights import LPIPS
from semhitok.quantization import PixelCodebook
from semhitok.teacher import CONFIG_FILES, Teacher, load_teacher
from semhitok.vision import scale_patches
from unimllm.distributed import print_once
from unimllm.errors import UserError
from unimllm.training.checkpoint import resolve
from unimllm.training.in_place import written_in_place
from unimllm.training.overrides import default_folder
from unimllm.training.presets import TEACHER_OF, TokenizerRecipe

TEACHER = "teacher"


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


def open_teacher(args: Namespace, patch_size: int = 0) -> Teacher:
    """The SigLIP of `find_teacher`; what it is is told.

    Args:
        patch_size: see `TokenizerRecipe`.
    """
    try:
        teacher = load_teacher(find_teacher(args))
        own = teacher.vision_model.config.patch_size
        if patch_size:
            teacher.vision_model = scale_patches(teacher.vision_model, patch_size)
    except (ValueError, OSError) as error:
        raise UserError(f"--teacher: {error}") from error
    if patch_size not in (0, own):
        teacher.notes.append(f"the preset scales its patches of {own} pixels to {patch_size} (--patch_size 0: not)")
    print_once("\n".join([teacher.describe(), *(f"note: {note}" for note in teacher.notes)]))
    return teacher


def check_losses(recipe: TokenizerRecipe) -> None:
    """UserError for what these losses cannot be computed with: weights of bf16, ZeRO 3."""
    if recipe.train.precision == "bf16":
        raise UserError(
            "--train.precision bf16: a tokenizer's weights stay float32; autocast computes in bf16 with them"
        )
    if recipe.adversarial_weight and recipe.train.zero_stage == 3:  # `AdversarialLoss` goes around modules' parameters
        raise UserError(
            "--adversarial_weight: ZeRO 3 cannot share out PatchGAN's discriminator; set --train.zero_stage 0, 1 or 2"
        )


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


def before_step(task: nn.Module, recipe: TokenizerRecipe) -> Callable[[int, dict], None]:
    """What is done before each step: the codebook and the discriminator start when it is time."""
    adversarial = getattr(getattr(task, "losses", None), "adversarial", None)

    def prepare(step: int, batch: dict) -> None:
        if step == recipe.quantize_after and hasattr(task, "initialize_codebook"):
            with written_in_place([m.base for m in task.modules() if isinstance(m, PixelCodebook)]):
                task.initialize_codebook(batch["pixel_values"])
        if adversarial:
            adversarial.active = step >= recipe.adversarial_start

    return prepare
