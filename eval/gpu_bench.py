"""What the groups of eval/speed_gpu.py share: where figures go, untrained models on a device, compiled blocks."""

import gc
import math
import os
import statistics
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from speed_rows import Row, figures_of, in_words
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from semhitok.errors import first_line
from unimllm.command_line import silence_libraries
from unimllm.report import describe_machine, write_json

WHOLE = ("image_tokenizer.", "vae_model.")  # parts that stay in float32 whatever the model is in


@dataclass
class Bench:
    """One run of the program: where it measures, until when, and what it has found.

    Attributes:
        is_tiny: sizes to try the program with.
        compile: whether to measure with compiled blocks too.
        seconds: since the start; after them no measurement begins.
        json: where the figures go.
        failed, out_of_memory, skipped: measurements by name that brought no figures.
        started: on the clock of `time.monotonic`.
    """

    device: torch.device
    is_tiny: bool = False
    compile: bool = False
    seconds: float = math.inf
    json: Path | None = None
    rows: list[Row] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    out_of_memory: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    machine: dict = field(default_factory=lambda: describe_machine(__file__))

    def measure(self, name: str, once: Callable[[], list[Row]]) -> bool:
        """Add the figures that `once` returns; False where it was too late, the memory too small, or it failed."""
        free()
        if time.monotonic() - self.started > self.seconds:
            self.skipped.append(name)
            self._tell(f"{name}: left out, {self.seconds:.0f} s are over")
            return False
        try:
            rows = once()
        except torch.OutOfMemoryError:
            rows = None
        except Exception as error:
            traceback.print_exc()
            self.failed.append(name)
            self._tell(f"{name}: failed: {first_line(error)}")
            return False
        if rows is None:  # outside of the except clause, whose traceback holds the tensors
            self.out_of_memory.append(name)
            self._tell(f"{name}: out of memory")
            return False
        for row in rows:
            self.rows.append(row)
            on = f" ({in_words(row.samples)})" if row.samples else ""
            self._tell(f"{row.key}: {row.value:,.4g} {row.unit}: {row.what}{on}")
        return True

    def figure(self, key: str) -> float | None:
        """A figure that was measured before; None where it was not."""
        return next((row.value for row in self.rows if row.key == key), None)

    def share_of_products(self, flops: float, seconds: float, key: str, what: str) -> list[Row]:
        """A row on what share of the measured products a call reaches; none where those were not measured."""
        rate = self.figure("gpu_matmul_tflops")
        return [Row(what, flops / seconds / (rate * 1e12), key, {}, "of the limit")] if rate else []

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds_of(
        self, once: Callable[[], object], repeats: int, warm_up: Callable[[], object] | None = None
    ) -> float:
        """Median wall-clock time of some calls, behind `warm_up` (default: a call) that is not counted.

        Raises:
            RuntimeError: something was compiled in the time that counts.
        """
        (warm_up or once)()
        seconds = []
        with torch.compiler.set_stance("fail_on_recompile"):
            for _ in range(repeats):
                self.synchronize()
                started = time.perf_counter()
                once()
                self.synchronize()
                seconds.append(time.perf_counter() - started)
        return statistics.median(seconds)

    def _tell(self, line: str) -> None:
        print(f"[{time.monotonic() - self.started:5.1f} s] {line}", flush=True)
        if self.json:
            state = {
                "failed": self.failed, "out_of_memory": self.out_of_memory, "skipped": self.skipped,
                "tiny": self.is_tiny, "device": device_told(self.device),
            }  # fmt: skip
            write_json(self.json, figures_of(self.rows) | self.machine | state)


def start_process(device: torch.device) -> None:
    """The same random numbers every time, no noise."""
    silence_libraries()
    torch.manual_seed(0)
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"


def free() -> None:
    """Give back what nobody holds any more."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def device_told(device: torch.device) -> dict:
    """The device's name, memory and CUDA."""
    if device.type != "cuda":
        return {"name": device.type}
    properties = torch.cuda.get_device_properties(device)
    return {"name": properties.name, "memory_gib": properties.total_memory / 2**30, "cuda": torch.version.cuda}


@torch.no_grad()
def build(make: Callable[[], PreTrainedModel], device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """An untrained model on a device, made there; every matrix random, those too that begin as zero.

    Buffers and the parts that are kept whole stay in float32, as where a model is loaded.
    """
    with torch.device(device):
        model = make()
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2:
            parameter.normal_(std=0.02)
        if not any(part in name for part in WHOLE):
            parameter.data = parameter.data.to(dtype)
    return model


def compile_blocks(model: nn.Module) -> None:
    """Compile each repeated block by itself: one compilation serves all of a kind."""
    for blocks in model.modules():
        if isinstance(blocks, nn.ModuleList):
            for block in blocks:
                if not any(isinstance(part, nn.ModuleList) for part in block.modules()):
                    block.compile(dynamic=False)


def flops_of(once: Callable[[], object]) -> float:
    """Operations of a call, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        once()
    return float(counter.get_total_flops())
