"""What unimllm's command lines share beyond `semhitok.command_line`: --model, --device, --dtype, and how to draw.

Nothing here imports torch or transformers at the top, so a misspelt option is told at once.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from semhitok import command_line
from semhitok.command_line import nearest, number, one_line, out_of_memory_told, run, silence_libraries
from unimllm.drawing import FLAGS, LOWEST, check_option
from unimllm.errors import UserError

__all__ = [
    "CommandLine", "check_given", "given_drawing", "nearest", "number", "one_line", "open_model", "out_of_memory_told",
    "run", "run_command", "silence_libraries",
]  # fmt: skip

DTYPES = ("auto", "float32", "bfloat16")


class CommandLine(command_line.CommandLine):
    """The parser of a program that runs a model."""

    def add_model_options(self) -> None:
        """--model, --device and --dtype."""
        self.add_model_option()
        self.add_device_option()
        self.add_argument(
            "--dtype", choices=DTYPES, default=DTYPES[0],
            help="of the weights; auto (default): as they are stored on a GPU, float32 on a CPU",
        )  # fmt: skip

    def add_model_option(self) -> None:
        """--model alone."""
        self.add_argument("--model", help="folder or hub id of a checkpoint; scenes (default) and scenes-cheers ship")

    def add_drawing_options(self) -> None:
        """Those of all families; what is left out is as the model's generation_config.json has it."""
        kinds = {
            "guidance_scale": (number(float, 0, 1000), "strength of classifier-free guidance, 1: none"),
            "temperature": (number(float, LOWEST["temperature"]), "of the sampling of codes, 0: the most likely one"),
            "top_k": (number(int, LOWEST["top_k"]), "sample from so many codes only, 0: all"),
            "num_steps": (number(int, 1), "steps from noise to a picture, of models that draw by a flow"),
            "time_shift": (
                number(float, 1e-3, 1000),
                "below 1: more of these steps near the noise, above 1: near the end",
            ),
        }
        for name, (kind, meaning) in kinds.items():
            self.add_argument(FLAGS[name], dest=name, type=kind, help=f"{meaning} (default: the model's own)")

    def add_report_options(self) -> None:
        """--name, --json and --seed of a program that scores."""
        self.add_argument("--name", help="of the model, for the report (default: what it is read from)")
        self.add_argument("--json", type=Path, help="also write the results here")
        self.add_argument("--seed", type=number(int, 0), default=0, help="of the intervals")


def check_given(args: argparse.Namespace, **needed: str) -> None:
    """UserError for the first of the options that was left out; `needed`: its name -> what it is."""
    for name, what in needed.items():
        if getattr(args, name) is None:
            raise UserError(f"--{name.replace('_', '-')} is missing: {what}; see --help")


def given_drawing(args: argparse.Namespace) -> dict[str, float | None]:
    """The options of `add_drawing_options`, None where they were left out; UserError for an impossible temperature."""
    if args.temperature is not None:
        check_option("temperature", args.temperature, called=FLAGS["temperature"])
    return {name: getattr(args, name) for name in FLAGS}


def open_model(model: str | None, device: str | None, dtype: str = DTYPES[0]):
    """`unimllm.load` without the noise: (model, processor)."""
    silence_libraries()
    from unimllm.inference import load

    return load(model, device, dtype=dtype)


def run_command(commands: dict[str, Callable[[list[str]], None]], about: str, argv: list[str] | None) -> None:
    """Give the words after the first to the command that it names.

    Args:
        about: the program's docstring, for --help without a command; every command has its own.
        argv: what `main` was given; None: what the process was.

    Raises:
        UserError: no command, or an unknown one.
    """
    words = sys.argv[1:] if argv is None else argv
    if words[:1] in (["-h"], ["--help"]):
        print(f"{about.strip()}\n\n{', '.join(commands)}: each has its own --help.")
        return
    if not words or words[0] not in commands:
        what = f"unknown command {words[0]!r}{nearest(words[0], commands)}" if words else "no command"
        raise UserError(f"{what}; choose one of {', '.join(commands)}, or see --help")
    commands[words[0]](words[1:])
