"""GenEval without its detector's 2022 software: draw the pictures, score them, or sum up official results.

    python eval/geneval.py generate --model PATH --prompts evaluation_metadata.jsonl --out pictures/
    python eval/geneval.py score pictures/ --detector MASK2FORMER --clip CLIP --detections seen.jsonl
    python eval/geneval.py score pictures/ --detections seen.jsonl                   # again, in a second
    python eval/geneval.py score --official-results results.jsonl

`generate` writes GenEval's own folder layout, four pictures a prompt; called again it draws what is missing, if
weights, settings, code, dtype and GPU are the same, and under torchrun every process draws its share. `score` takes any
model's folder in that layout. MASK2FORMER is facebook/mask2former-swin-small-coco-instance and CLIP
openai/clip-vit-large-patch14, by folder or hub id. The rules are GenEval's; the detector is not, so the scores are
called "GenEval-style (HF detector)" and are not GenEval's.
--official-results sums up what the official evaluate_images.py wrote, as its summary_scores.py does.
Intervals: 95 %, Wilson's for a tag with its prompts as trials, else bootstrap over the prompts of each tag.
"""

import argparse
import hashlib
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

from rich.table import Table
from tqdm import tqdm

from unimllm.command_line import (
    CommandLine,
    check_given,
    given_drawing,
    number,
    out_of_memory_told,
    run,
    run_command,
    silence_libraries,
)
from unimllm.distributed import adopt_launcher, local_gpu
from unimllm.drawing import choose_drawing
from unimllm.errors import UserError
from unimllm.fingerprint import (
    DIGITS,
    code_fingerprint,
    commit_of,
    fingerprint,
    settings_fingerprint,
    weights_fingerprint,
)
from unimllm.gallery import drawing_row, first_drawings, folder_from
from unimllm.images import check_outputs, open_picture, save_picture, write_atomically
from unimllm.inference import DEFAULT_NAME, check_prompts, checkpoint_of, draw, load
from unimllm.json_rows import read_text, write_rows
from unimllm.metrics.geneval import TAGS, in_words
from unimllm.metrics.geneval_records import (
    IMAGES_PER_PROMPT,
    NUM_PROMPTS,
    Record,
    check_pictures,
    intervals,
    read_folder,
    read_official,
    read_prompts,
    read_records,
    summary,
    uncolored,
    verdicts,
)
from unimllm.report import (
    as_range,
    describe_run,
    describe_start,
    open_table,
    print_table,
    rounding_told,
    write_json,
)
from unimllm.scenes.examination import picture_seed

LABEL, OFFICIAL = "GenEval-style (HF detector)", "GenEval (official results)"
SETTINGS = "generation.json"
SAVE_EVERY = 50  # pictures between two writings of the record of detections


def main(argv: list[str] | None = None) -> None:
    run_command({"generate": generate, "score": score}, __doc__, argv)


# ---- generate ------------------------------------------------------------------------------------------------------


def parse_generate(argv: list[str]) -> argparse.Namespace:
    parser = CommandLine("eval/geneval.py generate", __doc__)
    parser.add_model_options()
    parser.add_argument("--prompts", type=Path, help="GenEval's evaluation_metadata.jsonl")
    parser.add_argument("--out", type=Path, help="the folder for the pictures")
    parser.add_argument("--images-per-prompt", type=number(int, 1), default=IMAGES_PER_PROMPT)
    parser.add_argument("--batch-size", type=number(int, 1), default=32, help="pictures at once (%(default)s)")
    parser.add_argument("--seed", type=number(int, 0), default=0)
    parser.add_drawing_options()
    parser.add_argument("--limit", type=number(int, 1), help="the first so many prompts")
    args = parser.parse_args(argv)
    check_given(args, prompts="GenEval's evaluation_metadata.jsonl", out="the folder for the pictures")
    return args


