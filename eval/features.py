"""What quantising costs understanding of scenes: a linear probe on a teacher's features, and on those codes give back.

    python eval/features.py --model runs/scenes_64/pixel

The probe names the object that each patch shows (cross-entropy; objects and ground weigh the same), on features of
training scenes; it is examined on object patches of held-out compositions (--split). One probe reads SigLIP's own
features, one what the semantic decoder makes of the codes, both of the same pictures. Beside them stands how often the
code of a patch alone tells the object, by a table of what each code showed in training. Intervals: 95 %, bootstrap over
pictures, which for the difference are the same for both. Pictures of your own: eval/zero_shot.py.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.table import Table
from torch.nn import functional as F
from tqdm import tqdm

from semhitok import SemHiTokModel
from semhitok.checkpoints import load_tokenizer
from semhitok.image_processing_semhitok import to_pixel_values
from unimllm.command_line import CommandLine, check_given, number, out_of_memory_told, run, silence_libraries
from unimllm.image_tokenizer import open_measured
from unimllm.images import check_writable
from unimllm.metrics.intervals import percentiles, resampled_sums
from unimllm.report import (
    as_range,
    describe_run,
    describe_start,
    model_told,
    open_table,
    print_table,
    write_json,
)
from unimllm.scenes.examination import examined_scenes
from unimllm.scenes.objects import CLASSES_24
from unimllm.scenes.program import SPLITS, Scene
from unimllm.scenes.sources import WorldConfig, patch_owners, sample_rng, trained_classes, world_told

NUM_TRAINING, NUM_EXAMINED = 4000, 1000  # pictures
TRAINING_SEED = 7100  # of the probe's pictures; apart from those of every other program
PROBED = {"continuous": "SigLIP's features", "quantised": "features from codes"}
CODES = "code"
INPUTS = PROBED | {CODES: "the code of the patch alone"}
PROBE_STEPS = 60  # of L-BFGS; the loss no longer moves


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = CommandLine("eval/features.py", __doc__)
    parser.add_argument("--model", type=Path, help="folder of a tokenizer or of a model; scenes: the one that ships")
    parser.add_argument("--split", choices=SPLITS, default="test", help="compare variants on validation, not on test")
    parser.add_argument("--training", type=number(int, 1), default=NUM_TRAINING, help="pictures (%(default)s)")
    parser.add_argument("--limit", type=number(int, 1), help=f"the first so many pictures, of {NUM_EXAMINED:,}")
    parser.add_argument("--batch-size", type=number(int, 1), default=100)
    parser.add_argument("--seed", type=number(int, 0), default=0, help="of the pictures examined")
    parser.add_device_option()
    parser.add_argument("--json", type=Path, help="also write the results here")
    args = parser.parse_args(argv)
    check_given(args, model="the tokenizer's folder")
    return args


def main(argv: list[str] | None = None) -> None:
    args, start = parse_args(argv), describe_start(__file__, argv)
    if args.json:
        check_writable(args.json)
    silence_libraries()
    folder, tokenizer, weights = open_measured(args.model, args.device, load_tokenizer)
    world, renderer = WorldConfig(tokenizer.config.image_size, trained_classes(folder) or CLASSES_24).open()
    probed = [world.sample(sample_rng(TRAINING_SEED, i)) for i in range(args.training)]
    examined = examined_scenes(world, args.seed, args.limit or NUM_EXAMINED, args.split)
    patch_size, ground = tokenizer.config.patch_size, len(world.classes)
    labels, true = (
        torch.from_numpy(np.stack([patch_owners(s, world, renderer, patch_size) for s in scenes]))
        for scenes in (probed, examined)
    )
    with out_of_memory_told(args.batch_size):
        inputs, unseen = (read_features(tokenizer, renderer, s, args.batch_size) for s in (probed, examined))
    is_object = true < ground
    fitted = {name: fit_probe(inputs[name], labels) for name in PROBED}
    fitted[CODES] = fit_table(inputs[CODES], labels, tokenizer.config.num_codes)
    right = {name: ((fitted[name](unseen[name]) == true) & is_object).sum(1).numpy() for name in INPUTS}
    results = summarize(right, is_object.sum(1).numpy())
    results |= {"num_pictures": len(examined), "num_training_pictures": len(probed)}
    results |= {"split": args.split, "limit": args.limit}
    results |= world_told(world) | model_told(tokenizer)
    results |= describe_run(
        start, model=str(args.model), fingerprint=weights, fingerprint_of="weights",
        seed=args.seed, num_samples={"pictures": len(examined), "training pictures": len(probed)},
        limited=len(examined) < NUM_EXAMINED or len(probed) < NUM_TRAINING,
    )  # fmt: skip
    if args.json:
        write_json(args.json, results)
    print_table(make_table(results), 110)


@torch.no_grad()
def read_features(tokenizer: SemHiTokModel, renderer, scenes: list[Scene], batch_size: int) -> dict[str, torch.Tensor]:
    """Of the scenes' pictures, on the CPU: PROBED features (B, N, D) float32, and flat CODES (B, N) int64."""
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in INPUTS}
    for start in tqdm(range(0, len(scenes), batch_size), desc="features", unit="batch"):
        pictures = renderer.render_batch(scenes[start : start + batch_size])
        pixel_values = to_pixel_values(pictures).to(tokenizer.device)
        codes = tokenizer.encode(pixel_values)
        vectors = tokenizer.code_vectors(codes)
        parts[CODES].append(tokenizer.codes_to_ids(codes).cpu())
        parts["continuous"].append(tokenizer.vision_features(pixel_values).float().cpu())
        parts["quantised"].append(tokenizer.restore_features(*vectors).float().cpu())
    return {name: torch.cat(part) for name, part in parts.items()}


