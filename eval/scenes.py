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
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from semhitok.checkpoints import load_tokenizer
from semhitok.image_processing_semhitok import to_pixel_values, to_uint8
from unimllm.command_line import CommandLine, given_drawing, number, out_of_memory_told, run, silence_libraries
from unimllm.drawing import choose_drawing
from unimllm.errors import UserError
from unimllm.fingerprint import weights_fingerprint
from unimllm.gallery import first_drawings, folder_from, kept_questions, save_questions
from unimllm.images import check_writable
from unimllm.inference import answer, draw, find_checkpoint, load
from unimllm.metrics import geneval, mme, pope
from unimllm.metrics.codes import tokenizer_code_use
from unimllm.metrics.geneval_records import write_folder
from unimllm.metrics.intervals import bootstrap, bootstrap_mean, wilson
from unimllm.metrics.reconstruction import psnr, ssim
from unimllm.questions import answer_questions
from unimllm.report import describe_run, print_table, write_json
from unimllm.scenes import GlyphAtlas, Renderer, World
from unimllm.scenes.examination import (
    MME_KINDS,
    POPE_SPLITS,
    QuestionSet,
    answer_rows,
    examined_scenes,
    kind_set,
    mme_set,
    objects_right,
    picture_file,
    picture_seed,
    pope_intervals,
    pope_set,
    same_answer,
    spread_prompts,
    true_scenes,
)
from unimllm.scenes.language import KINDS
from unimllm.scenes.program import SPLITS
from unimllm.scenes.prompts import sample_prompts
from unimllm.scenes.reader import DEFAULT_READER, SceneReader
from unimllm.scenes.report import make_table
from unimllm.training.checkpoint import RUN_FILE, read_run, resolve

NUM_PICTURES, NUM_QUESTIONS = 1000, 2000  # reconstructed; over all kinds
NUM_POPE, NUM_MME = 600, 100  # questions of a POPE split; pictures of a sub-task of MME
TIMED_PICTURES, TIMED_ANSWERS = 5, 8
SAMPLES = {"pictures": "num_pictures", "prompts": "num_prompts", "questions": "num_questions",
           "questions of a POPE split": "num_pope_questions"}  # fmt: skip


@dataclass
class Bench:
    """What examines: the world, its renderer and reader, and the sizes of everything.

    Args:
        split: of the world, one of SPLITS.
        limit: at most so many pictures, prompts, and questions of a set; None: the full sizes.
    """

    world: World
    renderer: Renderer
    reader: SceneReader
    split: str
    seed: int
    device: str
    batch_size: int
    limit: int | None

    def size(self, full: int) -> int:
        return full if self.limit is None else min(full, self.limit)

    def batches(self, count: int, what: str) -> list[slice]:
        """Slices of `batch_size` over `count` things, with a progress bar on stderr."""
        starts = range(0, count, self.batch_size)
        return tqdm([slice(s, s + self.batch_size) for s in starts], desc=what, unit="batch")

    def judge(self, pictures: np.ndarray, prompts: list[dict]) -> tuple[list[list[str]], list[str]]:
        """What each picture lacks by GenEval's rules over what the reader sees, nothing if right; and that in words."""
        pairs = list(zip(self.reader.detect(pictures, self.batch_size), prompts, strict=True))
        return [geneval.failures(*pair) for pair in pairs], [geneval.in_words(*pair) for pair in pairs]


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
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    check_outputs(args)
    silence_libraries()
    if args.tokenizer_only:
        model, processor, folder = None, None, resolve(args.tokenizer_only)
        tokenizer, image_processor = load_tokenizer(str(folder), args.device)
    else:
        model, processor = load(args.model, args.device)
        tokenizer, image_processor = model.image_tokenizer, processor.image_processor
        folder, args.sampling = Path(find_checkpoint(args.model)), choose_drawing(model, given_drawing(args))
    bench = open_bench(args, image_processor.image_size, str(tokenizer.device), folder)
    results: dict = {"intervals": {}}
    if args.save_pictures:
        results["gallery"] = {"folder": folder_from(args.json or Path("results.json"), args.save_pictures)}
    prompts = spread_prompts(sample_prompts(bench.world, args.seed, args.split), args.limit)
    with out_of_memory_told(args.batch_size):
        examine_tokenizer(results, bench, tokenizer)
        examine_ceilings(results, bench, tokenizer, prompts, args.images_per_prompt)
        if model is not None:
            examine_understanding(results, bench, model, processor, args.save_pictures)
        if model is not None and not args.no_drawing:
            examine_drawing(results, bench, model, processor, prompts, args)
    results |= describe(results, args, argv, folder)
    if args.json:
        write_json(args.json, results)
    print_table(make_table(results))


