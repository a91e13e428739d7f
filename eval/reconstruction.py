"""How well an image tokenizer gives pictures back: PSNR, SSIM, LPIPS, rFID, code use and speed, in one table.

    python eval/reconstruction.py --model runs/scenes_64/pixel --data scenes
    python eval/reconstruction.py --model runs/semhitok_256/decoder --data imagenet/val --grid grid.png \\
        --inception-weights weights-inception-2015-12-05-6726825d.pth --lpips-weights vgg16-397923af.pth

--data takes a folder of pictures, of .tar or of .parquet files, or such a file. Pictures are cropped as ADM does
(halved, scaled by the tokenizer's own interpolation, bicubic unless its SigLIP has another, cut to the centre),
encoded, decoded, clamped and rounded to 8 bits; everything is measured between those and the cropped originals. An
equal picture counts 100 dB in the mean PSNR, the most that any does, and the table says how many are equal. "FID"
stands only over the TF-2015 Inception (--inception-weights); other networks give FD(network): the tokenizer's own
SigLIP, or --features, which is the one to compare tokenizers by. An autoencoder (CHEERS) is measured alike; it has
neither codes nor a SigLIP of its own.
`--data scenes`: the held-out compositions of eval/scenes.py (--split), a thousand unless --limit says so.
Intervals: 95 %, bootstrap over pictures.
"""

import argparse
import hashlib
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.table import Table
from tqdm import tqdm
from transformers import PreTrainedModel

from semhitok.image_processing_semhitok import to_pixel_values, to_uint8
from unimllm.command_line import CommandLine, check_given, number, out_of_memory_told, run, silence_libraries
from unimllm.data.sequential import FolderPictures, PackedPictures, cropped_batches, open_sequential
from unimllm.errors import UserError
from unimllm.fingerprint import DIGITS
from unimllm.grid import draw_grid
from unimllm.image_tokenizer import open_measured
from unimllm.images import check_writable, picture_format, save_picture
from unimllm.metrics.codes import code_use
from unimllm.metrics.comparison import (
    add_comparison,
    add_network_options,
    compare_pairs,
    compare_sets,
    equal_told,
    networks_told,
    open_networks,
    summarize_pairs,
)
from unimllm.metrics.frechet import FrechetComparison
from unimllm.metrics.networks import FeatureNet, PairDistance, tokenizer_net
from unimllm.report import (
    add_code_use,
    describe_run,
    describe_start,
    model_told,
    open_table,
    print_table,
    write_json,
)
from unimllm.scenes.examination import examined_scenes
from unimllm.scenes.objects import CLASSES_24
from unimllm.scenes.program import SPLITS
from unimllm.scenes.sources import WorldConfig, trained_classes, world_told

SCENES = "scenes"  # what --data says for the world's own held-out pictures
NUM_SCENES, SCENES_SEED = 1000, 0  # as eval/scenes.py
GRID_PICTURES, GRID_COLUMNS = 16, 8


class HeldOutPictures:
    """Renders of a split, the same ones that eval/scenes.py reconstructs; see `FolderPictures`."""

    def __init__(self, config: WorldConfig, count: int, split: str):
        self.world, self.renderer = config.open()
        self.count, self.split = count, split
        self.skipped: dict[str, str] = {}
        self.faults: list[str] = []
        self.num_other_files = 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[str, Image.Image]]:
        for i, scene in enumerate(examined_scenes(self.world, SCENES_SEED, self.count, self.split)):
            yield f"scene {i}", Image.fromarray(self.renderer.render(scene))


Pictures = FolderPictures | PackedPictures | HeldOutPictures


@dataclass
class Measured:
    """What one pass over the pictures leaves behind.

    Args:
        scores: key of SCORES -> (n,) in batches.
        codes: (n, N, 2) int32 in batches; none of a tokenizer without codes.
        sha256: of all pictures as they were cropped, which tells them from others under the same path.
        seconds: "encode" and "decode" -> (pictures, seconds) of each batch.
        shown: (original, reconstruction, label) of the first GRID_PICTURES pictures.
    """

    scores: dict[str, list[np.ndarray]] = field(default_factory=lambda: defaultdict(list))
    codes: list[np.ndarray] = field(default_factory=list)
    sha256: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    seconds: dict[str, list[tuple[int, float]]] = field(default_factory=lambda: defaultdict(list))
    shown: list[tuple[Image.Image, Image.Image, str]] = field(default_factory=list)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = CommandLine("eval/reconstruction.py", __doc__)
    parser.add_argument("--model", type=Path, help="folder of a tokenizer or of a model; scenes: the one that ships")
    parser.add_argument("--data", help=f"a folder of pictures, .tar or .parquet files, such a file, or {SCENES!r}")
    parser.add_argument("--split", choices=SPLITS, default="test", help=f"of --data {SCENES}")
    parser.add_argument("--limit", type=number(int, 1), help="the first so many pictures")
    parser.add_argument("--batch-size", type=number(int, 1), default=32)
    add_network_options(parser, "the tokenizer's own")
    parser.add_argument("--json", type=Path, help="also write the results here")
    parser.add_argument("--grid", type=Path, help=f"draw the first {GRID_PICTURES} pictures over their reconstructions")
    args = parser.parse_args(argv)
    check_given(args, model="the tokenizer's folder", data=f"a folder of pictures, or {SCENES!r}")
    return args


