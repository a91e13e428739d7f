"""The reader: a small detector that reads a picture of the emoji scenes back into objects, to judge what models draw.

It follows CenterNet (arXiv 1904.07850): every object is the peak of its class's heatmap, and its colour, box size and
offset are read at that peak. It is trained on renders alone (train/reader.py) and never sees what it judges; its own
accuracy on true renders, `read_accuracy`, is the ceiling of every score that it gives.

Legend: n pictures, S image size, h = w = S / 4 cells, C classes, K = 11 colours (GenEval's ten, then "own colours"),
M objects. A cell's centre lies at its index + 0.5; sizes and offsets are in cells unless they are called pixels.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.utils import ModelOutput

from unimllm.metrics.geneval import THRESHOLD, Box, Detection
from unimllm.scenes.objects import CLASSES_24, COLORS
from unimllm.scenes.program import Scene

DEFAULT_READER = Path(__file__).parents[1] / "default" / "reader"
COLOR_NAMES: tuple[str | None, ...] = (*COLORS, None)  # None: the emoji wears its own colours
STRIDE = 4  # pixels per cell
MATCH_RADIUS = 0.12  # of the picture's width: a detection this near to an object's centre is about that object
SUPERVISED = 0.2  # cells where the heatmap's target is at least this high also learn colour, size and offset


class SceneReaderConfig(PreTrainedConfig):
    """Sizes, names and calibration of a `SceneReader`.

    Args:
        image_size: width and height of the pictures in pixels; a multiple of 8.
        class_names: names of the objects, in the order of the heatmaps.
        widths: channels at strides 2, 4 and 8.
        num_blocks: residual blocks at strides 4 and 8.
        score_scale: factor on the logarithm of a peak's presence before the sigmoid, fitted after training.
        score_bias: summand beside it, fitted after training.
        max_overlap: of two detections whose boxes overlap by more than this (IoU), only the better one is reported.
    """

    model_type = "scene_reader"

    image_size: int = 64
    class_names: list[str] | tuple[str, ...] = CLASSES_24
    widths: list[int] | tuple[int, ...] = (32, 64, 128)
    num_blocks: list[int] | tuple[int, ...] = (2, 3)
    score_scale: float = 1.0
    score_bias: float = 0.0
    max_overlap: float = 0.5

    def __post_init__(self, **kwargs):
        self.class_names = list(self.class_names)
        self.widths, self.num_blocks = list(self.widths), list(self.num_blocks)
        if self.image_size % 8:
            raise ValueError(f"image_size={self.image_size} is no multiple of 8, the coarsest stride of the reader")
        super().__post_init__(**kwargs)

    @property
    def grid_size(self) -> int:
        return self.image_size // STRIDE


@dataclass
class SceneReaderOutput(ModelOutput):
    """What the heads say at every cell.

    Args:
        heatmap_logits: (n, C, h, w) logits of "the centre of an object of this class lies here", uncalibrated.
        color_logits: (n, K, h, w).
        log_size: (n, 2, h, w) logarithm of width and height in cells.
        offset: (n, 2, h, w) x and y of the object's centre from the cell's centre, in cells.
    """

    heatmap_logits: Tensor | None = None
    color_logits: Tensor | None = None
    log_size: Tensor | None = None
    offset: Tensor | None = None


class _Block(nn.Module):
    """Residual block of two 3x3 convolutions; the first one may widen and halve the map."""

    def __init__(self, in_channels: int, channels: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Identity() if stride == 1 else nn.Conv2d(in_channels, channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        inner = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.shortcut(x) + self.norm2(self.conv2(inner)))


def _stage(in_channels: int, channels: int, num_blocks: int) -> nn.Sequential:
    return nn.Sequential(_Block(in_channels, channels, 2), *[_Block(channels, channels) for _ in range(num_blocks - 1)])


class SceneReader(PreTrainedModel):
    """The detector: pictures in, heatmaps (`forward`) or objects (`detect`) out."""

    config_class = SceneReaderConfig
    base_model_prefix = "reader"
    main_input_name = "pixel_values"

    def __init__(self, config: SceneReaderConfig):
        super().__init__(config)
        first, middle, last = config.widths
        self.stem = nn.Sequential(nn.Conv2d(3, first, 5, 2, 2, bias=False), nn.BatchNorm2d(first), nn.ReLU())
        self.fine = _stage(first, middle, config.num_blocks[0])
        self.coarse = _stage(middle, last, config.num_blocks[1])
        self.lateral = nn.Conv2d(last, middle, 1)
        self.merge = nn.Sequential(nn.Conv2d(middle, last, 3, 1, 1, bias=False), nn.BatchNorm2d(last), nn.ReLU())
        self.heatmap = nn.Conv2d(last, len(config.class_names), 1)
        self.color = nn.Conv2d(last, len(COLOR_NAMES), 1)
        self.box = nn.Conv2d(last, 4, 1)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, SceneReader):
            for head in (module.heatmap, module.color, module.box):
                init.normal_(head.weight, std=0.01)
            # Almost every cell is empty: starting at p = 0.02 keeps them from drowning the first steps' loss.
            init.constant_(module.heatmap.bias, -3.9)
        else:
            super()._init_weights(module)

    def forward(self, pixel_values: Tensor) -> SceneReaderOutput:
        """Args: pixel_values: (n, 3, S, S) in -1..1, as `to_pixel_values` makes them."""
        fine = self.fine(self.stem(pixel_values))  # (n, c, h, w)
        coarse = self.lateral(self.coarse(fine))  # (n, c, h / 2, w / 2)
        hidden = self.merge(fine + F.interpolate(coarse, scale_factor=2, mode="nearest"))
        log_size, offset = self.box(hidden).chunk(2, dim=1)
        return SceneReaderOutput(self.heatmap(hidden), self.color(hidden), log_size, offset)

    @torch.no_grad()
    def detect(self, pictures: np.ndarray, batch_size: int = 128, min_score: float = 0.05) -> list[list[Detection]]:
        """The objects of every picture, best first.

        Args:
            pictures: (n, S, S, 3) uint8 RGB.
            batch_size: pictures per forward pass.
            min_score: weaker detections are not reported.
        """
        size = self.config.image_size
        if pictures.dtype != np.uint8 or pictures.shape[1:] != (size, size, 3):
            raise ValueError(
                f"the reader reads (n, {size}, {size}, 3) uint8 pictures, got {pictures.shape} {pictures.dtype}: "
                "resize them, or load a reader of that size"
            )
        was_training = self.training
        self.eval()
        found: list[list[Detection]] = []
        for start in range(0, len(pictures), batch_size):
            pixel_values = to_pixel_values(torch.from_numpy(pictures[start : start + batch_size]).to(self.device))
            found += decode(self(pixel_values.to(self.dtype)), self.config, min_score)
        self.train(was_training)
        return found


def to_pixel_values(pictures: Tensor) -> Tensor:
    """(n, S, S, 3) uint8 -> (n, 3, S, S) float32 in -1..1."""
    return pictures.permute(0, 3, 1, 2).float() / 127.5 - 1


# ---- from heads to detections --------------------------------------------------------------------------------------


def presence(heatmap: Tensor) -> Tensor:
    """How many centres of a class lie in the 3x3 cells around each cell: the sum of their probabilities, (n, C, h, w).

    A centre near the border of two cells shares its probability between them, so that neither alone is sure of it.
    """
    return F.avg_pool2d(heatmap, 3, 1, 1) * 9


def find_peaks(heatmap: Tensor, scores: Tensor, min_score: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cells that are the highest of their 3x3 neighbourhood in the heatmap of their class and score high enough.

    Args:
        heatmap, scores: (n, C, h, w).
        min_score: the least score of a peak.

    Returns:
        picture, class, row and column of each of P peaks, (P,) int64 each.
    """
    highest = F.max_pool2d(heatmap, 3, 1, 1)
    return torch.nonzero((heatmap == highest) & (scores >= min_score), as_tuple=True)


