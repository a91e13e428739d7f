"""`TrainConfig`: every number of a training run, and the DeepSpeed JSON derived from it."""

import math
from dataclasses import dataclass, field

import torch

from unimllm.errors import UserError

PRECISIONS = ("auto", "fp32", "autocast", "bf16")
POSITIVE = ("max_steps", "batch_size", "log_every", "validation_rows", "keep_checkpoints")
NOT_NEGATIVE = (
    "micro_batch_size", "learning_rate", "final_lr_ratio", "warmup_steps", "weight_decay", "max_grad_norm",
    "num_workers", "num_threads", "picture_every", "validate_every", "save_minutes", "save_every", "keep_every",
)  # fmt: skip


@dataclass
class TrainConfig:
    """How long, how fast and how often. Sizes of models live in their own configs."""

    seed: int = 0
    """Decides initial weights, data order and every random draw."""
    max_steps: int = 1000
    """Optimiser steps in all; the learning-rate schedule ends here."""
    batch_size: int = 64
    """Samples per step over all processes; of language models packed rows."""
    micro_batch_size: int = 0
    """Samples per forward pass of one process; 0: batch_size / processes, so no gradient accumulation."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW."""
    final_lr_ratio: float = 0.05
    """The cosine ends at this share of the peak."""
    warmup_steps: int = 50
    """Steps of linear warm-up; of a run with fewer steps a tenth."""
    weight_decay: float = 0.02
    """On matrices only: biases, norms and embeddings of one axis are spared."""
    beta1: float = 0.9
    """AdamW's first beta."""
    beta2: float = 0.98
    """AdamW's second beta."""
    eps: float = 1e-8
    """AdamW's epsilon."""
    ema_decay: float = 0.0
    """Of the exponential moving average of the weights, a model in ema/ of every checkpoint; 0: none. ZeRO 0 to 2."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm; 0 switches clipping off."""
    precision: str = "auto"
    """fp32; autocast (fp32 weights, bf16 products); bf16 (bf16 weights, fp32 optimiser); auto: autocast where the
    hardware multiplies bf16 fast, else fp32."""
    zero_stage: int = 0
    """DeepSpeed ZeRO stage, 0 to 3."""
    offload_optimizer: bool = False
    """Keep the optimiser's state in the CPU's memory (ZeRO 1 and up)."""
    deepspeed_settings: dict = field(default_factory=dict)
    """Further settings of DeepSpeed by dotted key, as `--deepspeed FILE` leaves them here."""
    gradient_checkpointing: bool = False
    """Keep only the inputs of transformer blocks and run them again in the backward pass: less memory, more time."""
    compile: bool = False
    """Compile the language model with torch.compile (sft)."""
    num_workers: int = 0
    """Processes that prepare batches ahead; 0 prepares them in the training process."""
    num_threads: int = 0
    """CPU threads per process; 0: OMP_NUM_THREADS, else the cores that it may run on, shared among its processes."""
    log_every: int = 1
    """Steps between log lines."""
    skip_steps: tuple[int, ...] = ()
    """Numbers of steps, from 1 as the log has them, whose samples are passed over: no weight changes in them."""
    picture_every: int = 500
    """Steps between pictures in TensorBoard; 0: none."""
    validate_every: int = 0
    """Steps between validation losses, which the last step has too; 0: none."""
    validation_rows: int = 128
    """Packed rows, or a tokenizer's pictures, of each validation source that are looked at, at most."""
    wandb_project: str = ""
    """Project of Weights & Biases that gets curves and pictures too; empty: none."""
    save_minutes: float = 5.0
    """Minutes between checkpoints; the last step always saves."""
    save_every: int = 0
    """Steps between checkpoints, beside those by the clock; 0: none."""
    save_best: bool = True
    """Where a run is validated: save the step with the lowest validation loss so far and keep it, as `best`."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept; older ones are deleted."""
    keep_every: int = 0
    """Steps between checkpoints that are never deleted; 0: none."""

    def validate(self) -> None:
        """Raise ValueError for values that contradict each other."""
        if self.precision not in PRECISIONS:
            raise ValueError(f"train.precision is {self.precision!r}; choose one of {', '.join(PRECISIONS)}")
        if self.zero_stage not in (0, 1, 2, 3):
            raise ValueError(f"train.zero_stage is {self.zero_stage}; DeepSpeed has stages 0 to 3")
        if self.offload_optimizer and not self.zero_stage:
            raise ValueError("train.offload_optimizer needs ZeRO: set train.zero_stage to 1, 2 or 3")
        if self.compile and self.zero_stage == 3:  # its hooks break every module off from the next, and compile anew
            raise ValueError("train.compile cannot compile through ZeRO 3's hooks: set train.compile to false")
        for name in POSITIVE:
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} is {getattr(self, name)}; it must be at least 1")
        for name in NOT_NEGATIVE:
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"train.{name} is {getattr(self, name)}; it must be 0 or more")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"train.{name} is {getattr(self, name)}; it must be from 0 to below 1")
        if not all(type(step) is int and step > 0 for step in self.skip_steps):
            raise ValueError(f"train.skip_steps is {self.skip_steps}; whole numbers from 1 are wanted, as in the log")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"train.ema_decay is {self.ema_decay}; it must be from 0 to below 1, as 0.999")
        if self.ema_decay and self.zero_stage == 3:
            raise ValueError("train.ema_decay: ZeRO 3 cuts the weights up; set train.zero_stage 0, 1 or 2")
        if not 0 < self.eps < math.inf:
            raise ValueError(f"train.eps is {self.eps}; it must be above 0")

    def saves_at(self, step: int) -> bool:
        """Whether a checkpoint is due behind a step, whatever the clock says."""
        return step == self.max_steps or self.keeps(step) or bool(self.save_every and step % self.save_every == 0)

    def keeps(self, step: int) -> bool:
        """Whether the checkpoint of a step is never deleted."""
        return bool(self.keep_every and step % self.keep_every == 0)

    def autocast(self) -> bool:
        """Whether forward passes run under bf16 autocast."""
        return self.precision == "autocast" or (self.precision == "auto" and has_fast_bf16())

    def resolved_precision(self) -> str:
        """What `precision` comes to on this machine: fp32, autocast or bf16."""
        return "autocast" if self.autocast() else "bf16" if self.precision == "bf16" else "fp32"

    def describe_precision(self) -> str:
        """The precision in words."""
        if self.autocast():
            return "fp32 weights, bf16 products"
        return "bf16 weights, fp32 optimiser" if self.precision == "bf16" else "fp32"

    def is_slow(self) -> bool:
        """Whether bf16 was asked for, or is a preset's, where there is no hardware for it: far slower than fp32."""
        return self.precision in ("autocast", "bf16") and not has_fast_bf16()

    def per_device(self, world_size: int) -> tuple[int, int]:
        """(micro batch, accumulation steps) of one process.

        Raises:
            UserError: batch_size is no multiple of processes x micro batch.
        """
        micro = self.micro_batch_size or max(1, self.batch_size // world_size)
        if self.batch_size % (micro * world_size):
            together = (self.micro_batch_size or 1) * world_size
            raise UserError(
                f"train.batch_size ({self.batch_size}) must be a multiple of micro_batch_size x processes "
                f"({micro} x {world_size}); the next one is {-(-self.batch_size // together) * together}"
            )
        return micro, self.batch_size // (micro * world_size)

    def warmup(self) -> int:
        """Steps of warm-up: a tenth of a run that has fewer steps than `warmup_steps`."""
        return self.warmup_steps if self.warmup_steps <= self.max_steps else self.max_steps // 10

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of a step (from 0): linear warm-up, then a cosine to `final_lr_ratio` of the peak."""
        warmup = self.warmup()
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        progress = (step - warmup) / max(1, self.max_steps - warmup)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        return self.learning_rate * (self.final_lr_ratio + (1 - self.final_lr_ratio) * cosine)

    def adds_in_float32(self, world_size: int) -> bool:
        """Whether the gradients of bf16 weights are added up over micro-batches in float32.

        In bf16, as DeepSpeed adds by default and always without ZeRO, a sum loses what is below a 256th of it.
        """
        wished = self.deepspeed_settings.get("data_types.grad_accum_dtype", "fp32") == "fp32"
        return wished and self.precision == "bf16" and self.zero_stage > 0 and self.per_device(world_size)[1] > 1

    def deepspeed(self, world_size: int) -> dict:
        """The DeepSpeed JSON of this run."""
        micro, accumulation = self.per_device(world_size)
        zero: dict = {"stage": self.zero_stage}
        if self.offload_optimizer:
            zero["offload_optimizer"] = {"device": "cpu"}
        made = {
            "train_micro_batch_size_per_gpu": micro,
            "gradient_accumulation_steps": accumulation,
            "gradient_clipping": self.max_grad_norm,
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,  # offloaded or not, the optimiser is torch's: nothing is compiled
            "bf16": {"enabled": self.precision == "bf16"},
            "steps_per_print": 10**9,
            "wall_clock_breakdown": False,
        }
        if self.adds_in_float32(world_size):
            made["data_types"] = {"grad_accum_dtype": "fp32"}
        for key, value in self.deepspeed_settings.items():
            *sections, name = key.split(".")
            target = made
            for section in sections:
                target = target.setdefault(section, {})
            target[name] = value
        return made


def has_fast_bf16() -> bool:
    """Whether this machine multiplies bf16 in hardware: a GPU that does, or a CPU with AMX or AVX512-BF16."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if hasattr(torch.cpu, "get_capabilities"):
        has = torch.cpu.get_capabilities()
        return any(has.get(name, False) for name in ("amx_tile", "avx512_bf16"))
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()  # torch 2.6 has no other
