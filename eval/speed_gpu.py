"""Speed on one GPU, beside what that GPU can do at best: random weights, random data, medians of synchronised calls.

    python eval/speed_gpu.py --json gpu.json                  # all groups, under 4 minutes
    python eval/speed_gpu.py --compile --seconds 220          # each also with its blocks compiled
    python eval/speed_gpu.py --device cpu --tiny              # to try the program

limits       bytes a second of a copy, bf16 products a second of a large matrix product
tokenizer    SemHiTok at 256 pixels: encoding and decoding
cheers       CHEERS at its released size: a picture of 512 pixels by 50 guided steps
training     the preset unified_qwen25_0_5b_sft on packed rows and stored codes; beside it LLaVA's padded loop
largest      the largest presets that this GPU trains in full

A figure is printed, and the JSON written again, as soon as it is known; a measurement that fails is told in one line
and the rest goes on (exit code 1 in the end). A further group is a function under `@group`.
"""

import argparse
import copy
import functools
import gc
import itertools
import math
import multiprocessing
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from speed import Row, in_words, packed_batches, padded_batches
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from semhitok import SemHiTokModel
from semhitok.command_line import number
from semhitok.configuration_semhitok import tiny_config as tiny_tokenizer
from semhitok.errors import first_line
from unimllm import CheersConfig, CheersForConditionalGeneration
from unimllm.cheers.configuration_cheers import tiny_config as tiny_cheers
from unimllm.cheers.sampling import Prompt
from unimllm.command_line import CommandLine, nearest, run, silence_libraries
from unimllm.conversation import Tokenized
from unimllm.data.faults import FaultLog
from unimllm.discrete.configuration_unimllm import tiny_config as tiny_discrete
from unimllm.errors import UserError
from unimllm.images import check_writable
from unimllm.report import describe_machine, write_json
from unimllm.training.families import family_of
from unimllm.training.loop import build_engine, start_processes, take_step
from unimllm.training.plan import BF16_SHARE, count, count_trained, state_bytes
from unimllm.training.presets import SftRecipe
from unimllm.training.presets.cheers import cheers_1_5b_sft
from unimllm.training.presets.llava import llava15_vicuna7b_sft, unified_qwen25_0_5b_sft, unified_qwen25_7b_sft
from unimllm.training.presets.semhitok import semhitok_256_pixel
from unimllm.training.throughput import memory_gib, peak_flops

WHOLE = ("image_tokenizer.", "vae_model.")  # parts that stay in float32 whatever the model is in
NUM_STEPS, GUIDANCE, AT_ONCE = 50, 9.5, 8  # of a drawing with CHEERS; pictures in one batch
MICRO_BATCHES = (5, 10, 20)  # rows at once that training is tried with: the preset's own, and more
NUM_GPUS = 8  # that the largest presets are for: one of them has this share of a step's rows
WORKING_SPACE = 3 * 2**30  # bytes that an estimate of memory leaves to kernels and the allocator
PAD, FIRST_WORD = 0, 10  # ids; special ones of the tiny models lie between


