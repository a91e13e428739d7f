"""What unimllm's command lines share beyond `semhitok.command_line`: --model and --device.

Nothing here imports torch or transformers at the top, so a misspelt option is told at once.
"""

from semhitok import command_line
from semhitok.command_line import nearest, number, one_line, out_of_memory_told, run, silence_libraries

__all__ = [
    "CommandLine", "nearest", "number", "one_line", "open_model", "out_of_memory_told", "run", "silence_libraries",
]  # fmt: skip


class CommandLine(command_line.CommandLine):
    """The parser of a program that runs a model."""

    def add_model_options(self) -> None:
        """--model and --device."""
        self.add_argument("--model", help="folder or hub id of a checkpoint (default: the small model that ships)")
        self.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")


def open_model(model: str | None, device: str | None):
    """`unimllm.load` without the noise: (model, processor)."""
    silence_libraries()
    from unimllm.inference import load

    return load(model, device)
