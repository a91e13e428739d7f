"""Speed, one way for everything: one thread, process CPU seconds, minimum of repeats, float32, random weights.

    python eval/speed.py                       # all that takes a minute or so
    python eval/speed.py --only quantize,encode --json speed.json
    python eval/speed.py --only memory         # slow: peak memory of encoding 64 pictures, in a fresh process
    python eval/speed.py --only training       # slow: packed rows against a padded loop
    python eval/speed.py --only cheers         # slow: one step of drawing with CHEERS

Baselines are measured in the same run; the peers' figures were measured elsewhere by the same method (their own code,
one thread of another x86 machine) and hold only as far as two machines are alike. A further measurement is a function
under `@measurement`.
"""

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from packing_loops import PACKED, PADDED, packed_batches, packed_over_padded, padded_batches
from rich import box
from rich.console import Console
from rich.table import Table
from speed_rows import Row, figures_of, in_words, split_only
from torch.nn import functional as F
from transformers import AutoTokenizer, Qwen2Config, SiglipVisionConfig

from semhitok import SemHiTokConfig, SemHiTokModel
from semhitok.configuration_semhitok import tiny_config
from semhitok.quantization import EMACodebook, PixelCodebook, nearest_code, normalize
from semhitok.shard_writer import ShardWriter
from semhitok.shards import CodeLayout, CodeShards
from unimllm import CheersConfig, CheersForConditionalGeneration, UniMLLMForConditionalGeneration
from unimllm.cheers.configuration_cheers import CheersVaeConfig
from unimllm.cheers.configuration_cheers import tiny_config as tiny_cheers
from unimllm.cheers.sampling import Prompt, without_text
from unimllm.command_line import CommandLine, run, silence_libraries
from unimllm.conversation import ConversationTokenizer, text_message
from unimllm.discrete.configuration_unimllm import tiny_config as tiny_model_config
from unimllm.discrete.varlen import NAME as VARLEN
from unimllm.errors import UserError
from unimllm.flow_matching import guide
from unimllm.images import check_writable
from unimllm.inference import DEFAULT_MODEL
from unimllm.report import describe_machine, write_json
from unimllm.training.attention import choose_attention
from unimllm.training.presets.scenes import scenes_64_sft
from unimllm.training.presets.semhitok import semhitok_256_pixel
from unimllm.training.sft import SftTask
from unimllm.training.throughput import peak_memory

NUM_VECTORS, NUM_PICTURES = 1024, 64  # quantised at once: four pictures of 256 pixels; encoded at once: for the memory
NUM_CACHED, NUM_TRAINED = 4096, 96  # pictures in shards; conversations gone through

PEERS = {
    "quantize": {
        "UniTok, 8 x 4,096 codes": 0.155,
        "LlamaGen, Janus, 16,384 codes": 0.17,
        "ILLUME+, 32,768 and 98,304 codes": 0.76,
        "TokenFlow, one scale of 32,768 codes": 1.21,
        "VILA-U, 4 x 16,384 codes": 1.58,
        "Tar, 65,536 codes": 4.97,
    },
    "encode": {
        "QLIP-B-16-256": 0.45,
        "LlamaGen VQ-16, Janus": 1.88,
        "TiTok-L-32": 1.93,
        "UniTok-L": 2.13,
        "Show-o MAGVITv2": 4.1,
        "Emu3 VQ": 30.1,
    },
    "cheers": {"CHEERS's released code, the same sizes": 13.3},
}
"""CPU seconds, measured elsewhere: 1,024 vectors, one picture of 256 pixels, one step of drawing one."""


@dataclass
class Measurement:
    """A named measurement: config of the tokenizer -> figures."""

    measure: Callable[[SemHiTokConfig], list[Row]]
    is_slow: bool


MEASUREMENTS: dict[str, Measurement] = {}


def measurement(name: str, is_slow: bool = False):
    """Register a function under a name; a slow one runs only where --only names it."""

    def register(measure: Callable[[SemHiTokConfig], list[Row]]):
        MEASUREMENTS[name] = Measurement(measure, is_slow)
        return measure

    return register


def cpu_seconds(once: Callable[[], object], repeats: int) -> float:
    """Least CPU time of this process over some calls; a first call, not counted, warms up."""
    once()
    seconds = []
    for _ in range(repeats):
        started = time.process_time()
        once()
        seconds.append(time.process_time() - started)
    return min(seconds)


# ---- measurements --------------------------------------------------------------------------------------------------


