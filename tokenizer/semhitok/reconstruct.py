"""Pictures beside what the tokenizer makes of them, with the PSNR between the two.

python -m semhitok reconstruct photo.jpg both.png
python -m semhitok reconstruct photos/ both/        (both/KEY.png for every picture, and the mean PSNR)
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from semhitok.command_line import CommandLine, counted, open_tokenizer, out_of_memory_told
from semhitok.errors import UserError
from semhitok.images import check_writable, open_picture, picture_format, save_picture
from semhitok.picture_files import PictureFile, Unreadable, find_pictures, read_batches
from semhitok.psnr import psnr

if TYPE_CHECKING:
    from semhitok import SemHiTokImageProcessor, SemHiTokModel

MARGIN = 4  # pixels around the two pictures and between them
TEXT_SIZE = 12


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    files, num_others = find_pictures([args.input])
    several = args.input.is_dir()
    check_apart(args.input, args.out)
    if several:
        check_writable(args.out / f"{files[0].key}.png")
    else:
        picture_format(args.out)
        check_writable(args.out)
        open_picture(args.input)
    model, processor = open_tokenizer(args.model, args.device)
    unreadable = Unreadable()
    values = []
    for file, picture, value in compare(model, processor, files, unreadable, args):
        save_picture(picture, args.out / f"{file.key}.png" if several else args.out)
        values.append(value)
    if not several:
        print(f"{args.out}: PSNR {values[0]:.2f} dB")
        return
    unreadable.name_first()
    counts = [counted(len(values), "picture")] + ([f"mean PSNR {np.mean(values):.2f} dB"] if values else [])
    counts += [str(unreadable)] if unreadable else []
    counts += [f"{counted(num_others, 'other file')} left out"] if num_others else []
    print(f"{args.out}: {', '.join(counts)}")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = CommandLine("python -m semhitok reconstruct", "Pictures beside what the tokenizer makes of them.")
    parser.add_argument("input", type=Path, nargs="?", help="a picture, or a folder of pictures")
    parser.add_argument("out", type=Path, nargs="?", help="the picture to write, or the folder for KEY.png each")
    parser.add_tokenizer_options()
    args = parser.parse_args(argv)
    if args.input is None or args.out is None:
        raise UserError("name a picture and the picture to write: reconstruct photo.jpg both.png (or two folders)")
    return args


def check_apart(source: Path, out: Path) -> None:
    """UserError where what is written would replace what is read, or be read itself the next time."""
    if source.is_dir() and out.resolve().is_relative_to(source.resolve()):
        raise UserError(f"{out} lies in {source}, whose pictures are read; name a folder beside it")
    if out.exists() and out.samefile(source):
        raise UserError(f"{out} would be overwritten by its own reconstruction; name another picture")


def compare(
    model: SemHiTokModel, processor: SemHiTokImageProcessor, files: list[PictureFile], unreadable: Unreadable,
    args: argparse.Namespace,
) -> Iterator[tuple[PictureFile, Image.Image, float]]:  # fmt: skip
    """Each file with its picture and reconstruction side by side, and the PSNR in dB; with a progress bar."""
    import torch
    from tqdm import tqdm

    bar = tqdm(files, desc="reconstructing", unit="picture", file=sys.stderr)
    for batch, pixel_values in read_batches(bar, processor, args.batch_size, unreadable):
        with out_of_memory_told(len(batch)), torch.autocast(model.device.type, torch.bfloat16, enabled=args.bf16):
            decoded = model.decode(model.encode(pixel_values.to(model.device)))
        originals, reconstructions = map(processor.post_process_images, (pixel_values, decoded))
        for file, original, reconstruction in zip(batch, originals, reconstructions, strict=True):
            value = float(psnr(np.asarray(original)[None], np.asarray(reconstruction)[None])[0])
            yield file, side_by_side(original, reconstruction, f"PSNR {value:.2f} dB"), value


def side_by_side(original: Image.Image, reconstruction: Image.Image, caption: str) -> Image.Image:
    """The two pictures on white, a caption under them."""
    font = ImageFont.load_default(TEXT_SIZE)
    width, height = original.size
    size = (max(2 * width + 3 * MARGIN, round(font.getlength(caption)) + 2 * MARGIN), height + 3 * MARGIN + TEXT_SIZE)
    page = Image.new("RGB", size, "white")
    page.paste(original, (MARGIN, MARGIN))
    page.paste(reconstruction, (width + 2 * MARGIN, MARGIN))
    ImageDraw.Draw(page).text((MARGIN, height + 2 * MARGIN), caption, "black", font)
    return page
