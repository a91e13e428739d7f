"""Frozen parts of a task that the engine must not see: it would cut them into shards, or turn their weights to bf16.

A task names them in `apart() -> [(module, name of a child)]`. While they are hidden they can be called as ever, but are
no children of their modules: not among the parameters, not in the engine's state. So a run that goes on must bring them
again; their digest in run.json tells whether it did.
"""

import contextlib
import hashlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn


def parts_apart(task: nn.Module) -> list[tuple[nn.Module, str]]:
    """(module, name of a child) of each; empty where a task names none."""
    return task.apart() if hasattr(task, "apart") else []


def hide(task: nn.Module) -> None:
    """Make them attributes that torch does not know of."""
    for parent, name in parts_apart(task):
        child = getattr(parent, name)
        delattr(parent, name)
        object.__setattr__(parent, name, child)


def show(task: nn.Module) -> None:
    """Make them children again."""
    for parent, name in parts_apart(task):
        child = parent.__dict__.pop(name)
        setattr(parent, name, child)


@contextlib.contextmanager
def shown(task: nn.Module) -> Iterator[None]:
    """Children again for a while, to be saved with the rest."""
    show(task)
    try:
        yield
    finally:
        hide(task)


@torch.no_grad()
def digest(task: nn.Module) -> str:
    """Twelve hex digits of all their weights; empty where there are none."""
    found = hashlib.sha256()
    parts = parts_apart(task)
    for parent, child in parts:
        for name, value in sorted(getattr(parent, child).state_dict().items()):
            found.update(name.encode())
            found.update(np.ascontiguousarray(value.float().cpu().numpy()).data)
    return found.hexdigest()[:12] if parts else ""
