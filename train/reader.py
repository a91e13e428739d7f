"""Train the reader of the emoji scenes: the detector that judges what other models draw (unimllm/scenes/reader.py).

    python train/reader.py --output-dir runs/reader --steps 4500

The reader learns from renders only, made as it goes, and from ALL splits: it is the judge, so it must know every
composition, also those that are held out from the models that it judges. It never sees a picture that a model drew.
Two thirds of its pictures are disturbed as decoders disturb them (blur, noise, shifts of brightness, contrast and
colour, lost resolution); in some, one object is cut up and shuffled and then counts as no object, so that fragments
in the right colours do not pass for the thing.

The output folder holds the state (`state.pt`; running again continues exactly there) and, after the last step, the
reader in fp16 (`config.json`, `model.safetensors`) with its scores calibrated on fresh renders of the training split.
About 20 minutes on one core with AMX.
"""

import argparse
import dataclasses
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unimllm.metrics.geneval import COUNTING_THRESHOLD, is_correct, summarize
from unimllm.scenes import GlyphAtlas, Renderer, Scene, World
from unimllm.scenes.program import SPLITS
from unimllm.scenes.prompts import sample_prompts, scene_for_prompt
from unimllm.scenes.reader import (
    SceneReader,
    SceneReaderConfig,
    make_targets,
    match,
    read_accuracy,
    reader_losses,
    to_pixel_values,
)

PEAK_LR, WARMUP, WEIGHT_DECAY = 2e-3, 0.08, 0.02  # AdamW; the warm-up is a share of all steps
EMA_HALF_LIFE = 150  # steps; what is saved and judged is the running mean of the weights
CLEAN_SHARE = 1 / 3  # pictures that are not disturbed
DAMAGE_SHARE = 0.12  # pictures in which one object is cut up and shuffled
SAVE_SECONDS = 120
# Streams of random numbers: every step, and every set of pictures that measures, draws from its own.
TRAINING, CALIBRATION, REPORT = range(3)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True, help="folder of the state and of the reader")
    parser.add_argument("--steps", type=int, default=4500, help="optimizer steps")
    parser.add_argument("--batch-size", type=int, default=64, help="pictures per step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--image-size", type=int, default=64, help="pixels")
    parser.add_argument("--log-every", type=int, default=50, help="steps")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 leaves torch's choice")
    return parser.parse_args()


# ---- pictures ------------------------------------------------------------------------------------------------------


def damage(scene: Scene, picture: np.ndarray, rng: np.random.Generator) -> tuple[Scene, np.ndarray]:
    """Shuffle the 3x3 tiles of one object's box; the scene that comes back does not hold that object."""
    index = int(rng.integers(len(scene.objects)))
    x0, y0, x1, y1 = (int(v) for v in scene.objects[index].box)
    width, height = (x1 - x0) // 3, (y1 - y0) // 3
    tiles = picture[y0 : y0 + 3 * height, x0 : x0 + 3 * width].reshape(3, height, 3, width, 3).swapaxes(1, 2)
    order = rng.permutation(9)  # each tile goes where the next one of this cycle was: none stays
    shuffled = np.empty((9, height, width, 3), np.uint8)
    shuffled[order] = tiles.reshape(9, height, width, 3)[np.roll(order, 1)]
    picture = picture.copy()
    picture[y0 : y0 + 3 * height, x0 : x0 + 3 * width] = (
        shuffled.reshape(3, 3, height, width, 3).swapaxes(1, 2).reshape(3 * height, 3 * width, 3)
    )
    return dataclasses.replace(scene, objects=scene.objects[:index] + scene.objects[index + 1 :]), picture