def fit_probe(features: torch.Tensor, labels: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """A linear classifier of patches.

    Args:
        features: (B, N, D) float32.
        labels: (B, N) int64; the greatest is the ground.

    Returns:
        A function: features (..., D) -> classes (...).
    """
    mean, std = features.mean((0, 1)), features.std((0, 1)) + 1e-6
    x, y = ((features - mean) / std).flatten(0, 1), labels.flatten()
    weight = balance(y)
    probe = torch.nn.Linear(x.shape[1], int(y.max()) + 1)
    torch.nn.init.zeros_(probe.weight)
    torch.nn.init.zeros_(probe.bias)
    optimizer = torch.optim.LBFGS(probe.parameters(), max_iter=PROBE_STEPS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = (weight * F.cross_entropy(probe(x), y, reduction="none")).sum()
        value = value + 1e-5 * probe.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return lambda features: probe((features - mean) / std).detach().argmax(-1)


def fit_table(codes: torch.Tensor, labels: torch.Tensor, num_codes: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """The class that each code showed most, objects and ground weighing the same; the ground for a code never seen.

    Args:
        codes, labels: (B, N) int64; the greatest label is the ground.

    Returns:
        A function: codes (...) -> classes (...).
    """
    ground = int(labels.max())
    shown = torch.zeros(num_codes, ground + 1)
    shown.index_put_((codes.flatten(), labels.flatten()), balance(labels.flatten()), accumulate=True)
    best = torch.where(shown.sum(1) > 0, shown.argmax(1), ground)
    return lambda codes: best[codes]


def balance(labels: torch.Tensor) -> torch.Tensor:
    """Weights (n,) with which objects and ground, the greatest label, weigh a half each."""
    is_object = labels < labels.max()
    return torch.where(is_object, 0.5 / is_object.sum(), 0.5 / (~is_object).sum())


def summarize(right: dict[str, np.ndarray], num_objects: np.ndarray) -> dict:
    """Shares of object patches named right, and what quantising costs the probe, with intervals.

    Args:
        right: of INPUTS, (n,) patches named right in each picture.
        num_objects: (n,) patches that show an object.
    """
    counts = np.stack([*(right[name] for name in INPUTS), num_objects], 1).astype(float)
    sums = resampled_sums(counts, np.arange(len(counts)), np.random.default_rng(0))
    resampled = {name: sums[:, i] / sums[:, -1] for i, name in enumerate(INPUTS)}
    results: dict = {name: float(right[name].sum() / num_objects.sum()) for name in INPUTS}
    results["cost"] = results["continuous"] - results["quantised"]
    resampled["cost"] = resampled["continuous"] - resampled["quantised"]
    results["intervals"] = {name: percentiles(values) for name, values in resampled.items()}
    return results | {"num_object_patches": int(num_objects.sum())}


def make_table(results: dict) -> Table:
    """The table for people."""
    title = (
        f"Objects named right: {results['num_object_patches']:,} patches of {results['num_pictures']:,} emoji scenes "
        f"({results['split']}), a probe trained on {results['num_training_pictures']:,}"
    )
    table = open_table(title, (results["model"], "share right", "95 %"))
    for name, title in (INPUTS | {"cost": "what quantising costs the probe"}).items():
        table.add_row(title, f"{results[name]:.4f}", as_range(results["intervals"][name], 4))
    return table


if __name__ == "__main__":
    run(main)