def generate(argv: list[str]) -> None:
    """Draw what is missing of this process's share of the prompts."""
    args, commit = parse_generate(argv), commit_of(__file__)
    adopt_launcher()
    prompts = read_prompts(args.prompts)[: args.limit]
    rank, world_size = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    silence_libraries()
    checkpoint = checkpoint_of(args.model)  # once: a folder that is trained in may hold a newer one any time
    model, processor = load(checkpoint, args.device or local_gpu(), dtype=args.dtype)
    check_prompts(model, processor, [prompt["prompt"] for prompt in prompts])
    sampling = choose_drawing(model, given_drawing(args))
    lay_out(args, settings_of(args, checkpoint, model, sampling), commit, prompts)
    wanted = [
        (index, image, path)
        for index in range(rank, len(prompts), world_size)
        for image in range(args.images_per_prompt)
        if not (path := args.out / f"{index:05d}" / "samples" / f"{image:04d}.png").exists()
    ]
    started = time.perf_counter()
    with out_of_memory_told(args.batch_size):
        for start in tqdm(range(0, len(wanted), args.batch_size), desc="drawing", unit="batch", disable=rank > 0):
            batch = wanted[start : start + args.batch_size]
            seeds = [picture_seed(args.seed, index, image) for index, image, _ in batch]
            texts = [prompts[index]["prompt"] for index, _, _ in batch]
            for picture, (_, _, path) in zip(draw(model, processor, texts, seeds, **sampling), batch, strict=True):
                save_picture(picture, path)
    rate = len(wanted) / (time.perf_counter() - started)
    print(f"{args.out}: {len(wanted):,} pictures drawn" + (f", {rate:.2f} pictures/s" if wanted else ""))


def settings_of(args: argparse.Namespace, checkpoint: str, model, sampling: dict[str, float]) -> dict:
    """All that a picture depends on beside its number.

    Args:
        checkpoint: that draws; weights of one fingerprint are the same wherever they lie.
    """
    return {
        "model": checkpoint if args.model else DEFAULT_NAME,
        "fingerprint": weights_fingerprint(checkpoint),
        "prompts_sha256": hashlib.sha256(args.prompts.read_bytes()).hexdigest(),
        "seed": args.seed,
        "sampling": sampling,
        "settings_fingerprint": settings_fingerprint(checkpoint),
        "code_fingerprint": code_fingerprint(),
    } | rounding_told(model, args.batch_size)


def lay_out(args: argparse.Namespace, settings: dict, commit: str | None, prompts: list[dict]) -> None:
    """Write the settings and every prompt into the folder, or see that they are the ones already there.

    Args:
        settings: of `settings_of`.
        commit: of the program; a folder tells that of its first run.

    Raises:
        UserError: the folder holds pictures of another model, other prompts or other settings; they would mix.
    """
    facts = {"batch_size": args.batch_size, "images_per_prompt": args.images_per_prompt, "commit": commit}
    told = args.out / SETTINGS
    # Looked at before the settings, which are written first: another process may be laying out the same run.
    occupied = args.out.is_dir() and any(path.name.isdecimal() for path in args.out.iterdir())
    if told.is_file():
        before = read_settings(told)
        check_settings(args, before, settings)
        settings, facts = before, {}
        if type(before.get("images_per_prompt")) is int:
            facts["images_per_prompt"] = max(before["images_per_prompt"], args.images_per_prompt)
    elif occupied:
        raise UserError(
            f"{args.out} holds pictures but no {SETTINGS}: those of two runs would mix; choose another --out"
        )
    write_json(told, settings | facts)
    for index, prompt in enumerate(prompts):
        write_rows(args.out / f"{index:05d}" / "metadata.jsonl", [prompt])


def check_settings(args: argparse.Namespace, before: dict, settings: dict) -> None:
    """UserError where a setting is not as the folder's pictures were drawn; a note of what nobody knows.

    Args:
        before: what the folder tells.
    """
    for name in (name for name in settings if name in before and before[name] != settings[name]):
        if name == "model" and settings["fingerprint"] and before.get("fingerprint") == settings["fingerprint"]:
            continue  # its weights lie elsewhere now
        other = f"its {name} is {before[name]}, now it is {settings[name]}"
        if name == "prompts_sha256":
            other = f"its prompts are not those of {args.prompts}"
        raise UserError(f"{args.out} holds pictures of another run: {other}; choose another --out")
    unknown = [name for name in settings if name not in before]
    if unknown:  # an earlier version drew these pictures
        print(f"note: nobody knows with which {', '.join(unknown)} the pictures in {args.out} were drawn: {SETTINGS} "
              "does not tell", file=sys.stderr)  # fmt: skip


