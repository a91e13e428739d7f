"""The one training loop: build the engine, resume, then step after step log one line and save now and then.

A run is a pure function of its configuration: sample `i` of the data depends on `i` alone, random draws of a step on
(seed, step, rank) alone. So stopping and resuming, or another number of processes, sees the same data.
"""

import itertools
import math
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from transformers import PreTrainedModel

from semhitok.errors import first_line
from unimllm.data.faults import FaultLog
from unimllm.distributed import print_once, processes_here, threads_per_process
from unimllm.errors import UserError
from unimllm.training import checkpoint, lock
from unimllm.training.apart import digest, hide, parts_apart, show
from unimllm.training.batches import Place, SampleSource, name_dead_worker, open_batches
from unimllm.training.config import TrainConfig
from unimllm.training.ending import Ending
from unimllm.training.not_finite import not_finite
from unimllm.training.observer import Observer
from unimllm.training.saving import Saver
from unimllm.training.step_log import RATES
from unimllm.training.throughput import peak_flops
from unimllm.training.validation import HeldOut


def start_processes() -> tuple[int, int]:
    """Join the other processes of this run (alone: become the only one). Returns (rank, world size)."""
    import deepspeed
    import deepspeed.ops
    from deepspeed.utils import logger

    logger.setLevel("WARNING")
    # The shared-memory all-reduce is compiled with g++ for minutes on first use; gloo does without it.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    defaults = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    if "MASTER_PORT" not in os.environ:
        os.environ["MASTER_PORT"] = str(_free_port())
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))  # else all ranks' first messages meet on GPU 0
    if not dist.is_initialized():
        # The others wait while one process writes a checkpoint of tens of GB or looks through its data.
        minutes = os.environ.get("DEEPSPEED_TIMEOUT", "30")
        if not minutes.isdecimal():
            raise UserError(f"DEEPSPEED_TIMEOUT is {minutes!r}, no number of minutes")
        deepspeed.init_distributed(timeout=timedelta(minutes=int(minutes)), verbose=False)
    return dist.get_rank(), dist.get_world_size()


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class _Autocast(nn.Module):
    """The task under bf16 autocast, whatever the engine sets around it."""

    def __init__(self, task: nn.Module, enabled: bool):
        super().__init__()
        self.task = task
        self.enabled = enabled

    def forward(self, **batch) -> dict[str, torch.Tensor]:
        device = next(self.task.parameters()).device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.enabled):
            return self.task(**batch)


def train(
    task: nn.Module, source: SampleSource, config: TrainConfig, output_dir: Path, export: Callable[[Path], None],
    recipe: dict | None = None, before_step: Callable[[Place], None] | None = None,
    draw_pictures: Callable[[], np.ndarray] | None = None, held_out: dict[str, HeldOut] | None = None,
    passed_over: int = 0,
) -> nn.Module:  # fmt: skip
    """Train `task` to `config.max_steps`, resuming from the newest checkpoint in `output_dir` if there is one.

    Args:
        task: `task(**batch)` returns a dict of scalars with "loss"; the others are logged. A task that defines
            `count_targets(batch)` gets `num_items`: the number of targets of the whole step divided by the number of
            micro-batches, by which it must divide its summed loss (so every target weighs the same), by name where it
            counts several kinds; a step without targets of a kind (a loss's name, or what `kind_of_loss` has for it)
            logs no loss of it. `count_tokens(batch)` brings tokens a second into the log, `count_samples(batch)`, where
            the source's samples are rows of several, samples a second, `flops_of(batch)`, operations, MFU.
            `apart()` keeps frozen parts from the engine (training.apart).
        source: data by sample index. `describe(indices)`, if it has that, names samples of a step whose loss is none;
            `epochs_at(number)` brings the epoch into the log.
        export: writes the Hugging Face folder of the trained model.
        recipe: kept in run.json.
        before_step: called with the place of a step before its first forward pass.
        draw_pictures: what TensorBoard shows every `config.picture_every` steps, (H, W, 3) uint8; called on all ranks.
        held_out: by name, samples validated on every `config.validate_every` steps; the task defines `target_sums`.
        passed_over: steps whose samples a new run leaves out.

    Returns:
        The task, on its device, trained.
    """
    config.validate()
    recipe = recipe or {"train": asdict(config)}
    rank, world_size = start_processes()
    engine, optimizer, run = _begin(task, config, output_dir, recipe, world_size, passed_over)
    place, last_save, about = run["place"], time.monotonic(), checkpoint.describe_run(config, recipe, run["apart"])
    saver = Saver(engine, task, output_dir, export, config, run.get("best"))
    skipped = FaultLog(run.get("skipped") if rank == 0 else None)
    observer = Observer(engine, task, config, output_dir, place.step, recipe, draw_pictures, held_out, source)
    engine.train()
    batches = open_batches(source, config, rank, world_size, place.sample)
    # workers must go before the program ends
    with lock.released(output_dir), name_dead_worker(), Ending() as ending, closing(batches):
        while place.step < config.max_steps:
            _prepare_step(optimizer, config, place.step, rank)
            values = take_step(engine, task, batches, before_step, place, skipped, source, config.skip_steps)
            place = place.later(config.batch_size)
            saver.follow()
            observer.after(place, values)
            is_best = saver.note(place.step, observer.validated)
            is_due, stopped_by = _what_is_due(last_save, is_best, config, ending, engine.device)
            is_last = place.step == config.max_steps
            if stopped_by or is_last:
                batches.close()  # before the save: data workers that were sent the signal, too, do not live for ever
            if is_due or config.saves_at(place.step):
                with observer.clock_stopped():
                    told = {"cpu_seconds": run["cpu_seconds"] + time.process_time(), "skipped": _over_ranks(skipped)}
                    saver.save(_so_far(place, values, observer.validated or run.get("validation")) | told | about)
                last_save = time.monotonic()
                if stopped_by and not is_last:
                    ending.end(stopped_by, place.step)
    show(task)
    return task


