"""Ask about pictures: one question, or a conversation in the terminal.

python -m unimllm.chat --image apple.png --question "What is in the picture?"
python -m unimllm.chat --image apple.png pear.png --question "Which is larger?"
python -m unimllm.chat --image apple.png

Stdout holds the answers alone (and where drawings went); where stdin or stdout is no terminal, a line is a turn.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from unimllm.command_line import CommandLine, nearest, number, one_line, open_model, run
from unimllm.drawing import START_TIME, check_edits, choose_drawing
from unimllm.errors import UserError
from unimllm.images import check_writable, open_picture, save_picture
from unimllm.inference import answer, answer_batch, answer_length, check_conversations, check_prompts, draw

if TYPE_CHECKING:
    from PIL import Image

COMMANDS = {
    "/image PATH": "talk about another picture, from the beginning",
    "/add PATH": "talk about one more picture beside those, from the beginning",
    "/draw PROMPT": "draw a picture into this folder and talk about it",
    "/edit PROMPT": "draw the last picture anew as told (cheers models) and talk about that",
    "/reset": "forget what was said; the pictures stay",
    "/help": "this list",
    "/quit": "end (so does Ctrl-D)",
}


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    pictures = [open_picture(path) for path in args.image]
    if args.question is not None:
        model, processor = open_model(args.model, args.device, args.dtype)
        length = args.max_new_tokens or answer_length(model)
        cuts: list[int] = []
        options = {"max_new_tokens": length, "on_cut": lambda _, count: cuts.append(count)}
        print(answer(model, processor, pictures, args.question, **options))
        for count in cuts:
            print(told_cut(count, length), file=sys.stderr)
        return
    person = all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))
    terminal = RichTerminal() if person else PlainTerminal()
    with terminal.busy("loading the model"):
        model, processor = open_model(args.model, args.device, args.dtype)
    about = f"talking about {' and '.join(args.image)}" if args.image else "no picture yet: /image PATH or /draw PROMPT"
    terminal.greet(f"{about}; /help lists the commands")
    Chat(Conversation(model, processor, pictures, args.max_new_tokens), terminal).run()


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The options; UserError where they are wrong."""
    parser = CommandLine(
        "python -m unimllm.chat", "Ask about pictures: one question, or a conversation in the terminal."
    )
    parser.add_argument(
        "--image", nargs="+", action="extend", default=[], metavar="PATH", help="the pictures to talk about"
    )
    parser.add_argument("--question", help="print the answer to this alone; without it: a conversation")
    parser.add_argument(
        "--max-new-tokens", type=number(int, 1), help="tokens of an answer, at most (default: the model's own, else 64)"
    )
    parser.add_model_options()
    args = parser.parse_args(argv)
    if args.question is not None and not args.question.strip():
        raise UserError("--question is empty: ask something, for example 'What is in the picture?'")
    if "" in args.image:
        raise UserError("--image is empty: name a picture file")
    return args


