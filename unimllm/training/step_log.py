"""What a run says of its steps: a line on stdout, curves in TensorBoard and in Weights & Biases."""

import contextlib
import errno
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import numpy as np
import torch
from torch.utils.tensorboard import SummaryWriter

from semhitok.errors import first_line
from unimllm.errors import UserError
from unimllm.training.config import TrainConfig
from unimllm.training.throughput import memory_gib, peak_flops

RATES = ("tokens", "samples", "flops", "waited")
"""What a step brings of `Speed.values`, of one process: ids without padding, samples in its rows, operations, seconds
spent on waiting for its batches."""


class Speed:
    """What a task's steps amount to: tokens and MFU where the task counts them, the wait for data, memory."""

    def __init__(self, device: torch.device, world_size: int):
        self.device, self.world_size, self.peak = device, world_size, peak_flops(device)

    def values(self, sums: dict[str, float], seconds: float) -> dict[str, float]:
        """Of what RATES names, summed over so many seconds."""
        values = {"waiting": sums["waited"] / seconds}
        for name in ("samples", "tokens"):
            if name in sums:
                values[f"{name}_per_second"] = sums[name] * self.world_size / seconds
        if self.peak and "flops" in sums:
            values["mfu"] = sums["flops"] / seconds / self.peak
        held = memory_gib(self.device)
        return values if held is None else values | {"memory_gib": held}


class Curves:
    """Numbers and pictures by step: in OUTPUT/tensorboard and, where a project is named, in Weights & Biases.

    Where one of them cannot be written any more, because the disk is full say, that is told once and the run goes on
    without.

    Args:
        output_dir, recipe: of the run.
        first_step: that it goes on from.
        project: of Weights & Biases; empty: none.
    """

    def __init__(self, output_dir: Path, first_step: int, project: str, recipe: dict):
        self.tensorboard = self.wandb_run = None
        self.hook = threading.excepthook
        threading.excepthook = self._thread_failed
        with self._going_on("tensorboard"):
            self.tensorboard = SummaryWriter(str(output_dir / "tensorboard"), purge_step=first_step + 1)
        if project:
            with self._going_on("wandb_run"):
                self.wandb_run = start_wandb(project, output_dir, recipe)

    def add_scalars(self, values: dict[str, float], step: int) -> None:
        with self._going_on("tensorboard"):
            if self.tensorboard:
                for name, value in values.items():
                    self.tensorboard.add_scalar(name, value, step)
                self.tensorboard.flush()
        with self._going_on("wandb_run"):
            if self.wandb_run:
                self.wandb_run.log({"step": step} | values)

    def add_picture(self, name: str, picture: np.ndarray, step: int) -> None:
        """One of (H, W, 3) uint8."""
        with self._going_on("tensorboard"):
            if self.tensorboard:
                self.tensorboard.add_image(name, picture, step, dataformats="HWC")
        with self._going_on("wandb_run"):
            if self.wandb_run:
                self.wandb_run.log({"step": step, name: import_wandb().Image(picture)})

    def close(self) -> None:
        """Wait until everything is written."""
        with self._going_on("tensorboard"):
            if self.tensorboard:
                self.tensorboard.close()
        with self._going_on("wandb_run"):
            if self.wandb_run:
                self.wandb_run.finish()
        threading.excepthook = self.hook

    @contextlib.contextmanager
    def _going_on(self, where: str) -> Iterator[None]:
        """Do without `where`, an attribute, once writing to it fails."""
        try:
            yield
        except OSError as error:
            name = "TensorBoard" if where == "tensorboard" else "Weights & Biases"
            tell(f"warning: no curves in {name} from here on: {error.strerror or first_line(error)}; the run goes on")
            setattr(self, where, None)

    def _thread_failed(self, args: threading.ExceptHookArgs) -> None:
        """TensorBoard's thread hands its error to the next call, which tells it: its traceback would say no more."""
        is_writer = type(args.thread).__module__.startswith("tensorboard.")
        if not (is_writer and issubclass(args.exc_type, OSError)):
            self.hook(args)


def import_wandb():
    """wandb; UserError where it is not installed."""
    try:
        import wandb
    except ImportError as error:
        raise UserError("--train.wandb_project needs wandb: pip install 'unimllm[wandb]'") from error
    return wandb


def start_wandb(project: str, output_dir: Path, recipe: dict):
    """The run of Weights & Biases that belongs to an output folder: a resumed one goes on with its curves.

    Raises:
        UserError: wandb is not installed, or does not start.
    """
    wandb, note = import_wandb(), output_dir / "wandb-id.txt"
    if not note.exists():
        note.write_text(uuid4().hex[:8], encoding="utf-8")
    try:
        run = wandb.init(
            project=project, id=note.read_text(encoding="utf-8"), resume="allow",
            name="/".join(output_dir.resolve().parts[-2:]), dir=str(output_dir), config=recipe,
        )  # fmt: skip
        run.define_metric("*", step_metric="step")  # its own step cannot go back to where a run is resumed from
    except Exception as error:  # wandb's own
        remedy = "log in with `wandb login`, set WANDB_MODE=offline, or leave --train.wandb_project out"
        raise UserError(f"wandb does not start: {first_line(error).rstrip('. ')}; {remedy}") from error
    return run


