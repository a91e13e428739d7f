"""Training on one GPU, for eval/speed_gpu.py: presets through the engine of `training.loop` on random samples."""

import copy
import functools
import itertools
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from operator import itemgetter

import numpy as np
import torch
from gpu_bench import Bench, build, compile_blocks, free, start_process
from packing_loops import packed_batches, packed_over_padded, padded_batches
from speed_rows import Row
from torch import nn

from unimllm.cheers.configuration_cheers import tiny_config as tiny_cheers
from unimllm.conversation import Tokenized
from unimllm.data.faults import FaultLog
from unimllm.discrete.configuration_unimllm import tiny_config as tiny_discrete
from unimllm.discrete.varlen import NAME as VARLEN
from unimllm.training.attention import choose_attention
from unimllm.training.batches import Place
from unimllm.training.families import family_of
from unimllm.training.loop import build_engine, start_processes, take_step
from unimllm.training.plan import BF16_SHARE, count, count_trained, state_bytes
from unimllm.training.presets import SftRecipe
from unimllm.training.presets.cheers import cheers_1_5b_sft
from unimllm.training.presets.llava import llava15_vicuna7b_sft, unified_qwen25_0_5b_sft, unified_qwen25_7b_sft
from unimllm.training.throughput import memory_gib, peak_flops

MICRO_BATCHES = (5, 10, 20)  # rows at once that training is tried with: the preset's own, and more
NUM_STEPS = 2  # that batches are made for, gone through in turn
NUM_GPUS = 8  # that the largest presets are for: one of them has this share of a step's rows
WORKING_SPACE = 3 * 2**30  # bytes that an estimate of memory leaves to kernels and the allocator
PAD, FIRST_WORD = 0, 10  # ids; special ones of the tiny models lie between


def measure_training(bench: Bench) -> None:
    recipe = tiny_recipe() if bench.is_tiny else unified_qwen25_0_5b_sft()
    best: tuple[float, int] = (0.0, recipe.train.micro_batch_size)
    for rows_at_once in (2, 4) if bench.is_tiny else MICRO_BATCHES:
        tried = with_rows(recipe, rows_at_once)
        key = f"gpu_train_0_5b_{rows_at_once}_rows"
        if bench.measure(f"training {rows_at_once} rows", functools.partial(trained, bench, tried, key)):
            best = max(best, (bench.figure(f"{key}_tokens_per_s"), rows_at_once))
    rows_at_once = best[1]
    best_recipe, unmasked = with_rows(recipe, rows_at_once), with_rows(recipe, rows_at_once)
    unmasked.attention = VARLEN
    key = f"gpu_train_0_5b_{rows_at_once}_rows_varlen"
    if bench.measure(f"training {rows_at_once} rows varlen", functools.partial(trained, bench, unmasked, key)):
        best_recipe = max((best[0], best_recipe), (bench.figure(f"{key}_tokens_per_s"), unmasked), key=itemgetter(0))[1]
    bench.measure("padded loop", functools.partial(measure_padded_loop, bench, best_recipe))
    if bench.compile:
        key = f"gpu_train_0_5b_{rows_at_once}_rows_compiled"
        compiled = functools.partial(trained, bench, best_recipe, key, is_compiled=True)
        bench.measure(f"training {rows_at_once} rows compiled", compiled)
    sparing = with_rows(best_recipe, rows_at_once)
    sparing.train.gradient_checkpointing = True
    key = f"gpu_train_0_5b_{rows_at_once}_rows_checkpointing"
    bench.measure(f"training {rows_at_once} rows checkpointing", functools.partial(trained, bench, sparing, key))


def measure_largest(bench: Bench) -> None:
    presets = (llava15_vicuna7b_sft, cheers_1_5b_sft, unified_qwen25_7b_sft)
    for preset in (tiny_recipe, tiny_cheers_recipe) if bench.is_tiny else presets:
        recipe, name = share_of_one_gpu(preset()), preset.__name__
        bench.measure(f"largest {name}", functools.partial(in_fresh_process, bench, recipe, name))


