"""What reports of measurements share: rows of tables, JSON for programs, and the machine that measured."""

import json
import math
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedModel

import unimllm
from unimllm.fingerprint import commit_of, weights_fingerprint
from unimllm.images import write_atomically
from unimllm.inference import DEFAULT_NAME


def as_range(interval: tuple[float, float], digits: int = 3) -> str:
    """An interval for people."""
    return f"{interval[0]:.{digits}f} - {interval[1]:.{digits}f}"


def print_table(table: Table, width: int = 100) -> None:
    """Print to stdout; a pipe or a file has no width, so there it is `width` characters."""
    Console(width=None if sys.stdout.isatty() else width).print(table)


def open_table(title: str, headings: Sequence[str], notes: Sequence[str] = (), num_names: int = 1) -> Table:
    """A table without rows yet.

    Args:
        headings: of its columns.
        notes: lines under it.
        num_names: columns of words, the first ones; those after them hold numbers, which stand to the right.
    """
    table = Table(title=title, caption="\n".join(notes), caption_justify="left", box=box.SIMPLE_HEAD)
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="left" if i < num_names else "right", no_wrap=True)
    return table


def speed_told(speed: dict) -> str:
    """A line of `questions.Answers.speed`."""
    return (
        f"{speed['num_answers']:,} answers about {speed['num_pictures']:,} pictures, each encoded once: "
        f"{speed['questions_per_second']:.1f} questions/s, {speed['pictures_per_second']:.2f} pictures/s "
        f"({speed['device']}, batches of {speed['batch_size']})"
    )


def add_code_use(table: Table, results: dict) -> None:
    """Rows of what `metrics.codes.tokenizer_code_use` returns, none where it is empty."""
    if "num_positions" not in results:
        return
    table.add_section()
    table.add_row(f"Code use ({results['num_positions']} positions)", style="bold")
    table.add_row("semantic codes", f"{results['semantic_code_use']:.3f}")
    table.add_row("flat codes", f"{results['flat_code_use']:.3f}")
    shares = (results[f"sub_codebook_use_{name}"] for name in ("min", "median", "mean"))
    table.add_row("per sub-codebook: min/median/mean", "/".join(f"{share:.2f}" for share in shares))
    perplexities = (results[f"{name}_perplexity"] for name in ("semantic", "pixel", "flat"))
    table.add_row("perplexity: semantic/pixel/flat", "/".join(f"{p:.0f}" for p in perplexities))


def describe_start(program: str, argv: list[str] | None) -> dict:
    """What is told of a run before its long work, while the files are those that it runs: see `describe_run`.

    Args:
        program: `__file__` of the program.
        argv: see `command_told`.
    """
    name = "/".join(Path(program).parts[-2:])
    return describe_machine(program) | {"program": name, "command": command_told(name, argv)}


def describe_run(
    start: dict,
    *,
    model: str,
    fingerprint: str | None,
    fingerprint_of: str,
    seed: int,
    num_samples: dict[str, int],
    limited: bool,
) -> dict:
    """What every result carries: of what it is, how to repeat it, and what to know of its timings.

    Args:
        start: of `describe_start`.
        model: as the user named it.
        fingerprint: see unimllm/fingerprint.py.
        fingerprint_of: "weights", or what alone was scored: "answers", "pictures".
        seed: of the samples, or of the intervals alone where the samples are given.
        num_samples: what was measured on -> how many: "pictures", "questions", "prompts", ...
        limited: whether that is only a part of the set.
    """
    return start | {
        "model": model,
        "fingerprint": fingerprint,
        "fingerprint_of": fingerprint_of,
        "seed": seed,
        "num_samples": num_samples,
        "limited": limited,
    }


def about_model(checkpoint: str, name: str | None) -> dict[str, str | None]:
    """`model`, `fingerprint` and `fingerprint_of` of `describe_run`.

    Args:
        checkpoint: what `checkpoint_of` made of the user's --model and `load` opened.
        name: that the user gave it, or its --model; None: of the one that ships.
    """
    return {
        "model": name or DEFAULT_NAME, "fingerprint": weights_fingerprint(checkpoint), "fingerprint_of": "weights"
    }  # fmt: skip


def describe_machine(program: str) -> dict:
    """The machine, the libraries and the commit that a program runs on.

    Args:
        program: `__file__` of the program, whose commit is told (None outside a git checkout).
    """
    return {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "versions": library_versions() | {"unimllm": unimllm.__version__},
        "load_average": load_average(),
        "commit": commit_of(program),
    }


def load_average() -> float | None:
    """Processes that wanted a core, mean of the last minute; None where the system does not tell it (Windows)."""
    try:
        return round(os.getloadavg()[0], 1)
    except (AttributeError, OSError):
        return None


def library_versions() -> dict[str, str]:
    """Those of the libraries that compute."""
    return {"torch": torch.__version__, "transformers": version("transformers")}


def model_told(model: PreTrainedModel) -> dict[str, str]:
    """What a model or an image tokenizer runs in and on: `dtype`, that of its language model if it has one, and
    `device_told`.
    """
    dtype = getattr(model, "language_model", model).dtype
    return {"dtype": str(dtype).removeprefix("torch.")} | device_told(model.device)


def rounding_told(model: PreTrainedModel, batch_size: int) -> dict:
    """What rounds a model's numbers beside its code: runs that differ in it may answer and draw differently.

    Args:
        batch_size: told where the model is not in float32, in which alone it changes nothing.
    """
    told = model_told(model) | {"device": model.device.type, "versions": library_versions()}  # any GPU of that name
    return told if told["dtype"] == "float32" else told | {"batch_size": batch_size}


def device_told(device: torch.device) -> dict[str, str]:
    """What a model ran on: `device`, and `gpu`, the GPU's name, where it is one."""
    gpu = {"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}
    return {"device": str(device)} | gpu


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
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def write_json(path: Path, results: dict) -> None:
    """Write results as JSON, whole or not at all; numbers that it cannot hold (nan, infinity) become null.

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
