"""The command line of the training programs: a preset, an output folder, and dotted overrides of any field.

train/sft.py --preset scenes_64 --output-dir runs/sft --max-steps 100 --train.learning_rate 3e-4
"""

import argparse
import ast
import contextlib
import importlib.util
import json
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from semhitok.errors import first_line
from unimllm.command_line import CommandLine, nearest, run, silence_libraries
from unimllm.distributed import adopt_launcher, print_once
from unimllm.errors import UserError
from unimllm.training.deepspeed_config import lay_over
from unimllm.training.step_log import import_wandb

EPOCHS = (
    "a run is counted in steps: set --max-steps; of a run with --data, --dry-run tells how often it goes through the "
    "samples, and the log in which epoch it is"
)
WANTED = {bool: "true or false", int: "a whole number", float: "a number"}


def parse_arguments(
    description: str, program: str, presets: dict[str, Callable[[], Any]], argv: list[str] | None = None, **extra
):
    """Parse a training program's command line.

    Args:
        description: shown by --help.
        program: name of the default output folder, runs/PRESET/PROGRAM.
        presets: name -> function that returns a fresh recipe.
        extra: further options, name -> keyword arguments of `add_argument`.

    Returns:
        (namespace with preset, output_dir, init_from, the extra options, and `overrides`: the dotted fields that were
        set and their values; recipe with all overrides applied).

    Raises:
        UserError: unknown preset, option or field (the message names the nearest one), a value of a wrong type, or
            nothing to train with on this system.
    """
    parser = CommandLine(Path(sys.argv[0]).name, description)
    default = " (%(default)s)" if "scenes_64" in presets else ""
    parser.add_argument("--preset", default="scenes_64", help=f"one of: {', '.join(presets)}{default}")
    parser.add_argument(
        "--output-dir", type=Path, help=f"checkpoints and curves; resumes what it holds (runs/PRESET/{program})"
    )
    parser.add_argument("--max-steps", type=whole_number, help="optimiser steps in all, instead of the preset's")
    parser.add_argument("--init-from", type=Path, help="checkpoint folder to start a new run from")
    parser.add_argument("--deepspeed", type=Path, metavar="FILE", help="DeepSpeed's JSON, laid over the one made here")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=-1, help=argparse.SUPPRESS)
    for name, options in extra.items():
        parser.add_argument(f"--{name.replace('_', '-')}", **options)
    parser.epilog = told_fields(next(iter(presets.values()))())
    args, rest = parser.parse_known_args(argv)
    if args.preset not in presets:
        raise UserError(f"unknown preset {args.preset!r}{nearest(args.preset, presets)}; known: {', '.join(presets)}")
    recipe = presets[args.preset]()
    args.output_dir = args.output_dir or default_folder(args.preset, program)
    known = [a.option_strings[0] for a in parser._actions] + [f"--{name}" for name in field_names(recipe)]
    args.overrides = {}
    for key, value in pair_options(rest):
        if "." not in key and key not in field_names(recipe):
            raise UserError(f"unknown option --{key}{nearest('--' + key, known)}; see --help")
        args.overrides[key] = set_field(recipe, key, value)
    if args.max_steps is not None:
        recipe.train.max_steps = args.max_steps
    if args.deepspeed:
        told = lay_over(recipe.train, args.deepspeed)
        print_once("\n".join([f"{args.deepspeed} changes:", *(f"  {line}" for line in told)] if told else
                             [f"{args.deepspeed} changes nothing"]))  # fmt: skip
    try:
        recipe.train.validate()
        if hasattr(recipe, "validate"):
            recipe.validate()
    except ValueError as error:
        raise UserError(str(error)) from error
    if recipe.train.wandb_project:
        import_wandb()
    check_deepspeed(args)
    return args, recipe


def check_deepspeed(args: argparse.Namespace) -> None:
    """UserError where a run would need DeepSpeed and there is none; a plan does without."""
    is_plan = getattr(args, "dry_run", None) is not None
    if not is_plan and importlib.util.find_spec("deepspeed") is None:
        plan = "; --dry-run works without it" if hasattr(args, "dry_run") else ""
        on_linux = sys.platform == "linux"
        remedy = "install it: pip install deepspeed" if on_linux else "which is installed on Linux alone"
        raise UserError(f"training needs DeepSpeed, {remedy}{plan}")


def whole_number(text: str) -> int:
    """A type for `add_argument`: 1000, or 1e3."""
    try:
        if float(text).is_integer():
            return int(text) if text.strip("+-").isdecimal() else int(float(text))
    except (ValueError, OverflowError):
        pass
    raise argparse.ArgumentTypeError(f"a whole number is wanted, not {text!r}")


def default_folder(preset: str, stage: str) -> Path:
    """Where a stage writes, and where the next one looks, unless told otherwise."""
    return Path("runs") / preset / stage


def pair_options(rest: list[str]) -> list[tuple[str, str]]:
    """`--a.b c --d.e=f` -> [("a.b", "c"), ("d.e", "f")]; UserError for what is no pair, or asks for epochs."""
    pairs = []
    items = iter(rest)
    for item in items:
        if not item.startswith("--"):
            raise UserError(f"unexpected argument {item!r}: fields are set as --train.learning_rate 1e-3")
        key, equals, value = item[2:].partition("=")
        if "epoch" in key.rpartition(".")[2]:
            raise UserError(f"--{key}: {EPOCHS}")
        if not equals:
            value = next(items, None)
            if value is None:
                raise UserError(f"option --{key} needs a value")
        pairs.append((key, value))
    return pairs


def field_names(config: Any) -> list[str]:
    """Names that may be set on a dataclass or a transformers config."""
    if isinstance(config, PreTrainedConfig):  # first: transformers' configs are dataclasses too, with few fields
        return [name for name in vars(config) if not name.startswith("_")]
    return [f.name for f in fields(config)] if is_dataclass(config) else []