@dataclass
class Bench:
    """One run of the program: where it measures, until when, and what it has found.

    Attributes:
        compile: whether to measure with compiled blocks too.
        seconds: since the start; after them no measurement begins.
        json: where the figures go.
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

    def seconds_of(self, once: Callable[[], object], repeats: int) -> float:
        """Median wall-clock time of some calls; a first call, not counted, warms up."""
        once()
        seconds = []
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
            figures = {row.key: row.value for row in self.rows}
            num_samples = {row.key: row.samples for row in self.rows if row.samples}
            state = {
                "num_samples": num_samples, "failed": self.failed, "out_of_memory": self.out_of_memory,
                "skipped": self.skipped, "tiny": self.is_tiny, "device": device_told(self.device),
            }  # fmt: skip
            write_json(self.json, figures | self.machine | state)


GROUPS: dict[str, Callable[[Bench], None]] = {}


def group(name: str):
    """Register a group of measurements under a name."""

    def register(measure: Callable[[Bench], None]):
        GROUPS[name] = measure
        return measure

    return register


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


# ---- models --------------------------------------------------------------------------------------------------------


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


# ---- measurements --------------------------------------------------------------------------------------------------


@group("limits")
def measure_limits(bench: Bench) -> None:
    bench.measure("copy", functools.partial(copied, bench))
    bench.measure("matmul", functools.partial(multiplied, bench))


def copied(bench: Bench) -> list[Row]:
    """Bytes read and written a second by copying 4 GiB on the device."""
    source = torch.randn(2**16 if bench.is_tiny else 2**30, device=bench.device)
    target = torch.empty_like(source)
    seconds = bench.seconds_of(lambda: target.copy_(source), 10)
    told = "copy on the device, bytes read and written"
    return [Row(told, 2 * source.nbytes / seconds / 1e9, "gpu_copy_gb_per_s", {}, "GB/s")]


def multiplied(bench: Bench) -> list[Row]:
    """bf16 products of large square matrices, twenty at a time so that no launch is seen."""
    size, times = (64, 2) if bench.is_tiny else (8192, 20)
    a, b = (torch.randn(size, size, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)

    def multiply() -> None:
        for _ in range(times):
            torch.mm(a, b, out=out)

    rate = times * 2 * size**3 / bench.seconds_of(multiply, 5) / 1e12
    rows = [Row(f"bf16 product of {size} x {size} matrices", rate, "gpu_matmul_tflops", {}, "TFLOP/s")]
    peak = peak_flops(bench.device)
    if peak:
        rows.append(Row("of the data sheet's peak", rate * 1e12 / peak, "gpu_matmul_of_peak", {}, "of the peak"))
    return rows


@group("tokenizer")
def measure_tokenizer(bench: Bench) -> None:
    """SemHiTok under bf16 autocast, as `python -m semhitok encode --bf16` runs it."""
    config, pictures = (tiny_tokenizer(), 4) if bench.is_tiny else (semhitok_256_pixel().model, 128)
    model = build(lambda: SemHiTokModel(config), bench.device, torch.float32).eval()
    pixel_values = torch.rand(pictures, 3, config.image_size, config.image_size, device=bench.device) * 2 - 1
    sizes = (config.num_semantic_codes, config.num_pixel_codes)
    places = (pictures, config.num_positions)
    codes = torch.stack([torch.randint(size, places, device=bench.device) for size in sizes], -1)
    calls = {"encode": lambda: model.encode(pixel_values), "decode": lambda: model.decode(codes)}
    flops: dict[str, float] = {}

    def rate(name: str, ending: str) -> list[Row]:
        with torch.no_grad(), torch.autocast(bench.device.type, torch.bfloat16):
            if name not in flops:
                flops[name] = flops_of(calls[name])
            seconds = bench.seconds_of(calls[name], 5)
        key = f"gpu_{name}_256{ending}"
        row = Row(f"SemHiTok, {name}", pictures / seconds, f"{key}_per_s", {"pictures": pictures}, "pictures/s")
        return [row, *bench.share_of_products(flops[name], seconds, f"{key}_of_limit", f"{name}, of the products")]

    for name in calls:
        bench.measure(f"tokenizer {name}", functools.partial(rate, name, ""))
    if bench.compile:
        compile_blocks(model)
        for name in calls:
            bench.measure(f"tokenizer {name} compiled", functools.partial(rate, name, "_compiled"))


@group("cheers")
def measure_cheers(bench: Bench) -> None:
    """CHEERS from a prompt of 32 ids to the decoded picture."""
    config = tiny_cheers() if bench.is_tiny else CheersConfig()
    model = build(lambda: CheersForConditionalGeneration(config), bench.device, torch.bfloat16).eval()
    num_steps, length = (2, 8) if bench.is_tiny else (NUM_STEPS, 32)

    def prompts(pictures: int) -> torch.Tensor:
        ids = torch.randint(FIRST_WORD, words_of(config), (pictures, length), device=bench.device)
        ids[:, -1] = config.image_start_token_id
        return ids

    def draw(pictures: int, steps: int) -> torch.Tensor:
        latents = model.generate(
            prompts(pictures), generation_mode="image", guidance_scale=GUIDANCE, num_steps=steps
        )  # fmt: skip
        return model.decode_image_tokens(latents)

    @torch.no_grad()
    def limit() -> list[Row]:
        ids = prompts(1)
        prompt = Prompt(model, ids, torch.ones_like(ids), None, GUIDANCE)
        x = torch.randn(
            1, config.vae_config.patched_channels, config.latent_size, config.latent_size, device=bench.device
        )
        step = flops_of(lambda: prompt.velocity(x, torch.tensor(0.5, device=bench.device)))
        decoding = flops_of(lambda: model.decode_image_tokens(x))
        return [
            Row("one guided step of one picture", step / 1e12, "cheers_step_tflop", {"pictures": 1}, "TFLOP"),
            Row("decoding it", decoding / 1e12, "cheers_decode_tflop", {"pictures": 1}, "TFLOP"),
            Row("weights that a step reads", read_bytes(model) / 1e9, "cheers_step_read_gb", {}, "GB"),
        ]

    def drawn(pictures: int, ending: str) -> list[Row]:
        draw(pictures, 3)
        bench.synchronize()
        started = time.perf_counter()
        draw(pictures, num_steps)
        bench.synchronize()
        seconds, on, key = time.perf_counter() - started, {"pictures": pictures}, f"gpu_cheers_{pictures}{ending}"
        what = f"{num_steps} steps, guidance {GUIDANCE}, decoded"
        rows = [
            Row(what, seconds / pictures, f"{key}_s_per_picture", on, "s a picture"),
            Row(what, pictures / seconds, f"{key}_per_s", on, "pictures/s"),
        ]
        best = least_seconds(bench, num_steps, pictures)
        if best:
            rows.append(Row("of what the limits allow", best / seconds, f"{key}_of_limit", on, "of the limit"))
        return rows

    bench.measure("cheers limit", limit)
    for pictures in (1, AT_ONCE):
        bench.measure(f"cheers {pictures}", functools.partial(drawn, pictures, ""))
    if bench.compile:  # for one batch size: of each, ten kinds of blocks would have to be compiled
        vision = model.vision_tokenizer
        for part in (vision.vae_decoder_projector, vision.vision_representation, model.flow_head):
            compile_blocks(part)
        for layer in model.language_model.get_decoder().layers:  # its attention writes a cache by layer number
            layer.mlp.compile(dynamic=False)
        bench.measure("cheers 1 compiled", functools.partial(drawn, 1, "_compiled"))


def read_bytes(model: CheersForConditionalGeneration) -> int:
    """Of the weights that a step of drawing needs: no word embeddings, no autoencoder."""
    vision = model.vision_tokenizer
    decoder = model.language_model.get_decoder()
    parts = (
        decoder.layers, vision.vae_decoder_projector, vision.vision_representation, vision.und_projector,
        model.flow_head,
    )  # fmt: skip
    return sum(p.nbytes for part in parts for p in part.parameters())


def least_seconds(bench: Bench, num_steps: int, pictures: int) -> float | None:
    """A drawing at the measured limits: its products, or where they are fewer, reading the weights at every step."""
    names = ("gpu_matmul_tflops", "gpu_copy_gb_per_s", "cheers_step_tflop", "cheers_decode_tflop",
             "cheers_step_read_gb")  # fmt: skip
    values = [bench.figure(name) for name in names]
    if None in values:
        return None
    products, bandwidth, step, decoding, read = values
    return num_steps * max(pictures * step / products, read / bandwidth) + pictures * decoding / products


# ---- training ------------------------------------------------------------------------------------------------------


@group("training")
def measure_training(bench: Bench) -> None:
    recipe = tiny_recipe() if bench.is_tiny else unified_qwen25_0_5b_sft()
    best: tuple[float, int] = (0.0, recipe.train.micro_batch_size)
    for rows_at_once in (2, 4) if bench.is_tiny else MICRO_BATCHES:
        tried = with_rows(recipe, rows_at_once)
        key = f"gpu_train_0_5b_{rows_at_once}_rows"
        if bench.measure(f"training {rows_at_once} rows", functools.partial(trained, bench, tried, key)):
            best = max(best, (bench.figure(f"{key}_tokens_per_s"), rows_at_once))
    rows_at_once = best[1]
    best_recipe = with_rows(recipe, rows_at_once)
    bench.measure("padded loop", functools.partial(packed_over_padded, bench, best_recipe))
    if bench.compile:
        key = f"gpu_train_0_5b_{rows_at_once}_rows_compiled"
        compiled = functools.partial(trained, bench, best_recipe, key, is_compiled=True)
        bench.measure(f"training {rows_at_once} rows compiled", compiled)
    sparing = with_rows(recipe, rows_at_once)
    sparing.train.gradient_checkpointing = True
    key = f"gpu_train_0_5b_{rows_at_once}_rows_checkpointing"
    bench.measure(f"training {rows_at_once} rows checkpointing", functools.partial(trained, bench, sparing, key))


@group("largest")
def measure_largest(bench: Bench) -> None:
    presets = (llava15_vicuna7b_sft, cheers_1_5b_sft, unified_qwen25_7b_sft)
    for preset in (tiny_recipe, tiny_cheers_recipe) if bench.is_tiny else presets:
        recipe, name = preset(), preset.__name__
        recipe.train.micro_batch_size = 1
        recipe.train.batch_size = max(1, recipe.train.batch_size // NUM_GPUS)
        bench.measure(f"largest {name}", functools.partial(in_fresh_process, bench, recipe, name))


def in_fresh_process(bench: Bench, recipe: SftRecipe, name: str) -> list[Row]:
    """`trained_if_it_fits` in a process of its own: DeepSpeed's ZeRO 3 gives no memory back."""
    alone = replace(bench, json=None)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        return fresh.submit(start_and_train, alone, recipe, name).result()


