"""What the stages of `train/tokenizer.py` share: the SigLIP that they start from, their losses on pictures."""

import inspect
import math
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from semhitok.discriminator import AdversarialLoss
from semhitok.image_processing_semhitok import to_uint8
from semhitok.losses import PerceptualLoss, ReconstructionLosses
from semhitok.lpips_weights import LPIPS
from semhitok.quantization import EMACodebook, SubCodebooks
from semhitok.teacher import CONFIG_FILES, Teacher, load_teacher
from semhitok.vision import scale_patches
from unimllm.distributed import print_once, rank_and_size
from unimllm.errors import UserError
from unimllm.training.batches import Place, SampleSource
from unimllm.training.checkpoint import latest, read_run, resolve
from unimllm.training.in_place import gathered, written_in_place
from unimllm.training.overrides import default_folder
from unimllm.training.presets import TEACHER_OF, TokenizerRecipe
from unimllm.training.validation import HeldOut

TEACHER = "teacher"
OF_TEACHER = ("image_mean", "image_std", "resample")  # of a config, beside the SigLIP's own
CODED = ("semantic", "pixel", "joint")  # stages that train codes
GRID_COLUMNS = 8  # pictures in TensorBoard's grid
START_VECTORS, START_STEPS = 8, 16  # vectors for each code at whose k-means a codebook starts; steps they come from


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
    if recipe.train.precision == "bf16":  # an EMA codebook's steps of 1 % would be rounded away
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
        AdversarialLoss(
            weight, recipe.adaptive_adversarial, recipe.discriminator_channels, recipe.discriminator_halvings
        ) if weight else None,
        recipe.coarse_weight, recipe.l1_weight,
    )  # fmt: skip


def check_options(recipe: TokenizerRecipe) -> None:
    """UserError for options of the loop that do nothing in these stages."""
    if recipe.train.compile:
        raise UserError("--train.compile: a tokenizer's stages are not compiled; leave it out")


def announce_losses(task: nn.Module, recipe: TokenizerRecipe) -> None:
    """Say what the perceptual loss is, and whether LPIPS's weights were named in vain."""
    distance = getattr(getattr(task, "losses", None), "distance", None)
    if distance is not None:
        what = f"LPIPS ({distance.backbone})" if recipe.lpips_weights else "the teacher's features (no lpips_weights)"
        print_once(f"perceptual loss: {what}, weight {recipe.perceptual_weight}")
    elif recipe.lpips_weights:
        print_once("no perceptual loss in this stage: lpips_weights are not used")
    if recipe.adversarial_weight and recipe.adversarial_start >= recipe.train.max_steps:
        print_once(f"no adversarial loss in this run: it begins after step {recipe.adversarial_start:,}")


def go_on(args: Namespace, recipe: TokenizerRecipe) -> dict:
    """Have a stage whose output folder holds a checkpoint begin from that, and its codes when they were to begin.

    What it began from is not read again. Returns the fields of its recipe that stay as they were; none: a new run.
    """
    found = latest(args.output_dir)
    if not found:
        return {}
    before = read_run(found)["recipe"]
    args.init_from = found
    if "quantize_after" not in args.overrides:
        recipe.quantize_after = before["quantize_after"]
    paths = {key: key.split(".") for key in args.overrides}
    asked = {path[1]: args.overrides[key] for key, path in paths.items() if path[0] == "model" and len(path) == 2}
    return {"model": before["model"] | asked}


def announce_unused(preset: PreTrainedConfig, config: PreTrainedConfig) -> None:
    """Say what of a preset's model is not used, because the checkpoint that a run begins from decides it.

    Args:
        preset: the recipe's.
        config: that of the model that will be trained.
    """
    unused = []
    for name in inspect.signature(type(preset).__init__).parameters:
        wanted, has = as_list(getattr(preset, name, None)), as_list(getattr(config, name, None))
        if wanted != has and name not in OF_TEACHER and not isinstance(wanted, PreTrainedConfig):
            unused.append(f"{name} {wanted} (it has {has})")
    if unused:
        print_once(f"of the preset's model not used, for --init-from decides it: {', '.join(unused)}")


def as_list(size: Any) -> Any:
    """A size as configs keep it: a command line's tuple as a list."""
    return list(size) if isinstance(size, tuple) else size


