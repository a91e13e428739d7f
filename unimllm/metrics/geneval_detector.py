"""GenEval's eyes from Hugging Face models: a Mask2Former finds objects, a CLIP tells their colours.

GenEval's own detector is mmdet's Mask2Former (Swin-S, COCO instances); Hugging Face's is the same network trained by
others, so scores are close relatives and not the same. Everything around the network is done as mmdet does it: the
shorter side scaled to 800 pixels unless the longer one passed 1,333, sides padded to multiples of 32, the hundred best
(query, class) pairs, masks scaled back in two steps. transformers' own post-processing does none of this: it scales to
384 pixels, and lets instances overwrite each other.

Shapes: H, W of the picture; h, w scaled; Q queries; C = 80 classes, told by index.
"""

from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from semhitok.checkpoints import choose_device, may_be_hub_id
from semhitok.errors import first_line
from semhitok.fingerprint import weights_digest
from semhitok.misfit import LOADING, misfit_of_report
from unimllm.errors import UserError
from unimllm.metrics.geneval import THRESHOLD
from unimllm.metrics.geneval_records import COLORS, OBJECT_NAMES, Record

SHORT_SIDE, LONG_SIDE, DIVISOR = 800, 1333, 32  # pixels
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of ImageNet, RGB in 0..255
NUM_INSTANCES = 100
GREY = (153, 153, 153)  # what stands outside an object when CLIP looks at it
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
TEMPLATES = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}", "a photo of a {color} object")


@dataclass(frozen=True)
class Instances:
    """The best (query, class) pairs of a picture, the surest class first.

    Args:
        boxes: (n, 4) int64 x0, y0, x1, y1, tight around the mask with x1 and y1 outside it; zeros around none.
        scores: (n,) float32, probability of the class times the mean probability inside the mask.
        classes: (n,) int64.
        masks: (n, H, W) bool.
    """

    boxes: torch.Tensor
    scores: torch.Tensor
    classes: torch.Tensor
    masks: torch.Tensor


# ---- objects -------------------------------------------------------------------------------------------------------


def scaled_size(width: int, height: int) -> tuple[int, int]:
    """(w, h) of a picture scaled to SHORT_SIDE, or to LONG_SIDE where that is smaller."""
    scale = min(SHORT_SIDE / min(width, height), LONG_SIDE / max(width, height))
    return int(width * scale + 0.5), int(height * scale + 0.5)


def prepare(image: Image.Image) -> tuple[torch.Tensor, tuple[int, int]]:
    """RGB picture -> pixel_values (1, 3, h', w') with h', w' padded below and to the right, and (h, w).

    Scaled without antialiasing and rounded to 8 bits, as OpenCV does.
    """
    width, height = scaled_size(*image.size)
    pixels = torch.from_numpy(np.asarray(image, np.float32)).permute(2, 0, 1)[None]  # (1, 3, H, W)
    pixels = F.interpolate(pixels, (height, width), mode="bilinear", align_corners=False).round()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return F.pad((pixels - mean) / std, (0, -width % DIVISOR, 0, -height % DIVISOR)), (height, width)


def instances(
    class_logits: torch.Tensor,
    mask_logits: torch.Tensor,
    padded: tuple[int, int],
    scaled: tuple[int, int],
    size: tuple[int, int],
) -> Instances:
    """mmdet's instances from Mask2Former's two outputs for one picture.

    Args:
        class_logits: (Q, C + 1), the last one for no object.
        mask_logits: (Q, h' / 4, w' / 4).
        padded: (h', w') of pixel_values.
        scaled: (h, w) without the padding.
        size: (H, W) of the picture.
    """
    probabilities = class_logits.float().softmax(-1)[:, :-1]  # (Q, C)
    best, index = probabilities.flatten().topk(min(NUM_INSTANCES, probabilities.numel()))
    queries, classes = index // probabilities.shape[1], index % probabilities.shape[1]
    queries, of_query = queries.unique(return_inverse=True)  # one query may be several classes; its mask is one
    logits = F.interpolate(mask_logits.float()[queries][None], padded, mode="bilinear", align_corners=False)
    logits = logits[..., : scaled[0], : scaled[1]]
    logits = F.interpolate(logits, size, mode="bilinear", align_corners=False)[0]  # (q, H, W)
    masks = logits > 0
    inside = (logits.sigmoid() * masks).sum((1, 2)) / (masks.sum((1, 2)) + 1e-6)
    boxes = torch.stack([tight_box(mask) for mask in masks])
    return Instances(boxes[of_query], best * inside[of_query], classes, masks[of_query])