def start_and_train(bench: Bench, recipe: SftRecipe, name: str) -> list[Row]:
    """In the fresh process."""
    start_process(bench.device)
    os.environ.pop("MASTER_PORT", None)  # the other process listens there
    return trained_if_it_fits(bench, recipe, name)


def trained_if_it_fits(bench: Bench, recipe: SftRecipe, name: str) -> list[Row]:
    """Figures of training a preset, behind an estimate of its memory; the estimate alone where there is no hope."""
    needed = needed_bytes(recipe)
    estimate = Row(f"{name}, estimate", needed / 2**30, f"gpu_train_{name}_estimated_gib", {}, "GiB")
    if bench.device.type == "cuda" and needed > torch.cuda.get_device_properties(bench.device).total_memory:
        estimate.what += "; more than there is, so not tried"
        return [estimate]
    return [estimate, *trained(bench, recipe, f"gpu_train_{name}")]


def needed_bytes(recipe: SftRecipe) -> float:
    """Memory that training takes on one GPU, an estimate: weights, optimiser, logits and pictures, working space."""
    family = family_of(recipe.model)
    with torch.device("meta"):
        task = family.make_task(family.model_class(copy.deepcopy(recipe.model)), recipe)
    num_trained = count_trained(task)
    state = state_bytes(num_trained, num_trained, recipe.train, 1)
    whole = 4.0 * (count(task) - num_trained)
    kept = family.row_bytes(task.model, recipe, BF16_SHARE)
    rows = recipe.train.per_device(1)[0]
    return sum(state.values()) + whole + rows * sum(kept.values()) + WORKING_SPACE