def blur(pixel_values: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of (n, 3, S, S), sigma in pixels."""
    radius = max(1, round(3 * sigma))
    kernel = torch.exp(-((torch.arange(-radius, radius + 1) / sigma) ** 2) / 2)
    kernel = (kernel / kernel.sum()).expand(3, 1, -1)
    padded = F.pad(pixel_values, (radius,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel[:, :, None, :], groups=3), kernel[:, :, :, None], groups=3)


def disturb(pixel_values: Tensor, rng: np.random.Generator) -> Tensor:
    """Disturb (n, 3, S, S) in -1..1 as a decoder might; CLEAN_SHARE of the pictures stay as they are."""
    n, size = len(pixel_values), pixel_values.shape[-1]
    fate = rng.random(n)
    touched = np.flatnonzero(fate >= CLEAN_SHARE)
    x = pixel_values[touched]

    # Lost detail comes in two kinds; each has one strength per batch, which lets whole groups be computed at once.
    kind = rng.integers(0, 3, len(touched))
    blurred, shrunk = np.flatnonzero(kind == 1), np.flatnonzero(kind == 2)
    if len(blurred):
        x[blurred] = blur(x[blurred], float(rng.uniform(0.3, 1.1)) * size / 64)
    if len(shrunk):
        small = F.interpolate(x[shrunk], size=round(size * rng.uniform(0.5, 0.95)), mode="bilinear", antialias=True)
        x[shrunk] = F.interpolate(small, size=size, mode="bilinear")

    def uniform(low: float, high: float, channels: int = 1) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, (len(touched), channels, 1, 1)).astype(np.float32))

    mean = x.mean((1, 2, 3), keepdim=True)
    x = (x - mean) * uniform(0.8, 1.15) + mean + uniform(-0.12, 0.12) + uniform(-0.06, 0.06, 3)
    noise = torch.from_numpy(rng.standard_normal(x.shape, dtype=np.float32))
    x = x + noise * uniform(-0.08, 0.1).clamp(min=0)
    disturbed = pixel_values.clone()
    disturbed[touched] = x.clamp(-1, 1)
    return disturbed


def sample_scenes(world: World, count: int, rng: np.random.Generator, splits: tuple[str, ...]) -> list[Scene]:
    return [world.sample(rng, splits[int(rng.integers(len(splits)))]) for _ in range(count)]


def make_batch(
    world: World, renderer: Renderer, count: int, rng: np.random.Generator, splits: tuple[str, ...] = SPLITS
) -> tuple[list[Scene], Tensor]:
    """Scenes with some objects damaged, hence missing, and their disturbed pictures (n, 3, S, S)."""
    scenes = sample_scenes(world, count, rng, splits)
    pictures = [renderer.render(s) for s in scenes]
    for i in np.flatnonzero(rng.random(count) < DAMAGE_SHARE):
        scenes[i], pictures[i] = damage(scenes[i], pictures[i], rng)
    return scenes, disturb(to_pixel_values(torch.from_numpy(np.stack(pictures))), rng)


def to_pictures(pixel_values: Tensor) -> np.ndarray:
    """(n, 3, S, S) in -1..1 -> (n, S, S, 3) uint8."""
    return ((pixel_values + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


# ---- state ---------------------------------------------------------------------------------------------------------


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine down to zero."""
    warmup = max(1, round(WARMUP * steps))
    if step < warmup:
        return PEAK_LR * (step + 1) / warmup
    return PEAK_LR * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


@torch.no_grad()
def update_mean(mean: dict[str, Tensor], model: SceneReader, step: int) -> None:
    """Running mean of weights and batch-norm statistics; a short memory at first, so that the start is forgotten."""
    decay = min(0.5 ** (1 / EMA_HALF_LIFE), (step + 1) / (step + 10))
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            mean[name].lerp_(value, 1 - decay)
        else:
            mean[name].copy_(value)


def save_state(path: Path, state: dict) -> None:
    """Write beside `path`, then move: a kill at any moment leaves a whole state."""
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def load_state(path: Path, run: dict) -> dict | None:
    """The state to continue from, None if there is none.

    Raises:
        ValueError: the folder's state comes from a run with other numbers.
    """
    if not path.is_file():
        return None
    state = torch.load(path, weights_only=True)
    if state["run"] != run:
        raise ValueError(
            f"{path} is the state of {state['run']}, not of {run}: take those numbers or a new --output-dir"
        )
    return state


def save_reader(model: SceneReader, folder: Path) -> None:
    """Save the weights in fp16; config.json still says float32, so that loading gives a float32 model."""
    halved = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=halved)


# ---- after training ------------------------------------------------------------------------------------------------


