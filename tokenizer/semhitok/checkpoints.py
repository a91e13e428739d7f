"""Checkpoint folders: the newest of a training run, and the image tokenizer that one of them, or the hub, holds."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from semhitok.errors import UserError, first_line
from semhitok.misfit import LOADING, misfit_of_report

if TYPE_CHECKING:  # torch and transformers are imported where they are used: the command lines complain without them
    from collections.abc import Callable

    from transformers import PreTrainedModel

    from semhitok import SemHiTokImageProcessor, SemHiTokModel

RUN_FILE = "run.json"
STEP_FOLDER = re.compile(r"step-(\d{6,})$")
NOT_BUILT_FOR = ("no kernel image", "not compatible")  # in what torch says of a GPU that it has no kernels for
DIGITS = 16  # hexadecimal, of a sha256
BEST = "best"  # link beside the checkpoints of a run to that with the lowest validation loss


def files_digest(*files: Path) -> str:
    """The first DIGITS digits of the sha256 over files, one after the other; UserError if one is unreadable."""
    digest = hashlib.sha256()
    for path in files:
        try:
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    return digest.hexdigest()[:DIGITS]


def step_folders(output_dir: Path) -> list[Path]:
    """Complete checkpoints of an output folder, oldest first."""
    if not output_dir.is_dir():
        return []
    found = [p for p in output_dir.iterdir() if STEP_FOLDER.match(p.name) and (p / RUN_FILE).is_file()]
    return sorted(found, key=step_of)


def step_of(folder: Path) -> int:
    """The step of a checkpoint folder."""
    return int(STEP_FOLDER.match(folder.name)[1])


def folder_name(step: int) -> str:
    """The checkpoint folder of a step."""
    return f"step-{step:06d}"


def latest(output_dir: Path) -> Path | None:
    """The newest complete checkpoint, or None."""
    folders = step_folders(output_dir)
    return folders[-1] if folders else None


def resolve(path: Path, remedy: str = "") -> Path:
    """A checkpoint folder from itself, from the output folder that holds it or from the link `best` in that.

    Raises:
        UserError: there is none; it ends with the remedy.
    """
    if path.name == BEST and path.is_symlink():
        path = path.with_name(os.readlink(path))  # which the run may soon let name another
    if (path / "config.json").is_file():
        return path
    newest = latest(path)
    if newest is None:
        where = f"no checkpoint in {path}: neither config.json nor a complete step-* folder lies there"
        raise UserError(f"{where}; {remedy}" if remedy else where)
    return newest


def may_be_hub_id(name: str) -> bool:
    """Whether what is no folder here can be `owner/name` on the hub; `C:/name` and what has a backslash cannot."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not set(name) & set(":\\")


def choose_device(device: str | None) -> str:
    """The device asked for, UserError if it cannot be used; where none was, a GPU if there is one that can be."""
    if device is None:
        return _gpu_or_cpu()
    problem = _why_not(device)
    if problem is not None:
        raise UserError(f"device {device!r} cannot be used here: {first_line(problem)}") from problem
    return device


@cache
def _gpu_or_cpu() -> str:
    """The device that is taken where none was named; a GPU that cannot be used is told once."""
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    problem = _why_not("cuda")
    if problem is None:
        return "cuda"
    if not any(words in str(problem) for words in NOT_BUILT_FOR):  # full, or another's: to be waited for
        raise UserError(f"the GPU cannot be used now: {first_line(problem)}; wait, or name a --device") from problem
    print(
        f"note: the GPU cannot be used, the CPU is: {first_line(problem)}; install a torch that was built for this GPU "
        "(for a V100 from https://download.pytorch.org/whl/cu126), or silence this with --device cpu",
        file=sys.stderr, flush=True,
    )  # fmt: skip
    return "cpu"


def _why_not(device: str) -> Exception | None:
    """What happens to somebody who computes on a device; None: it does."""
    import torch

    try:
        (torch.zeros(1, device=device) + 1).item()  # a kernel, which torch may not have for this device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        return error
    return None


def shipped_model() -> Path | None:
    """The small model that ships beside this library, None where there is none. Nothing is imported to find it."""
    spec = importlib.util.find_spec("unimllm")
    folder = Path(spec.origin).parent / "default" if spec and spec.origin else None
    return folder if folder and (folder / "config.json").is_file() else None


def find_tokenizer(model: str | None, option: str = "--model") -> str:
    """Path or hub id of the checkpoint that `load_tokenizer` was asked for.

    Raises:
        UserError: there is no such folder, no checkpoint in it, or none was named and none ships.
    """
    if model is None:
        shipped = shipped_model()
        if shipped is None:
            raise UserError("no model ships with this installation: name a tokenizer with --model, a folder or hub id")
        return str(shipped)
    if Path(model).is_dir():
        return str(resolve(Path(model)))
    if not may_be_hub_id(model):
        raise UserError(f"{option} {model}: no such folder")
    return model


def load_tokenizer(
    model: str | None = None, device: str | None = None, option: str = "--model"
) -> tuple[SemHiTokModel, SemHiTokImageProcessor]:
    """Load an image tokenizer, of any kind that `semhitok.auto` knows, and its image processor.

    Args:
        model: folder or hub id of a tokenizer's checkpoint, or of a language model that holds one; an output folder of
            `train/tokenizer.py` means its newest checkpoint; None: the small model that ships.
        device: "cpu", "cuda", ...; None: a GPU if there is one. The weights are float32 anywhere; two kinds of device
            round sums differently (NVIDIA's convolutions are TF32), so that one code in some hundreds may differ.
        option: of the command line that named it, for the messages.

    Returns:
        (model in evaluation mode, image processor). A checkpoint saved without an image processor gets the usual one.

    Raises:
        UserError: there is no such checkpoint, it holds no SemHiTok, or other tensors than it should.
    """
    path = find_tokenizer(model, option)
    from semhitok.auto import tokenizer_class

    return load_whole(tokenizer_class, path, device)


def load_whole(
    find_class: Callable[[str], type[PreTrainedModel]], path: str, device: str | None
) -> tuple[PreTrainedModel, SemHiTokImageProcessor]:
    """`load_tokenizer` for a checkpoint that has been found.

    Args:
        find_class: path -> the class of the tokenizer that it holds.
    """
    device = choose_device(device)
    import torch

    from semhitok import SemHiTokImageProcessor
    from semhitok.image_processing_semhitok import for_tokenizer

    try:
        loaded, report = find_class(path).from_pretrained(path, dtype=torch.float32, **LOADING)
        if told := misfit_of_report(report, is_whole=True):  # of a whole model, its class ignores the rest by name
            raise UserError(f"{path}: the checkpoint {told}")
    except UserError:
        raise
    except Exception as error:  # a damaged file raises nearly anything, safetensors' own types included
        raise UserError(f"cannot load a tokenizer from {path}: {first_line(error)}") from error
    try:
        processor = SemHiTokImageProcessor.from_pretrained(path)
    except OSError:
        processor = for_tokenizer(loaded.config)
    return loaded.eval().to(device), processor