def check_outputs(args: argparse.Namespace) -> None:
    """See before the long work that its results can be written."""
    if args.json:
        check_writable(args.json)
    if args.save_pictures:
        if args.save_pictures.is_dir() and any(args.save_pictures.iterdir()):
            raise UserError(f"--save-pictures {args.save_pictures} is not empty: pictures of two runs would mix")
        check_writable(args.save_pictures / "00000")


def open_bench(args: argparse.Namespace, image_size: int, device: str, folder: Path) -> Bench:
    """The reader and the world that it knows.

    Args:
        image_size: of the model's pictures.
        folder: of the model.

    Raises:
        UserError: no reader or no font, or the reader was made for other pictures or objects than the model.
    """
    if not (args.reader / "config.json").is_file():
        raise UserError(f"no reader in {args.reader}: train one with train/reader.py and name it with --reader")
    reader = SceneReader.from_pretrained(args.reader, dtype=torch.float32).eval().to(device)
    size, names = reader.config.image_size, tuple(reader.config.class_names)
    if size != image_size:
        raise UserError(
            f"the reader {args.reader} reads {size} pixels, the model draws {image_size}: name one made by "
            f"train/reader.py --image-size {image_size} with --reader"
        )
    trained = read_run(folder)["recipe"].get("world") if (folder / RUN_FILE).is_file() else None
    if trained and tuple(trained["classes"]) != names:
        raise UserError(
            f"{folder} was trained on {len(trained['classes'])} objects that are not the reader's {len(names)}: the "
            "held-out compositions would differ; name a reader of those objects with --reader"
        )
    atlas = GlyphAtlas.from_font(names)
    world = World(atlas, size, names)
    return Bench(world, Renderer(atlas, size), reader, args.split, args.seed, device, args.batch_size, args.limit)


# ---- the tokenizer -------------------------------------------------------------------------------------------------