def trained(bench: Bench, recipe: SftRecipe, key: str, is_compiled: bool = False) -> list[Row]:
    """Optimiser steps of a preset through the engine of `unimllm.training.loop`, on packed rows."""
    start_processes()
    task = new_task(recipe, bench.device)
    free()
    if bench.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(bench.device)
    engine, _ = build_engine(task, recipe.train, 1)
    try:
        if is_compiled:
            compile_blocks(task.model.language_model)
        engine.train()
        batches = itertools.cycle(rows_of(recipe))

        def step() -> dict[str, float]:
            return take_step(engine, task, batches, None, 0, FaultLog())

        step()  # these two, uncounted, warm up: the first allocates, the second allocates no more
        values = step()
        seconds = bench.seconds_of(step, 2)
        memory = memory_gib(bench.device)
        flops = task.flops_per_token() * values["tokens"] if hasattr(task, "flops_per_token") else None
    finally:
        engine.destroy()
    on, what = {"rows": recipe.train.batch_size}, f"{recipe.train.micro_batch_size} rows of {recipe.max_length} at once"
    rows = [
        Row(what, values["tokens"] / seconds, f"{key}_tokens_per_s", on, "tokens/s"),
        Row("most memory held", memory, f"{key}_gib", {}, "GiB"),
    ]
    if flops:
        peak = peak_flops(bench.device)
        rows += [Row("MFU", flops / seconds / peak, f"{key}_mfu", {}, "of the peak")] if peak else []
        rows += bench.share_of_products(flops, seconds, f"{key}_of_limit", "MFU over the measured products")
    return rows


