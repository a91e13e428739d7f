"""What a run says of its steps: a line on stdout, curves in TensorBoard."""

import time
from datetime import timedelta
from pathlib import Path

import torch
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from unimllm.training.config import TrainConfig
from unimllm.training.throughput import memory_gib, peak_flops


class Speed:
    """What a task's steps amount to: tokens and MFU where the task counts them, memory."""

    def __init__(self, task: nn.Module, device: torch.device, world_size: int):
        self.device, self.world_size, self.peak = device, world_size, peak_flops(device)
        self.flops_per_token = task.flops_per_token() if hasattr(task, "flops_per_token") else None

    def values(self, tokens: float | None, seconds: float) -> dict[str, float]:
        """Of so many tokens of one process in so many seconds."""
        values = {}
        if tokens is not None:
            values["tokens_per_second"] = tokens * self.world_size / seconds
            if self.peak and self.flops_per_token:
                values["mfu"] = tokens * self.flops_per_token / seconds / self.peak
        return values | {"memory_gib": memory_gib(self.device)}


class StepLog:
    """One line per logged step on stdout, and TensorBoard curves in OUTPUT/tensorboard."""

    def __init__(self, output_dir: Path, config: TrainConfig, first_step: int, speed: Speed):
        self.config, self.speed = config, speed
        self.writer = SummaryWriter(str(output_dir / "tensorboard"), purge_step=first_step + 1)
        self.start = self.last = time.monotonic()
        self.first_step = self.last_step = first_step
        self.sums: dict[str, float] = {}

    def add(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        if step % self.config.log_every and step != self.config.max_steps:
            return
        now = time.monotonic()
        steps = step - self.last_step
        seconds = max(1e-9, now - self.last)
        means = {name: value / steps for name, value in self.sums.items() if name != "tokens"}
        samples = steps * self.config.batch_size / seconds
        speed = self.speed.values(self.sums.get("tokens"), seconds)
        eta = (now - self.start) / (step - self.first_step) * (self.config.max_steps - step)
        rate = self.config.learning_rate_at(step - 1)
        parts = " ".join(f"{name} {value:.4f}" for name, value in means.items() if name != "loss")
        print(f"step {step}/{self.config.max_steps} loss {means['loss']:.4f} {parts} lr {rate:.2e} "
              f"{samples:.0f} samples/s {in_words(speed)} eta {timedelta(seconds=round(eta))}", flush=True)  # fmt: skip
        for name, value in (means | {"learning_rate": rate, "samples_per_second": samples} | speed).items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()
        self.sums, self.last, self.last_step = {}, now, step


def in_words(speed: dict[str, float]) -> str:
    """`5,210 tokens/s MFU 41.2 % 12.3 GiB`, as far as it is known."""
    words = [f"{speed['tokens_per_second']:,.0f} tokens/s"] if "tokens_per_second" in speed else []
    words += [f"MFU {speed['mfu']:.1%}"] if "mfu" in speed else []
    return " ".join([*words, f"{speed['memory_gib']:.1f} GiB"])
