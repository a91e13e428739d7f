"""Packed shards of codes back to pictures, each written as KEY.png.

python -m semhitok decode codes/ --out pictures/
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from semhitok.command_line import CommandLine, counted, open_tokenizer, out_of_memory_told
from semhitok.errors import UserError
from semhitok.images import check_writable, save_picture
from semhitok.shards import CodeShards

if TYPE_CHECKING:
    from semhitok import SemHiTokImageProcessor, SemHiTokModel


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    shards = CodeShards(args.codes)
    check_writable(args.out / f"{shards.keys[0]}.png")
    model, processor = open_tokenizer(args.model, args.device)
    from semhitok.fingerprint import code_layout

    shards.check_tokenizer(code_layout(model, shards.layout.pad_to_square))
    decode_shards(model, processor, shards, args)
    print(f"{args.out}: {counted(len(shards), 'picture')}")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = CommandLine("python -m semhitok decode", "Packed shards of codes back to pictures.")
    parser.add_argument("codes", type=Path, nargs="?", help="folder of shards that encode wrote")
    parser.add_argument("--out", type=Path, help="folder for the pictures, KEY.png each; what is there is replaced")
    parser.add_tokenizer_options()
    args = parser.parse_args(argv)
    if args.codes is None or args.out is None:
        raise UserError("name the folder of the shards, and where to write: decode codes/ --out pictures/")
    return args


def decode_shards(
    model: SemHiTokModel, processor: SemHiTokImageProcessor, shards: CodeShards, args: argparse.Namespace
) -> None:
    """Decode in batches and write each picture under its key, with a progress bar."""
    import torch
    from tqdm import tqdm

    starts = range(0, len(shards), args.batch_size)
    with tqdm(total=len(shards), desc="decoding", unit="picture", file=sys.stderr) as bar, ThreadPoolExecutor() as pool:
        for start in starts:
            rows = range(start, min(start + args.batch_size, len(shards)))
            codes = torch.from_numpy(shards.codes(rows)).to(model.device)  # (B, N, 2)
            with out_of_memory_told(len(rows)), torch.autocast(model.device.type, torch.bfloat16, enabled=args.bf16):
                pictures = processor.post_process_images(model.decode(codes))
            paths = [args.out / f"{shards.keys[row]}.png" for row in rows]
            bar.update(len(list(pool.map(save_picture, pictures, paths))))