def main(argv: list[str] | None = None) -> None:
    args, start = parse_args(argv), describe_start(__file__, argv)
    if args.json:
        check_writable(args.json)
    if args.grid:
        picture_format(args.grid)
        check_writable(args.grid)
    silence_libraries()
    folder, tokenizer, weights = open_measured(args.model, args.device)
    nets, lpips = open_networks(args, tokenizer.device)
    if not nets and hasattr(tokenizer, "vision_features"):
        nets = [tokenizer_net(tokenizer)]
    source = open_data(args, tokenizer, folder)
    comparisons = [FrechetComparison() for _ in nets]
    with out_of_memory_told(args.batch_size):
        measured = measure(args, tokenizer, source, nets, comparisons, lpips)
    results = summarize(measured, tokenizer) | compare_sets(nets, comparisons)
    if not nets:
        results["warnings"].append(
            "no Frechet distance: this tokenizer has no SigLIP of its own, name one with --features"
        )
    results["warnings"] += source.faults
    results |= describe_data(args, tokenizer, source, lpips)
    results |= describe_run(
        start, model=str(args.model), fingerprint=weights, fingerprint_of="weights",
        seed=SCENES_SEED, num_samples={"pictures": results["num_pictures"]},
        limited=args.limit is not None or bool(source.skipped or source.faults),
    )  # fmt: skip
    if args.json:
        write_json(args.json, results)
    if args.grid:
        save_picture(draw_shown(measured, args), args.grid)
    print_table(make_table(results), 110)


def open_data(args: argparse.Namespace, tokenizer: PreTrainedModel, folder: Path) -> Pictures:
    """What --data names."""
    if args.data != SCENES:
        return open_sequential(Path(args.data))
    world = WorldConfig(tokenizer.config.image_size, trained_classes(folder) or CLASSES_24)
    return HeldOutPictures(world, args.limit or NUM_SCENES, args.split)


# ---- measuring -----------------------------------------------------------------------------------------------------


def measure(
    args: argparse.Namespace,
    tokenizer: PreTrainedModel,
    source: Pictures,
    nets: list[FeatureNet],
    comparisons: list[FrechetComparison],
    lpips: PairDistance | None,
) -> Measured:
    """One pass over the pictures; UserError if none can be read."""
    measured = Measured()
    total = min(len(source), args.limit or len(source))
    with tqdm(total=total, desc="reconstructing", unit="picture") as progress:
        size, resample = tokenizer.config.image_size, interpolation(tokenizer)
        for keys, pictures in cropped_batches(source, size, args.batch_size, args.limit, resample):
            measured.sha256.update(pictures.data)
            encoded, decoded = reconstruct(tokenizer, pictures, measured.seconds)
            if not encoded.is_floating_point():
                measured.codes.append(encoded.cpu().numpy().astype(np.int32))
            scores = compare_pairs(pictures, decoded, lpips)
            for name, values in scores.items():
                measured.scores[name].append(values)
            for net, comparison in zip(nets, comparisons, strict=True):
                comparison.update(net.extract(pictures), net.extract(decoded))
            for i in range(min(len(keys), GRID_PICTURES - len(measured.shown))):
                label = f"{Path(keys[i]).name}: {scores['psnr'][i]:.1f} dB"
                measured.shown.append((Image.fromarray(pictures[i]), Image.fromarray(decoded[i]), label))
            progress.update(len(keys))
    for reason in source.skipped.values():
        print(f"skipped: {reason}", file=sys.stderr)
    if not measured.scores:
        raise UserError(f"none of the {len(source)} pictures in {args.data} can be read")
    return measured