def check_quantize_after(task: nn.Module, recipe: TokenizerRecipe, stage: str) -> None:
    """Let codes begin at a fifth of a run that would end before they do: a tokenizer without them is of no use.

    Codes that a run starts with go on, whatever `quantize_after` says.
    """
    if stage not in CODED:
        return
    if not starting_codebooks(task):
        unused = f"quantize_after {recipe.quantize_after:,} is not used"
        print_once(f"the codes of --init-from go on from the first step: {unused}")
    elif recipe.quantize_after >= recipe.train.max_steps:
        sooner = recipe.train.max_steps // 5
        steps = f"the {recipe.train.max_steps:,} steps of this run"
        print_once(f"quantize_after {recipe.quantize_after:,} is not below {steps}: codes begin after step {sooner:,}")
        recipe.quantize_after = sooner


def announce_positions(config: PreTrainedConfig, stage: str, held_out: dict[str, HeldOut]) -> None:
    """Say how many codes a validation can find in use, where its pictures have fewer positions than there are codes."""
    if stage not in CODED:
        return
    num_codes = config.num_semantic_codes if stage == "semantic" else config.num_codes
    for name, held in held_out.items():
        positions = held.num_samples * config.num_positions
        if positions < num_codes:
            looked_at = f"{held.num_samples:,} {name} x {config.num_positions:,} positions = {positions:,}"
            print_once(f"validation: {looked_at}, so codes_used is at most that, of {num_codes:,} codes")


def starting_codebooks(task: nn.Module) -> list[EMACodebook | SubCodebooks]:
    """The codebooks that a stage trains and that have no codes yet."""
    codebooks = task.codebooks() if hasattr(task, "codebooks") else []
    return [codebook for codebook in codebooks if not bool(codebook.initialized)]


def before_step(task: nn.Module, recipe: TokenizerRecipe, source: SampleSource) -> Callable[[Place], None]:
    """What is done before each step: the codebook and the discriminator start when it is time."""
    adversarial = getattr(getattr(task, "losses", None), "adversarial", None)
    codebooks = [module for module in task.modules() if isinstance(module, EMACodebook)]

    def prepare(place: Place) -> None:
        for codebook in codebooks:  # only now the processes have surely met
            codebook.micro_batches = recipe.train.per_device(rank_and_size()[1])[1]
        starting = starting_codebooks(task) if place.step >= recipe.quantize_after else []
        if starting:
            written = [weights for c in starting if isinstance(c, SubCodebooks) for weights in c.started()]
            with written_in_place(written):
                task.initialize_codebook(start_pictures(task, recipe, source, place.sample))
        if adversarial:
            adversarial.active = place.step >= recipe.adversarial_start

    return prepare


def start_pictures(task: nn.Module, recipe: TokenizerRecipe, source: SampleSource, first: int) -> list[torch.Tensor]:
    """This rank's pictures at whose k-means codebooks start: micro-batches (B, 3, S, S) in -1..1.

    Those of this step, which begin with sample `first`, and of as many after it as bring START_VECTORS vectors for each
    code, START_STEPS at most: fewer vectors than codes would begin with copies.
    """
    train = recipe.train
    needed = START_VECTORS * max((codebook.num_codes for codebook in starting_codebooks(task)), default=1)
    needed /= task.model.config.num_positions
    num_steps = min(START_STEPS, math.ceil(needed / train.batch_size))
    rank, world_size = rank_and_size()
    micro, accumulation = train.per_device(world_size)
    device = next(task.parameters()).device
    starts = [
        first + later * train.batch_size + (rank * accumulation + part) * micro
        for later in range(num_steps) for part in range(accumulation)
    ]  # fmt: skip
    return [source(range(start, start + micro))["pixel_values"].to(device) for start in starts]


def reconstructions(
    model: PreTrainedModel, recipe: TokenizerRecipe, source: SampleSource, held_out: dict[str, HeldOut]
) -> Callable[[], np.ndarray]:
    """What draws TensorBoard's grid: true pictures over what the decoder makes of their codes.

    Those are the first that are held out, at most GRID_COLUMNS of them; where none are, the first that are trained on.
    Before there are codes the grid is of little use.
    """
    shown = next(iter(held_out.values()), HeldOut(source, GRID_COLUMNS))

    @torch.no_grad()
    def draw() -> np.ndarray:
        """(2 S, columns x S, 3) uint8."""
        true = shown.source(range(min(GRID_COLUMNS, shown.num_samples)))["pixel_values"].to(model.device)
        autocast = torch.autocast(model.device.type, torch.bfloat16, enabled=recipe.train.autocast())
        with gathered(model.parameters()), autocast:
            drawn = model.decode(model.encode(true))
        return rearrange(to_uint8(torch.cat([true, drawn])), "(r b) h w c -> (r h) (b w) c", r=2)

    return draw
