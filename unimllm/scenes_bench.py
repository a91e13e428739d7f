"""What eval/scenes.py measures: the parts of its examination, each of which enters its results and their intervals.

Shapes: n pictures of S x S pixels, (n, S, S, 3) uint8; N positions of a picture.
"""

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

from semhitok.image_processing_semhitok import to_pixel_values, to_uint8
from unimllm.gallery import first_drawings, kept_questions, save_questions
from unimllm.inference import answer, draw
from unimllm.metrics import geneval, mme, pope
from unimllm.metrics.codes import tokenizer_code_use
from unimllm.metrics.geneval_records import write_folder
from unimllm.metrics.intervals import bootstrap, bootstrap_mean, percentiles, wilson
from unimllm.metrics.reconstruction import psnr, ssim
from unimllm.questions import answer_questions
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
    true_scenes,
)
from unimllm.scenes.language import KINDS
from unimllm.scenes.program import World
from unimllm.scenes.reader import SceneReader
from unimllm.scenes.render import Renderer

NUM_PICTURES, NUM_QUESTIONS = 1000, 2000  # reconstructed; over all kinds
NUM_POPE, NUM_MME = 600, 100  # questions of a POPE split; pictures of a sub-task of MME
TIMED_PICTURES, TIMED_ANSWERS = 5, 8


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


# ---- the tokenizer -------------------------------------------------------------------------------------------------


@torch.no_grad()
def reconstruct(bench: Bench, tokenizer, pictures: np.ndarray, what: str) -> tuple[np.ndarray, np.ndarray]:
    """(n, S, S, 3) uint8 -> codes (n, N, 2), or latents (n, C, h, h), and reconstructions (n, S, S, 3) uint8.

    Args:
        what: for the progress bar.
    """
    codes, decoded = [], []
    for batch in bench.batches(len(pictures), what):
        pixel_values = to_pixel_values(pictures[batch]).to(tokenizer.device, tokenizer.dtype)
        codes.append(tokenizer.encode(pixel_values))
        decoded.append(to_uint8(tokenizer.decode(codes[-1])))
    return torch.cat(codes).cpu().numpy(), np.concatenate(decoded)


def examine_tokenizer(results: dict, bench: Bench, tokenizer) -> None:
    """Reconstruction, code use, and what the reader still sees."""
    scenes = examined_scenes(bench.world, bench.seed, bench.size(NUM_PICTURES), bench.split)
    pictures = bench.renderer.render_batch(scenes)
    codes, decoded = reconstruct(bench, tokenizer, pictures, "reconstructing")
    batches = [slice(s, s + 128) for s in range(0, len(scenes), 128)]
    decibels = np.concatenate([psnr(pictures[b], decoded[b]) for b in batches])
    similarity = np.concatenate([ssim(pictures[b], decoded[b]) for b in batches])
    size = bench.world.image_size
    of_true, of_decoded = (objects_right(scenes, bench.reader.detect(p), size) for p in (pictures, decoded))
    num_objects = np.array([len(scene.objects) for scene in scenes])

    def objects_read(picked: np.ndarray) -> float:
        # A ratio of totals, not a share: an object may be read from its reconstruction alone.
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
        "psnr": bootstrap_mean(decibels),
        "ssim": bootstrap_mean(similarity),
        "objects_read": bootstrap(objects_read, everything),
        "objects_read_in_true_renders": bootstrap(read_in_true, everything),
    }