def decode(outputs: SceneReaderOutput, config: SceneReaderConfig, min_score: float) -> list[list[Detection]]:
    """Detections of every picture, best first; where boxes overlap too much, only the best of them."""
    heatmap = torch.sigmoid(outputs.heatmap_logits.float())  # (n, C, h, w)
    evidence = presence(heatmap).clamp(min=1e-6).log()
    scores = torch.sigmoid(evidence * config.score_scale + config.score_bias)  # (n, C, h, w)
    picture, label, row, column = find_peaks(heatmap, scores, min_score)
    color = outputs.color_logits[picture, :, row, column].argmax(-1)  # (P,)
    offset = outputs.offset[picture, :, row, column].float()  # (P, 2)
    size = outputs.log_size[picture, :, row, column].float().exp() * STRIDE  # (P, 2) pixels
    center = (torch.stack([column, row], -1) + 0.5 + offset) * STRIDE  # (P, 2) pixels
    boxes = torch.cat([center - size / 2, center + size / 2], -1).clamp(0, config.image_size).tolist()
    peak_scores = scores[picture, label, row, column]

    found: list[list[Detection]] = [[] for _ in range(len(scores))]
    picture, label, color = picture.tolist(), label.tolist(), color.tolist()
    for i in peak_scores.argsort(descending=True, stable=True).tolist():
        kept = found[picture[i]]
        if all(iou(boxes[i], other.box) <= config.max_overlap for other in kept):
            name = config.class_names[label[i]]
            kept.append(Detection(name, tuple(boxes[i]), float(peak_scores[i]), COLOR_NAMES[color[i]]))
    return found


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union > 0 else 0.0