def told_fields(recipe: Any) -> str:
    """For --help: the fields that may be set, those of configs in a word."""
    names = []
    for name in field_names(recipe):
        part = getattr(recipe, name)
        inner = [] if isinstance(part, PreTrainedConfig) else field_names(part)
        names += [f"{name}.{field}" for field in inner] or [f"{name}.*" if field_names(part) else name]
    return textwrap.fill(f"Fields of a preset are options too, as --train.learning_rate 1e-3: {', '.join(names)}", 80)


def set_field(recipe: Any, key: str, text: str) -> Any:
    """Set one dotted field from its text and return its value.

    Raises:
        UserError: there is no such field, or the type does not fit.
    """
    target = recipe
    *parents, last = key.split(".")
    for depth, name in enumerate([*parents, last]):
        names = field_names(target)
        if name not in names:
            where = ".".join(parents[:depth]) or "the preset"
            known = f"; it has {', '.join(names)}" if is_dataclass(type(target)) and len(names) < 50 else ""
            raise UserError(f"unknown field {key!r}: {where} has no {name!r}{nearest(name, names) or known}")
        if depth < len(parents):
            target = getattr(target, name)
    value = parse_value(key, text, getattr(target, last))
    setattr(target, last, value)
    types = getattr(target, "layer_types", None)
    if last == "num_hidden_layers" and types and value > 0:  # transformers names the kind of attention of each layer
        target.layer_types = (types * -(-value // len(types)))[:value]
    return value


def parse_value(key: str, text: str, old: Any) -> Any:
    """Text as the type of the field's present value; a list of one may be told without brackets.

    Raises:
        UserError: it is of another type.
    """
    if isinstance(old, str):
        return text
    try:
        value = {"true": True, "false": False, "none": None}.get(text.lower(), ...)
        value = ast.literal_eval(text) if value is ... else value
    except (ValueError, SyntaxError):
        value = text
    if isinstance(old, tuple):
        return parse_tuple(key, text, value, old)
    if type(old) is float and type(value) is int:
        value = float(value)
    if type(old) is int and type(value) is float and value.is_integer():
        value = int(value)
    fits = old is None or type(value) is type(old) or (isinstance(old, list) and isinstance(value, tuple))
    if not fits:
        wanted = WANTED.get(type(old), f"a {type(old).__name__}")
        raise UserError(f"{key} is {old!r} now: {wanted} is wanted in its place, not {text!r}")
    return value


def parse_tuple(key: str, text: str, value: Any, old: tuple) -> tuple:
    """What was told for a field of several values, texts or whole numbers: `value`, if it is a list, else it alone."""
    several, in_brackets = isinstance(value, (list, tuple)), text.startswith(("[", "("))
    kind = type(old[0]) if old else int
    if kind is str and not several and not in_brackets:
        value = text  # a prompt of digits is one, too
    values = tuple(value) if several else (value,)
    values = tuple(float(one) if kind is float and type(one) is int else one for one in values)
    if not all(type(one) is kind for one in values) or (in_brackets and not several):
        form = ", ".join(json.dumps(one) for one in old[:2]) or "1, 2"
        raise UserError(f"{key}: {text!r} is no list; write --{key} '[{form}]'")
    return values


def check_taken(overrides: dict[str, Any], config: PreTrainedConfig) -> None:
    """See that no `--model.*` is ignored because the model comes from a teacher, a checkpoint or the data.

    Args:
        overrides: of `parse_arguments`.
        config: of the model that will be trained.

    Raises:
        UserError: the model has another value than the one that was set.
    """
    for key, value in overrides.items():
        scope, _, field = key.partition(".")
        if scope != "model":
            continue
        has = config
        for name in field.split("."):
            has = getattr(has, name, None)
        if has != (list(value) if isinstance(value, tuple) and isinstance(has, list) else value):
            raise UserError(
                f"--{key} {value} is not to be had: the model that is to be trained has {has}, from its teacher, its "
                f"checkpoint or its data; leave the option out"
            )


def change_behaviour(config: PreTrainedConfig, overrides: dict[str, Any], fields: Sequence[str]) -> None:
    """Give a checkpoint's config what `--model.*` says of fields that no weights depend on, and tell what changes.

    Args:
        overrides: of `parse_arguments`.
        fields: names in the config.
    """
    for name in fields:
        old, new = getattr(config, name, None), overrides.get(f"model.{name}")
        if new is not None and new != old:
            setattr(config, name, new)
            print_once(f"--model.{name}: {old} -> {new}, over the checkpoint's own")


@contextlib.contextmanager
def sizes_told() -> Iterator[None]:
    """UserError if what is built inside cannot have the sizes that were asked for.

    Networks complain of a size where they use it, with ValueError; torch of a negative one with RuntimeError.
    """
    try:
        yield
    except UserError:
        raise
    except (ValueError, RuntimeError, ZeroDivisionError) as error:
        raise UserError(f"the model cannot be built: {first_line(error)}") from error


def as_dict(recipe: Any) -> dict:
    """A recipe as plain JSON values."""
    if isinstance(recipe, PreTrainedConfig):
        return json.loads(recipe.to_json_string())
    if is_dataclass(recipe):
        return {f.name: as_dict(getattr(recipe, f.name)) for f in fields(recipe)}
    return list(recipe) if isinstance(recipe, tuple) else recipe


def run_program(main: Callable[[], None]) -> None:
    """Run a training program: quiet libraries, and the user's errors in one line with exit code 2."""
    silence_libraries()

    def as_one_of_many() -> None:
        adopt_launcher()
        main()

    run(as_one_of_many)
