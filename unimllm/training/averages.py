"""The exponential moving average of a run's trained weights, exported beside them."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from semhitok.errors import first_line
from unimllm.errors import UserError

FILE = "averages.safetensors"
EXPORTED = "ema"
"""Folder below a checkpoint in which the average lies as a model of its own."""


class WeightAverage:
    """average = decay * average + (1 - decay) * weights behind every step, float32 whatever the weights are.

    In the n-th update the decay is at most (1 + n) / (10 + n), so that untrained weights do not linger. Buffers, such
    as a codebook that moves by itself, are exported as they are.

    Args:
        task: its trained weights are followed; ZeRO 0 to 2, under which every process holds all of them.
        decay: 0 < decay < 1.
    """

    def __init__(self, task: nn.Module, decay: float):
        self.decay, self.num_updates = decay, 0
        self.weights = {name: p for name, p in task.named_parameters() if p.requires_grad}
        self.average = {name: p.detach().to(torch.float32, copy=True) for name, p in self.weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are now."""
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        weights = [p.detach().float() for p in self.weights.values()]
        torch._foreach_lerp_([*self.average.values()], weights, 1 - decay)

    @torch.no_grad()
    def restart(self) -> None:
        """Forget what was taken in: the average is the weights as they are now."""
        self.num_updates = 0
        for name, parameter in self.weights.items():
            self.average[name].copy_(parameter)

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
        """Write it into a checkpoint's state."""
        kept = {name: value.cpu().contiguous() for name, value in self.average.items()}
        save_file(kept, folder / FILE, {"num_updates": str(self.num_updates)})

    def load(self, folder: Path) -> None:
        """Go on with that of a checkpoint's state; without any it begins with the weights as they are.

        Raises:
            UserError: it is damaged, or that of other weights.
        """
        path, remedy = folder / FILE, "remove it to begin anew, or set --train.ema_decay 0"
        if not path.is_file():
            return
        try:
            with safe_open(path, "pt") as file:
                kept = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
                num_updates = int(file.metadata()["num_updates"])
        except Exception as error:  # a damaged file raises safetensors' own
            raise UserError(f"{path} is damaged ({first_line(error)}); {remedy}") from error
        if kept.keys() != self.average.keys() or any(kept[n].shape != v.shape for n, v in self.average.items()):
            raise UserError(f"{path} is the average of other weights; {remedy}")
        self.num_updates = num_updates
        for name, value in self.average.items():
            value.copy_(kept[name])