def tight_box(mask: torch.Tensor) -> torch.Tensor:
    """(H, W) bool -> x0, y0, x1, y1 (4,) int64."""
    ys, xs = (mask.any(dim).nonzero().flatten() for dim in (1, 0))
    if len(xs) == 0:
        return torch.zeros(4, dtype=torch.int64, device=mask.device)
    return torch.stack([xs[0], ys[0], xs[-1] + 1, ys[-1] + 1])


# ---- colours -------------------------------------------------------------------------------------------------------


def cut_out(image: Image.Image, mask: np.ndarray, box: tuple[int, int, int, int]) -> Image.Image:
    """An object alone: grey outside its mask (H, W) bool, then cut to its box."""
    return Image.composite(image, Image.new("RGB", image.size, GREY), Image.fromarray(mask)).crop(box)


def clip_pixels(image: Image.Image, size: int) -> torch.Tensor:
    """CLIP's own transform -> (3, size, size): shorter side to `size` pixels bicubically, centre, normalised."""
    width, height = image.size
    long = int(size * max(image.size) / min(image.size))
    image = image.resize((size, long) if width <= height else (long, size), Image.Resampling.BICUBIC)
    left, top = round((image.width - size) / 2), round((image.height - size) / 2)
    pixels = torch.from_numpy(np.array(image.crop((left, top, left + size, top + size)), np.float32))
    mean, std = (torch.tensor(values) for values in (CLIP_MEAN, CLIP_STD))
    return ((pixels / 255 - mean) / std).permute(2, 0, 1)


class ColorClassifier:
    """Which of GenEval's ten colours an object has, by a CLIP's zero-shot classification; final, not trained."""

    def __init__(self, clip, tokenizer):
        """A classifier.

        Args:
            clip: a `CLIPModel`.
            tokenizer: its text tokenizer.
        """
        self.clip, self.tokenizer = clip, tokenizer
        self.weights: dict[str, torch.Tensor] = {}

    @torch.inference_mode()
    def classify(self, crops: list[Image.Image], name: str) -> list[str]:
        """One colour for each picture of an object of the class `name`."""
        if name not in self.weights:
            self.weights[name] = torch.stack([self._color_vector(color, name) for color in COLORS])  # (10, D)
        size = self.clip.config.vision_config.image_size
        pixels = torch.stack([clip_pixels(crop, size) for crop in crops]).to(self.clip.device)
        features = F.normalize(self.clip.get_image_features(pixel_values=pixels).pooler_output, dim=-1)  # (n, D)
        return [COLORS[i] for i in (features @ self.weights[name].T).argmax(-1).tolist()]

    def _color_vector(self, color: str, name: str) -> torch.Tensor:
        texts = [template.format(color=color, name=name) for template in TEMPLATES]
        inputs = self.tokenizer(texts, padding=True, return_tensors="pt").to(self.clip.device)
        features = self.clip.get_text_features(**inputs).pooler_output  # (3, D)
        return F.normalize(F.normalize(features, dim=-1).mean(0), dim=0)


# ---- both ----------------------------------------------------------------------------------------------------------


