"""The results of eval/scenes.py as a table for people and as JSON for programs."""

import json
import math
import os
import subprocess
from pathlib import Path

import torch
from rich import box
from rich.table import Table

from unimllm.images import write_atomically
from unimllm.metrics.geneval import TAGS


def make_table(results: dict) -> Table:
    """One table of what `results` holds; parts that were not examined are left out."""
    table = Table(
        title=f"{results['model']} on held-out scenes, seed {results['seed']}",
        caption="Ceilings: true renders as the reader sees them, and after encoding and decoding them.",
        box=box.SIMPLE_HEAD,
    )
    for heading in ("", "score", "95 %", "reader", "tokenizer"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
    _add_tokenizer(table, results)
    if "pope" in results:
        _add_understanding(table, results)
    _add_drawing(table, results)
    if "seconds_per_picture" in results:
        table.add_section()
        table.add_row("seconds per picture, alone", f"{results['seconds_per_picture']:.2f}")
        table.add_row("seconds per picture, batched", f"{results['seconds_per_picture_batched']:.3f}")
        table.add_row("seconds per answer, alone", f"{results['seconds_per_answer']:.3f}")
    return table


def _add_tokenizer(table: Table, results: dict) -> None:
    intervals = results["intervals"]
    true_rate = f"{results['objects_read_in_true_renders']:.3f}"
    table.add_row(f"Reconstruction ({results['num_pictures']} pictures)", style="bold")
    table.add_row("PSNR, dB", f"{results['psnr']:.2f}", as_range(intervals["psnr"], 2))
    table.add_row("SSIM", f"{results['ssim']:.3f}", as_range(intervals["ssim"]))
    table.add_row(
        "objects read, of those in true renders",
        f"{results['objects_read']:.3f}", as_range(intervals["objects_read"]), true_rate,
    )  # fmt: skip
    add_code_use(table, results)


def add_code_use(table: Table, results: dict) -> None:
    """Rows of what `metrics.codes.code_use` returns, and of `num_positions`, how many codes were counted."""
    table.add_section()
    table.add_row(f"Code use ({results['num_positions']} positions)", style="bold")
    table.add_row("semantic codes", f"{results['semantic_code_use']:.3f}")
    table.add_row("flat codes", f"{results['flat_code_use']:.3f}")
    shares = (results[f"sub_codebook_use_{name}"] for name in ("min", "median", "mean"))
    table.add_row("per sub-codebook: min/median/mean", "/".join(f"{share:.2f}" for share in shares))
    perplexities = (results[f"{name}_perplexity"] for name in ("semantic", "pixel", "flat"))
    table.add_row("perplexity: semantic/pixel/flat", "/".join(f"{p:.0f}" for p in perplexities))


def _add_understanding(table: Table, results: dict) -> None:
    table.add_section()
    table.add_row(f"Understanding ({results['num_questions']} questions, POPE apart)", style="bold")
    for split, scores in results["pope"].items():
        said_yes = scores["official"]["yes_ratio"]
        interval = as_range(results["intervals"][f"pope_f1_{split}"])
        table.add_row(f"POPE F1, {split} (says yes {said_yes:.2f})", f"{scores['official']['f1']:.3f}", interval)
    table.add_row("POPE F1, mean", f"{results['pope_f1']:.3f}")
    table.add_row("POPE F1, mean, strict parsing", f"{results['pope_f1_strict']:.3f}")
    for kind, accuracy in results["question_accuracy_by_kind"].items():
        interval = as_range(results["intervals"]["question_accuracy_by_kind"][kind])
        table.add_row(f"accuracy: {kind.replace('_', ' ')}", f"{accuracy:.3f}", interval)
    interval = as_range(results["intervals"]["question_accuracy"])
    table.add_row("accuracy: all questions", f"{results['question_accuracy']:.3f}", interval)


def _add_drawing(table: Table, results: dict) -> None:
    table.add_section()
    table.add_row(f"Drawing ({results['num_prompts']} prompts)", style="bold")
    drawn, intervals = results.get("geneval", {}), results["intervals"].get("geneval", {})
    for tag in (*TAGS, "overall"):
        if tag in results["reader_ceiling"]:
            table.add_row(
                f"GenEval: {tag.replace('_', ' ')}",
                f"{drawn[tag]:.3f}" if tag in drawn else "", as_range(intervals[tag]) if tag in intervals else "",
                f"{results['reader_ceiling'][tag]:.3f}", f"{results['tokenizer_ceiling'][tag]:.3f}",
            )  # fmt: skip


def as_range(interval: tuple[float, float], digits: int = 3) -> str:
    """An interval for people."""
    return f"{interval[0]:.{digits}f} - {interval[1]:.{digits}f}"


def describe_machine(program: str) -> dict[str, str | int | float | None]:
    """What to know of a run to judge its timings and to repeat it.

    Args:
        program: `__file__` of the program, whose commit is told (None outside a git checkout).
    """
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    git = subprocess.run(command, cwd=Path(program).parent, capture_output=True, text=True)
    return {
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 1),
        "commit": git.stdout.strip() or None,
    }


def write_json(path: Path, results: dict) -> None:
    """Write results as JSON, whole or not at all; numbers that it cannot hold (PSNR of equal pictures) become null.

    Raises:
        UserError: the place cannot be written.
    """
    text = json.dumps(_finite(results), indent=1, allow_nan=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