# ---- targets and losses --------------------------------------------------------------------------------------------


@dataclass
class ReaderTargets:
    """What the heads should say about n scenes.

    Args:
        heatmap: (n, C, h, w) in 0..1, exactly 1 at the cell of a centre, falling off as a Gaussian.
        color: (n, h, w) int64 index into COLOR_NAMES.
        log_size, offset: (n, 2, h, w), as in SceneReaderOutput.
        weight: (n, h, w) how much the cell counts in the losses of colour, size and offset; 0 far from all objects.
    """

    heatmap: Tensor
    color: Tensor
    log_size: Tensor
    offset: Tensor
    weight: Tensor


def make_targets(scenes: list[Scene], config: SceneReaderConfig) -> ReaderTargets:
    """Targets of scenes, all objects at once."""
    n, cells, num_classes = len(scenes), config.grid_size, len(config.class_names)
    objects = [(i, o) for i, scene in enumerate(scenes) for o in scene.objects]
    picture = np.array([i for i, _ in objects], np.int64)  # (M,)
    label = np.array([config.class_names.index(o.name) for _, o in objects], np.int64)  # (M,)
    color = np.array([COLOR_NAMES.index(o.color) for _, o in objects], np.int64)  # (M,)
    boxes = np.array([o.box for _, o in objects], np.float32).reshape(-1, 4) / STRIDE  # (M, 4) cells
    center, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]  # (M, 2)
    cell = center.astype(np.int64).clip(0, cells - 1)  # (M, 2) column and row

    sigma = np.maximum(0.1 * size, 0.6)[..., None]  # (M, 2, 1)
    falloff = np.exp(-(((np.arange(cells) - cell[..., None]) / sigma) ** 2) / 2)  # (M, 2, cells)
    blob = (falloff[:, 1, :, None] * falloff[:, 0, None, :]).astype(np.float32)  # (M, h, w)
    heatmap = np.zeros((n, num_classes, cells, cells), np.float32)
    np.maximum.at(heatmap, (picture, label), blob)
    weight = np.zeros((n, cells, cells), np.float32)
    np.maximum.at(weight, picture, blob)

    # Every supervised cell belongs to the object whose blob is highest there.
    owner, row, column = np.nonzero((blob == weight[picture]) & (blob >= SUPERVISED))
    weight[weight < SUPERVISED] = 0
    colors = np.zeros((n, cells, cells), np.int64)
    colors[picture[owner], row, column] = color[owner]
    log_size, offset = np.zeros((2, n, 2, cells, cells), np.float32)
    log_size[picture[owner], :, row, column] = np.log(size[owner])
    offset[picture[owner], :, row, column] = center[owner] - np.stack([column, row], -1) - 0.5
    return ReaderTargets(*map(torch.from_numpy, (heatmap, colors, log_size, offset, weight)))


