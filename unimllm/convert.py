"""Released checkpoints as ours, and back.

python -m unimllm.convert cheers ai9stars_Cheers runs/cheers            # the released model
python -m unimllm.convert cheers runs/cheers_1_5b_sft for_released_code # ours, for the released code

Which way is told by SRC. Every tensor must fit; the text tokenizer's files go along.
"""

import json
import os
import shutil
from pathlib import Path

from safetensors import SafetensorError

from semhitok.errors import first_line
from semhitok.misfit import LOADING, misfit_of_report
from unimllm.command_line import CommandLine, nearest, run, silence_libraries
from unimllm.errors import UserError
from unimllm.export import WORKING_NAME

FAMILIES = ("cheers",)
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "added_tokens.json",
    "special_tokens_map.json", "chat_template.jinja", "generation_config.json",
)  # fmt: skip


def main(argv: list[str] | None = None) -> None:
    parser = CommandLine("python -m unimllm.convert", "Released checkpoints as ours, and back.")
    parser.add_argument("family", nargs="?", help=f"of the checkpoint: {', '.join(FAMILIES)}")
    parser.add_argument("source", nargs="?", type=Path, metavar="SRC", help="folder of a checkpoint, released or ours")
    parser.add_argument("target", nargs="?", type=Path, metavar="DST", help="folder to write; it must not exist yet")
    args = parser.parse_args(argv)
    if args.target is None:
        raise UserError("three words are needed: the family, SRC and DST; see --help")
    if args.family not in FAMILIES:
        raise UserError(f"unknown family {args.family}{nearest(args.family, FAMILIES)}; known: {', '.join(FAMILIES)}")
    if args.target.exists():
        raise UserError(f"{args.target} exists; name a folder that does not")
    convert(args.source, args.target)


def convert(source: Path, target: Path) -> None:
    """Write the other form of a CHEERS checkpoint; UserError where it is none, or does not fit.

    It grows in a hidden folder beside `target` and is renamed when it is complete.
    """
    try:
        kind = json.loads((source / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{source}: no config.json of a checkpoint can be read there") from error
    silence_libraries()
    import unimllm.auto  # noqa: F401  (registers our classes with the Auto classes)
    from unimllm.cheers.configuration_cheers import CheersConfig
    from unimllm.cheers.modeling_cheers import CheersForConditionalGeneration
    from unimllm.cheers.released_processor import write_processor
    from unimllm.cheers.weights import RELEASED_TYPE, read_released, write_released

    if kind not in (RELEASED_TYPE, CheersConfig.model_type):
        raise UserError(f"{source} holds a model of type {kind}; CHEERS is {RELEASED_TYPE} (released) or cheers (ours)")
    partial = target.parent / WORKING_NAME.format(target.name)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        if kind == RELEASED_TYPE:
            read_released(source).save_pretrained(partial)
        else:
            model, report = CheersForConditionalGeneration.from_pretrained(source, dtype="auto", **LOADING)
            if told := misfit_of_report(report, is_whole=True):
                raise ValueError(f"the checkpoint {told}")
            write_released(model, partial)
        for name in TOKENIZER_FILES:
            if (source / name).is_file():
                shutil.copy(source / name, partial / name)
        if kind == RELEASED_TYPE:
            write_processor(partial)
        os.replace(partial, target)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:  # shapes that do not fit: the third
        raise UserError(f"cannot convert {source}: {first_line(error)}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(f"{target}: {', '.join(sorted(path.name for path in target.iterdir()))}")


if __name__ == "__main__":
    run(main)