def packed_over_padded(bench: Bench, recipe: SftRecipe) -> list[Row]:
    """Samples a second, forward and backward: packed rows and stored codes, against LLaVA's loop (see eval/speed.py).

    LLaVA's loop is given its image tokenizer in bf16, which here never encodes what is trained on.
    """
    task, config = new_task(recipe, bench.device), recipe.model
    task.model.image_tokenizer.to(torch.bfloat16)
    samples = make_samples(config, 8 if bench.is_tiny else 96, recipe.max_length)
    counts = [sample.input_ids.count(config.image_token_id) // config.num_positions for sample in samples]
    pictures = [torch.rand(n, 3, config.image_size, config.image_size) for n in counts]
    stored = [random_codes(config, n) for n in counts]
    targets = torch.tensor(100.0, device=bench.device)

    def train_on(batch: dict[str, torch.Tensor]) -> None:
        on_device = {name: value.to(bench.device) for name, value in batch.items()}
        task(num_items=targets, **on_device)["loss"].backward()

    padded = list(padded_batches(samples, pictures, PAD))
    rows_at_once = recipe.train.micro_batch_size
    packed = list(packed_batches(samples, stored, config.image_token_id, PAD, recipe.max_length, rows_at_once))
    slow = bench.seconds_of(lambda: [train_on(batch) for batch in padded], 2)
    fast = bench.seconds_of(lambda: [train_on(batch) for batch in packed], 2)
    n, on = len(samples), {"samples": len(samples)}
    return [
        Row("padded, pictures encoded in the step", n / slow, "gpu_train_padded_samples_per_s", on, "samples/s"),
        Row("packed, codes stored", n / fast, "gpu_train_packed_samples_per_s", on, "samples/s"),
        Row("speed-up", slow / fast, "gpu_train_speedup_over_padded", on, "times"),
    ]


def new_task(recipe: SftRecipe, device: torch.device) -> nn.Module:
    """What a recipe trains, with random weights in the precision that it trains in."""
    family = family_of(recipe.model)
    dtype = torch.bfloat16 if recipe.train.precision == "bf16" else torch.float32
    model = build(lambda: family.model_class(copy.deepcopy(recipe.model)), device, dtype)
    return family.make_task(model, recipe).train()


def with_rows(recipe: SftRecipe, rows_at_once: int) -> SftRecipe:
    """The recipe with another micro batch."""
    recipe = copy.deepcopy(recipe)
    recipe.train.micro_batch_size = rows_at_once
    return recipe


def tiny_recipe() -> SftRecipe:
    """In the place of the presets over Qwen and Vicuna."""
    recipe = unified_qwen25_0_5b_sft()
    recipe.model, recipe.max_length = tiny_discrete(image_head="flat"), 64
    recipe.train.batch_size, recipe.train.micro_batch_size = 8, 2
    return recipe


def tiny_cheers_recipe() -> SftRecipe:
    """In the place of `cheers_1_5b_sft`."""
    recipe = cheers_1_5b_sft()
    recipe.model, recipe.max_length, recipe.train.batch_size = tiny_cheers(), 64, 2 * NUM_GPUS
    return recipe


# ---- samples -------------------------------------------------------------------------------------------------------


def rows_of(recipe: SftRecipe) -> list[dict[str, torch.Tensor]]:
    """Micro-batches of packed rows for two steps: ids of pictures of a model of codes, else the pictures themselves."""
    config, size = recipe.model, recipe.train.batch_size
    samples = make_samples(config, 12 * size, recipe.max_length)
    has_codes = hasattr(config, "image_offset")
    counts = [sample.input_ids.count(config.image_token_id) // config.num_positions for sample in samples]
    stored = [
        random_codes(config, n) if has_codes else torch.full((n, config.num_positions), config.image_token_id)
        for n in counts
    ]
    (rows,) = packed_batches(samples, stored, config.image_token_id, PAD, recipe.max_length, len(samples))
    order = torch.randperm(len(rows["input_ids"]), generator=torch.Generator().manual_seed(0))  # else the longest first
    chosen = {name: column[order[: 2 * size]] for name, column in rows.items()}
    parts = {name: column.split(recipe.train.per_device(1)[0]) for name, column in chosen.items()}
    batches = [dict(zip(parts, columns, strict=True)) for columns in zip(*parts.values(), strict=True)]
    for batch in () if has_codes else batches:
        pictures = int((batch["input_ids"] == config.image_token_id).sum()) // config.num_positions
        batch["pixel_values"] = torch.rand(pictures, 3, config.image_size, config.image_size) * 2 - 1
    return batches


def make_samples(config, num_samples: int, max_length: int) -> list[Tokenized]:
    """Six tenths ask about a picture in one to eight turns, three draw one, one is text alone; about 600 ids each."""
    rng = np.random.default_rng(0)
    questions, answers = ((1, 3), (1, 4)) if max_length < 1000 else ((20, 60), (30, 120))
    picture = [config.image_start_token_id, *[config.image_token_id] * config.num_positions, config.image_end_token_id]
    samples = []
    for kind in rng.choice(3, num_samples, p=[0.6, 0.3, 0.1]).tolist():
        parts = [(picture, False)] if kind == 0 else []
        if kind == 1:
            parts = [(words(rng, config, *questions), False), (picture, True)]
        for _ in range(0 if kind == 1 else int(rng.integers(1, 9))):
            parts += [(words(rng, config, *questions), False), (words(rng, config, *answers), True)]
        ids = [token for part, _ in parts for token in part]
        targets = [is_target for part, is_target in parts for _ in part]
        samples.append(Tokenized(ids[:max_length], targets[:max_length]))
    return samples


def words(rng: np.random.Generator, config, shortest: int, longest: int) -> list[int]:
    """Random ids of text."""
    return rng.integers(FIRST_WORD, words_of(config), int(rng.integers(shortest, longest))).tolist()


def words_of(config) -> int:
    """The first id behind those of words: the last thousand of a large vocabulary may be special ones."""
    size = config.text_config.vocab_size
    return size - 1000 if size > 10_000 else size


def random_codes(config, num_pictures: int) -> torch.Tensor:
    """Ids of so many pictures, (num_pictures, N)."""
    return torch.randint(config.image_offset, config.vocab_size, (num_pictures, config.num_positions))


# ---- the program ---------------------------------------------------------------------------------------------------


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = CommandLine("eval/speed_gpu.py", __doc__)
    parser.add_argument("--only", help=f"some of {','.join(GROUPS)}, with commas (default: all)")
    parser.add_argument("--compile", action="store_true", help="measure with compiled blocks too")
    parser.add_argument("--json", type=Path, help="also write the figures here, after each of them")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try the program")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, to try the program: the figures mean nothing")
    parser.add_argument("--seconds", type=number(float, 0), default=math.inf, help="begin nothing after so many")
    args = parser.parse_args(argv)
    args.only = args.only.split(",") if args.only else list(GROUPS)
    for name in args.only:
        if name not in GROUPS:
            raise UserError(f"--only {name}: no such group{nearest(name, GROUPS)}; known: {', '.join(GROUPS)}")
    if args.device not in ("cpu", "cuda"):
        raise UserError(f"--device {args.device}: choose cuda, or cpu to try the program")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU; try the program with --device cpu --tiny")
    return args


def start_process(device: torch.device) -> None:
    """The same random numbers every time, no noise."""
    silence_libraries()
    torch.manual_seed(0)
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.json:
        check_writable(args.json)
    device = torch.device(args.device, 0) if args.device == "cuda" else torch.device("cpu")
    start_process(device)
    if args.compile:
        torch._dynamo.config.recompile_limit = 64  # every kind and size of block is a compilation of the same code
    bench = Bench(device, args.tiny, args.compile, args.seconds, args.json)
    print(f"{device_told(device)}, torch {torch.__version__}", flush=True)
    for name in (name for name in GROUPS if name in args.only):
        bench.measure(name, functools.partial(run_group, bench, name))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    if bench.failed:
        print(f"failed: {', '.join(bench.failed)}", file=sys.stderr)
        sys.exit(1)


def run_group(bench: Bench, name: str) -> list[Row]:
    """All of a group; what its preparations raise is the group's own failure."""
    GROUPS[name](bench)
    return []


if __name__ == "__main__":
    run(main)
