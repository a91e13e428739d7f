"""Two sets of pictures beside each other, as eval/reconstruction.py and eval/pictures.py report them.

Shapes: n pictures of H x W pixels, (n, H, W, 3) uint8 RGB.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from rich.table import Table

from semhitok.command_line import counted
from semhitok.teacher import load_teacher
from unimllm.command_line import CommandLine
from unimllm.errors import UserError
from unimllm.metrics.frechet import ENOUGH, KID_MOST, FrechetComparison
from unimllm.metrics.intervals import bootstrap_mean
from unimllm.metrics.networks import FeatureNet, PairDistance, inception_net, lpips_distance, siglip_net
from unimllm.metrics.reconstruction import MAX, MOST, psnr, ssim, ssim_uniform
from unimllm.report import as_range

SCORES = {  # per pair of pictures: name in the table, digits
    "psnr": ("PSNR, dB", 2),
    "ssim": ("SSIM, Gaussian 11 x 11, data_range = 1.0", 4),
    "ssim_uniform_data_range_2": ("SSIM, uniform 7 x 7, data_range = 2.0 (too high; some papers print it)", 4),
    "lpips": ("LPIPS", 4),
}
EQUAL = "num_equal"  # pairs of one and the same picture


def add_network_options(parser: CommandLine, without_features: str) -> None:
    """--inception-weights, --features, --lpips-weights and --device.

    Args:
        without_features: what stands in for --features, for --help.
    """
    parser.add_argument("--inception-weights", type=Path, help="weights-inception-2015-12-05-6726825d.pth, for FID")
    parser.add_argument("--features", help=f"a SigLIP by folder or hub id, for FD (default: {without_features})")
    parser.add_argument("--lpips-weights", type=Path, help="vgg16-397923af.pth or alexnet-owt-7be5be79.pth, for LPIPS")
    parser.add_device_option()


def open_networks(args: argparse.Namespace, device: torch.device) -> tuple[list[FeatureNet], PairDistance | None]:
    """The networks of FID and FD that were asked for, and LPIPS if it was."""
    nets = []
    if args.inception_weights:
        nets.append(inception_net(args.inception_weights, device))
    if args.features:
        try:
            teacher = load_teacher(args.features)
        except (ValueError, OSError) as error:
            raise UserError(f"--features: {error}") from error
        for note in teacher.notes:
            print(f"note: {note}", file=sys.stderr)
        nets.append(siglip_net(args.features, teacher, device))
    return nets, lpips_distance(args.lpips_weights, device) if args.lpips_weights else None


def compare_pairs(first: np.ndarray, second: np.ndarray, lpips: PairDistance | None) -> dict[str, np.ndarray]:
    """Two (n, H, W, 3) uint8 -> key of SCORES: (n,); and under EQUAL whether the two of a pair are equal, (n,) bool."""
    scores = {
        EQUAL: (first == second).all((1, 2, 3)),
        "psnr": psnr(first, second),
        "ssim": ssim(first, second),
        "ssim_uniform_data_range_2": ssim_uniform(first, second, data_range=2 * MAX),
    }
    return scores | ({"lpips": lpips.distance(first, second)} if lpips else {})


def summarize_pairs(scores: dict[str, list[np.ndarray]], seed: int = 0) -> dict:
    """Batches of `compare_pairs` -> means by their keys, "intervals", which are bootstrapped with `seed`, and how many
    are EQUAL."""
    values = {name: np.concatenate(batches) for name, batches in scores.items()}
    equal = values.pop(EQUAL, np.empty(0))
    means = {name: float(v.mean()) for name, v in values.items()}
    return means | {"intervals": {name: bootstrap_mean(v, seed) for name, v in values.items()}, EQUAL: int(equal.sum())}


def compare_sets(nets: list[FeatureNet], comparisons: list[FrechetComparison]) -> dict:
    """Frechet and kernel distances by the networks' names, and what has to be said of them."""
    frechet: dict[str, dict] = {}
    if not nets:
        return {"frechet": frechet, "warnings": []}
    count = min(comparisons[0].counts)
    if count < 2:
        return {"frechet": frechet, "warnings": [f"{count} picture has no covariance: no Frechet distance"]}
    for net, comparison in zip(nets, comparisons, strict=True):
        about = {"kid_name": net.kid_name, "library": net.library, "num_pairs": comparison.num_pairs}
        frechet[net.frechet_name] = about | comparison.result()
    kernel = " and ".join(net.kid_name for net in nets)
    if max(comparisons[0].counts) > KID_MOST:
        told = f"no {kernel}: it keeps the features of {KID_MOST:,} pictures of a set at most"
        return {"frechet": frechet, "warnings": [told]}
    if count >= ENOUGH:
        return {"frechet": frechet, "warnings": []}
    warning = (
        f"{' and '.join(frechet)} of {count} pictures is biased, a covariance needs {ENOUGH:,}: compare it only "
        f"between equal numbers of pictures, and trust {kernel} more"
    )
    return {"frechet": frechet, "warnings": [warning]}


def add_comparison(table: Table, results: dict) -> None:
    """Rows of what `summarize_pairs` and `compare_sets` gave; columns: what, mean, 95 %."""
    for name in (name for name in SCORES if name in results):
        title, digits = SCORES[name]
        title += f" ({results['lpips_backbone']})" if name == "lpips" else ""
        table.add_row(title, f"{results[name]:.{digits}f}", as_range(results["intervals"][name], digits))
    for name, values in results["frechet"].items():
        table.add_row(name, f"{values['distance']:.3f}")
        if "kid_mean" in values:
            subsets = f"std {1000 * values['kid_std']:.3f} of {values['kid_subset_size']} pictures"
            kid = f"{values['kid_name']} x 1000" + (f", {values['num_pairs']:,} pairs" if values["num_pairs"] else "")
            table.add_row(kid, f"{1000 * values['kid_mean']:.3f}", subsets)


def equal_told(results: dict) -> list[str]:
    """A line of how many pairs are equal, if any is."""
    if not results[EQUAL]:
        return []
    return [f"Exactly equal: {counted(results[EQUAL], 'pair')}, at {MOST:.0f} dB in the mean PSNR."]


def networks_told(results: dict) -> list[str]:
    """Lines of which networks and libraries measured."""
    lines = [f"{name}: {v['library']}; {v['num_features']} features." for name, v in results["frechet"].items()]
    return lines + ([f"LPIPS: {results['lpips_library']}."] if "lpips_library" in results else [])
