"""Pictures to packed shards of codes.

python -m semhitok encode photos/ more.jpg --out codes/
python -m semhitok encode photos/ --out codes/ --model runs/scenes_64/decoder --batch-size 256 --device cuda --bf16

Started again it goes on: keys that are there already are skipped. A picture's key is its path below its folder.
Pictures that lie in tars, parquet files or datasets: `python -m unimllm.encode`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from semhitok.command_line import CommandLine, counted, open_tokenizer, out_of_memory_told
from semhitok.errors import UserError
from semhitok.images import check_writable
from semhitok.picture_files import Readable, Unreadable, find_pictures, read_batches
from semhitok.shard_writer import Part, ShardWriter

if TYPE_CHECKING:
    from semhitok import SemHiTokImageProcessor, SemHiTokModel


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    files, num_others = find_pictures(args.pictures)
    check_writable(args.out / "codes-000000.bin")
    model, processor = open_tokenizer(args.model, args.device)
    from tqdm import tqdm

    unreadable = Unreadable()
    with open_writer(model, processor, args) as writer:
        files = [file for file in files if file.key in args.part]
        new = [file for file in files if file.key not in writer]
        bar = tqdm(new, desc="encoding", unit="picture", file=sys.stderr)
        encode_pictures(model, processor, bar, writer, unreadable, args)
    unreadable.name_first()
    print(report(args.out, len(new) - len(unreadable), len(files) - len(new), unreadable, num_others))
    if args.strict and unreadable:
        raise UserError(f"{unreadable}; without --strict that is no error")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = CommandLine("python -m semhitok encode", "Pictures to packed shards of codes.")
    parser.add_argument("pictures", type=Path, nargs="*", help="pictures, or folders of pictures")
    add_options(parser)
    args = parser.parse_args(argv)
    if not args.pictures or args.out is None:
        raise UserError("name pictures or folders of pictures, and where to write: encode photos/ --out codes/")
    check_part(args)
    return args


def add_options(parser: CommandLine, strict: str = "exit with 2 if a picture could not be read") -> None:
    """Everything but what is encoded; `strict` is the help of --strict."""
    parser.add_argument("--out", type=Path, help="folder for the shards; what it holds already is not encoded again")
    parser.add_argument("--overwrite", action="store_true", help="delete the shards that --out holds first")
    parser.add_argument(
        "--part", type=part, default=Part(), metavar="I/N",
        help="encode the I-th (from 0) of N parts of the pictures, one program for each GPU, all with one --out",
    )  # fmt: skip
    parser.add_argument("--strict", action="store_true", help=strict)
    parser.add_argument(
        "--pad-to-square", action="store_true",
        help="fill pictures up to squares, as presets with pad_to_square train, not cut to them (default: the model's)",
    )  # fmt: skip
    parser.add_tokenizer_options()


def part(text: str) -> Part:
    """A type for `add_argument`: "3/8"."""
    words = text.split("/")
    if len(words) == 2 and all(word.isdecimal() for word in words) and int(words[0]) < int(words[1]):
        return Part(*map(int, words))
    raise argparse.ArgumentTypeError(f"{text!r} is no part: write 0/8 to 7/8")


def check_part(args: argparse.Namespace) -> None:
    """UserError for what does not go together."""
    if args.overwrite and args.part.count > 1:
        raise UserError(
            "--overwrite with --part would delete what the others write; leave it out, and delete the folder"
        )


def open_writer(model: SemHiTokModel, processor: SemHiTokImageProcessor, args: argparse.Namespace) -> ShardWriter:
    """The shards of --out; pictures are padded from here on where that was asked for."""
    from semhitok.fingerprint import code_layout

    processor.pad_to_square = processor.pad_to_square or args.pad_to_square
    layout = code_layout(model, processor.pad_to_square)
    return ShardWriter(args.out, layout, args.overwrite, part=args.part)


def encode_pictures(
    model: SemHiTokModel, processor: SemHiTokImageProcessor, pictures: Iterable[Readable], writer: ShardWriter,
    unreadable: Unreadable, args: argparse.Namespace,
) -> None:  # fmt: skip
    """Encode in batches and hand the codes to the writer."""
    import torch

    for batch, pixel_values in read_batches(pictures, processor, args.batch_size, unreadable):
        with out_of_memory_told(len(batch)), torch.autocast(model.device.type, torch.bfloat16, enabled=args.bf16):
            codes = model.encode(pixel_values.to(model.device))
        writer.add([picture.key for picture in batch], codes.cpu().numpy())


def report(out: Path, num_encoded: int, num_there: int, unreadable: Unreadable, num_others: int) -> str:
    """What happened, in one line."""
    counts = [f"{counted(num_encoded, 'picture')} encoded"]
    counts += [f"{num_there:,} there already by their names (--overwrite: all anew)"] if num_there else []
    counts += [str(unreadable)] if unreadable else []
    counts += [f"{counted(num_others, 'other file')} left out"] if num_others else []
    return f"{out}: {', '.join(counts)}"
