"""Speed on one GPU, beside what that GPU can do at best: random weights, random data, medians of synchronised calls.

    python eval/speed_gpu.py --json gpu.json                  # all groups
    python eval/speed_gpu.py --compile --seconds 220          # each also with its blocks compiled
    python eval/speed_gpu.py --device cpu --tiny              # to try the program

limits       bytes a second of a copy, bf16 products a second of a large matrix product
tokenizer    SemHiTok at 256 pixels: encoding and decoding
cheers       CHEERS at its released size: a picture of 512 pixels by 50 guided steps
training     the preset unified_qwen25_0_5b on packed rows and stored codes; beside it LLaVA's padded loop
largest      the largest presets that this GPU trains in full

A figure is printed, and the JSON written again, as soon as it is known; a measurement that fails is told in one line
and the rest goes on (exit code 1 in the end).
"""

import argparse
import functools
import math
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from gpu_bench import Bench, build, compile_blocks, device_told, flops_of, start_process
from gpu_training import FIRST_WORD, end_of_words, measure_largest, measure_training
from speed_rows import Row, split_only

from semhitok import SemHiTokModel
from semhitok.command_line import number
from semhitok.configuration_semhitok import tiny_config as tiny_tokenizer
from unimllm import CheersConfig, CheersForConditionalGeneration
from unimllm.cheers.configuration_cheers import tiny_config as tiny_cheers
from unimllm.cheers.sampling import Prompt
from unimllm.command_line import CommandLine, run
from unimllm.errors import UserError
from unimllm.images import check_writable
from unimllm.training.presets.semhitok import semhitok_256_pixel
from unimllm.training.throughput import peak_flops

NUM_STEPS, GUIDANCE, AT_ONCE = 50, 9.5, 8  # of a drawing with CHEERS; pictures in one batch


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


def measure_cheers(bench: Bench) -> None:
    """CHEERS from a prompt of 32 ids to the decoded picture."""
    config = tiny_cheers() if bench.is_tiny else CheersConfig()
    model = build(lambda: CheersForConditionalGeneration(config), bench.device, torch.bfloat16).eval()
    num_steps, length = (2, 8) if bench.is_tiny else (NUM_STEPS, 32)

    def prompts(pictures: int) -> torch.Tensor:
        ids = torch.randint(FIRST_WORD, end_of_words(config), (pictures, length), device=bench.device)
        ids[:, -1] = config.image_start_token_id
        return ids

    def draw(pictures: int, steps: int) -> torch.Tensor:
        options = {"guidance_scale": GUIDANCE, "num_steps": steps}
        return model.decode_image_tokens(model.generate(prompts(pictures), generation_mode="image", **options))

    @torch.no_grad()
    def limit() -> list[Row]:
        ids = prompts(1)
        prompt = Prompt(model, ids, torch.ones_like(ids), None, GUIDANCE)
        shape = (1, config.vae_config.patched_channels, config.latent_size, config.latent_size)
        x = torch.randn(shape, device=bench.device)
        step = flops_of(lambda: prompt.velocity(x, torch.tensor(0.5, device=bench.device)))
        decoding = flops_of(lambda: model.decode_image_tokens(x))
        return [
            Row("one guided step of one picture", step / 1e12, "cheers_step_tflop", {"pictures": 1}, "TFLOP"),
            Row("decoding it", decoding / 1e12, "cheers_decode_tflop", {"pictures": 1}, "TFLOP"),
            Row("weights that a step reads", read_bytes(model) / 1e9, "cheers_step_read_gb", {}, "GB"),
        ]

    def drawn(pictures: int, ending: str) -> list[Row]:
        on, key = {"pictures": pictures}, f"gpu_cheers_{pictures}{ending}"
        what = f"{num_steps} steps, guidance {GUIDANCE}, decoded"
        seconds = bench.seconds_of(lambda: draw(pictures, num_steps), 2, warm_up=lambda: draw(pictures, 3))
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


# ---- the program ---------------------------------------------------------------------------------------------------


GROUPS: dict[str, Callable[[Bench], None]] = {
    "limits": measure_limits,
    "tokenizer": measure_tokenizer,
    "cheers": measure_cheers,
    "training": measure_training,
    "largest": measure_largest,
}


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = CommandLine("eval/speed_gpu.py", __doc__)
    parser.add_argument("--only", help=f"some of {','.join(GROUPS)}, with commas (default: all)")
    parser.add_argument("--compile", action="store_true", help="measure with compiled blocks too")
    parser.add_argument("--json", type=Path, help="also write the figures here, after each of them")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to try the program")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, to try the program: the figures mean nothing")
    parser.add_argument("--seconds", type=number(float, 0), default=math.inf, help="begin nothing after so many")
    args = parser.parse_args(argv)
    args.only = split_only(args.only, GROUPS) or list(GROUPS)
    if args.device not in ("cpu", "cuda"):
        raise UserError(f"--device {args.device}: choose cuda, or cpu to try the program")
    if args.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no GPU; try the program with --device cpu --tiny")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.json:
        check_writable(args.json)
    device = torch.device(args.device, 0) if args.device == "cuda" else torch.device("cpu")
    start_process(device)
    if args.compile:
        torch._dynamo.config.recompile_limit = 64  # sizes of one kind of block: beyond, blocks would run uncompiled
        torch._dynamo.config.fail_on_recompile_limit_hit = True
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
