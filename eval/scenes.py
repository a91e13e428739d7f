"""Examine a model on the emoji scenes: reconstruction, code use, understanding, drawing and speed, in one table.

    python eval/scenes.py                                  # the small model that ships with the package
    python eval/scenes.py --model runs/scenes_64/sft --json scores.json
    python eval/scenes.py --tokenizer-only runs/scenes_64/pixel

Everything is about held-out compositions (unimllm/scenes/examination.py): colour-object pairs and pairs of objects
that no training picture holds; --split train shows what that costs. Drawn pictures are read back by the reader
(unimllm/default/reader) under GenEval's rules. Beside their scores stand two ceilings for the same prompts:
`reader_ceiling`, true scenes rendered and read, and `tokenizer_ceiling`, the same renders encoded, decoded and read.

Questions: `pope_f1` uses POPE's official parsing (strict parsing stands beside it in the JSON); `mme` is MME's with two
questions about each picture, of four of its sub-tasks; the other answers must be the right words exactly. Intervals:
95 %, Wilson's for shares of one kind, else bootstrap over pictures or prompts.
With --json and --save-pictures, eval/report.py shows the first drawings and answers, the wrong ones too.
"""

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from semhitok.checkpoints import resolve
from semhitok.misfit import LOADING, misfit_of_report
from unimllm.command_line import CommandLine, given_drawing, number, out_of_memory_told, run, silence_libraries
from unimllm.drawing import choose_drawing
from unimllm.errors import UserError
from unimllm.fingerprint import weights_fingerprint
from unimllm.gallery import folder_from
from unimllm.image_tokenizer import load_image_tokenizer
from unimllm.images import check_writable
from unimllm.inference import DEFAULT_NAME, checkpoint_of, folder_of, load
from unimllm.report import describe_run, describe_start, model_told, print_table, write_json
from unimllm.scenes import GlyphAtlas, Renderer, World
from unimllm.scenes.examination import spread_prompts
from unimllm.scenes.program import SPLITS
from unimllm.scenes.prompts import sample_prompts
from unimllm.scenes.reader import DEFAULT_READER, SceneReader
from unimllm.scenes.report import make_table
from unimllm.scenes.sources import trained_classes
from unimllm.scenes_bench import Bench, examine_ceilings, examine_drawing, examine_tokenizer, examine_understanding

SAMPLES = {"pictures": "num_pictures", "prompts": "num_prompts", "questions": "num_questions",
           "questions of a POPE split": "num_pope_questions",
           "pictures of a sub-task of MME": "num_mme_pictures"}  # fmt: skip


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = CommandLine("eval/scenes.py", __doc__)
    parser.add_model_options()
    parser.add_argument("--tokenizer-only", type=Path, help="examine an image tokenizer, or a model's, alone")
    parser.add_argument(
        "--reader", type=Path, default=DEFAULT_READER, help="the detector; it names the world's objects"
    )
    parser.add_argument("--json", type=Path, help="also write the results here")
    parser.add_argument("--save-pictures", type=Path, help="also write the drawings here, in GenEval's folder layout")
    parser.add_argument("--limit", type=number(int, 1), help="at most so many pictures, prompts, questions of a set")
    parser.add_argument("--split", choices=SPLITS, default="test", help="compare variants on validation, not on test")
    parser.add_argument("--seed", type=number(int, 0), default=0)
    parser.add_argument("--batch-size", type=number(int, 1), default=64)
    parser.add_argument("--no-drawing", action="store_true", help="examine reading alone")
    parser.add_argument("--images-per-prompt", type=number(int, 1), default=1)
    parser.add_drawing_options()
    args = parser.parse_args(argv)
    if args.model and args.tokenizer_only:
        raise UserError("--model and --tokenizer-only name two things to examine; choose one")
    if args.tokenizer_only and args.dtype == "bfloat16":
        raise UserError("--dtype bfloat16 is for models: an image tokenizer is float32 always; leave it out")
    return args