class Conversation:
    """What was said about pictures. The first user turn holds them; the oldest turns go when the context fills.

    Args:
        model, processor: from `unimllm.load`.
        pictures: RGB; none to talk about nothing.
        max_new_tokens: of an answer, at most; None: the model's own.
    """

    def __init__(self, model, processor, pictures: Sequence[Image.Image] = (), max_new_tokens: int | None = None):
        self.model, self.processor = model, processor
        self.pictures = list(pictures)
        self.max_new_tokens = max_new_tokens or answer_length(model)
        self.cut_at = 0  # tokens behind which the last answer was to go on
        self.turns: list[tuple[str, str]] = []  # (question, answer)

    def show(self, *pictures: Image.Image) -> None:
        """Talk about other pictures, from the beginning."""
        self.pictures = list(pictures)
        self.turns = []

    def reset(self) -> None:
        """Forget what was said."""
        self.turns = []

    def ask(self, question: str) -> tuple[str, int]:
        """One more turn.

        Returns:
            (answer, number of oldest turns that were forgotten to make room).

        Raises:
            UserError: the question is empty or too long even alone; nothing is forgotten then.
        """
        check_conversations(self.processor, [[_message("user", question)]])
        forgotten = self._too_many(question)
        turns = self.turns[forgotten:]
        self.cut_at, messages = 0, self._messages(turns, question)
        reply = answer_batch(self.model, self.processor, [messages], self.max_new_tokens, on_cut=self._note_cut)[0]
        self.turns = [*turns, (question, reply)]
        return reply, forgotten

    def _note_cut(self, _: int, count: int) -> None:
        self.cut_at = count

    def _too_many(self, question: str) -> int:
        """How many of the oldest turns leave no room for `question` and an answer."""
        context = self.model.config.text_config.max_position_embeddings
        room = context - min(self.max_new_tokens, context // 4)
        for forgotten in range(len(self.turns)):
            if self.processor.prompt_length(self._messages(self.turns[forgotten:], question)) <= room:
                return forgotten
        return len(self.turns)

    def _messages(self, turns: list[tuple[str, str]], question: str) -> list[dict]:
        messages = []
        for asked, answered in turns:
            messages += [_message("user", asked), _message("assistant", answered)]
        messages.append(_message("user", question))
        messages[0]["content"][:0] = [{"type": "image", "image": picture} for picture in self.pictures]
        return messages


def _message(role: str, text: str) -> dict:
    return {"role": role, "content": [{"type": "text", "text": text}]}


class Chat:
    """Lines of a terminal to turns and commands. An error ends its turn, never the conversation."""

    def __init__(self, conversation: Conversation, terminal: PlainTerminal | RichTerminal):
        self.conversation, self.terminal = conversation, terminal
        self.num_drawings = 0

    def run(self) -> None:
        """Until /quit or the end of the input."""
        for line in self.terminal.lines():
            try:
                if line.strip() == "/quit":
                    return
                if line.strip():
                    self.take(line.strip())
            except UserError as error:
                self.terminal.fail(error)

    def take(self, line: str) -> None:
        """One line that is not empty: a command or a question."""
        if not line.startswith("/"):
            self.ask(line)
            return
        name, _, rest = line.partition(" ")
        names = {command.split()[0]: command for command in COMMANDS}
        if name not in names:
            raise UserError(f"unknown command {name}{nearest(name, names)}; /help lists them")
        if (" " in names[name]) != bool(rest.strip()):
            raise UserError(f"write {names[name]}" + ("" if " " in names[name] else " alone"))
        getattr(self, name[1:])(*[rest.strip()] if rest else [])

    def ask(self, question: str) -> None:
        with self.terminal.busy("thinking"):
            reply, forgotten = self.conversation.ask(question)
        if forgotten:
            turns = "the oldest turn is" if forgotten == 1 else f"the {forgotten} oldest turns are"
            self.terminal.note(f"the context is full: {turns} forgotten (/reset begins anew)")
        self.terminal.say(reply)
        if self.conversation.cut_at:
            self.terminal.note(told_cut(self.conversation.cut_at, self.conversation.max_new_tokens))

    def image(self, path: str) -> None:
        path = unquoted(path)
        self.conversation.show(open_picture(path))
        self.terminal.note(f"talking about {path} now, from the beginning")

    def add(self, path: str) -> None:
        path = unquoted(path)
        self.conversation.show(*self.conversation.pictures, open_picture(path))
        self.terminal.note(f"talking about {path} too, from the beginning")

    def draw(self, prompt: str) -> None:
        """Draw into the current folder; every drawing has its own seed, so asking twice gives two pictures."""
        self._draw(prompt, None)

    def edit(self, prompt: str) -> None:
        """As `draw`, from the last of the pictures that are talked about."""
        check_edits(self.conversation.model)
        if not self.conversation.pictures:
            raise UserError("there is no picture to edit yet: /image PATH or /draw PROMPT")
        self._draw(prompt, self.conversation.pictures[-1:])

    def _draw(self, prompt: str, pictures: list[Image.Image] | None) -> None:
        model, processor = self.conversation.model, self.conversation.processor
        check_prompts(model, processor, [prompt], with_pictures=pictures is not None)
        check_writable("drawing.png")
        options = choose_drawing(model, {}) | ({"start_time": START_TIME} if pictures else {})
        with self.terminal.progress(model.num_drawing_steps(options), model.drawing_unit) as on_step:
            picture = draw(model, processor, [prompt], [self.num_drawings], on_step, pictures, **options)[0]
        path = save_as_new(picture)
        self.num_drawings += 1
        self.conversation.show(picture)
        self.terminal.say(str(path))
        self.terminal.note("talking about this drawing now, from the beginning")

    def reset(self) -> None:
        self.conversation.reset()
        self.terminal.note("what was said is forgotten")

    def help(self) -> None:
        for command, meaning in COMMANDS.items():
            self.terminal.say(f"{command:<13} {meaning}")


def told_cut(count: int, limit: int) -> str:
    """That an answer was to go on behind so many tokens: those that it may have, or all that the context holds."""
    remedy = "--max-new-tokens allows more" if count == limit else "the context is full"
    return f"... (cut at {count} tokens; {remedy})"


def unquoted(path: str) -> str:
    """A path as a person types or drops it, without the quotation marks around it."""
    return path[1:-1] if len(path) > 1 and path[0] == path[-1] and path[0] in "'\"" else path


def save_as_new(picture) -> Path:
    """Write a picture to the first free `drawing-N.png` of the current folder; UserError if it cannot be written."""
    for n in itertools.count(1):
        path = Path(f"drawing-{n}.png")
        try:
            path.open("xb").close()  # whoever else looks for a free name now sees that it is taken
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}; start where you may write") from error
        try:
            save_picture(picture, path)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return path