def share_of_one_gpu(recipe: SftRecipe) -> SftRecipe:
    """The recipe with the rows that one of NUM_GPUS has in a step, as docs/speed.md tells of it: under ZeRO 3, and with
    gradients in bf16, since those of a 7B model in float32 leave no room there.
    """
    train = recipe.train
    train.micro_batch_size, train.batch_size = 1, max(1, train.batch_size // NUM_GPUS)
    train.zero_stage, train.compile = 3, False
    train.deepspeed_settings = {"data_types.grad_accum_dtype": "bf16"}
    return recipe


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
        micro_batches = rows_of(recipe)
        batches = itertools.cycle(micro_batches)

        def step() -> dict[str, float]:
            return take_step(engine, task, batches, None, Place(), FaultLog())

        step()  # these two, uncounted, warm up: the first allocates, the second allocates no more
        values = step()
        seconds = bench.seconds_of(step, 2)
        memory = memory_gib(bench.device)
        flops = sum(map(task.flops_of, micro_batches)) / NUM_STEPS if hasattr(task, "flops_of") else None
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


def measure_padded_loop(bench: Bench, recipe: SftRecipe) -> list[Row]:
    """Samples a second, forward and backward: packed rows and stored codes, against LLaVA's loop (see eval/speed.py).

    LLaVA's loop is given its image tokenizer in bf16, which here never encodes what is trained on.
    """
    task, config = new_task(recipe, bench.device), recipe.model
    task.model.image_tokenizer.to(torch.bfloat16)
    samples = make_samples(config, 8 if bench.is_tiny else 96, recipe.max_length)
    counts = count_pictures(samples, config)
    pictures = [torch.rand(n, 3, config.image_size, config.image_size) for n in counts]
    stored = [family_of(config).random_ids(config, n) for n in counts]
    targets = torch.tensor(100.0, device=bench.device)

    def train_on(batch: dict[str, torch.Tensor]) -> None:
        on_device = {name: value.to(bench.device) for name, value in batch.items()}
        task(num_items=targets, **on_device)["loss"].backward()

    padded = list(padded_batches(samples, pictures, PAD))
    rows_at_once = recipe.train.micro_batch_size
    packed = list(packed_batches(samples, stored, config.image_token_id, PAD, recipe.max_length, rows_at_once))
    slow = bench.seconds_of(lambda: [train_on(batch) for batch in padded], 2)
    fast = bench.seconds_of(lambda: [train_on(batch) for batch in packed], 2)
    attention = recipe.attention or "sdpa"
    return packed_over_padded(slow, fast, len(samples), "gpu_train", "samples/s", attention)


def new_task(recipe: SftRecipe, device: torch.device) -> nn.Module:
    """What a recipe trains, with random weights in the precision that it trains in."""
    family = family_of(recipe.model)
    dtype = torch.bfloat16 if recipe.train.precision == "bf16" else torch.float32
    model = build(lambda: family.model_class(copy.deepcopy(recipe.model)), device, dtype)
    if recipe.attention:
        choose_attention(model, recipe.attention)
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
    """Micro-batches of packed rows for NUM_STEPS steps, (micro-batch, max_length) ids.

    Pictures are as the family has them: ids in the rows, or `pixel_values` (pictures, 3, S, S) in -1..1 beside them.
    """
    config, size, family = recipe.model, recipe.train.batch_size, family_of(recipe.model)
    samples = make_samples(config, 12 * size, recipe.max_length)
    stored = [family.random_ids(config, n) for n in count_pictures(samples, config)]
    (rows,) = packed_batches(samples, stored, config.image_token_id, PAD, recipe.max_length, len(samples))
    order = torch.randperm(len(rows["input_ids"]), generator=torch.Generator().manual_seed(0))  # else the longest first
    chosen = {name: column[order[: NUM_STEPS * size]] for name, column in rows.items()}
    parts = {name: column.split(recipe.train.per_device(1)[0]) for name, column in chosen.items()}
    batches = [dict(zip(parts, columns, strict=True)) for columns in zip(*parts.values(), strict=True)]
    return [batch | family.random_pixels(config, batch["input_ids"]) for batch in batches]


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


def count_pictures(samples: list[Tokenized], config) -> list[int]:
    """Of each sample."""
    return [sample.input_ids.count(config.image_token_id) // config.num_positions for sample in samples]


def words(rng: np.random.Generator, config, shortest: int, longest: int) -> list[int]:
    """Random ids of text."""
    return rng.integers(FIRST_WORD, end_of_words(config), int(rng.integers(shortest, longest))).tolist()


def end_of_words(config) -> int:
    """The first id behind those of words: the last thousand of a large vocabulary may be special ones."""
    size = config.text_config.vocab_size
    return size - 1000 if size > 10_000 else size