def fit_scores(evidence: Tensor, true: Tensor) -> tuple[float, float]:
    """Scale and bias with which sigmoid(scale * evidence + bias) is nearest to the truth (Platt), within sane bounds.

    Args:
        evidence: (P,) logarithm of each peak's presence.
        true: (P,) 1 where an object of that class lies there, else 0.
    """
    scale_bias = torch.tensor([1.0, 0.0], requires_grad=True)
    optimizer = torch.optim.LBFGS([scale_bias], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.binary_cross_entropy_with_logits(evidence * scale_bias[0] + scale_bias[1], true)
        # A nearly perfect reader would like an infinite scale; the second term holds it back.
        loss = loss + 1e-4 * ((scale_bias - torch.tensor([1.0, 0.0])) ** 2).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    scale, bias = scale_bias.tolist()
    return min(max(scale, 0.5), 8.0), bias


def calibrate(model: SceneReader, world: World, renderer: Renderer, seed: int, count: int = 2000) -> None:
    """Fit the config's score_scale and score_bias on fresh disturbed renders of the training split."""
    model.config.score_scale, model.config.score_bias = 1.0, 0.0
    scenes, pixel_values = make_batch(world, renderer, count, np.random.default_rng([seed, CALIBRATION]), ("train",))
    evidence, true = [], []
    for scene, found in zip(scenes, model.detect(to_pictures(pixel_values), min_score=0.01), strict=True):
        about = {j: i for i, j in match(scene, found, world.image_size)}
        for j, detection in enumerate(found):
            evidence.append(np.log(detection.score) - np.log1p(-detection.score))  # the sigmoid undone
            true.append(j in about and scene.objects[about[j]].name == detection.name)
    scale, bias = fit_scores(torch.tensor(evidence, dtype=torch.float32), torch.tensor(true, dtype=torch.float32))
    model.config.score_scale, model.config.score_bias = round(scale, 4), round(bias, 4)


def report(model: SceneReader, world: World, renderer: Renderer, seed: int, count: int = 1000) -> None:
    """Print how well the reader reads fresh test-split renders, and the GenEval ceiling that it sets."""
    size = world.image_size
    rng = np.random.default_rng([seed, REPORT])
    scenes = sample_scenes(world, count, rng, ("test",))
    pictures = renderer.render_batch(scenes)
    clean = to_pixel_values(torch.from_numpy(pictures))
    seen = {"clean": clean, "blur 0.7": blur(clean, 0.7 * size / 64), "disturbed": disturb(clean, rng)}
    for title, pixel_values in seen.items():
        found = model.detect(to_pictures(pixel_values))
        print(f"{title:10}", " ".join(f"{k} {v:.4f}" for k, v in read_accuracy(scenes, found, size).items()))
        strict = read_accuracy(scenes, found, size, COUNTING_THRESHOLD)
        print(f"{'':10} at {COUNTING_THRESHOLD}:", " ".join(f"{k} {v:.4f}" for k, v in strict.items()))

    damaged = [damage(s, p, rng) for s, p in zip(scenes, pictures, strict=True)]
    found = model.detect(np.stack([p for _, p in damaged]))
    accuracy = read_accuracy([s for s, _ in damaged], found, size)
    print(f"shuffled objects taken for objects: {accuracy['extra']:.4f}")

    prompts = sample_prompts(world, seed=0) * 4  # four scenes for each: a steadier figure
    drawn = renderer.render_batch([scene_for_prompt(world, p, rng) for p in prompts])
    correct = [is_correct(d, p) for d, p in zip(model.detect(drawn), prompts, strict=True)]
    ceiling = summarize([p["tag"] for p in prompts], correct)
    told = " ".join(f"{tag} {share:.4f}" for tag, share in ceiling.items() if share is not None)
    print(f"GenEval ceiling over {len(prompts)} scenes: {told}")


def train(model: SceneReader, world: World, renderer: Renderer, args: argparse.Namespace) -> dict[str, Tensor]:
    """Train until the last step, from the folder's state if it has one; returns the mean weights."""
    run = {"steps": args.steps, "batch_size": args.batch_size, "seed": args.seed, "image_size": args.image_size}
    mean = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LR, weight_decay=WEIGHT_DECAY)
    start, path = 0, args.output_dir / "state.pt"
    if state := load_state(path, run):
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        mean, start = state["mean"], state["step"]
        print(f"continuing at step {start} of {path}", flush=True)

    model.train()
    logged, saved, logged_at = time.perf_counter(), time.perf_counter(), start
    for step in range(start, args.steps):
        # The step's own stream of random numbers: a continued run sees the very same pictures.
        rng = np.random.default_rng([args.seed, TRAINING, step])
        scenes, pixel_values = make_batch(world, renderer, args.batch_size, rng)
        targets = make_targets(scenes, model.config)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps)
        with torch.autocast("cpu", torch.bfloat16):
            outputs = model(pixel_values.contiguous(memory_format=torch.channels_last))
        losses = reader_losses(outputs, targets)
        loss = sum(losses.values())
        if not torch.isfinite(loss):
            raise RuntimeError(f"loss is {loss.item()} at step {step}: {losses}")
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        update_mean(mean, model, step)

        done = step + 1
        if done % args.log_every == 0 or done == args.steps:
            per_step = (time.perf_counter() - logged) / (done - logged_at)
            parts = " ".join(f"{k} {v.item():.3f}" for k, v in losses.items())
            print(
                f"step {done}/{args.steps} loss {loss.item():.3f} {parts} grad {norm:.2f} "
                f"lr {learning_rate(step, args.steps):.1e} {args.batch_size / per_step:.0f} pictures/s "
                f"left {(args.steps - done) * per_step / 60:.1f} min",
                flush=True,
            )
            logged, logged_at = time.perf_counter(), done
        if time.perf_counter() - saved > SAVE_SECONDS or done == args.steps:
            weights = {"model": model.state_dict(), "mean": mean, "optimizer": optimizer.state_dict()}
            save_state(path, {"run": run, "step": done} | weights)
            saved = time.perf_counter()
    return mean


def main() -> None:
    args = parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    config = SceneReaderConfig(image_size=args.image_size)
    world = World(GlyphAtlas.from_font(tuple(config.class_names)), args.image_size, tuple(config.class_names))
    renderer = Renderer(world.atlas, args.image_size)
    model = SceneReader(config).to(memory_format=torch.channels_last)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(config.class_names)} classes")

    mean = train(model, world, renderer, args)
    model.load_state_dict(mean)
    model.eval()
    calibrate(model, world, renderer, args.seed)
    print(f"scores: sigmoid({model.config.score_scale} * log(presence) + {model.config.score_bias})")
    save_reader(model, args.output_dir)
    # What is reported is what was saved, fp16 rounding and all.
    report(SceneReader.from_pretrained(args.output_dir), world, renderer, args.seed)


if __name__ == "__main__":
    main()