# ---- where the lines come from and go to: a pipe, or a person ------------------------------------------------------


class PlainTerminal:
    """Pipes and files: answers on stdout as they are, everything else on stderr."""

    def lines(self) -> Iterator[str]:
        return iter(sys.stdin or ())  # None where it was closed

    def greet(self, text: str) -> None:
        pass

    def say(self, text: str) -> None:
        print(text, flush=True)

    def note(self, text: str) -> None:
        print(text, file=sys.stderr)

    def fail(self, error: UserError) -> None:
        print(f"error: {one_line(error)}", file=sys.stderr)

    def busy(self, what: str) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()

    def progress(self, total: int, unit: str) -> contextlib.AbstractContextManager[Callable[[], None]]:
        return contextlib.nullcontext(lambda: None)


class RichTerminal:
    """A person at a terminal."""

    def __init__(self):
        from rich.console import Console

        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (line editing and history for input())
        self.console = Console(highlight=False)

    def lines(self) -> Iterator[str]:
        while True:
            try:
                yield input("> ")  # rich's own prompt would lose its place when readline redraws the line
            except EOFError:
                self.console.print()
                return
            except KeyboardInterrupt:
                self.console.print()
                raise

    def greet(self, text: str) -> None:
        self._print(text, "dim")

    def say(self, text: str) -> None:
        self._print(text, "bold cyan")

    def note(self, text: str) -> None:
        self._print(text, "dim")

    def fail(self, error: UserError) -> None:
        self._print(f"error: {one_line(error)}", "red")

    def busy(self, what: str) -> contextlib.AbstractContextManager:
        return self.console.status(what)

    @contextlib.contextmanager
    def progress(self, total: int, unit: str) -> Iterator[Callable[[], None]]:
        from tqdm import tqdm

        with tqdm(total=total, desc="drawing", unit=unit, leave=False) as bar:
            yield bar.update

    def _print(self, text: str, style: str) -> None:
        self.console.print(text, style=style, markup=False, soft_wrap=True)


if __name__ == "__main__":
    run(main)
