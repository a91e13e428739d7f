"""Draw the gallery of the README: twelve fixed prompts, seed i for prompt i, the first and only try of each.

python eval/gallery.py                    # docs/gallery.png by the model that ships
python eval/gallery.py --model runs/scenes_64/sft --out gallery.png
"""

import argparse
import textwrap
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from unimllm.command_line import CommandLine, open_model, run
from unimllm.images import check_writable, save_picture

# Two of every GenEval tag: a composition of the training split, then one that is held out. Not chosen but drawn, once,
# by default_rng([tag, split]) among all prompts of the tag (tests/test_examination.py draws them again).
PROMPTS = (
    "a photo of a clock",
    "a photo of an apple",
    "a photo of a sheep and a bird",
    "a photo of an apple and a dog",
    "a photo of two clocks",
    "a photo of two cats",
    "a photo of a blue potted plant",
    "a photo of a yellow backpack",
    "a photo of a cake above a horse",
    "a photo of an elephant above a donut",
    "a photo of a black donut and a brown bus",
    "a photo of a brown airplane and an orange horse",
)
COLUMNS = 4
CELL = 160  # pixels of an enlarged picture, at least
MARGIN, FONT_SIZE, NUM_LINES = 12, 13, 2  # pixels, pixels, lines of text under a picture
INK, PAPER = (40, 40, 40), (255, 255, 255)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = CommandLine("", __doc__)
    parser.prog, parser.formatter_class = "eval/gallery.py", argparse.RawDescriptionHelpFormatter
    parser.add_model_options()
    default = Path(__file__).parents[1] / "docs" / "gallery.png"
    parser.add_argument("--out", type=Path, default=default, help="the picture to write (default: docs/gallery.png)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    check_writable(args.out)
    model, processor = open_model(args.model, args.device)
    from unimllm.inference import draw

    save_picture(compose(draw(model, processor, list(PROMPTS), list(range(len(PROMPTS))))), args.out)
    print(args.out)


def compose(pictures: list[Image.Image]) -> Image.Image:
    """A grid of the pictures, enlarged by a whole factor without smoothing, each with its prompt under it."""
    side = pictures[0].width * -(-CELL // pictures[0].width)
    font = ImageFont.load_default(FONT_SIZE)
    line = round(FONT_SIZE * 1.3)
    width, height = side + MARGIN, side + NUM_LINES * line + MARGIN
    rows = -(-len(pictures) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * width + MARGIN, rows * height + MARGIN), PAPER)
    pen = ImageDraw.Draw(sheet)
    for i, (picture, prompt) in enumerate(zip(pictures, PROMPTS, strict=True)):
        x, y = MARGIN + i % COLUMNS * width, MARGIN + i // COLUMNS * height
        sheet.paste(picture.resize((side, side), Image.Resampling.NEAREST), (x, y))
        for index, text in enumerate(textwrap.wrap(prompt, round(side / (0.55 * FONT_SIZE)))):
            pen.text((x, y + side + index * line), text, fill=INK, font=font)
    return sheet


if __name__ == "__main__":
    run(main)
