"""The exponential moving average of a run's trained weights, exported beside them: it draws and decodes more evenly."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from unimllm.errors import UserError

FILE = "averages.safetensors"
EXPORTED = "ema"
"""Folder below a checkpoint in which the average lies as a model of its own."""


class WeightAverage:
    """average = decay * average + (1 - decay) * weights behind every step, float32 whatever the weights are.

    Early on the decay is at most (1 + step) / (10 + step), so that untrained weights do not linger. Buffers, such as a
    codebook that moves by itself, are exported as they are.

    Args:
        task: its trained weights are followed; ZeRO 0 to 2, under which every process holds all of them.
        decay: 0 < decay < 1.
    """

    def __init__(self, task: nn.Module, decay: float):
        self.decay = decay
        self.weights = {name: p for name, p in task.named_parameters() if p.requires_grad}
        self.average = {name: p.detach().to(torch.float32, copy=True) for name, p in self.weights.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights behind `step`, counted from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        weights = [p.detach().float() for p in self.weights.values()]
        torch._foreach_lerp_([*self.average.values()], weights, 1 - decay)

    @contextlib.contextmanager
    @torch.no_grad()
    def in_place(self) -> Iterator[None]:
        """A context in which the task holds the average."""
        own = {name: p.detach().clone() for name, p in self.weights.items()}
        try:
            for name, parameter in self.weights.items():
                parameter.copy_(self.average[name])
            yield
        finally:
            for name, parameter in self.weights.items():
                parameter.copy_(own[name])

    def save(self, folder: Path) -> None:
        """Write it into a checkpoint."""
        save_file({name: value.cpu().contiguous() for name, value in self.average.items()}, folder / FILE)

    def load(self, folder: Path | None) -> None:
        """Go on with that of a checkpoint; without any it begins with the weights as they are.

        Raises:
            UserError: it is that of other weights.
        """
        if folder is None or not (folder / FILE).is_file():
            return
        kept = load_file(folder / FILE)
        if kept.keys() != self.average.keys() or any(kept[n].shape != v.shape for n, v in self.average.items()):
            raise UserError(f"{folder / FILE} is the average of other weights; set --train.ema_decay 0 or remove it")
        for name, value in self.average.items():
            value.copy_(kept[name])
