"""Draw pictures from prompts.

python -m unimllm.generate --prompt "a photo of a red apple" --out apple.png
python -m unimllm.generate --prompts-file prompts.jsonl --out-dir pictures
python -m unimllm.generate --model CHEERS --image apple.png --prompt "make it green" --out green.png

The same seed on the same machine gives the same bytes; in float32 also whatever else is drawn in the same batch (of
CHEERS up to rounding there, a level in a few pixels).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from unimllm.command_line import CommandLine, given_drawing, number, open_model, out_of_memory_told, run
from unimllm.drawing import START_TIME, check_edits, check_start_time, choose_drawing
from unimllm.errors import UserError
from unimllm.images import check_writable, open_picture, picture_format, save_picture
from unimllm.inference import check_prompts, draw
from unimllm.json_rows import write_rows

if TYPE_CHECKING:
    from PIL import Image

BATCH_SIZE = 32
INDEX_FILE = "index.jsonl"
MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class Job:
    """One picture to draw.

    Attributes:
        record: the line of the prompts file that asked for it, repeated in the index.
        where: that line lies, for messages; "" without a file.
    """

    prompt: str
    seed: int
    path: Path
    record: dict
    where: str = ""


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    jobs = plan(args)
    for job in jobs:
        check_writable(job.path)
    picture = open_picture(args.image) if args.image else None
    model, processor = open_model(args.model, args.device, args.dtype)
    options = choose_drawing(model, given_drawing(args))
    if picture is not None:
        check_edits(model)
        options |= {"start_time": START_TIME if args.start_time is None else args.start_time}
    for job in {job.prompt: job for job in reversed(jobs)}.values():
        with told_where(job.where):
            check_prompts(model, processor, [job.prompt], with_pictures=picture is not None)
    if args.out_dir:  # an earlier run's would speak of other pictures than lie there, were this one broken off
        (args.out_dir / INDEX_FILE).unlink(missing_ok=True)
    draw_jobs(model, processor, jobs, args.batch_size, options, picture)
    if args.out_dir:
        write_index(args.out_dir, jobs)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The options; UserError where they are wrong or contradict each other."""
    parser = CommandLine("python -m unimllm.generate", "Draw pictures from prompts.")
    parser.add_argument("--prompt", help="what to draw, for example 'a photo of a red apple'")
    parser.add_argument("--out", type=Path, help="picture to write; its ending is its format")
    parser.add_argument("--prompts-file", type=Path, help='one JSON object with "prompt", or one JSON string, a line')
    parser.add_argument("--out-dir", type=Path, help=f"folder for 00000.png, 00001.png, ... and {INDEX_FILE}")
    parser.add_argument("--num-images", type=number(int, 1), default=1, help="pictures of each prompt (1)")
    parser.add_argument(
        "--seed", type=number(int, 0, MAX_SEED), default=0,
        help="picture i is drawn with SEED + i (0), or with the own \"seed\" of its line + i",
    )  # fmt: skip
    parser.add_argument("--image", type=Path, help="picture to begin from, ahead of every prompt (cheers models)")
    parser.add_argument(
        "--start-time", type=number(float, 0, 1), metavar="T",
        help=f"of --image: near 0 little of the picture stays in place, near 1 nearly all ({START_TIME})",
    )  # fmt: skip
    parser.add_drawing_options()
    parser.add_argument("--batch-size", type=number(int, 1), default=BATCH_SIZE, help="pictures at once (%(default)s)")
    parser.add_model_options()
    args = parser.parse_args(argv)
    if (args.prompt is None) == (args.prompts_file is None):
        raise UserError("give either --prompt TEXT --out PICTURE or --prompts-file FILE --out-dir FOLDER")
    given, other = ("out", "out_dir") if args.prompt is not None else ("out_dir", "out")
    if getattr(args, given) is None or getattr(args, other) is not None:
        source = "--prompt" if given == "out" else "--prompts-file"
        raise UserError(f"{source} goes with --{given.replace('_', '-')}: say where to write")
    given_drawing(args)
    check_start_time(args.start_time, args.image is not None, "--start-time")
    if args.seed + args.num_images - 1 > MAX_SEED:
        raise UserError(f"--seed {args.seed} with --num-images {args.num_images} goes beyond {MAX_SEED}")
    return args


