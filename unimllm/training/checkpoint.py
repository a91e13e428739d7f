"""Checkpoints: `OUTPUT/step-000123/` holds a Hugging Face folder, DeepSpeed's state, and `run.json`.

A checkpoint is written under a hidden name and renamed when it is complete (`training.saving`), so a kill leaves the
previous one in place.
"""

import contextlib
import json
import os
import platform
import shlex
import socket
import sys
from dataclasses import fields
from pathlib import Path
from uuid import uuid4

import torch
import torch.distributed as dist
import transformers

from semhitok.checkpoints import RUN_FILE, latest, resolve
from semhitok.errors import first_line
from unimllm.distributed import is_first_process, print_once
from unimllm.errors import UserError
from unimllm.fingerprint import commit_of
from unimllm.training.batches import Place
from unimllm.training.config import TrainConfig
from unimllm.training.reshard import load_resharded

STATE_FOLDER = "deepspeed"
DECISIVE = (
    "precision", "zero_stage", "batch_size", "seed", "learning_rate", "final_lr_ratio", "warmup_steps", "weight_decay",
    "beta1", "beta2", "eps", "max_grad_norm",
)  # fmt: skip
"""Of `train`, what weights depend on beyond rounding, but for the number of steps."""
OPTIONS = ("weight_decay", "betas", "eps")  # of AdamW's groups, which load_state_dict takes from the checkpoint
NAMED_CHANGES = 5  # of a recipe, where it does not fit a checkpoint
REMOVE = "remove {} and the same command goes on from the checkpoint before it"

__all__ = [
    "RUN_FILE", "find_newest", "index_folder", "latest", "load", "place_of", "prepare_output", "read_run", "resolve"
]  # fmt: skip


def read_run(folder: Path) -> dict:
    """The `run.json` of a checkpoint; UserError if it is damaged."""
    try:
        return json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{folder / RUN_FILE} is damaged ({error}); {REMOVE.format(folder)}") from error


def place_of(run: dict | None, batch_size: int, passed_over: int = 0) -> Place:
    """Where a run goes on: behind the samples that its steps were fed, whatever their batch sizes.

    Args:
        run: the `run.json` gone on from; None: a new run.
        batch_size: of the steps to come.
        passed_over: see `loop.train`.
    """
    if run is None:
        return Place(0, passed_over * batch_size)
    if "next_sample" in run:
        return Place(run["step"], run["next_sample"])
    before = run["recipe"]["train"]["batch_size"]  # of a version that went by the step
    return Place(run["step"], (passed_over + run["step"]) * before)


def index_folder(output_dir: Path) -> Path:
    """Where a run keeps what it found in its data: beside the output folder, for all runs there, or else in it."""
    beside = output_dir.parent / "index"
    there = next(folder for folder in (beside, *beside.parents) if folder.exists())
    return beside if there.is_dir() and os.access(there, os.W_OK | os.X_OK) else output_dir / "index"


def prepare_output(output_dir: Path) -> None:
    """Make the output folder and see that it can be written.

    Raises:
        UserError: it cannot.
    """
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        probe = output_dir / f".write-test-{uuid4().hex[:8]}"  # on several machines numbers of processes meet
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"cannot write to --output-dir {output_dir}: {error.strerror}; choose another folder"
        ) from error


def find_newest(output_dir: Path) -> Path | None:
    """The newest checkpoint that rank 0 sees, or None; called by every rank.

    Raises:
        UserError: a process does not see what rank 0 writes to the folder; on every rank.
    """
    found = latest(output_dir)
    if dist.get_world_size() == 1:
        return found
    probe = output_dir / f".shared-test-{uuid4().hex[:8]}"
    names: list = [probe.name, found and found.name]
    if is_first_process():
        probe.touch()
    dist.broadcast_object_list(names, src=0)
    seen: list = [None] * dist.get_world_size()
    dist.all_gather_object(seen, (socket.gethostname(), (output_dir / names[0]).exists()))
    if is_first_process():
        probe.unlink()
    for rank, (host, is_there) in enumerate(seen):
        if not is_there:
            raise UserError(
                f"rank {rank} on {host} does not see what rank 0 on {seen[0][0]} writes to --output-dir {output_dir}: "
                "the run could not go on from its checkpoints; name a folder on a disk that all machines share"
            )
    return names[1] and output_dir / names[1]


def describe_run(config: TrainConfig, recipe: dict, apart: str) -> dict:
    """What `run.json` says of a run beside how far it is."""
    import deepspeed

    return {
        "world_size": dist.get_world_size(),
        "precision": config.resolved_precision(),
        "command": shlex.join(sys.argv),
        "commit": commit_of(__file__),
        "versions": {
            "python": platform.python_version(), "torch": torch.__version__, "deepspeed": deepspeed.__version__,
            "transformers": transformers.__version__,
        },
        "recipe": recipe,
        "apart": apart,
    }  # fmt: skip


def began_from(output_dir: Path, asked: Path | None) -> str | None:
    """What the run in a folder began from, for its run.json; told where something else is asked for now.

    Args:
        asked: --init-from; None: nothing.
    """
    named, found = str(asked.resolve()) if asked else None, latest(output_dir)
    if not found:
        warn_of_stopped(asked and (latest(asked) or asked))
        return named
    before = read_run(found)["recipe"]
    warn_of_start(before, named, found)
    return before.get("init_from", named)