@measurement("quantize")
def measure_quantize(config: SemHiTokConfig) -> list[Row]:
    """Both codes of 1,024 vectors; beside it a flat search over the same pixel codes, and LlamaGen's arithmetic."""
    semantic = EMACodebook(config.num_semantic_codes, config.semantic_dim)
    pixel = PixelCodebook(config.num_semantic_codes, config.num_pixel_codes, config.pixel_dim)
    torch.nn.init.normal_(pixel.bend, std=0.1)
    semantic_vectors = torch.randn(NUM_VECTORS, config.semantic_dim)
    pixel_vectors = torch.randn(NUM_VECTORS, config.pixel_dim)
    every_code = pixel.codes().flatten(0, 1)  # (K * m, D)
    single_codebook = torch.randn(config.num_semantic_codes, config.pixel_dim)

    def ours() -> None:
        chosen = nearest_code(normalize(semantic_vectors), semantic.codes)
        pixel.search(normalize(pixel_vectors), chosen)

    k, m, on = config.num_semantic_codes, config.num_pixel_codes, {"positions": NUM_VECTORS}
    return [
        Row(f"SemHiTok, {k:,} x {m} codes", cpu_seconds(ours, 5), "quantize_1024_cpu_s", on),
        Row(
            f"flat search over the {k * m:,} pixel codes",
            cpu_seconds(lambda: nearest_code(normalize(pixel_vectors), every_code), 2), "quantize_1024_flat_cpu_s", on,
        ),
        Row(
            f"LlamaGen's arithmetic, {k:,} codes",
            cpu_seconds(lambda: llamagen_codes(pixel_vectors, single_codebook), 5), "quantize_1024_llamagen_cpu_s", on,
        ),
    ]  # fmt: skip