def examine_ceilings(results: dict, bench: Bench, tokenizer, prompts: list[dict], images: int) -> None:
    """What the reader, and the reader behind the tokenizer, let a perfect model score."""
    repeated = [p for p in prompts for _ in range(images)]
    tags = [p["tag"] for p in repeated]
    pictures = bench.renderer.render_batch(true_scenes(bench.world, prompts, bench.seed, images))
    _, decoded = reconstruct(bench, tokenizer, pictures, "ceilings of drawing")
    results["num_prompts"] = len(prompts)
    for ceiling, rendered in (("reader_ceiling", pictures), ("tokenizer_ceiling", decoded)):
        correct = [not lacks for lacks in bench.judge(rendered, repeated)[0]]
        results[ceiling] = geneval.summarize(tags, correct)
        results["intervals"][ceiling] = geneval.intervals(tags, correct, [i // images for i in range(len(tags))])


# ---- understanding -------------------------------------------------------------------------------------------------


def examine_understanding(results: dict, bench: Bench, model, processor, folder: Path | None) -> None:
    """POPE, MME, and exact answers by kind of question; pictures of some of those go to `folder`."""
    examine_pope(results, bench, model, processor)
    examine_mme(results, bench, model, processor)
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


def examine_pope(results: dict, bench: Bench, model, processor) -> None:
    """Every split under both parsings, and the mean F1 over splits."""
    results["pope"], results["num_pope_questions"] = {}, bench.size(NUM_POPE)
    answered, asked_about = [], []
    for split in POPE_SPLITS:
        questions = pope_set(bench.world, bench.seed, split, bench.size(NUM_POPE), bench.split)
        labels = [q.answer for _, q in questions.asked]
        said = answer_all(bench, model, processor, questions, f"POPE {split}")
        results["pope"][split] = {parsing: pope.score(labels, said, parsing) for parsing in pope.PARSERS}
        results[f"pope_f1_{split}"] = results["pope"][split]["official"]["f1"]
        answered.append((labels, said))
        asked_about += [scene for scene, _ in questions.asked]  # the splits share their scenes
    for key, parsing in (("pope_f1", "official"), ("pope_f1_strict", "strict")):
        results[key] = statistics.mean(scores[parsing]["f1"] for scores in results["pope"].values())
    results["intervals"] |= pope_intervals(answered, asked_about)


def examine_mme(results: dict, bench: Bench, model, processor) -> None:
    """Four sub-tasks of MME, and their sum."""
    results["mme"], results["num_mme_pictures"] = {}, bench.size(NUM_MME)
    rng, resampled = np.random.default_rng(0), {}
    for task in MME_KINDS:
        questions = mme_set(bench.world, bench.seed, task, bench.size(NUM_MME), bench.split)
        said = answer_all(bench, model, processor, questions, f"MME {task}")
        rows = [
            mme.Answered(str(scene), question.text, question.answer, text)
            for (scene, question), text in zip(questions.asked, said, strict=True)
        ]
        results["mme"][task] = mme.score(rows)
        resampled[task] = mme.resampled_rates(rows, rng)["score"]
    results["mme_total"] = sum(scores["score"] for scores in results["mme"].values())
    results["intervals"] |= {f"mme_{task}": percentiles(values) for task, values in resampled.items()}
    results["intervals"]["mme_total"] = percentiles(sum(resampled.values()))


def keep_questions(results: dict, bench: Bench, questions: QuestionSet, said: list[str], folder: Path) -> None:
    """Enter what the gallery shows, and save its pictures."""
    kept = kept_questions(answer_rows(questions, said))
    results["gallery"] |= kept
    scenes = {picture_file(i): scene for i, scene in enumerate(questions.scenes)}
    save_questions(folder, kept, lambda file: Image.fromarray(bench.renderer.render(scenes[file])))


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


def examine_drawing(
    results: dict, bench: Bench, model, processor, prompts: list[dict], images: int, sampling: dict,
    folder: Path | None,
) -> None:  # fmt: skip
    """GenEval's six categories, and how long a picture takes; the pictures go to `folder`.

    Args:
        prompts: see `spread_prompts`.
        images: pictures of each prompt.
        sampling: see `choose_drawing`.
        folder: in GenEval's layout.
    """
    wanted = [(i, k) for i in range(len(prompts)) for k in range(images)]
    repeated = [prompts[i] for i, _ in wanted]
    seeds = [picture_seed(bench.seed, i, k) for i, k in wanted]
    pictures: list[Image.Image] = []
    started = time.perf_counter()
    for batch in bench.batches(len(wanted), "drawing"):
        pictures += draw(model, processor, [p["prompt"] for p in repeated[batch]], seeds[batch], **sampling)
    results["seconds_per_picture_batched"] = (time.perf_counter() - started) / len(pictures)
    lacks, found = bench.judge(np.stack([np.asarray(p) for p in pictures]), repeated)
    if folder:
        files = write_folder(folder, prompts, pictures, images)
        results["gallery"]["drawings"] = first_drawings(files, repeated, lacks, found.__getitem__)
    tags, correct = [p["tag"] for p in repeated], [not reasons for reasons in lacks]
    results |= {"geneval": geneval.summarize(tags, correct), "sampling": sampling}
    results |= {"images_per_prompt": images, "num_pictures_by_tag": dict(Counter(tags))}
    results["positions_per_picture"] = processor.num_positions
    results["intervals"]["geneval"] = geneval.intervals(tags, correct, [i for i, _ in wanted])
    one = ([prompts[0]["prompt"]], [bench.seed])
    results["seconds_per_picture"] = median_seconds(lambda: draw(model, processor, *one, **sampling), TIMED_PICTURES)


def median_seconds(once: Callable[[], object], times: int) -> float:
    """Median time of one call, all but the first of `times` calls counted (the first warms up) where there are more."""
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        once()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:] or seconds)
