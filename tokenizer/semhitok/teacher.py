"""A released SigLIP as the frozen teacher of a tokenizer: by folder or hub id, in any of the formats they come in.

SiglipModel, SiglipVisionModel     SigLIP, and the SigLIP 2 of fixed resolution
Siglip2Model, Siglip2VisionModel   SigLIP 2 NaFlex, read at the square that its position grid spans
open_clip                          open_clip_config.json and its weights; converted, so open_clip is not needed

Its mean, standard deviation, size and interpolation go into the tokenizer. Its resizing to a square regardless of
proportions does not: a tokenizer crops, since it has to draw what it read.
"""

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, Siglip2VisionConfig, SiglipVisionConfig, SiglipVisionModel
from transformers.utils import ModelOutput, cached_file

from semhitok.auto import build_tokenizer
from semhitok.configuration_semhitok import SemHiTokConfig, square_size
from semhitok.errors import first_line
from semhitok.image_processing_semhitok import SemHiTokImageProcessor
from semhitok.misfit import LOADING, misfit_of_report
from semhitok.modeling_semhitok import SemHiTokModel
from semhitok.open_clip_weights import CONFIG_FILE as OPEN_CLIP_CONFIG
from semhitok.open_clip_weights import load_open_clip
from semhitok.vision import SquareSiglip2VisionModel, build_vision_model, load_strictly, renormalize

VISION_MODELS = {
    "siglip": SiglipVisionModel,
    "siglip_vision_model": SiglipVisionModel,
    "siglip2": SquareSiglip2VisionModel,
    "siglip2_vision_model": SquareSiglip2VisionModel,
}
CONFIG_FILES = ("config.json", OPEN_CLIP_CONFIG)
"""One of these lies in every folder that holds a teacher."""
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}
OPEN_CLIP_DEFAULTS = {
    "mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711),
    "interpolation": "bicubic",
}  # fmt: skip
"""What open_clip itself takes for what a `preprocess_cfg` leaves out (open_clip/transform.py, 3.3.0)."""


@dataclass
class Teacher:
    """A SigLIP and how it wants its pictures.

    Attributes:
        vision_model: float32, in evaluation mode.
        image_mean, image_std: of RGB in 0..1, as trained.
        resample: Pillow's number of the interpolation.
        notes: what had to be assumed, one line each, for the log.
    """

    vision_model: SiglipVisionModel | SquareSiglip2VisionModel
    image_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: tuple[float, ...] = (0.5, 0.5, 0.5)
    resample: int = 3
    notes: list[str] = field(default_factory=list)

    def describe(self) -> str:
        """One line for the log."""
        config = self.vision_model.config
        size = square_size(config)
        return (
            f"teacher: {config.model_type}, {config.num_hidden_layers} layers of {config.hidden_size}, "
            f"{size} x {size} pixels in patches of {config.patch_size}, mean {numbers(self.image_mean)}, "
            f"std {numbers(self.image_std)}, {INTERPOLATIONS.get(self.resample, f'resample {self.resample}')}"
        )


class FrozenTeacher(nn.Module):
    """A teacher by itself: pictures (B, 3, S, S) in -1..1, however it was trained, to what its vision model returns."""

    def __init__(self, teacher: Teacher):
        super().__init__()
        self.vision_model = teacher.vision_model.requires_grad_(False).eval()
        self.image_mean, self.image_std = teacher.image_mean, teacher.image_std

    def train(self, mode: bool = True) -> "FrozenTeacher":
        return super().train(False)

    def forward(self, pixel_values: torch.Tensor, **kwargs) -> ModelOutput:
        pixel_values = renormalize(pixel_values, self.image_mean, self.image_std)
        return self.vision_model(pixel_values.to(self.vision_model.dtype), **kwargs)


def numbers(values: tuple[float, ...]) -> str:
    """One number where all are alike."""
    return " ".join(f"{v:.4g}" for v in (values[:1] if len(set(values)) == 1 else values))


def tokenizer_over(teacher: Teacher, config: SemHiTokConfig) -> SemHiTokModel:
    """An untrained tokenizer over a teacher; writes the teacher's sizes and preprocessing into `config`."""
    config.vision_config = teacher.vision_model.config
    config.image_mean, config.image_std = list(teacher.image_mean), list(teacher.image_std)
    config.resample = teacher.resample
    model = build_tokenizer(config)
    model.vision_model = teacher.vision_model
    return model


def load_teacher(name: str | Path) -> Teacher:
    """The vision half of a SigLIP checkpoint, in float32 whatever the precision of its file.

    Args:
        name: folder or hub id.

    Raises:
        ValueError, OSError: there is none, or it is another kind of model, or it is damaged. One line.
    """
    name = str(name)
    if not Path(name).is_dir() and (name.startswith((".", "~")) or not HUB_ID.fullmatch(name)):
        raise OSError(f"{name} is neither a folder nor a hub id such as google/siglip-large-patch16-256")
    config = read_json(name, CONFIG_FILES[0])
    kind = (config or {}).get("model_type")
    if kind in VISION_MODELS:
        teacher = load_from_transformers(name, kind)
    elif (open_clip := read_json(name, OPEN_CLIP_CONFIG)) is not None:
        teacher = load_from_open_clip(name, open_clip)
    elif config is None:
        here = Path(name).is_dir()
        where = f"{name} holds" if here else f"{name} is no folder here, and a model of that name on the hub has"
        raise OSError(f"{where} neither {' nor '.join(CONFIG_FILES)}{'' if here else ', or it cannot be reached'}")
    else:
        raise ValueError(
            f"{name} holds a {kind or 'nameless'} model; the teacher must be one of {', '.join(VISION_MODELS)}"
        )
    fit_to_patches(teacher, name)
    return teacher