def interpolation(tokenizer: PreTrainedModel) -> Image.Resampling:
    """What the tokenizer was trained with: a SigLIP's own, or bicubic."""
    return Image.Resampling(tokenizer.config.resample)


@torch.inference_mode()
def reconstruct(
    tokenizer: PreTrainedModel, pictures: np.ndarray, seconds: dict[str, list[tuple[int, float]]]
) -> tuple[torch.Tensor, np.ndarray]:
    """(n, S, S, 3) uint8 -> codes (n, N, 2) or latents, and reconstructions (n, S, S, 3) uint8; enters how long both
    took.
    """

    def timed(name: str, function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        synchronize(x.device)
        started = time.perf_counter()
        y = function(x)
        synchronize(x.device)
        seconds[name].append((len(pictures), time.perf_counter() - started))
        return y

    pixel_values = to_pixel_values(pictures).to(tokenizer.device)
    encoded = timed("encode", tokenizer.encode, pixel_values)
    return encoded, to_uint8(timed("decode", tokenizer.decode, encoded))


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what it was told; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


# ---- the results ---------------------------------------------------------------------------------------------------


def summarize(measured: Measured, tokenizer: PreTrainedModel) -> dict:
    """Means over pictures with their intervals, code use if there are codes, and pictures a second."""
    config, count = tokenizer.config, sum(map(len, measured.scores["psnr"]))
    results = {"num_pictures": count, "pictures_fingerprint": measured.sha256.hexdigest()[:DIGITS]}
    results |= {"num_positions": count * config.num_positions} | summarize_pairs(measured.scores)
    for name, batches in measured.seconds.items():
        counted = batches[1:] or batches  # the first one warms up
        results[f"{name}_pictures_per_second"] = sum(n for n, _ in counted) / sum(s for _, s in counted)
    if measured.codes:
        results |= code_use(np.concatenate(measured.codes), config.num_semantic_codes, config.num_pixel_codes)
    return results


def describe_data(
    args: argparse.Namespace,
    tokenizer: PreTrainedModel,
    source: Pictures,
    lpips: PairDistance | None,
) -> dict:
    """What was measured and how."""
    by = interpolation(tokenizer).name.lower()
    facts = {
        "data": args.data,
        "split": args.split if args.data == SCENES else None,
        "limit": args.limit,
        "resolution": tokenizer.config.image_size,
        "crop": "none, drawn at this size" if args.data == SCENES else f"ADM centre crop (box halving, {by})",
        "skipped": source.skipped,
        "num_other_files": source.num_other_files,
        "batch_size": args.batch_size,
    }
    facts |= model_told(tokenizer)
    if isinstance(source, HeldOutPictures):
        facts |= world_told(source.world)
    if lpips:
        facts |= {"lpips_backbone": lpips.backbone, "lpips_library": lpips.library}
    return facts


def make_table(results: dict) -> Table:
    """The table for people."""
    size = results["resolution"]
    title = f"{results['model']} on {results['num_pictures']} pictures of {results['data']}, {size} x {size}"
    table = open_table(title, ("", "mean", "95 %"), notes(results))
    add_comparison(table, results)
    if "flat_code_use" in results:
        add_code_use(table, results)
    table.add_section()
    table.add_row(f"Pictures a second ({results['device']}, batches of {results['batch_size']})", style="bold")
    for name in ("encode", "decode"):
        table.add_row(name, f"{results[f'{name}_pictures_per_second']:.1f}")
    return table


def notes(results: dict) -> list[str]:
    """What stands under the table: how it was measured, what was left out, what to beware of."""
    lines = [f"Crop: {results['crop']}. All on 8-bit RGB; SSIM and PSNR by unimllm.metrics.reconstruction."]
    lines += equal_told(results) + networks_told(results)
    if results["skipped"]:
        found = results["num_pictures"] + len(results["skipped"])
        lines.append(
            f"Skipped: {len(results['skipped'])} of {found} pictures, which cannot be read and are named above."
        )
    if results["num_other_files"]:
        lines.append(f"Other files: {results['num_other_files']}, by their endings no pictures.")
    return lines + [f"Warning: {warning}." for warning in results["warnings"]]


def draw_shown(measured: Measured, args: argparse.Namespace) -> Image.Image:
    """The first pictures over their reconstructions."""
    cells = [[original, reconstruction] for original, reconstruction, _ in measured.shown]
    title = f"originals over their reconstructions by {args.model}"
    return draw_grid(cells, [label for *_, label in measured.shown], GRID_COLUMNS, title)


if __name__ == "__main__":
    run(main)