class GenEvalDetector:
    """What looks at a picture for GenEval."""

    def __init__(self, mask2former, colors: ColorClassifier, name: str):
        """A detector.

        Args:
            mask2former: a `Mask2FormerForUniversalSegmentation` of COCO's 80 classes.
            name: of both models, for records and reports, with the digests of their weights.
        """
        self.mask2former, self.colors, self.name = mask2former, colors, name

    @classmethod
    def load(
        cls, detector: str, clip: str, device: str | None = None, options: tuple[str, str] = ("--detector", "--clip")
    ) -> "GenEvalDetector":
        """Both models by folder or hub id.

        Args:
            options: that named them, for the messages.

        Raises:
            UserError: one cannot be loaded, or the Mask2Former knows other than 80 classes.
        """
        from transformers import AutoTokenizer, CLIPModel, Mask2FormerForUniversalSegmentation

        device = choose_device(device)
        mask2former = load_named(Mask2FormerForUniversalSegmentation, detector, options[0]).to(device)
        if mask2former.config.num_labels != len(OBJECT_NAMES):
            raise UserError(
                f"{options[0]} {detector} knows {mask2former.config.num_labels} classes, GenEval needs COCO's "
                f"{len(OBJECT_NAMES)}: facebook/mask2former-swin-small-coco-instance has them"
            )
        colors = ColorClassifier(
            load_named(CLIPModel, clip, options[1]).to(device), load_named(AutoTokenizer, clip, options[1])
        )
        names = (f"{name} ({weights_digest(model.state_dict())})"
                 for name, model in ((detector, mask2former), (clip, colors.clip)))  # fmt: skip
        return cls(mask2former, colors, f"{' and '.join(names)}, transformers {version('transformers')}")

    @torch.inference_mode()
    def look(self, image: Image.Image, file: str, metadata: dict) -> Record:
        """The record of one RGB picture; colours are told for the classes whose colour the prompt asks for.

        Args:
            file: of the picture, for the record.
            metadata: its prompt.
        """
        pixel_values, scaled = prepare(image)
        padded = tuple(pixel_values.shape[-2:])
        outputs = self.mask2former(pixel_values=pixel_values.to(self.mask2former.device))
        seen = instances(
            outputs.class_queries_logits[0], outputs.masks_queries_logits[0], padded, scaled, image.size[::-1]
        )
        boxes, scores, classes = seen.boxes.tolist(), seen.scores.tolist(), seen.classes.tolist()
        colors: list[str | None] = [None] * len(boxes)
        for name in {clause["class"] for clause in metadata["include"] if "color" in clause}:
            wanted = [i for i, c in enumerate(classes) if OBJECT_NAMES[c] == name and scores[i] > THRESHOLD]
            crops = [cut_out(image, seen.masks[i].cpu().numpy(), boxes[i]) for i in wanted]
            for i, color in zip(wanted, self.colors.classify(crops, name) if crops else [], strict=True):
                colors[i] = color
        return Record(file, self.name, boxes, scores, classes, colors)


@cache
def load_once(detector: str, clip: str, device: str | None, options: tuple[str, str]) -> GenEvalDetector:
    """`GenEvalDetector.load`, kept in this module: lmms-eval executes a task's file anew for each of its functions."""
    return GenEvalDetector.load(detector, clip, device, options)


def load_named(kind, name: str, option: str):
    """`from_pretrained`; UserError with the option that named what cannot be loaded, or whose weights are not all."""
    is_model = issubclass(kind, torch.nn.Module)
    if not Path(name).is_dir() and not may_be_hub_id(name):  # the hub takes more than a minute to refuse a path
        raise UserError(f"{option} {name}: no such folder")
    try:
        options = LOADING | {"dtype": torch.float32} if is_model else {}
        loaded = kind.from_pretrained(name, **options)
    except Exception as error:  # a damaged file raises nearly anything, safetensors' own types included
        raise UserError(f"{option} {name} cannot be loaded: {first_line(error)}") from error
    if not is_model:
        return loaded
    model, report = loaded
    if told := misfit_of_report(report, is_whole=False):
        raise UserError(f"{option} {name}, as a {kind.__name__}: the checkpoint {told}")
    return model.eval()
