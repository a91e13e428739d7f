"""The image tokenizer as a tool.

python -m semhitok encode PICTURES_OR_FOLDERS... --out codes/     pictures to packed shards of codes
python -m semhitok decode codes/ --out pictures/                  and back
python -m semhitok reconstruct IN OUT                             side by side, with PSNR
python -m semhitok export RUN OUT                                 a trained tokenizer as a folder to share
"""

import importlib
import sys

from semhitok.command_line import nearest, run
from semhitok.errors import UserError

COMMANDS = ("encode", "decode", "reconstruct", "export")


def main(argv: list[str] | None = None) -> None:
    words = sys.argv[1:] if argv is None else argv
    if words[:1] in (["-h"], ["--help"]):
        print(f"{__doc__.strip()}\n\nEach has its own --help.")
        return
    if not words or words[0] not in COMMANDS:
        what = f"unknown command {words[0]!r}{nearest(words[0], COMMANDS)}" if words else "no command"
        raise UserError(f"{what}; choose one of {', '.join(COMMANDS)}, or see --help")
    importlib.import_module(f"semhitok.{words[0]}").main(words[1:])


if __name__ == "__main__":
    run(main)
