"""Pictures of training data, whatever --data takes, to packed shards of codes for --codes.

python -m unimllm.encode --data shards/ --out codes/ --model runs/mine/sft --pad-to-square
python -m unimllm.encode --data mine.json rows.parquet --image-root images --out codes/ --model MODEL --device cuda
for i in 0 1 2 3; do python -m unimllm.encode --data shards/ --out codes/ --device cuda:$i --part $i/4 & done; wait

Pictures get the keys under which training looks for them: their paths, or where they have none and in tars the names of
the file, its two folders and the member or row. Started again it goes on: what has codes is not encoded again.
Folders of plain pictures: `python -m semhitok encode`.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from semhitok.command_line import open_tokenizer
from semhitok.encode import add_options, check_part, encode_pictures, open_writer, report
from semhitok.picture_files import Unreadable
from unimllm.command_line import CommandLine, check_given, run
from unimllm.errors import NothingUsable, UserError
from unimllm.images import check_writable

if TYPE_CHECKING:  # --help and misspelt options are told without torch
    from unimllm.data.sample_index import SampleIndex


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    check_writable(args.out / "codes-000000.bin")
    indices = open_indices(args)
    model, processor = open_tokenizer(args.model, args.device)
    from unimllm.data.survey import told_faults
    from unimllm.data.unique_pictures import UniquePictures

    unreadable = Unreadable()
    with open_writer(model, processor, args) as writer:
        num_before = len(writer.keys)
        pictures = UniquePictures(indices, args.part, writer, args.strict)
        encode_pictures(model, processor, pictures, writer, unreadable, args)
    for index, findings in zip(indices, pictures.findings, strict=True):
        print("\n".join([f"data {index}", *told_faults(index, findings)]))
    unreadable.name_first()
    print(report(args.out, len(writer.keys) - num_before, pictures.num_known, unreadable, 0))
    if args.strict and unreadable:
        raise UserError(f"{unreadable}; without --strict that is no error")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = CommandLine("python -m unimllm.encode", __doc__.partition("\n")[0])
    words = parser.add_argument_group("what --data of train/ takes")
    words.add_argument(
        "--data", nargs="+", action="extend", metavar="PLACE", help="files, folders of them, or datasets"
    )
    words.add_argument("--format", help="what --data is, where it is not recognised")
    words.add_argument("--image-root", type=Path, help="folder that paths of pictures begin in (default: each file's)")
    add_options(parser, strict="exit with 2 at the first bad file or sample; at the end, for bad pictures")
    args = parser.parse_args(argv)
    check_given(args, data="files, folders of them, or datasets", out="the folder for the shards")
    check_part(args)
    return args


def open_indices(args: argparse.Namespace) -> "list[SampleIndex]":
    """What lies at --data; UserError where that is nothing, or with --strict a damaged file.

    A place without samples beside others is told and left out.
    """
    from unimllm.data.json_samples import JsonSamples
    from unimllm.data.sample_index import FORMATS, check_one_root, open_samples, parse_data

    if args.format not in (None, *FORMATS):
        raise UserError(f"--format {args.format} is none of {', '.join(FORMATS)}")
    if args.image_root and not args.image_root.is_dir():
        raise UserError(f"--image-root {args.image_root}: no such folder")
    indices, empty = [], []
    for word in args.data:
        try:
            indices.append(open_samples(parse_data(word).place, args.format, args.image_root))
        except NothingUsable as error:
            empty.append(error)
    if empty and (args.strict or not indices):
        raise UserError(f"{empty[0]} (--strict)" if indices else str(empty[0]))
    for error in empty:
        print(f"data {error}; left out", flush=True)
    if not args.image_root:
        check_one_root([shard.path for index in indices for shard in index.shards if isinstance(shard, JsonSamples)])
    for index in indices:
        if args.strict and index.faults:
            raise UserError(f"{index.faults[0]} (--strict)")
    return indices


if __name__ == "__main__":
    run(main)
