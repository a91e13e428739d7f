"""Folders of pictures, whoever made them: FID, KID, PSNR, SSIM and LPIPS between two, CLIPScore of one and its prompts.

    python eval/pictures.py compare REFERENCE GENERATED --inception-weights weights-inception-2015-12-05-6726825d.pth
    python eval/pictures.py compare ORIGINALS RECONSTRUCTIONS --lpips-weights vgg16-397923af.pth --features SIGLIP
    python eval/pictures.py clipscore GENERATED --clip openai/clip-vit-large-patch14

PSNR, SSIM and LPIPS are of the pictures that have one name in both folders, endings aside; FID and KID are of all.
A pair of equal pictures counts 100 dB in the mean PSNR, the most that any does, and the table says how many are equal.
"FID" stands only over the TF-2015 Inception; with --features it is FD(network). Pictures are taken as they are unless
--size crops them as ADM does; all are opened beforehand, so that a damaged one is told at once. CLIPScore is
100 * max(cos, 0); `clip_score_paper` in the JSON has the paper's weight, 2.5 * max(cos, 0), without the "A photo
depicts" that its script puts before each text. The prompts are in GENERATED's index.jsonl (unimllm.generate), in its
folders (GenEval's layout), or in --prompts FILE of rows with "file" and "prompt". Intervals: 95 %, bootstrap over
pictures.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from rich.table import Table
from tqdm import tqdm

from semhitok.checkpoints import choose_device
from semhitok.image_processing_semhitok import adm_center_crop
from semhitok.picture_files import find_pictures, picture_suffixes
from unimllm.command_line import (
    CommandLine,
    check_given,
    number,
    out_of_memory_told,
    run,
    run_command,
    silence_libraries,
)
from unimllm.errors import UserError
from unimllm.fingerprint import fingerprint, json_fingerprint
from unimllm.generate import INDEX_FILE
from unimllm.images import check_readable, check_writable, open_picture
from unimllm.json_rows import read_rows
from unimllm.metrics.clip_score import WEIGHT, ClipScorer
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
from unimllm.metrics.geneval_records import read_folder
from unimllm.metrics.intervals import bootstrap_mean
from unimllm.metrics.networks import FeatureNet
from unimllm.metrics.reconstruction import WINDOW
from unimllm.report import (
    as_range,
    describe_run,
    describe_start,
    device_told,
    model_told,
    open_table,
    print_table,
    write_json,
)

PROGRAM = "eval/pictures.py"


def main(argv: list[str] | None = None) -> None:
    run_command({"compare": compare, "clipscore": clipscore}, __doc__, argv)


# ---- compare -------------------------------------------------------------------------------------------------------


def parse_compare(argv: list[str]) -> argparse.Namespace:
    parser = CommandLine(f"{PROGRAM} compare", __doc__)
    parser.add_argument("reference", nargs="?", type=Path, help="a folder of pictures: true ones, or originals")
    parser.add_argument("generated", nargs="?", type=Path, help="a folder of pictures to be judged by them")
    parser.add_argument("--size", type=number(int, WINDOW), help="crop all to so many pixels first, as ADM does")
    parser.add_argument("--batch-size", type=number(int, 1), default=32)
    parser.add_report_options()
    add_network_options(parser, "no FD")
    args = parser.parse_args(argv)
    if args.generated is None:
        raise UserError("name two folders of pictures: compare REFERENCE GENERATED; see --help")
    return args


def compare(argv: list[str]) -> None:
    """Compare two folders: a table, and JSON where it is asked for."""
    args, start = parse_compare(argv), describe_start(__file__, ["compare", *argv])
    if args.json:
        check_writable(args.json)
    reference, generated = named_pictures(args.reference), named_pictures(args.generated)
    common = [name for name in reference if name in generated]
    if not common and not (args.inception_weights or args.features):
        raise UserError(
            f"no picture of {args.generated} has the name of one in {args.reference}, so there are no pairs; for sets "
            "give --inception-weights or --features"
        )
    silence_libraries()
    device = torch.device(choose_device(args.device))
    nets, lpips = open_networks(args, device)
    check_readable(tqdm([*reference.values(), *generated.values()], desc="checking", unit="picture"))
    only = [{name: path for name, path in a.items() if name not in b}
            for a, b in ((reference, generated), (generated, reference))]  # fmt: skip
    comparisons = [FrechetComparison() for _ in nets]
    scores = defaultdict(list)
    with out_of_memory_told(args.batch_size):
        for first, second in pairs(common, reference, generated, args):
            for name, values in compare_pairs(first, second, lpips).items():
                scores[name].append(values)
            take(nets, comparisons, first, second)
        if nets:
            for pictures in alone(only[0], args):
                take(nets, comparisons, pictures, pictures[:0])
            for pictures in alone(only[1], args):
                take(nets, comparisons, pictures[:0], pictures)
    results = {
        "reference": str(args.reference),
        "generated": str(args.generated),
        "num_reference": len(reference),
        "num_generated": len(generated),
        "num_pairs": len(common),
        "size": args.size,
    }
    results |= device_told(device)
    results |= summarize_pairs(scores, args.seed) | compare_sets(nets, comparisons)
    results["warnings"] += differing(only, args)
    if lpips:
        results |= {"lpips_backbone": lpips.backbone, "lpips_library": lpips.library}
    results |= describe_run(
        start, model=args.name or str(args.generated),
        fingerprint=fingerprint(*generated.values()), fingerprint_of="pictures", seed=args.seed,
        num_samples={"pictures": len(generated), "pairs": len(common)}, limited=bool(common and only[0]),
    )  # fmt: skip
    if args.json:
        write_json(args.json, results)
    print_table(comparison_table(results), 110)


def named_pictures(folder: Path) -> dict[str, Path]:
    """Name below the folder, without its endings -> file, of all pictures in it and in its folders.

    `photo.jpg.png`, as `semhitok decode` and `reconstruct` call what they make of it, has the name of `photo.jpg`.

    Raises:
        UserError: no such folder, no picture in it, or two of one name.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    files: dict[str, Path] = {}
    for file in find_pictures([folder])[0]:
        name = file.key
        while PurePosixPath(name).suffix.lower() in picture_suffixes():
            name = str(PurePosixPath(name).with_suffix(""))
        if name in files:
            raise UserError(f"{folder} holds two pictures of one name, {files[name].name} and {file.path.name}")
        files[name] = file.path
    return files