def read_settings(path: Path) -> dict:
    """What `lay_out` wrote; UserError where it is damaged."""
    text = read_text(path)
    try:
        settings = json.loads(text)
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        raise UserError(f"{path} is damaged: nobody knows of which run its pictures are; move it away or mend it")
    return settings


# ---- score ---------------------------------------------------------------------------------------------------------


def parse_score(argv: list[str]) -> argparse.Namespace:
    parser = CommandLine("eval/geneval.py score", __doc__)
    parser.add_argument("folder", nargs="?", type=Path, help="pictures in GenEval's layout")
    parser.add_argument("--detector", help="a Mask2Former by folder or hub id; without it --detections are scored")
    parser.add_argument("--clip", help="the CLIP that tells colours, by folder or hub id")
    parser.add_argument("--detections", type=Path, help="the record of what the detector saw; --detector adds to it")
    parser.add_argument("--official-results", type=Path, help="what the official evaluate_images.py wrote")
    parser.add_argument("--results", type=Path, help="also write a row for each picture here, as the official script")
    parser.add_device_option()
    parser.add_report_options()
    args = parser.parse_args(argv)
    if args.official_results:
        if args.folder or args.detector or args.detections or args.results:
            raise UserError("--official-results is scored alone: neither folder nor detections")
    elif args.folder is None:
        raise UserError("the folder of pictures is missing; see --help")
    elif args.detector is None and args.detections is None:
        raise UserError(
            "--detector is missing, the Mask2Former that looks at the pictures, or --detections, its record"
        )
    elif (args.detector is None) != (args.clip is None):
        raise UserError("--detector and --clip belong together: one finds objects, the other tells their colours")
    return args


def score(argv: list[str]) -> None:
    """Score a folder or sum up official results: a table, and JSON where it is asked for."""
    args, start = parse_score(argv), describe_start(__file__, ["score", *argv])
    pictures = read_folder(args.folder) if args.folder else {}
    written, read = [args.json, args.results], [args.official_results]
    read += files_of(args.folder, pictures) if args.folder else []
    (written if args.detector else read).append(args.detections)
    check_outputs(written, read)
    name = args.folder.resolve().name if args.folder else args.official_results.stem
    results: dict = {}
    if args.official_results:
        prints = {"fingerprint": fingerprint(args.official_results), "fingerprint_of": "answers"}
        tags, prompts, correct = (list(column) for column in zip(*read_official(args.official_results), strict=True))
        results |= {"benchmark": OFFICIAL, "detector": "the official one"}
    else:
        if args.detector:
            records = detect(args, pictures)
        else:
            records = read_records(args.detections)
            check_pictures(records, args.folder, pictures)
        lacks = verdicts(records, pictures)
        tags = [metadata["tag"] for metadata in pictures.values()]
        prompts = [json.dumps(metadata) for metadata in pictures.values()]
        correct = [not reasons for reasons in lacks]
        detectors = sorted({records[file].detector for file in pictures})
        results |= {"benchmark": LABEL, "detector": "; ".join(detectors)}
        all_prints = "".join(records[file].sha256 for file in pictures)
        prints = {"fingerprint": hashlib.sha256(all_prints.encode()).hexdigest()[:DIGITS], "fingerprint_of": "pictures"}
        if (args.folder / SETTINGS).is_file():
            generation = results["generation"] = read_settings(args.folder / SETTINGS)
            if generation.get("fingerprint"):
                prints = {"fingerprint": generation["fingerprint"], "fingerprint_of": "weights"}
        if args.json:
            results["gallery"] = {
                "folder": folder_from(args.json, args.folder), "drawings": drawings_shown(records, pictures, lacks)
            }  # fmt: skip
        if args.results:
            write_results(args.results, args.folder, pictures, lacks)
    results |= summary(tags, prompts, correct) | {"intervals": intervals(tags, prompts, correct, args.seed)}
    results |= describe_run(
        start, model=args.name or name, **prints, seed=args.seed,
        num_samples={"pictures": results["num_pictures"], "prompts": results["num_prompts"]},
        limited=not results["complete"],
    )  # fmt: skip
    if args.json:
        write_json(args.json, results)
    print_table(make_table(results))