class StepLog:
    """One line per logged step on stdout, and its curves."""

    def __init__(
        self, curves: Curves, config: TrainConfig, first_step: int, speed: Speed,
        epochs_at: Callable[[int], float] | None = None,
    ):  # fmt: skip
        self.curves, self.config, self.speed, self.epochs_at = curves, config, speed, epochs_at
        self.start = self.last = self.stopped = time.monotonic()
        self.first_step = first_step
        self.sums: dict[str, float] = {}
        self.counts: Counter[str] = Counter()

    def add(self, step: int, values: dict[str, float], sample: int = 0) -> None:
        """Note a step; a part of the loss that some steps lack is the mean of those that have it.

        Args:
            values: {} of a step that was passed over.
            sample: of the source, the one that comes next.
        """
        if not values:
            tell(f"step {step}/{self.config.max_steps} passed over, by train.skip_steps")
        self.counts.update(values.keys())
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        steps = self.counts["loss"]
        if not steps or (step % self.config.log_every and step != self.config.max_steps):
            return
        now = time.monotonic()
        seconds = max(1e-9, now - self.last)
        means = {n: value / self.counts[n] for n, value in self.sums.items() if self.counts[n] and n not in RATES}
        speed = self.speed.values(self.sums, seconds)
        rows = steps * self.config.batch_size / seconds  # of samples, where the task counts these; else samples
        speed = {"rows_per_second" if "samples_per_second" in speed else "samples_per_second": rows} | speed
        epoch = {"epoch": self.epochs_at(sample)} if self.epochs_at else {}
        eta = (now - self.start) / (step - self.first_step) * (self.config.max_steps - step)
        rate = self.config.learning_rate_at(step - 1)
        parts = " ".join(f"{name} {value:.4f}" for name, value in means.items() if name != "loss")
        told = f"{parts} lr {rate:.2e} " + "".join(f"epoch {value:.2f} " for value in epoch.values())
        tell(f"step {step}/{self.config.max_steps} loss {means['loss']:.4f} {told}{in_words(speed)} "
             f"eta {timedelta(seconds=round(eta))}")  # fmt: skip
        self.curves.add_scalars(means | {"learning_rate": rate} | epoch | speed, step)
        self.sums, self.counts = dict.fromkeys(self.sums, 0.0), Counter()  # the names stay, and so their order
        self.last = now

    def stop_clock(self) -> None:
        """Leave the time from here to `start_clock` out of the speed; the time that is left has it."""
        self.stopped = time.monotonic()

    def start_clock(self) -> None:
        self.last += time.monotonic() - self.stopped

    def add_validation(self, step: int, losses: dict[str, dict[str, float]]) -> None:
        """The parts of each source's loss, as `validation/SOURCE/PART`."""
        told = (" ".join([source, *(f"{p} {v:.4f}" for p, v in parts.items())]) for source, parts in losses.items())
        tell(f"step {step}/{self.config.max_steps} validation: {'; '.join(told)}")
        flat = {f"validation/{source}/{p}": v for source, parts in losses.items() for p, v in parts.items()}
        self.curves.add_scalars(flat, step)


def tell(line: str) -> None:
    """Print a line at once; where stdout is a file on a full disk the run goes on, and what fits no more is lost."""
    try:
        print(line, flush=True)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise


def rounded(number: float) -> str:
    """A rate, in two digits where it is small: 0.04, 0.26, 9.9, 12."""
    return f"{number:.2g}" if number < 9.95 else f"{number:.0f}"


def in_words(speed: dict[str, float]) -> str:
    """`1.2 rows/s 9.9 samples/s 5,210 tokens/s MFU 41.2% data 0.3% 12.3 GiB`, as far as known.

    data: share of the time spent on waiting for it.
    """
    words = [f"{rounded(speed[f'{n}_per_second'])} {n}/s" for n in ("rows", "samples") if f"{n}_per_second" in speed]
    words += [f"{speed['tokens_per_second']:,.0f} tokens/s"] if "tokens_per_second" in speed else []
    words += [f"MFU {speed['mfu']:.1%}"] if "mfu" in speed else []
    words += [f"data {speed['waiting']:.1%}"]
    words += [f"{speed['memory_gib']:.1f} GiB"] if "memory_gib" in speed else []
    return " ".join(words)