def plan(args: argparse.Namespace) -> list[Job]:
    """Every picture with its seed and its place; UserError if the prompts or the places are wrong."""
    if args.prompts_file is None:
        if not args.prompt.strip():
            raise UserError("--prompt is empty: say what to draw, for example 'a photo of a red apple'")
        picture_format(args.out)
        targets = [("", {"prompt": args.prompt}, args.out)]
    else:
        index = args.out_dir / INDEX_FILE
        if index.exists() and os.path.samefile(index, args.prompts_file):
            raise UserError(f"{args.prompts_file} would be overwritten by the index; choose another --out-dir")
        records = read_prompts(args.prompts_file)
        check_writable(index)
        targets = [(*record, args.out_dir / f"{position:05d}.png") for position, record in enumerate(records)]
    return [
        Job(record["prompt"], record.get("seed", args.seed) + i, place(path, i, args.num_images), record, where)
        for where, record, path in targets
        for i in range(args.num_images)
    ]


def place(path: Path, i: int, num_images: int) -> Path:
    """`apple.png`, or `apple-0.png`, `apple-1.png`, ... where there are several."""
    return path if num_images == 1 else path.with_name(f"{path.stem}-{i}{path.suffix}")


def read_prompts(path: Path) -> list[tuple[str, dict]]:
    """Where each line of a prompts file lies, and its record with "prompt"; GenEval's metadata lines are such records.

    Raises:
        UserError: the file cannot be read or holds no prompt, or a line is wrong: with its number.
    """
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except FileNotFoundError as error:
        raise UserError(f"no such file: --prompts-file {path}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read --prompts-file {path}: {getattr(error, 'strerror', None) or error}") from error
    places = [(f"{path}, line {i}", line) for i, line in enumerate(lines, 1) if line.strip()]
    records = [(where, parse_line(line, where)) for where, line in places]
    if not records:
        raise UserError(f"{path} holds no prompts")
    return records


def parse_line(line: bytes, where: str) -> dict:
    """One line of a prompts file as a record with "prompt"; UserError that begins with `where`."""
    expected = 'expected a JSON object with "prompt", or a JSON string'
    try:
        value = json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 (byte {error.start + 1})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: no JSON ({error}); {expected}") from error
    record = {"prompt": value} if isinstance(value, str) else value
    if not isinstance(record, dict) or not isinstance(record.get("prompt"), str):
        raise UserError(f"{where}: {expected}")
    if not record["prompt"].strip():
        raise UserError(f"{where}: the prompt is empty")
    seed = record.get("seed", 0)
    if type(seed) is not int or not 0 <= seed <= MAX_SEED // 2:  # there are pictures behind the first
        raise UserError(f"{where}: the seed is {seed!r}, no whole number from 0 to {MAX_SEED // 2}")
    return record


@contextlib.contextmanager
def told_where(where: str) -> Iterator[None]:
    """UserErrors within begin with where the prompt lies."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{where}: {error}" if where else str(error)) from error


def draw_jobs(
    model, processor, jobs: list[Job], batch_size: int, options: dict[str, float], picture: Image.Image | None
) -> None:
    """Draw in batches, write each picture as soon as it is there, print where.

    Args:
        options: all of them.
        picture: to begin from, where there is one.
    """
    from tqdm import tqdm

    batches = [jobs[i : i + batch_size] for i in range(0, len(jobs), batch_size)]
    total = len(batches) * model.num_drawing_steps(options)
    with tqdm(total=total, desc="drawing", unit=model.drawing_unit, file=sys.stderr) as bar:
        for batch in batches:
            drawn = draw_batch(model, processor, batch, options, picture, bar.update)
            for job, drawing in zip(batch, drawn, strict=True):
                save_picture(drawing, job.path)
                tqdm.write(str(job.path), file=sys.stdout)


def draw_batch(
    model, processor, jobs: list[Job], options: dict[str, float], picture: Image.Image | None,
    on_step: Callable[[], None],
) -> list[Image.Image]:  # fmt: skip
    """The pictures of some jobs; UserError if they do not fit into memory together."""
    prompts, seeds = [job.prompt for job in jobs], [job.seed for job in jobs]
    pictures = None if picture is None else [picture] * len(jobs)
    with out_of_memory_told(len(jobs)):
        return draw(model, processor, prompts, seeds, on_step, pictures, **options)


def write_index(folder: Path, jobs: list[Job]) -> None:
    """`index.jsonl`: a line for each picture, the record of its prompt with "file" and "seed"."""
    write_rows(folder / INDEX_FILE, (job.record | {"file": job.path.name, "seed": job.seed} for job in jobs))


if __name__ == "__main__":
    run(main)