@torch.no_grad()
def reconstruct(bench: Bench, tokenizer, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n, S, S, 3) uint8 -> codes (n, N, 2), or latents (n, C, h, h), and reconstructions (n, S, S, 3) uint8."""
    codes, decoded = [], []
    for batch in bench.batches(len(pictures), "reconstructing"):
        pixel_values = to_pixel_values(pictures[batch]).to(tokenizer.device, tokenizer.dtype)
        codes.append(tokenizer.encode(pixel_values))
        decoded.append(to_uint8(tokenizer.decode(codes[-1])))
    return torch.cat(codes).cpu().numpy(), np.concatenate(decoded)


def examine_tokenizer(results: dict, bench: Bench, tokenizer) -> None:
    """Reconstruction, code use, and what the reader still sees."""
    scenes = examined_scenes(bench.world, bench.seed, bench.size(NUM_PICTURES), bench.split)
    pictures = bench.renderer.render_batch(scenes)
    codes, decoded = reconstruct(bench, tokenizer, pictures)
    batches = [slice(s, s + 128) for s in range(0, len(scenes), 128)]
    decibels = np.concatenate([psnr(pictures[b], decoded[b]) for b in batches])
    similarity = np.concatenate([ssim(pictures[b], decoded[b]) for b in batches])
    size = bench.world.image_size
    of_true, of_decoded = (objects_right(scenes, bench.reader.detect(p), size) for p in (pictures, decoded))
    num_objects = np.array([len(scene.objects) for scene in scenes])

    def objects_read(picked: np.ndarray) -> float:
        return float(of_decoded[picked].sum() / max(1, of_true[picked].sum()))

    def read_in_true(picked: np.ndarray) -> float:
        return float(of_true[picked].sum() / num_objects[picked].sum())

    everything = np.arange(len(scenes))
    results |= {
        "psnr": float(decibels.mean()),
        "ssim": float(similarity.mean()),
        "objects_read": objects_read(everything),
        "objects_read_in_true_renders": read_in_true(everything),
        "num_pictures": len(scenes),
    }
    results |= tokenizer_code_use(tokenizer, codes)
    results["intervals"] |= {
        "psnr": bootstrap(lambda picked: float(decibels[picked].mean()), everything),
        "ssim": bootstrap(lambda picked: float(similarity[picked].mean()), everything),
        "objects_read": bootstrap(objects_read, everything),
        "objects_read_in_true_renders": bootstrap(read_in_true, everything),
    }


def examine_ceilings(results: dict, bench: Bench, tokenizer, prompts: list[dict], images: int) -> None:
    """What the reader, and the reader behind the tokenizer, let a perfect model score."""
    repeated = [p for p in prompts for _ in range(images)]
    tags = [p["tag"] for p in repeated]
    pictures = bench.renderer.render_batch(true_scenes(bench.world, prompts, bench.seed, images))
    _, decoded = reconstruct(bench, tokenizer, pictures)
    results["num_prompts"] = len(prompts)
    for ceiling, rendered in (("reader_ceiling", pictures), ("tokenizer_ceiling", decoded)):
        correct = [not lacks for lacks in bench.judge(rendered, repeated)[0]]
        results[ceiling] = geneval.summarize(tags, correct)
        results["intervals"][ceiling] = geneval.intervals(tags, correct, [i // images for i in range(len(tags))])


# ---- understanding -------------------------------------------------------------------------------------------------


def examine_understanding(results: dict, bench: Bench, model, processor, folder: Path | None) -> None:
    """POPE, four sub-tasks of MME, and exact answers by kind of question; pictures of some of those go to `folder`."""
    f1, f1_strict, results["pope"] = [], [], {}
    answered, asked_about = [], []
    for split in POPE_SPLITS:
        questions = pope_set(bench.world, bench.seed, split, bench.size(NUM_POPE), bench.split)
        said = answer_all(bench, model, processor, questions, f"POPE {split}")
        f1.append(score_pope(results, questions, said, split))
        f1_strict.append(results["pope"][split]["strict"]["f1"])
        answered.append(([q.answer for _, q in questions.asked], said))
        asked_about += [scene for scene, _ in questions.asked]  # the splits share their scenes
    results["pope_f1"], results["pope_f1_strict"] = statistics.mean(f1), statistics.mean(f1_strict)
    results["intervals"] |= pope_intervals(answered, asked_about)

    results["mme"] = {}
    for task in MME_KINDS:
        questions = mme_set(bench.world, bench.seed, task, bench.size(NUM_MME), bench.split)
        score_mme(results, questions, answer_all(bench, model, processor, questions, f"MME {task}"), task)
    results["mme_total"] = sum(scores["score"] for scores in results["mme"].values())

    questions = kind_set(bench.world, bench.seed, bench.size(NUM_QUESTIONS), bench.split)
    said = answer_all(bench, model, processor, questions, "questions")
    right = np.array([same_answer(s, q.answer) for s, (_, q) in zip(said, questions.asked, strict=True)])
    kinds = np.array([q.kind for _, q in questions.asked])
    by_kind = {kind: right[kinds == kind] for kind in KINDS if (kinds == kind).any()}
    results |= {
        "question_accuracy": float(right.mean()),
        "question_accuracy_by_kind": {kind: float(r.mean()) for kind, r in by_kind.items()},
        "num_questions": len(right),
        "num_questions_by_kind": {kind: len(r) for kind, r in by_kind.items()},
        "num_pope_questions": bench.size(NUM_POPE),
        "num_mme_pictures": bench.size(NUM_MME),
    }
    results["intervals"] |= {
        "question_accuracy": bootstrap(lambda picked: right[picked].mean(), [i for i, _ in questions.asked]),
        "question_accuracy_by_kind": {kind: wilson(int(r.sum()), len(r)) for kind, r in by_kind.items()},
    }
    if folder:
        keep_questions(results, bench, questions, said, folder)
    pictures = bench.renderer.render_batch([questions.scenes[i] for i, _ in questions.asked[:TIMED_ANSWERS]])
    asked = iter(zip(pictures, questions.asked, strict=False))

    def once() -> None:
        picture, (_, question) = next(asked)
        answer(model, processor, Image.fromarray(picture), question.text)

    results["seconds_per_answer"] = median_seconds(once, len(pictures))


def score_pope(results: dict, questions: QuestionSet, said: list[str], split: str) -> float:
    """Enter one split under both parsings; returns its F1 under the official one."""
    labels = [q.answer for _, q in questions.asked]
    results["pope"][split] = {parsing: pope.score(labels, said, parsing) for parsing in pope.PARSERS}

    def f1(picked: np.ndarray) -> float:
        return pope.score([labels[i] for i in picked], [said[i] for i in picked])["f1"]

    results[f"pope_f1_{split}"] = results["pope"][split]["official"]["f1"]
    results["intervals"][f"pope_f1_{split}"] = bootstrap(f1, [i for i, _ in questions.asked])
    return results[f"pope_f1_{split}"]


def keep_questions(results: dict, bench: Bench, questions: QuestionSet, said: list[str], folder: Path) -> None:
    """Enter what the gallery shows, and save its pictures."""
    kept = kept_questions(answer_rows(questions, said))
    results["gallery"] |= kept
    scenes = {picture_file(i): scene for i, scene in enumerate(questions.scenes)}
    save_questions(folder, kept, lambda file: Image.fromarray(bench.renderer.render(scenes[file])))


def score_mme(results: dict, questions: QuestionSet, said: list[str], task: str) -> None:
    """Enter one sub-task of MME."""
    rows = [
        mme.Answered(str(scene), question.text, question.answer, text)
        for (scene, question), text in zip(questions.asked, said, strict=True)
    ]
    results["mme"][task] = mme.score(rows)
    results["intervals"][f"mme_{task}"] = bootstrap_mean(mme.rates(mme.outcomes(rows), 1)["score"])


def answer_all(bench: Bench, model, processor, questions: QuestionSet, what: str) -> list[str]:
    """What the model answers to every question, each about its picture alone.

    The scenes of one kind of questions follow one another, so a batch is of one kind: it takes as long as its longest
    answer.
    """

    def render(scene: int) -> Image.Image:
        return Image.fromarray(bench.renderer.render(questions.scenes[scene]))

    asked = [(scene, question.text) for scene, question in questions.asked]
    return answer_questions(model, processor, asked, render, bench.batch_size, what).texts


# ---- drawing -------------------------------------------------------------------------------------------------------


def examine_drawing(results: dict, bench: Bench, model, processor, prompts: list[dict], args) -> None:
    """GenEval's six categories, and how long a picture takes."""
    sampling = args.sampling
    wanted = [(i, k) for i in range(len(prompts)) for k in range(args.images_per_prompt)]
    repeated = [prompts[i] for i, _ in wanted]
    seeds = [picture_seed(args.seed, i, k) for i, k in wanted]
    pictures: list[Image.Image] = []
    started = time.perf_counter()
    for batch in bench.batches(len(wanted), "drawing"):
        pictures += draw(model, processor, [p["prompt"] for p in repeated[batch]], seeds[batch], **sampling)
    results["seconds_per_picture_batched"] = (time.perf_counter() - started) / len(pictures)
    lacks, found = bench.judge(np.stack([np.asarray(p) for p in pictures]), repeated)
    if args.save_pictures:
        files = write_folder(args.save_pictures, prompts, pictures, args.images_per_prompt)
        results["gallery"]["drawings"] = first_drawings(files, repeated, lacks, found.__getitem__)
    tags, correct = [p["tag"] for p in repeated], [not reasons for reasons in lacks]
    results |= {"geneval": geneval.summarize(tags, correct), "sampling": sampling}
    results |= {"images_per_prompt": args.images_per_prompt, "num_pictures_by_tag": dict(Counter(tags))}
    results["intervals"]["geneval"] = geneval.intervals(tags, correct, [i for i, _ in wanted])
    one = ([prompts[0]["prompt"]], [args.seed])
    results["seconds_per_picture"] = median_seconds(lambda: draw(model, processor, *one, **sampling), TIMED_PICTURES)


def median_seconds(once: Callable[[], object], times: int) -> float:
    """Median time of one call, all but the first of `times` calls counted (the first warms up) where there are more."""
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        once()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:] or seconds)


# ---- the results ---------------------------------------------------------------------------------------------------


def describe(results: dict, args: argparse.Namespace, argv: list[str] | None, folder: Path) -> dict:
    """What was examined and how: enough to repeat it, and to judge its timings."""
    told = describe_run(
        __file__, argv, model=str(args.tokenizer_only or args.model or "unimllm/default"), seed=args.seed,
        fingerprint=weights_fingerprint(folder), fingerprint_of="weights", limited=args.limit is not None,
        num_samples={what: results[key] for what, key in SAMPLES.items() if key in results},
    )  # fmt: skip
    reader = "unimllm/default/reader" if args.reader == DEFAULT_READER else str(args.reader)
    return told | {"split": args.split, "limit": args.limit, "batch_size": args.batch_size, "reader": reader}


if __name__ == "__main__":
    run(main)