def files_of(folder: Path, pictures: dict[str, dict]) -> list[Path]:
    """What is read of a folder of pictures; see `read_folder`."""
    prompts = dict.fromkeys(f"{file.split('/')[0]}/metadata.jsonl" for file in pictures)
    return [folder / name for name in (SETTINGS, *prompts, *pictures)]


def detect(args: argparse.Namespace, pictures: dict[str, dict]) -> dict[str, Record]:
    """Look at every picture whose record is missing, of another picture or without the colours; keep the record."""
    from unimllm.metrics.geneval_detector import GenEvalDetector

    silence_libraries()
    detector = GenEvalDetector.load(args.detector, args.clip, args.device)
    records = read_records(args.detections) if args.detections and args.detections.is_file() else {}
    others = {record.detector for record in records.values()} - {detector.name}
    if others:
        raise UserError(f"{args.detections} is the record of {others.pop()}, not of {detector.name}; name another file")

    def save() -> None:
        if args.detections:
            lines = b"".join(record.line() for record in records.values())
            write_atomically(args.detections, lambda file: file.write(lines))

    prints = {file: fingerprint(args.folder / file) for file in pictures}
    unseen = [
        file
        for file, metadata in pictures.items()
        if file not in records
        or records[file].sha256 != prints[file]
        or uncolored(records[file].detections(), metadata)
    ]
    with out_of_memory_told(1, "detect with --device cpu"):
        for done, file in enumerate(tqdm(unseen, desc="detecting", unit="picture"), 1):
            seen = detector.look(open_picture(args.folder / file), file, pictures[file])
            records[file] = replace(seen, sha256=prints[file])
            if done % SAVE_EVERY == 0:
                save()
    save()
    return records


def drawings_shown(records: dict[str, Record], pictures: dict[str, dict], lacks: list[list[str]]) -> list[dict]:
    """What the gallery shows, see `first_drawings`."""
    files = list(pictures)

    def found(index: int) -> str:
        return in_words(records[files[index]].detections(), pictures[files[index]])

    return first_drawings(files, list(pictures.values()), lacks, found)


def write_results(path: Path, folder: Path, pictures: dict[str, dict], lacks: list[list[str]]) -> None:
    """A row for each picture under the official script's names, for its summary and for galleries of failures."""
    write_rows(path, (
        drawing_row(str(folder / file), metadata, reasons) | {"metadata": json.dumps(metadata)}
        for (file, metadata), reasons in zip(pictures.items(), lacks, strict=True)
    ))  # fmt: skip


def make_table(results: dict) -> Table:
    """Tags, their mean, and the two shares that the official summary prints besides."""
    size = f"{results['num_pictures']:,} pictures of {results['num_prompts']:,} prompts"
    part = "" if results["complete"] else f", not GenEval's {IMAGES_PER_PROMPT} of each of its own {NUM_PROMPTS}"
    title = f"{results['benchmark']}, {results['model']}"
    notes, intervals = [f"{size}{part}; {results['detector']}"], results["intervals"]
    absent = [tag for tag in TAGS if tag not in results["scores"]]
    notes += [f"no overall without {', '.join(absent)}"] if absent else []
    if any(interval and interval[0] == interval[1] for interval in intervals.values()):
        notes.append("an interval without width, as at 0 and 1: all pictures scored alike, which is no certainty")
    table = open_table(title, ("", "score", "95 %", "pictures"), notes)
    for tag, value in results["scores"].items():
        if tag == "overall":
            table.add_section()
        number_of = f"{results['num_pictures_by_tag'].get(tag, results['num_pictures']):,}"
        name, style = ("overall (mean of tags)", "bold") if tag == "overall" else (tag, None)
        if value is None:
            table.add_row(name, "none", style=style)
        else:
            table.add_row(name, f"{value:.4f}", as_range(intervals[tag]), number_of, style=style)
    for name in ("correct_pictures", "correct_prompts"):
        title = "correct pictures" if name == "correct_pictures" else "prompts with any correct"
        table.add_row(title, f"{results[name]:.4f}", as_range(intervals[name]))
    return table


if __name__ == "__main__":
    run(main)
