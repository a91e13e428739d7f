"""What command lines share: options that name the nearest, one-line errors, quiet libraries.

Nothing here imports torch or transformers at the top, so a misspelt option is told at once.
"""

import argparse
import contextlib
import difflib
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from logging import getLogger
from typing import NoReturn

from semhitok.checkpoints import find_tokenizer, load_tokenizer
from semhitok.errors import UserError

BATCH_SIZE = 32
INTERRUPTED = 130  # what shells report of a program that Ctrl-C ended


class CommandLine(argparse.ArgumentParser):
    """argparse whose complaints are UserErrors and which names the option that was probably meant.

    Options are never `required` here, and words never obligatory: argparse would then complain of the missing one
    instead of the misspelt one.
    """

    def __init__(self, program: str, description: str):
        """A parser.

        Args:
            program: as it is called, for --help.
            description: kept line by line.
        """
        layout = argparse.RawDescriptionHelpFormatter
        super().__init__(prog=program, description=description, formatter_class=layout, allow_abbrev=False)

    def parse_args(self, args=None, namespace=None) -> argparse.Namespace:
        """As argparse; UserError for an unknown option or a stray word."""
        known, rest = self.parse_known_intermixed_args(args, namespace)
        unknown = next((word for word in rest if word.startswith("-")), None)
        if unknown:
            name = unknown.partition("=")[0]
            options = [option for action in self._actions for option in action.option_strings]
            raise UserError(f"unknown option {name}{nearest(name, options)}; see --help")
        if rest:
            raise UserError(f"unexpected {rest[0]!r}: put a text of several words in quotes; see --help")
        return known

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")

    def add_device_option(self) -> None:
        """--device."""
        self.add_argument("--device", help="cpu, cuda, cuda:1, mps, ... (default: an NVIDIA GPU if there is one)")

    def add_tokenizer_options(self) -> None:
        """--model, --device, --batch-size and --bf16."""
        self.add_argument("--model", help="folder or hub id of a tokenizer (default: the small model that ships)")
        self.add_device_option()
        self.add_argument(
            "--batch-size", type=number(int, 1), default=BATCH_SIZE, help="pictures at once (%(default)s)"
        )
        self.add_argument(
            "--bf16", action="store_true", help="compute in bfloat16: faster on a GPU, a few codes of a hundred differ"
        )


def nearest(name: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)`, or nothing."""
    close = difflib.get_close_matches(name, list(known), 1, 0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


def number(kind: type, low: float, high: float = math.inf) -> Callable[[str], float]:
    """A type for `add_argument`: an int or float from `low` to `high`."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
            finite = math.isfinite(value)
        except (ValueError, OverflowError):
            finite = False
        if not finite or not low <= value <= high:
            what = "a whole number" if kind is int else "a number"
            limits = f"of {low} or more" if high == math.inf else f"from {low} to {high}"
            raise argparse.ArgumentTypeError(f"{text!r} is not {what} {limits}")
        return value

    return parse


def counted(count: int, noun: str) -> str:
    """`1 picture`, `2,000 pictures`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def open_tokenizer(model: str | None, device: str | None):
    """`checkpoints.load_tokenizer` without the noise: (model, processor). No such folder is told at once."""
    path = find_tokenizer(model)
    silence_libraries()
    return load_tokenizer(path, device)


def silence_libraries() -> None:
    """Keep the libraries' warnings and progress bars off the terminal.

    What would be lost with them and matters, weights that a checkpoint lacks, is an error of whatever loads a model
    here. Whoever sets TRANSFORMERS_VERBOSITY hears everything.
    """
    if "TRANSFORMERS_VERBOSITY" in os.environ:
        return
    warnings.simplefilter("ignore")
    from huggingface_hub.utils import disable_progress_bars, enable_progress_bars
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    getLogger("bitsandbytes").setLevel("ERROR")  # on a CPU it asks for a package that nobody needs
    hub_logging.set_verbosity_error()
    if sys.stderr.isatty():  # a download of gigabytes must show that it moves
        enable_progress_bars()
    else:
        disable_progress_bars()


@contextlib.contextmanager
def out_of_memory_told(num_pictures: int, remedy: str = "choose a smaller --batch-size") -> Iterator[None]:
    """UserError if what happens inside, to so many pictures at once, does not fit into memory."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch has no type of its own for a full main memory
        phrases = ("out of memory", "allocate memory")
        if isinstance(error, RuntimeError) and not any(phrase in str(error) for phrase in phrases):
            raise
        raise UserError(f"not enough memory for {num_pictures} pictures at once; {remedy}") from error


def run(main: Callable[[], None]) -> NoReturn:
    """Run a command line and exit.

    Exit code 0; 2 and one line on stderr where the user has to mend something, a full disk under stdout too; 1 without
    a word where nobody reads stdout any more; 130 without a word after Ctrl-C.
    """
    if sys.stdin is not None:
        sys.stdin.reconfigure(errors="surrogateescape")  # a line that is no text is told as any other bad input
    if sys.stdout is not None:
        sys.stdout.reconfigure(errors="backslashreplace")  # a file name may hold bytes that are no text
    try:
        main()
        print(end="", flush=True)
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except OSError as error:
        if error.filename is not None or not stdout_fails():
            raise  # of something else: its traceback tells where
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python tries again at its end
        if isinstance(error, BrokenPipeError):
            sys.exit(1)
        print(f"error: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0)


def stdout_fails() -> bool:
    """Whether nothing can be written to stdout: whoever read it has left (`| head`), or its disk is full."""
    try:
        print(flush=True)
    except OSError:
        return True
    return False


def one_line(error: BaseException) -> str:
    """An error's message in one line."""
    return " ".join(str(error).split())