def _so_far(place: Place, values: dict[str, float], validation: dict | None) -> dict:
    """What run.json says of how far a run is: its place, the losses of the last step and of the last validation."""
    losses = {name: value for name, value in values.items() if name not in RATES}
    return {"step": place.step, "next_sample": place.sample, "losses": losses, "validation": validation}


def _begin(
    task: nn.Module, config: TrainConfig, output_dir: Path, recipe: dict, world_size: int, passed_over: int
) -> tuple:  # fmt: skip
    """The engine, its optimiser, and the run.json of the checkpoint from which they go on, if there is one.

    That gains the "place" from which, and what is "apart" of the engine.
    """
    checkpoint.prepare_output(output_dir)
    lock.claim(output_dir)
    found = checkpoint.find_newest(output_dir)
    engine, optimizer = build_engine(task, config, world_size)
    apart = digest(task)
    if found:
        run = checkpoint.load(engine, found, recipe, apart, config.resolved_precision())
        place = checkpoint.place_of(run, config.batch_size, passed_over)
        for line in checkpoint.moves(run["recipe"]["train"], config, place):
            print_once(line)
    else:
        run, place = {"cpu_seconds": 0.0}, checkpoint.place_of(None, config.batch_size, passed_over)
    _announce(task, config, found, place, world_size)
    return engine, optimizer, run | {"apart": apart, "place": place}


def build_engine(task: nn.Module, config: TrainConfig, world_size: int):
    """DeepSpeed's engine around a task, and the optimiser in it; after `start_processes`."""
    import deepspeed

    torch.set_num_threads(config.num_threads or threads_per_process(processes_here(world_size)))
    if config.gradient_checkpointing:
        checkpoint_activations(task)
    hide(task)
    try:
        engine, optimizer, _, _ = deepspeed.initialize(
            model=_Autocast(task, config.autocast()),
            optimizer=_make_optimizer(task, config),
            config=config.deepspeed(world_size),
        )
    except Exception as error:  # pydantic's and DeepSpeed's own
        if not config.deepspeed_settings:
            raise
        raise UserError(f"DeepSpeed does not take the settings of --deepspeed: {first_line(error)}") from error
    for parent, name in parts_apart(task):
        getattr(parent, name).to(engine.device)
    return engine, optimizer


def checkpoint_activations(task: nn.Module) -> None:
    """Have the transformer blocks of the task's models keep their inputs alone and run twice.

    Raises:
        UserError: one of them has none that could.
    """
    for model in task.children():
        if isinstance(model, PreTrainedModel):
            if not model.supports_gradient_checkpointing:
                raise UserError(f"--train.gradient_checkpointing: {type(model).__name__} cannot; leave it out")
            model.gradient_checkpointing_enable({"use_reentrant": False})  # the name that all of transformers 5 knows


