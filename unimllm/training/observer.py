"""What is to be seen of a run while it trains: log lines and curves, drawings, validation losses."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from unimllm.data.faults import FaultLog
from unimllm.training.batches import Place, SampleSource
from unimllm.training.config import TrainConfig
from unimllm.training.step_log import Curves, Speed, StepLog
from unimllm.training.validation import HeldOut, validation_losses


class Observer:
    """Looks at a run after each step; its weights, random numbers and place in the data stay as they are.

    Args:
        engine: DeepSpeed engine.
        task: what it trains.
        output_dir, recipe: of the run.
        first_step: that the run goes on from.
        draw_pictures, held_out: see `loop.train`.
        source: of the samples; its `epochs_at(number)`, if it has that, tells how often so many are all of them.
    """

    def __init__(
        self, engine, task: nn.Module, config: TrainConfig, output_dir: Path, first_step: int, recipe: dict,
        draw_pictures: Callable[[], np.ndarray] | None, held_out: dict[str, HeldOut] | None,
        source: SampleSource | None = None,
    ):  # fmt: skip
        self.engine, self.task, self.config = engine, task, config
        self.draw_pictures, self.held_out = draw_pictures, held_out or {}
        self.faults = FaultLog()
        self.validated: dict | None = None  # "step" and "losses" of the last validation
        self.log = None
        if dist.get_rank() == 0:
            curves = Curves(output_dir, first_step, config.wandb_project, recipe)
            speed, epochs_at = Speed(engine.device, dist.get_world_size()), getattr(source, "epochs_at", None)
            self.log = StepLog(curves, config, first_step, speed, epochs_at)

    def after(self, place: Place, values: dict[str, float]) -> None:
        """Log what the step before `place` returned, {} where it was passed over, and whatever is due at it; called by
        all ranks.
        """
        config, step = self.config, place.step
        if self.log:
            self.log.add(step, values, place.sample)
        if self.draw_pictures and config.picture_every and step % config.picture_every == 0:
            self._show(step)
        is_last = step == config.max_steps
        if self.held_out and config.validate_every and (is_last or step % config.validate_every == 0):
            self._validate(step)
        if self.log and is_last:
            self.log.curves.close()

    @contextlib.contextmanager
    def clock_stopped(self) -> Iterator[None]:
        """What happens within is no part of a step: it does not count in the speed."""
        if not self.log:
            yield
            return
        if self.engine.device.type == "cuda":
            torch.cuda.synchronize(self.engine.device)  # the step's own work is done before
        self.log.stop_clock()
        yield
        self.log.start_clock()

    def _show(self, step: int) -> None:
        with self._looking():
            grid = self.draw_pictures()
        if self.log:
            self.log.curves.add_picture("pictures", grid, step)

    def _validate(self, step: int) -> None:
        with self._looking():
            losses = {
                name: validation_losses(self.engine, self.task, held_out, self.faults)
                for name, held_out in self.held_out.items()
            }
        self.validated = {"step": step, "losses": losses}
        if self.log:
            self.log.add_validation(step, losses)

    @contextlib.contextmanager
    def _looking(self) -> Iterator[None]:
        """In evaluation mode, without gradients, with random numbers of its own, the steps' clock stopped; nothing is
        compiled for it."""
        device = self.engine.device
        self.engine.eval()
        with (
            self.clock_stopped(),
            torch.random.fork_rng([device] if device.type == "cuda" else []),
            torch.no_grad(),
            torch.compiler.set_stance("force_eager"),
        ):
            yield
        self.engine.train()