def warn_of_start(before: dict, asked: str | None, found: Path) -> None:
    """Say so where a run began from something else than is asked for now, for that is not read.

    Args:
        before: the recipe of the run, which is gone on with from `found`.
        asked: its whole path, or hub id; None: nothing.
    """
    began = before.get("init_from") or before.get("language_model") or "an untrained model"
    if "init_from" in before and asked and began != asked:
        print_once(f"warning: this run goes on from {found}, which began from {began}; {asked} is not read: name a new "
                   "--output-dir to begin from it")  # fmt: skip


def warn_of_stopped(start: str | Path | None) -> None:
    """Say so where a new run begins from one that was stopped before its end."""
    if start and (Path(start) / RUN_FILE).is_file():
        began = read_run(Path(start))
        step, max_steps = began["step"], began["recipe"]["train"]["max_steps"]
        if step < max_steps:
            print_once(f"warning: --init-from {start} was stopped at step {step:,} of {max_steps:,}")


def load(engine, folder: Path, recipe: dict, apart: str = "", precision: str = "") -> dict:
    """Restore the engine from a checkpoint, of any number of processes, and return its run.json.

    The optimiser keeps the options of this run; those that are not the checkpoint's and yet let it go on are told.

    Args:
        recipe: of this run.
        apart: `apart.digest` of this run.
        precision: `TrainConfig.resolved_precision` of this run.

    Raises:
        UserError: the checkpoint belongs to a model or to losses of other parts or sizes, or is damaged; or the image
            tokenizer is another.
    """
    run, state = read_run(folder), folder / STATE_FOLDER
    before = run.get("apart", apart)
    if before != apart:
        raise UserError(
            f"cannot resume from {folder}: the image tokenizer is another ({apart}) than the one it was trained with "
            f"({before}), or what --quantize_base holds in 4 bits; bring that back, or take another --output-dir"
        )
    if not any(state.glob("*_states.pt")):
        raise UserError(f"{folder} holds no DeepSpeed state to resume from; start a new run with --init-from {folder}")
    other_number = engine.zero_optimization_stage() > 0 and run["world_size"] != dist.get_world_size()
    recipes = run["recipe"], json.loads(json.dumps(recipe))
    before = run.get("precision") or recipes[0].get("train", {}).get("precision", "auto")  # of older versions
    if precision and before != "auto":
        recipes = resolved(recipes[0], before), resolved(recipes[1], precision)
    changed = "; ".join(changes(*recipes)[:NAMED_CHANGES])
    try:
        with own_options(engine.optimizer):
            if other_number:
                load_resharded(engine, state, run["world_size"])
            else:
                engine.load_checkpoint(str(folder), tag=STATE_FOLDER)
    except Exception as error:  # torch and DeepSpeed raise nearly anything where the parts do not fit
        processes = f" and its number of processes, {run['world_size']}" if other_number else ""
        remedy = f"take the options of that run{processes}, or another --output-dir"
        if not changed:
            remedy += f"; if it is damaged, {REMOVE.format('it')}"
        raise UserError(f"cannot resume from {folder}: {changed or first_line(error)}; {remedy}") from error
    if changed and is_first_process():
        print(f"warning: {folder.name} was trained by other options: {changed}; from here on the run differs from one "
              "without a break", flush=True)  # fmt: skip
    return run


@contextlib.contextmanager
def own_options(optimizer):
    """What is loaded within brings its moments, not the options that the optimiser was made with."""
    options = [{name: group[name] for name in OPTIONS} for group in optimizer.param_groups]
    clip_grad = getattr(optimizer, "clip_grad", None)
    yield
    for group, own in zip(optimizer.param_groups, options, strict=True):
        group.update(own)
    if clip_grad is not None:
        optimizer.clip_grad = clip_grad


def moves(before: dict, config: TrainConfig, place: Place) -> list[str]:
    """What is said of another batch size and of another number of steps where a run goes on.

    Args:
        before: the fields of TrainConfig in the run's recipe.
    """
    told = []
    if before["batch_size"] != config.batch_size:
        told.append(f"batch size {before['batch_size']} -> {config.batch_size}: the run goes on with sample "
                    f"{place.sample:,}")  # fmt: skip
    if before["max_steps"] != config.max_steps:
        old = TrainConfig(**{f.name: before[f.name] for f in fields(TrainConfig) if f.name in before})
        rates = [made.learning_rate_at(place.step) for made in (old, config)]
        told.append(f"schedule: {before['max_steps']:,} steps -> {config.max_steps:,}, learning rate "
                    f"{rates[0]:.1e} -> {rates[1]:.1e}")  # fmt: skip
    return told


def resolved(recipe: dict, precision: str) -> dict:
    """A recipe that names the precision to which "auto" came on its machine."""
    return recipe | {"train": recipe["train"] | {"precision": precision}}


def changes(before: dict, now: dict, prefix: str = "") -> list[str]:
    """`model.pixel_dim was 8 and is 16` for every field in which two recipes differ, but how long and on what data."""
    told = []
    for name in sorted(before.keys() & now.keys()):  # a field of another version of the code tells nothing
        key, old, new = f"{prefix}{name}", before[name], now[name]
        if isinstance(old, dict) and isinstance(new, dict):
            told += changes(old, new, f"{key}.")
        elif key == "init_from":  # LoRA's base may have moved
            continue
        elif old != new and not (key.startswith(("train.", "data.")) and key.removeprefix("train.") not in DECISIVE):
            told.append(f"{key} was {old} and is {new}")
    return told