def main(argv: list[str] | None = None) -> None:
    args, start = parse_args(argv), describe_start(__file__, argv)
    check_outputs(args)
    silence_libraries()
    if args.tokenizer_only:
        model, processor, folder = None, None, resolve(folder_of(args.tokenizer_only))
        tokenizer, image_processor = load_image_tokenizer(str(folder), args.device)
    else:
        folder = Path(checkpoint_of(args.model))  # once: a folder that is trained in may hold a newer one any time
        model, processor = load(folder, args.device, dtype=args.dtype)
        tokenizer, image_processor = model.image_tokenizer, processor.image_processor
        sampling = choose_drawing(model, given_drawing(args))
    weights = weights_fingerprint(folder)  # now: a run that goes on may delete it meanwhile
    bench = open_bench(args, image_processor.image_size, str(tokenizer.device), folder)
    judge = {"glyphs_digest": bench.world.atlas.digest(), "reader_fingerprint": weights_fingerprint(args.reader)}
    results: dict = {"intervals": {}} | judge
    if args.save_pictures:
        results["gallery"] = {"folder": folder_from(args.json or Path("results.json"), args.save_pictures)}
    prompts = spread_prompts(sample_prompts(bench.world, args.seed, args.split), args.limit)
    with out_of_memory_told(args.batch_size), written_whole(args.save_pictures) as pictures:
        examine_tokenizer(results, bench, tokenizer)
        examine_ceilings(results, bench, tokenizer, prompts, args.images_per_prompt)
        if model is not None:
            examine_understanding(results, bench, model, processor, pictures)
        if model is not None and not args.no_drawing:
            examine_drawing(results, bench, model, processor, prompts, args.images_per_prompt, sampling, pictures)
    results |= describe(results, args, start, weights) | model_told(tokenizer if model is None else model)
    if args.json:
        write_json(args.json, results)
    print_table(make_table(results), 110)


def check_outputs(args: argparse.Namespace) -> None:
    """See before the long work that its results can be written."""
    if args.json:
        check_writable(args.json)
    if args.save_pictures:
        if args.save_pictures.is_dir() and any(args.save_pictures.iterdir()):
            raise UserError(f"--save-pictures {args.save_pictures} is not empty: pictures of two runs would mix")
        check_writable(args.save_pictures / "00000")
        check_writable(args.save_pictures.resolve().parent / "00000")  # see `written_whole`


@contextmanager
def written_whole(folder: Path | None) -> Iterator[Path | None]:
    """A place beside a folder, which becomes that folder in the end: what is killed leaves none of its pictures there.

    Raises:
        UserError: meanwhile another run wrote into the folder.
    """
    if folder is None:
        yield None
        return
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as place:
        pictures = Path(place) / folder.name  # not the place itself, which nobody else may read
        pictures.mkdir()
        yield pictures
        try:
            pictures.replace(folder)
        except OSError as error:
            raise UserError(f"cannot write the pictures to {folder}: {error.strerror or error}") from error


def open_bench(args: argparse.Namespace, image_size: int, device: str, folder: Path) -> Bench:
    """The reader and the world that it knows.

    Args:
        image_size: of the model's pictures.
        folder: of the model.

    Raises:
        UserError: no reader, an incomplete one, no font, or a reader of other pictures or objects than the model.
    """
    if not (args.reader / "config.json").is_file():
        raise UserError(f"no reader in {args.reader}: train one with train/reader.py and name it with --reader")
    reader, report = SceneReader.from_pretrained(args.reader, dtype=torch.float32, **LOADING)
    if told := misfit_of_report(report, is_whole=True):
        raise UserError(f"--reader {args.reader}: the checkpoint {told}")
    reader = reader.eval().to(device)
    size, names = reader.config.image_size, tuple(reader.config.class_names)
    if size != image_size:
        raise UserError(
            f"the reader {args.reader} reads {size} pixels, the model draws {image_size}: name one made by "
            f"train/reader.py --image-size {image_size} with --reader"
        )
    trained = trained_classes(folder)
    if trained and trained != names:
        raise UserError(
            f"{folder} was trained on {len(trained)} objects that are not the reader's {len(names)}: the "
            "held-out compositions would differ; name a reader of those objects with --reader"
        )
    atlas = GlyphAtlas.from_font(names)
    world = World(atlas, size, names)
    return Bench(world, Renderer(atlas, size), reader, args.split, args.seed, device, args.batch_size, args.limit)


# ---- the results ---------------------------------------------------------------------------------------------------


def describe(results: dict, args: argparse.Namespace, start: dict, weights: str | None) -> dict:
    """What was examined and how: enough to repeat it, and to judge its timings."""
    told = describe_run(
        start, model=str(args.tokenizer_only or args.model or DEFAULT_NAME), seed=args.seed,
        fingerprint=weights, fingerprint_of="weights", limited=args.limit is not None,
        num_samples={what: results[key] for what, key in SAMPLES.items() if key in results},
    )  # fmt: skip
    reader = "unimllm/default/reader" if args.reader == DEFAULT_READER else str(args.reader)
    return told | {"split": args.split, "limit": args.limit, "batch_size": args.batch_size, "reader": reader}


if __name__ == "__main__":
    run(main)