def _over_ranks(skipped: FaultLog) -> dict[str, int]:
    """Pictures that all ranks skipped, by reason; rank 0 tells."""
    if dist.get_world_size() > 1:
        everyone: list = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, skipped.counts)
        skipped = FaultLog(sum(everyone, Counter()))
    if skipped.counts and dist.get_rank() == 0:
        print(skipped, flush=True)
    return dict(skipped.counts)


def take_step(
    engine, task: nn.Module, batches: Iterator[dict], before_step, place: Place, skipped: FaultLog,
    source: SampleSource | None = None, skip_steps: tuple[int, ...] = (),
) -> dict[str, float]:  # fmt: skip
    """One optimiser step over the next micro-batches, `before_step` as in `train`; returns its mean values, a loss of
    targets that the whole step lacks left out. `source` is for `not_finite`; of steps to skip, from 1, there are none.

    These are asked of the GPU ahead of the optimiser: looking at a number earlier keeps it waiting. There all ranks
    learn of a loss that is none at one of them, and end together, the weights as they were.
    """
    accumulation = engine.gradient_accumulation_steps()
    started = time.perf_counter()
    micro_batches = list(itertools.islice(batches, accumulation))
    own = {"waited": time.perf_counter() - started}
    for batch in micro_batches:
        skipped.add(batch.pop("skipped", ()))
    if place.step + 1 in skip_steps:
        return {}
    if before_step:
        before_step(place)
    extra, counts, losses = {}, {}, []
    if hasattr(task, "count_targets"):
        counts = count_targets(task, micro_batches)
        extra["num_items"] = targets_of_step(counts, accumulation, engine.device)
    own |= count_work(task, micro_batches, engine.device)
    sums, last = torch.zeros((), dtype=torch.float64, device=engine.device), micro_batches[-1]
    # The one case in which DeepSpeed does not tell the norm: ZeRO 0 without its optimiser for bf16 weights.
    untold = not engine.zero_optimization_stage() and not engine.bfloat16_enabled()
    for batch in micro_batches:
        outputs = engine(**to_device(batch, engine.device), **extra)
        engine.backward(outputs["loss"])
        losses.append(outputs["loss"].detach())
        sums = sums + torch.stack([value.detach().double() for value in outputs.values()]) / accumulation
        if batch is last:  # behind which the weights change
            if untold:
                gradients = [p.grad for p in task.parameters() if p.grad is not None]
                own["grad_norm"] = nn.utils.get_total_norm(gradients)
            # counts: once more than for num_items, where a look at their sum would have kept the GPU waiting
            rest = torch.stack([torch.as_tensor(value).to(sums) for value in (*own.values(), *counts.values())])
            names, means = [*outputs, *own], mean_over_ranks(torch.cat([sums, rest]))
            missing = {name for name, mean in zip(counts, means[len(names) :], strict=True) if not mean}
            kinds = getattr(task, "kind_of_loss", {})
            values = {n: mean for n, mean in zip(names, means, strict=False) if kinds.get(n, n) not in missing}
            if not math.isfinite(values["loss"]):
                raise not_finite(f"the loss is {values['loss']}", engine, place, losses, source, skip_steps)
            if not math.isfinite(values.get("grad_norm", 0.0)):
                what = f"the gradient's norm is {values['grad_norm']}"
                raise not_finite(what, engine, place, losses, source, skip_steps)
        engine.step()
    told = engine.get_global_grad_norm()
    if told is not None:
        values["grad_norm"] = float(told)
    if not 0 <= values["grad_norm"] < math.inf:  # DeepSpeed tells -1 where it made the step all the same, inf where not
        raise not_finite("the gradient is not finite", engine, place, losses, source, skip_steps)
    return values


def count_work(task: nn.Module, micro_batches: list[dict], device: torch.device) -> dict[str, float]:
    """Of `step_log.RATES` what the task counts of this rank's part of a step."""
    counters = {"tokens": "count_tokens", "samples": "count_samples"}
    counters |= {"flops": "flops_of"} if peak_flops(device) else {}
    return {
        name: float(sum(map(getattr(task, counter), micro_batches)))
        for name, counter in counters.items() if hasattr(task, counter)
    }  # fmt: skip