def llamagen_codes(vectors: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """Nearest codes as LlamaGen's vector quantizer finds them: both normalised per call, squared distances, argmin."""
    vectors, codebook = F.normalize(vectors, dim=-1), F.normalize(codebook, dim=-1)
    products = vectors @ codebook.T  # (N, K)
    distances = (vectors**2).sum(1, keepdim=True) + (codebook**2).sum(1) - 2 * products
    return distances.argmin(1)


@measurement("encode")
def measure_encode(config: SemHiTokConfig) -> list[Row]:
    """One picture to its codes: SigLIP, both encoders, both searches."""
    model = SemHiTokModel(config).eval()
    picture = torch.rand(1, 3, config.image_size, config.image_size) * 2 - 1
    what = f"SemHiTok, {count_encoding(model) / 1e6:.0f} M parameters encode"
    return [Row(what, cpu_seconds(lambda: model.encode(picture), 3), "encode_256_cpu_s", {"pictures": 1})]


def count_encoding(model: SemHiTokModel) -> int:
    """Parameters that `encode` needs."""
    parts = (model.vision_model, model.semantic.encoder, model.pixel.encoder, model.pixel.codebook)
    return sum(p.numel() for part in parts for p in part.parameters()) + model.semantic.codebook.codes.numel()


@measurement("memory", is_slow=True)
def measure_memory(config: SemHiTokConfig) -> list[Row]:
    """Peak resident memory of a fresh process that loads nothing but a whole tokenizer and encodes 64 pictures."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
        weights, peak = fresh.submit(encode_and_report, config.to_dict()).result()
    return [
        Row("encode all at once: peak", peak, "encode_256_peak_mib", {"pictures": NUM_PICTURES}, "MiB"),
        Row("of which weights, decoder included", weights, "tokenizer_256_weights_mib", {}, "MiB"),
    ]


def encode_and_report(values: dict) -> tuple[float, float]:
    """In the fresh process: (MiB of weights, peak MiB of the process)."""
    start_process()
    config = SemHiTokConfig.from_dict(values)
    model = SemHiTokModel(config).eval()
    model.encode(torch.zeros(NUM_PICTURES, 3, config.image_size, config.image_size))
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return weights / 2**20, peak_memory() / 2**20


@measurement("cache")
def measure_cache(config: SemHiTokConfig) -> list[Row]:
    """Reading packed codes by batches of 32 pictures in random order; beside it ids as JSON text, a line a picture."""
    rng = np.random.default_rng(0)
    sizes = (config.num_semantic_codes, config.num_pixel_codes)
    codes = rng.integers(0, sizes, (NUM_CACHED, config.num_positions, 2))
    layout = CodeLayout("0" * 12, *sizes, config.num_positions, config.image_size)
    batches = rng.permutation(NUM_CACHED).reshape(-1, 32)
    lines = [json.dumps(row.tolist()) for row in codes[..., 0] * sizes[1] + codes[..., 1]]
    with tempfile.TemporaryDirectory() as folder:
        with ShardWriter(folder, layout) as writer:
            writer.add([f"{i:08d}.jpg" for i in range(NUM_CACHED)], codes)
        shards = CodeShards(folder, layout)
        packed = cpu_seconds(lambda: [shards.codes(batch) for batch in batches], 5)
        num_bytes = sum(path.stat().st_size for path in Path(folder).iterdir())
    text = cpu_seconds(lambda: [[np.array(json.loads(lines[i])) for i in batch] for batch in batches], 3)
    on, size, seconds = {"pictures": NUM_CACHED}, "bytes a picture", "CPU-us a picture"
    return [
        Row("packed shards, keys included", num_bytes / NUM_CACHED, "cache_bytes_per_image", on, size),
        Row("read and unpacked", 1e6 * packed / NUM_CACHED, "cache_decode_us_per_image", on, seconds),
        Row("ids as JSON text", sum(map(len, lines)) / NUM_CACHED, "cache_json_bytes_per_image", on, size),
        Row("read and parsed", 1e6 * text / NUM_CACHED, "cache_json_decode_us_per_image", on, seconds),
    ]


@measurement("training", is_slow=True)
def measure_training(config: SemHiTokConfig) -> list[Row]:
    """Samples a second, forward and backward, of the scenes' model: packed rows and stored codes, against LLaVA's loop.

    LLaVA's loop: batches of 16 samples padded to the longest, pictures encoded in every step. Both go through the same
    samples: questions in one to eight turns about a picture, drawings, texts. First both in float32, uncompiled; then
    as the recipe trains, in bf16 products where this CPU is fast at them: ours compiled, as it is in training, LLaVA's
    as it is and compiled, too (for any length: its batches have many, packed rows one).
    """
    is_tiny = config.image_size < 64
    tokenizer = AutoTokenizer.from_pretrained(DEFAULT_MODEL)
    recipe = scenes_64_sft()
    model_config = tiny_model_config() if is_tiny else recipe.model
    model_config.text_config.vocab_size, model_config.text_config.max_position_embeddings = len(tokenizer), 512
    task = SftTask(UniMLLMForConditionalGeneration(model_config), {}).train()
    image = model_config.image_tokenizer_config
    conversation = ConversationTokenizer(tokenizer, image.num_positions)
    samples = [conversation(messages) for messages in conversations(8 if is_tiny else NUM_TRAINED)]
    placeholder = conversation.ids["image"]
    pictures = [torch.rand(int(placeholder in s.input_ids), 3, image.image_size, image.image_size) for s in samples]
    stored = [task.model.codes_to_ids(task.model.image_tokenizer.encode(p)) if len(p) else p for p in pictures]

    def train_on(batch: dict, is_half: bool) -> None:
        with torch.enable_grad():
            with torch.autocast("cpu", torch.bfloat16, enabled=is_half):
                loss = task(num_items=torch.tensor(100.0), **batch)["loss"]
            loss.backward()

    def padded(is_half: bool = False) -> None:
        for batch in padded_batches(samples, pictures, conversation.ids["pad"]):
            train_on(batch, is_half)

    def packed(is_half: bool = False) -> None:
        for batch in packed_batches(samples, stored, placeholder, conversation.ids["pad"], 512, 4):
            train_on(batch, is_half)

    def as_the_recipe(loop: Callable[[bool], None], **compile_options) -> float:
        if compile_options:
            torch.compiler.reset()
            backend = "eager" if is_tiny else "inductor"
            task.model.language_model.get_decoder().compile(backend=backend, **compile_options)
        return cpu_seconds(lambda: loop(recipe.train.autocast()), 2)

    on, unit = {"samples": len(samples)}, "samples/CPU-s"
    choose_attention(task.model, "sdpa")
    slow, masked = cpu_seconds(padded, 2), cpu_seconds(packed, 2)
    choose_attention(task.model, VARLEN)
    rows = packed_over_padded(slow, cpu_seconds(packed, 2), len(samples), "train", unit, VARLEN)
    rows.append(Row(f"{PACKED}sdpa", len(samples) / masked, "train_packed_sdpa_samples_per_s", on, unit))
    choose_attention(task.model, "sdpa")
    slow, fast, fair = as_the_recipe(padded), as_the_recipe(packed, dynamic=False), as_the_recipe(padded, dynamic=True)
    how = "bf16 products" if recipe.train.autocast() else "fp32"
    rows += packed_over_padded(slow, fast, len(samples), "train_recipe", unit, f"compiled, {how}", f", {how}")
    key = "train_recipe_padded_compiled_samples_per_s"
    return [*rows, Row(f"{PADDED}, compiled, {how}", len(samples) / fair, key, on, unit)]


def conversations(count: int) -> list[list[dict]]:
    """Six tenths ask about a picture, three draw one, one is text alone; each kind of a length of its own."""
    rng = np.random.default_rng(0)
    question, answer = text_message("user", "What color is the apple?"), text_message("assistant", "It is red.")
    found = []
    for kind in rng.choice(3, count, p=[0.6, 0.3, 0.1]).tolist():
        turns = [question, answer] * int(rng.integers(1, 9))
        asked = [text_message("user", "What color is the apple?", images=1), *turns[1:]]
        drawn = [text_message("user", "a photo of two red apples"), text_message("assistant", "", images=1)]
        found.append((asked, drawn, turns)[kind])
    return found


@measurement("cheers", is_slow=True)
def measure_cheers(config: SemHiTokConfig) -> list[Row]:
    """One guided Euler step of a small CHEERS with the real autoencoder; beside it all of it once for each branch."""
    model = CheersForConditionalGeneration(tiny_cheers() if config.image_size < 64 else small_cheers()).eval()
    ids, size = torch.tensor([[9] * 15 + [model.config.image_start_token_id]]), model.config.latent_size
    x, t = torch.randn(1, model.config.vae_config.patched_channels, size, size), torch.tensor(0.5)
    guided = Prompt(model, ids, torch.ones_like(ids), None, 9.5)
    branches = [Prompt(model, i, torch.ones_like(i), None, 1.0) for i in (ids, without_text(model, ids))]

    def one_by_one() -> None:
        guide(*(branch.velocity(x, t) for branch in branches), 9.5)

    decoder, on = model.vision_tokenizer.vae_decoder_projector, {"pictures": 1}
    return [
        Row("one step, both branches at once", cpu_seconds(lambda: guided.velocity(x, t), 2), "cheers_step_cpu_s", on),
        Row("of which decoding the latent", cpu_seconds(lambda: decoder(x), 2), "cheers_decode_cpu_s", on),
        Row("branch by branch, everything for each", cpu_seconds(one_by_one, 2), "cheers_step_by_branch_cpu_s", on),
    ]


def small_cheers() -> CheersConfig:
    """At 256 pixels, language model and SigLIP 8 layers of 512; autoencoder and depth of the flow head as released."""
    width = {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8}
    return tiny_cheers(
        text_config=Qwen2Config(**width, vocab_size=1000, intermediate_size=1536, num_key_value_heads=8),
        vision_config=SiglipVisionConfig(**width, intermediate_size=2048, image_size=256, vision_use_head=False),
        vae_config=CheersVaeConfig(), num_semantic_layers=7, num_detail_layers=3, time_channels=256,
    )  # fmt: skip


# ---- the program ---------------------------------------------------------------------------------------------------


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = CommandLine("eval/speed.py", __doc__)
    parser.add_argument(
        "--only", help=f"some of {','.join(MEASUREMENTS)}, with commas (default: all but the slow ones)"
    )
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, to try the program: the figures mean nothing")
    args = parser.parse_args(argv)
    args.only = split_only(args.only, MEASUREMENTS) or [n for n, m in MEASUREMENTS.items() if not m.is_slow]
    if "memory" in args.only and peak_memory() is None:
        raise UserError("--only memory: this system does not tell how much memory a process has held; leave it out")
    return args


def start_process() -> None:
    """One thread, the same random numbers every time, no noise."""
    silence_libraries()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    torch.manual_seed(0)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.json:
        check_writable(args.json)
    start_process()
    config = tiny_config() if args.tiny else semhitok_256_pixel().model
    where = describe_machine(__file__)  # now: the files may change while it measures
    rows = {name: MEASUREMENTS[name].measure(config) for name in args.only}
    Console(width=max(110, Console().width)).print(make_table(rows, where))
    if args.json:
        figures = figures_of([row for group in rows.values() for row in group])
        write_json(args.json, figures | where | {"tiny": args.tiny})


def make_table(rows: dict[str, list[Row]], where: dict) -> Table:
    """All figures, the peers' under ours."""
    told = [where["processor"], f"torch {where['versions']['torch']}", "one thread"]
    told += [] if where["load_average"] is None else [f"load average {where['load_average']}"]
    table = Table(title=", ".join(told), box=box.SIMPLE_HEAD)
    table.add_column("")
    table.add_column("figure", justify="right")
    table.add_column("unit")
    table.add_column("for", justify="right")
    table.add_column("measured")
    for name, group in rows.items():
        table.add_section()
        table.add_row(name, style="bold")
        for row in group:
            value = f"{row.value:,.3g}" if row.value < 100 else f"{row.value:,.0f}"
            table.add_row(row.what, value, row.unit, in_words(row.samples), "here")
        for peer, seconds in PEERS.get(name, {}).items():
            table.add_row(peer, f"{seconds:.3g}", "CPU-s", in_words(group[0].samples), "elsewhere")
    return table


if __name__ == "__main__":
    run(main)
