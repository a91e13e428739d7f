"""How far CHEERS opens its gate to high frequencies while it draws (arXiv 2603.12793, figure 5), as numbers and a plot.

    python eval/cheers_gate.py --model runs/scenes_64_cheers/sft --plot gate.svg --json gate.json

Draws some prompts with seed 0 and takes, at the time t of every step, the mean of |g| over pictures and latent
positions, of the conditional branch. The paper: low at first, contours; slightly lower in the middle; sharply higher in
the last steps.
"""

import argparse
from pathlib import Path

from unimllm.command_line import CommandLine, given_drawing, open_model, run
from unimllm.drawing import choose_drawing
from unimllm.errors import UserError
from unimllm.images import check_writable, write_atomically
from unimllm.inference import checkpoint_of
from unimllm.report import about_model, describe_run, describe_start, model_told, write_json

WIDTH, HEIGHT, MARGIN = 480, 300, 48  # of the plot, in pixels


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = CommandLine("eval/cheers_gate.py", __doc__)
    parser.add_model_options()
    parser.add_drawing_options()
    parser.add_argument("--plot", type=Path, help="draw the curve here, as .svg")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    args = parser.parse_args(argv)
    if args.plot and args.plot.suffix != ".svg":
        raise UserError(f"--plot {args.plot}: the curve is written as .svg")
    for path in filter(None, (args.plot, args.json)):
        check_writable(path)
    return args


def main(argv: list[str] | None = None) -> None:
    args, start = parse_args(argv), describe_start(__file__, argv)
    checkpoint = checkpoint_of(args.model)
    model, processor = open_model(checkpoint, args.device, args.dtype)
    about = about_model(checkpoint, args.model)
    from unimllm.training.presets import SftRecipe

    prompts = list(SftRecipe.shown_prompts)
    options = choose_drawing(model, given_drawing(args))
    curve = measure(model, processor, prompts, options)
    for t, intensity in curve:
        print(f"t {t:.3f}  |g| {intensity:.4f}")
    if args.plot:
        write_atomically(args.plot, lambda file: file.write(plot(curve).encode()))
    if args.json:
        results = {"t": [t for t, _ in curve], "intensity": [i for _, i in curve]}
        results |= (
            {"prompts": prompts, "drawing": options}
            | model_told(model)
            | describe_run(start, **about, seed=0, num_samples={"pictures": len(prompts)}, limited=False)
        )
        write_json(args.json, results)


def measure(model, processor, prompts: list[str], options: dict[str, float]) -> list[tuple[float, float]]:
    """(t, mean |g|) of each step; UserError where there is no gate.

    Args:
        options: of the model's `drawing_options`, all of them.
    """
    if not getattr(model.config, "inject_details", False):
        raise UserError(
            f"the model has no gate: it is a {model.config.model_type}, or was trained without inject_details"
        )
    from unimllm.flow_matching import euler_schedule

    intensities = []

    def note(module, inputs, gates) -> None:  # (branches * pictures, positions, 1), the conditional branch first
        intensities.append(float(gates[: len(prompts)].abs().mean()))

    hook = model.flow_head.hi_gate.gate.register_forward_hook(note)
    try:
        model.generate(
            **processor.for_drawing(prompts).to(model.device), generation_mode="image", seeds=[0] * len(prompts),
            **options,
        )  # fmt: skip
    finally:
        hook.remove()
    times, _ = euler_schedule(
        options["num_steps"], options["time_shift"], extra_step=model.config.extra_euler_step
    )  # fmt: skip
    return list(zip(times.tolist(), intensities, strict=True))


def plot(curve: list[tuple[float, float]]) -> str:
    """The curve as SVG: t to the right from 0 to 1, |g| upwards from 0 to its largest value."""
    top = max(intensity for _, intensity in curve) or 1.0
    right, down = WIDTH - 2 * MARGIN, HEIGHT - 2 * MARGIN
    points = " ".join(f"{MARGIN + t * right:.1f},{HEIGHT - MARGIN - i / top * down:.1f}" for t, i in curve)
    bottom = HEIGHT - MARGIN
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" '
        'font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<path d="M{MARGIN},{MARGIN} V{bottom} H{WIDTH - MARGIN}" fill="none" stroke="black"/>',
        f'<polyline points="{points}" fill="none" stroke="#1f5fbf" stroke-width="2"/>',
        f'<text x="{MARGIN}" y="{bottom + 18}">0</text>',
        f'<text x="{WIDTH - MARGIN}" y="{bottom + 18}" text-anchor="end">1</text>',
        f'<text x="{WIDTH // 2}" y="{bottom + 34}" text-anchor="middle">t (0: noise, 1: data)</text>',
        f'<text x="{MARGIN - 6}" y="{MARGIN + 4}" text-anchor="end">{top:.3g}</text>',
        f'<text x="{MARGIN}" y="{MARGIN - 14}">mean |g| of the gate</text>',
        "</svg>\n",
    ])  # fmt: skip


if __name__ == "__main__":
    run(main)
