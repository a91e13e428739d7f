"""What reports of measurements share: rows of tables, JSON for programs, and the machine that measured."""

import hashlib
import json
import math
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from unimllm.errors import UserError
from unimllm.images import write_atomically


def as_range(interval: tuple[float, float], digits: int = 3) -> str:
    """An interval for people."""
    return f"{interval[0]:.{digits}f} - {interval[1]:.{digits}f}"


def print_table(table: Table, width: int = 100) -> None:
    """Print to stdout; a pipe or a file has no width, so there it is `width` characters."""
    Console(width=None if sys.stdout.isatty() else width).print(table)


def speed_told(speed: dict) -> str:
    """A line of `questions.Answers.speed`."""
    return (
        f"{speed['num_answers']:,} answers about {speed['num_pictures']:,} pictures, each encoded once: "
        f"{speed['questions_per_second']:.1f} questions/s, {speed['pictures_per_second']:.2f} pictures/s "
        f"({speed['device']}, batches of {speed['batch_size']})"
    )


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


def describe_machine(program: str) -> dict[str, str | int | float | None]:
    """What to know of a run to judge its timings and to repeat it.

    Args:
        program: `__file__` of the program, whose commit is told (None outside a git checkout).
    """
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    git = subprocess.run(command, cwd=Path(program).parent, capture_output=True, text=True)
    return {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "load_average": round(os.getloadavg()[0], 1),
        "commit": git.stdout.strip() or None,
    }


def model_fingerprint(folder: Path) -> str:
    """Sixteen hexadecimal digits of a sha256 over a checkpoint's weights: its *.safetensors in order of their names.

    Raises:
        UserError: there are none, or one cannot be read.
    """
    digest = hashlib.sha256()
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise UserError(f"{folder} holds no weights: no *.safetensors")
    for path in files:
        try:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise UserError(f"cannot read the weights {path}: {error.strerror or error}") from error
    return digest.hexdigest()[:16]


def command_told(program: str, argv: list[str] | None) -> str:
    """The command that made a result, to be repeated.

    Args:
        program: as it is called, such as "eval/pope.py".
        argv: what its `main` was given; None: what the process was.
    """
    return shlex.join(["python", program, *(sys.argv[1:] if argv is None else argv)])


def processor() -> str:
    """The processor's name, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


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