def heatmap_loss(logits: Tensor, heatmap: Tensor) -> Tensor:
    """CenterNet's focal loss (its eq. 1), per object: alpha = 2, beta = 4. Both (n, C, h, w)."""
    probability = torch.sigmoid(logits)
    positive = heatmap == 1
    at_centers = -F.logsigmoid(logits) * (1 - probability) ** 2
    elsewhere = -F.logsigmoid(-logits) * probability**2 * (1 - heatmap) ** 4
    return torch.where(positive, at_centers, elsewhere).sum() / positive.sum().clamp(min=1)


def reader_losses(outputs: SceneReaderOutput, targets: ReaderTargets) -> dict[str, Tensor]:
    """The four losses; their sum is what is trained."""
    total = targets.weight.sum().clamp(min=1)
    color = F.cross_entropy(outputs.color_logits.float(), targets.color, reduction="none")  # (n, h, w)
    size = (outputs.log_size.float() - targets.log_size).abs().mean(1)  # (n, h, w)
    offset = (outputs.offset.float() - targets.offset).abs().mean(1)  # (n, h, w)
    return {
        "heatmap": heatmap_loss(outputs.heatmap_logits.float(), targets.heatmap),
        "color": (color * targets.weight).sum() / total,
        "size": (size * targets.weight).sum() / total,
        "offset": (offset * targets.weight).sum() / total,
    }


# ---- how well it reads ---------------------------------------------------------------------------------------------


def match(scene: Scene, detections: list[Detection], image_size: int) -> list[tuple[int, int]]:
    """Pairs (object, detection) of one picture: the nearest centres first, each used once, none beyond MATCH_RADIUS."""
    pairs = []
    for i, item in enumerate(scene.objects):
        for j, detection in enumerate(detections):
            x0, y0, x1, y1 = detection.box
            distance = np.hypot(item.center[0] - (x0 + x1) / 2, item.center[1] - (y0 + y1) / 2) / image_size
            if distance <= MATCH_RADIUS:
                pairs.append((distance, i, j))
    matched: dict[int, int] = {}
    for _, i, j in sorted(pairs):
        if i not in matched and j not in matched.values():
            matched[i] = j
    return sorted(matched.items())


def read_accuracy(
    scenes: list[Scene], detections: list[list[Detection]], image_size: int, threshold: float = THRESHOLD
) -> dict[str, float]:
    """How well detections tell what scenes hold.

    Args:
        scenes: the true scenes.
        detections: what was detected in each of their pictures.
        image_size: width of the pictures in pixels.
        threshold: weaker detections do not count.

    Returns:
        Shares of all true objects: `objects` found at all, with the right `class`, with the right `color`, with the
        right `class_and_color`; and `extra`, the detections per picture that are about no object.
    """
    hits = {"objects": 0, "class": 0, "color": 0, "class_and_color": 0}
    extra = 0
    for scene, all_found in zip(scenes, detections, strict=True):
        found = [d for d in all_found if d.score > threshold]
        pairs = match(scene, found, image_size)
        extra += len(found) - len(pairs)
        for i, j in pairs:
            same_class = scene.objects[i].name == found[j].name
            same_color = scene.objects[i].color == found[j].color
            hits["objects"] += 1
            hits["class"] += same_class
            hits["color"] += same_color
            hits["class_and_color"] += same_class and same_color
    num_objects = max(1, sum(len(s.objects) for s in scenes))
    return {key: count / num_objects for key, count in hits.items()} | {"extra": extra / max(1, len(scenes))}