def read(path: Path, size: int | None) -> np.ndarray:
    """(H, W, 3) uint8, cropped to `size` if there is one."""
    picture = open_picture(path)
    return np.asarray(picture if size is None else adm_center_crop(picture, size))


def pairs(
    names: list[str], reference: dict[str, Path], generated: dict[str, Path], args: argparse.Namespace
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of pairs, (n, H, W, 3) uint8 twice; those of another size than the one before begin a new one.

    Raises:
        UserError: the two of a pair differ in size, or are too small for SSIM.
    """
    for start in tqdm(range(0, len(names), args.batch_size), desc="comparing", unit="batch", disable=not names):
        read_pairs = []
        for name in names[start : start + args.batch_size]:
            first, second = (read(files[name], args.size) for files in (reference, generated))
            if first.shape != second.shape:
                sizes = " and ".join(f"{width} x {height}" for height, width, _ in (first.shape, second.shape))
                raise UserError(f"{name}: the two pictures are {sizes} pixels; crop both with --size")
            if min(first.shape[:2]) < WINDOW:
                raise UserError(f"{name}: SSIM needs {WINDOW} x {WINDOW} pixels or more; crop with --size")
            read_pairs.append((first, second))
        for _, group in groupby(read_pairs, key=lambda pair: pair[0].shape):
            first, second = (np.stack(side) for side in zip(*group, strict=True))
            yield first, second


def alone(files: dict[str, Path], args: argparse.Namespace) -> Iterator[np.ndarray]:
    """Batches of the pictures of one folder that have no counterpart, (n, H, W, 3) uint8."""
    paths = list(files.values())
    for start in tqdm(range(0, len(paths), args.batch_size), desc="looking", unit="batch", disable=not paths):
        pictures = [read(path, args.size) for path in paths[start : start + args.batch_size]]
        for _, group in groupby(pictures, key=np.shape):
            yield np.stack(list(group))


def take(nets: list[FeatureNet], comparisons: list[FrechetComparison], first: np.ndarray, second: np.ndarray) -> None:
    """Enter pictures of both sets, or of one and none of the other, into the comparisons of all networks."""
    for net, comparison in zip(nets, comparisons, strict=True):
        features = [net.extract(pictures) if len(pictures) else None for pictures in (first, second)]
        nothing = next(f for f in features if f is not None)[:0]
        comparison.update(*(nothing if f is None else f for f in features))


def differing(only: list[dict[str, Path]], args: argparse.Namespace) -> list[str]:
    """What to say of the pictures that one folder alone holds: nothing, or one line."""
    told = [f"{folder} alone holds {len(names):,} pictures, {next(iter(names))} first"
            for folder, names in zip((args.reference, args.generated), only, strict=True) if names]  # fmt: skip
    return [f"{'; '.join(told)}: pairs are of the common names, sets of all"] if told else []


def comparison_table(results: dict) -> Table:
    """The table for people."""
    lines = [f"Size: {results['size'] or 'as it is'}. All on 8-bit RGB.", *equal_told(results), *networks_told(results)]
    lines += [f"Warning: {warning}." for warning in results["warnings"]]
    title = (
        f"{results['generated']} ({results['num_generated']:,}) beside {results['reference']} "
        f"({results['num_reference']:,}), {results['num_pairs']:,} pairs"
    )
    table = open_table(title, ("", "mean", "95 %"), lines)
    add_comparison(table, results)
    return table


# ---- clipscore -----------------------------------------------------------------------------------------------------


def parse_clipscore(argv: list[str]) -> argparse.Namespace:
    parser = CommandLine(f"{PROGRAM} clipscore", __doc__)
    parser.add_argument("folder", nargs="?", type=Path, help="the pictures")
    parser.add_argument("--clip", help="a CLIP in Hugging Face's format, by folder or hub id")
    parser.add_argument("--prompts", type=Path, help='rows with "file" and "prompt" (default: what the folder holds)')
    parser.add_argument("--batch-size", type=number(int, 1), default=32)
    parser.add_device_option()
    parser.add_report_options()
    args = parser.parse_args(argv)
    if args.folder is None:
        raise UserError("the folder of pictures is missing; see --help")
    check_given(args, clip="the CLIP that compares pictures and prompts")
    return args


def clipscore(argv: list[str]) -> None:
    """Score a folder: a table, and JSON where it is asked for."""
    args, start = parse_clipscore(argv), describe_start(__file__, ["clipscore", *argv])
    if args.json:
        check_writable(args.json)
    prompts = list(read_prompts(args.folder, args.prompts).items())
    silence_libraries()
    scorer = ClipScorer.load(args.clip, args.device)
    check_readable(tqdm([args.folder / file for file, _ in prompts], desc="checking", unit="picture"))
    values = []
    with out_of_memory_told(args.batch_size):
        for first in tqdm(range(0, len(prompts), args.batch_size), desc="scoring", unit="batch"):
            files, texts = zip(*prompts[first : first + args.batch_size], strict=True)
            values.append(scorer.score([open_picture(args.folder / file) for file in files], list(texts)))
    scores = np.concatenate(values)
    results = {
        "benchmark": "CLIPScore",
        "generated": str(args.folder),
        "clip": scorer.name,
        "num_pictures": len(scores),
        "prompts_digest": json_fingerprint(sorted(dict(prompts).values())),
        "num_cut_prompts": sum(scorer.is_cut(text) for text in dict(prompts).values()),
        "clip_score": float(scores.mean()),
        "clip_score_paper": float(WEIGHT * scores.mean() / 100),
        "intervals": {"clip_score": bootstrap_mean(scores, args.seed)},
    }
    results |= model_told(scorer.clip) | describe_run(
        start, model=args.name or str(args.folder),
        fingerprint=fingerprint(*(args.folder / file for file, _ in prompts)), fingerprint_of="pictures",
        seed=args.seed, num_samples={"pictures": results["num_pictures"]}, limited=False,
    )  # fmt: skip
    if args.json:
        write_json(args.json, results)
    print_table(score_table(results))


def read_prompts(folder: Path, file: Path | None) -> dict[str, str]:
    """Picture below the folder -> its prompt.

    Raises:
        UserError: no prompts, a row without one, or two of one picture.
    """
    if file is None and not (folder / INDEX_FILE).is_file():
        if folder.is_dir() and not any(path.is_dir() for path in folder.iterdir()):
            raise UserError(
                f"{folder} holds neither GenEval's layout nor {INDEX_FILE}, which unimllm.generate writes when it has "
                "drawn all: let it end, or name the prompts with --prompts"
            )
        return {picture: metadata["prompt"] for picture, metadata in read_folder(folder).items()}
    file = file or folder / INDEX_FILE
    prompts: dict[str, str] = {}
    for n, row in enumerate(read_rows(file, ("file", "prompt")), 1):
        if not isinstance(row["file"], str) or not isinstance(row["prompt"], str):
            raise UserError(f"{file}, row {n}: 'file' and 'prompt' must be text")
        if row["file"] in prompts:
            raise UserError(f"{file}, row {n}: {row['file']} was named before")
        prompts[row["file"]] = row["prompt"]
    return prompts


def score_table(results: dict) -> Table:
    """The table for people."""
    paper = f"With the paper's weight, {WEIGHT} * max(cos, 0): {results['clip_score_paper']:.4f}"
    lines = [results["clip"], f'{paper}; its prefix "A photo depicts" is not put before the prompts.']
    if results["num_cut_prompts"]:
        lines.append(
            f"Warning: the ends of {results['num_cut_prompts']:,} prompts do not fit into it and are not read."
        )
    table = open_table(f"{results['generated']}, {results['num_pictures']:,} pictures", ("", "mean", "95 %"), lines)
    interval = as_range(results["intervals"]["clip_score"], 2)
    table.add_row("CLIPScore, 100 * max(cos, 0)", f"{results['clip_score']:.2f}", interval)
    return table


if __name__ == "__main__":
    run(main)