def to_device(batch: dict[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """A micro-batch on the device; a GPU fetches it from pinned memory, behind the work that it has already."""
    if device.type != "cuda":
        return {name: value.to(device) for name, value in batch.items()}
    return {name: value.pin_memory().to(device, non_blocking=True) for name, value in batch.items()}


def count_targets(task: nn.Module, micro_batches: list[dict]) -> dict[str, int]:
    """Targets of this rank's part of a step, of each kind by name; of a task that has one kind under ""."""
    counted = [task.count_targets(batch) for batch in micro_batches]
    by_name = [count if isinstance(count, dict) else {"": count} for count in counted]
    return {name: sum(count[name] for count in by_name) for name in by_name[0]}


def targets_of_step(
    counts: dict[str, int], accumulation: int, device: torch.device
) -> torch.Tensor | dict[str, torch.Tensor]:
    """Targets of the whole step over its micro-batches on all ranks: of each kind by name, or one number.

    Args:
        counts: of `count_targets`.
        accumulation: micro-batches of a rank.
    """
    totals = torch.tensor([float(count) for count in counts.values()], device=device)
    world_size = dist.get_world_size()
    if world_size > 1:
        dist.all_reduce(totals)
    shares = totals.clamp(min=1) / (accumulation * world_size)  # of what is not there the sum is 0
    return shares[0] if "" in counts else dict(zip(counts, shares, strict=True))


def mean_over_ranks(values: torch.Tensor) -> list[float]:
    """Mean of each of (V,) values over the processes; all must hold as many, in the same order."""
    world_size = dist.get_world_size()
    if world_size > 1:
        dist.all_reduce(values)
    return (values / world_size).tolist()


def _announce(task: nn.Module, config: TrainConfig, found: Path | None, place: Place, world_size: int) -> None:
    """Rank 0 says what is about to be trained and on what, from checkpoint `found` on; or that nothing is."""
    if dist.get_rank():
        return
    if place.step >= config.max_steps:
        print(f"{found} is at the end of its {config.max_steps:,} steps: nothing is trained; raise --max-steps or name "
              "another --output-dir", flush=True)  # fmt: skip
        return
    if config.warmup() != config.warmup_steps:
        print(f"warm-up takes {config.warmup():,} steps, a tenth of the run's {config.max_steps:,}: warmup_steps "
              f"{config.warmup_steps:,} are more than it has", flush=True)  # fmt: skip
    state = f"resuming from {found.name}" if found else "starting"
    trained = sum(getattr(p, "ds_numel", p.numel()) for p in task.parameters() if p.requires_grad)
    print(
        f"{state}: {trained / 1e6:.2f} M trained parameters, {world_size} process(es), "
        f"{torch.get_num_threads()} thread(s) each, {config.describe_precision()}"
        + ("; the first step compiles (--train.compile false: not)" if config.compile else ""),
        flush=True,
    )
    if config.is_slow():
        what = f"--train.precision {config.precision}: this machine has no hardware for bf16"
        room = ", in twice the memory for weights" if config.precision == "bf16" else ""
        print(f"warning: {what} and is far slower so than in fp32; --train.precision auto takes what is fast{room}",
              flush=True)  # fmt: skip


def _make_optimizer(task: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    trained = [p for p in task.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), eps=config.eps, fused=True
    )


def _prepare_step(optimizer, config: TrainConfig, step: int, rank: int) -> None:
    """The random numbers and the learning rate of a step."""
    torch.manual_seed((config.seed * 1_000_003 + step) * 4099 + rank)
    for group in optimizer.param_groups:
        group["lr"] = config.learning_rate_at(step)


def _what_is_due(
    last_save: float, is_best: bool, config: TrainConfig, ending: Ending, device: torch.device
) -> tuple[bool, int]:
    """(whether it is time to save, the signal that ends the run or 0), the same on all ranks.

    That is when save_minutes have passed on rank 0, when the step is the best for rank 0, or any rank was told to stop.
    """
    is_wanted = dist.get_rank() == 0 and (is_best or time.monotonic() - last_save > config.save_minutes * 60)
    due = torch.tensor([float(is_wanted), float(ending.asked)], device=device)
    if dist.get_world_size() > 1:
        dist.all_reduce(due, dist.ReduceOp.MAX)
    is_wanted, asked = due.tolist()
    return bool(is_wanted or asked), int(asked)
