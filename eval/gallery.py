"""Draw the gallery of the README: twelve fixed prompts, seed i for prompt i, the first and only try of each.

python eval/gallery.py                    # docs/gallery.png by the model that ships
python eval/gallery.py --model runs/scenes_64/sft --out gallery.png
"""

import argparse
from pathlib import Path

from unimllm.command_line import CommandLine, open_model, out_of_memory_told, run
from unimllm.grid import draw_grid
from unimllm.images import check_writable, save_picture

# Two of every GenEval tag: a composition of the training split, then one that is held out. Not chosen but drawn, once,
# by default_rng([tag, split]) among all prompts of the tag (tests/test_examination.py draws them again).
PROMPTS = (
    "a photo of a clock",
    "a photo of an apple",
    "a photo of a sheep and a cat",
    "a photo of an apple and a dog",
    "a photo of two clocks",
    "a photo of two cats",
    "a photo of a purple potted plant",
    "a photo of a yellow backpack",
    "a photo of a cake below a horse",
    "a photo of an elephant above a donut",
    "a photo of a green donut and a pink bus",
    "a photo of a brown airplane and an orange horse",
)
COLUMNS = 4


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = CommandLine("eval/gallery.py", __doc__)
    parser.add_model_options()
    default = Path(__file__).parents[1] / "docs" / "gallery.png"
    parser.add_argument("--out", type=Path, default=default, help="the picture to write (default: docs/gallery.png)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    check_writable(args.out)
    model, processor = open_model(args.model, args.device, args.dtype)
    from unimllm.inference import draw

    with out_of_memory_told(len(PROMPTS), "draw with --device cpu"):
        pictures = draw(model, processor, list(PROMPTS), list(range(len(PROMPTS))))
    save_picture(draw_grid([[picture] for picture in pictures], list(PROMPTS), COLUMNS), args.out)
    print(args.out)


if __name__ == "__main__":
    run(main)
