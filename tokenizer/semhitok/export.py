"""A trained tokenizer as a folder to share: weights, config, image processor and a model card, nothing else.

python -m semhitok export runs/mine/pixel shared/
python -m semhitok export runs/mine/pixel/step-001000 shared/ --results results/mine.json
                        (figures of `eval/reconstruction.py --json`, measured on these very weights, go into the card)

Training state stays where it is, and no file names a folder of this machine.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from semhitok.checkpoints import RUN_FILE, files_digest, load_tokenizer, resolve
from semhitok.command_line import CommandLine, silence_libraries
from semhitok.errors import UserError

if TYPE_CHECKING:
    from semhitok import SemHiTokImageProcessor, SemHiTokModel

WORKING_NAME = ".{}.partial"
CARD = "README.md"
MEASURED_BY = "eval/reconstruction.py"


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    checkpoint = find_checkpoint(args.run)
    check_out(args.out)
    run = read_object(checkpoint / RUN_FILE) if (checkpoint / RUN_FILE).is_file() else {}
    results = read_results(args.results, checkpoint) if args.results else {}
    silence_libraries()
    from semhitok.model_card import model_card  # imports torch: what is wrong with the words was told before

    model, processor = load_tokenizer(str(checkpoint), "cpu", "RUN")
    check_trained(model, checkpoint)
    card = model_card(args.out.resolve().name, model, processor, run, results)
    written = write(model, processor, card, args.out)
    print(f"{args.out}: {', '.join(written)} (of {checkpoint})")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = CommandLine("python -m semhitok export", __doc__)
    parser.add_argument("run", nargs="?", type=Path, help="a checkpoint, or a run's folder: its newest one")
    parser.add_argument("out", nargs="?", type=Path, help="the folder to write; it must not exist, or be empty")
    parser.add_argument("--results", type=Path, help=f"JSON of {MEASURED_BY}, for the card")
    args = parser.parse_args(argv)
    if args.run is None or args.out is None:
        raise UserError("name a checkpoint and the folder to write: export runs/mine/pixel shared/; see --help")
    return args


def find_checkpoint(run: Path) -> Path:
    """`resolve` for a folder that must be there."""
    if not run.is_dir():
        raise UserError(f"{run}: no such folder; name a checkpoint of train/tokenizer.py or its output folder")
    return resolve(run, "name a checkpoint of train/tokenizer.py or its output folder")


def check_out(out: Path) -> None:
    """UserError where there is something already."""
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out} is not empty; name a new folder, so that nothing else is shared with the tokenizer")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file; name a new folder")


def check_trained(model: SemHiTokModel, checkpoint: Path) -> None:
    """UserError where a codebook has no codes yet."""
    codebooks = {name: m for name, m in model.named_modules() if hasattr(m, "initialized")}
    without = [name for name, m in codebooks.items() if m.num_codes > 1 and not bool(m.initialized)]
    if without:
        raise UserError(
            f"{checkpoint} has no codes in {without[0]} yet, so nobody can encode with it; train it further (--stage "
            "pixel follows --stage semantic) and export that"
        )


def read_object(path: Path) -> dict:
    """A file of one JSON object; UserError if it is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:  # of no UTF-8, too
        raise UserError(f"{path} is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__} instead of an object of JSON")
    return content


def read_results(path: Path, checkpoint: Path) -> dict:
    """What eval/reconstruction.py measured; UserError if it is of another program or of other weights."""
    results = read_object(path)
    if results.get("program") != MEASURED_BY:
        raise UserError(f"--results {path} is of {results.get('program')!r}; name what {MEASURED_BY} --json wrote")
    own = files_digest(*sorted(checkpoint.glob("*.safetensors")))
    if results.get("fingerprint") != own:
        raise UserError(
            f"--results {path} is of other weights ({results.get('fingerprint')}) than {checkpoint} ({own}); measure "
            f"these: {MEASURED_BY} --model {checkpoint} --data PICTURES --json {path}"
        )
    return results


def write(model: SemHiTokModel, processor: SemHiTokImageProcessor, card: str, out: Path) -> list[str]:
    """Write the folder, whole or not at all: the names of its files; UserError if the place cannot be written."""
    partial = out.parent / WORKING_NAME.format(out.name)
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
        (partial / CARD).write_text(card, encoding="utf-8")
        names = sorted(path.name for path in partial.iterdir())
        for name in names:
            (partial / name).chmod(0o644)
        if out.is_dir():
            out.rmdir()  # it is empty; Windows puts nothing in its place
        os.replace(partial, out)
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror or error}; choose another folder") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return names