def read_json(name: str, filename: str) -> dict | None:
    """A JSON file of a folder or hub repository, or None where it has no such file; OSError if neither can be read."""
    try:
        path = cached_file(name, filename, _raise_exceptions_for_missing_entries=False)
    except (OSError, ValueError) as error:
        raise OSError(f"{name} is no folder here, and cannot be had from the hub: {first_line(error)}") from error
    if path is None:
        return None
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{filename} of {name} is no JSON: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{filename} of {name} holds a {type(content).__name__}, not a configuration")
    return content


def load_from_transformers(name: str, kind: str) -> Teacher:
    """A teacher from a checkpoint that transformers saved, whole or its vision half alone."""
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
        config = getattr(config, "vision_config", config)
        if getattr(config, "stem_channels", None):
            model, told = load_with_stem(name, config), ""
        else:
            model, report = VISION_MODELS[kind].from_pretrained(name, dtype=torch.float32, **LOADING)
            told = misfit_of_report(report, is_whole=False)
    except Exception as error:  # a damaged file raises nearly anything, safetensors' own types included
        raise ValueError(f"cannot load the SigLIP in {name}: {first_line(error)}") from error
    if told:
        raise ValueError(f"{name}: the checkpoint {told}")
    return Teacher(model.eval(), *transformers_preprocessing(name, model.config))


def load_with_stem(name: str, config: SiglipVisionConfig) -> SiglipVisionModel:
    """A SigLIP with a stem of convolutions (train/teacher.py's), which transformers cannot build by itself."""
    state = load_file(cached_file(name, "model.safetensors"))
    prefix = "vision_model."
    if any(key.startswith(prefix) for key in state):
        state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    model = build_vision_model(config)
    load_strictly(model, state)
    return model


def transformers_preprocessing(
    name: str, config: SiglipVisionConfig | Siglip2VisionConfig
) -> tuple[tuple[float, ...], tuple[float, ...], int, list[str]]:
    """(mean, std, resample, notes) from a checkpoint's preprocessor_config.json or processor_config.json."""
    is_naflex = isinstance(config, Siglip2VisionConfig)
    resample = 2 if is_naflex else 3  # transformers' own defaults of the two processors
    try:
        settings, _ = SemHiTokImageProcessor.get_image_processor_dict(name)
    except OSError:
        note = f"{name} has no preprocessor_config.json: assuming mean 0.5, std 0.5, {INTERPOLATIONS[resample]}"
        return (0.5,) * 3, (0.5,) * 3, resample, [note]
    # The model sees (255 f x - mean) / std of x in 0..1, where f is the factor or, without rescaling, 1.
    scale = 255 * (settings.get("rescale_factor") or 1 / 255) if settings.get("do_rescale", True) else 255.0
    scale = 1.0 if math.isclose(scale, 1) else scale
    mean, std = settings.get("image_mean", 0.5), settings.get("image_std", 0.5)
    if not settings.get("do_normalize", True):
        mean, std = 0.0, 1.0
    mean, std = three_channels(mean, "image_mean", name), three_channels(std, "image_std", name, above=0)
    notes, size = [], settings.get("size")
    size = size.get("height") if isinstance(size, dict) else size
    if not is_naflex and size and size != config.image_size:
        notes.append(f"{name} resizes to {size} pixels and has positions for {config.image_size}: using the latter")
    if settings.get("resample") is not None:
        resample = int(settings["resample"])
    return tuple(m / scale for m in mean), tuple(s / scale for s in std), resample, notes


def load_from_open_clip(name: str, settings: dict) -> Teacher:
    """A teacher from a checkpoint of open_clip."""
    model = load_open_clip(name, settings)
    stated = {k: v for k, v in (settings.get("preprocess_cfg") or {}).items() if v is not None}
    missing = [key for key in OPEN_CLIP_DEFAULTS if key not in stated]
    notes = []
    if missing:
        notes.append(f"{name} states no {', '.join(missing)} in preprocess_cfg: assuming open_clip's defaults")
    values = OPEN_CLIP_DEFAULTS | stated
    mean = three_channels(values["mean"], "mean", name)
    std = three_channels(values["std"], "std", name, above=0)
    return Teacher(model.eval(), mean, std, 2 if values["interpolation"] == "bilinear" else 3, notes)


def three_channels(value, what: str, name: str, above: float = -math.inf) -> tuple[float, ...]:
    """One finite number per channel from a number or a list; ValueError for anything else."""
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,) * 3
    if len(values) != 3 or not all(isinstance(v, (int, float)) and math.isfinite(v) and v > above for v in values):
        raise ValueError(f"{what} of {name} is {value!r}; it needs one number per RGB channel")
    return tuple(float(v) for v in values)


def fit_to_patches(teacher: Teacher, name: str) -> None:
    """ValueError unless pictures are RGB squares; a size that is no multiple of the patch shrinks to one."""
    config = teacher.vision_model.config
    if config.num_channels != 3:
        raise ValueError(f"{name} reads pictures of {config.num_channels} channels; a tokenizer's have 3")
    if isinstance(config, Siglip2VisionConfig):
        if math.isqrt(config.num_patches) ** 2 != config.num_patches:
            raise ValueError(f"{name} has {config.num_patches} positions, which is no square")
        return
    size, patch = config.image_size, config.patch_size
    if not isinstance(size, int) or not isinstance(patch, int):
        raise ValueError(f"{name} reads {size} pixels in patches of {patch}; a tokenizer needs squares of squares")
    if size % patch:  # the convolution ignores the rest at the right and below
        config.image_size = size // patch * patch
        teacher.notes.append(
            f"{name} reads {size} pixels in patches of {patch}, which leaves {size % patch} over: the tokenizer reads "
            f"{config.image_size}"
        )
