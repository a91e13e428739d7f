"""MME: ask a model its questions, or score result files as its own calculation does: acc, acc+, and the two totals.

    python eval/mme.py answer MME_RELEASE --model PATH --out RESULTS_DIR       # asks, writes result files, scores them
    python eval/mme.py score RESULTS_DIR --json mme.json     # RESULTS_DIR/existence.txt, count.txt, ... OCR.txt, ...

MME_RELEASE holds a folder for each sub-task, in either layout of the release; what is missing is not asked. The prompt
is the release's own, "... Please answer yes or no."; --suffix puts other words in the place of these, LLaVA's are
$'\\nAnswer the question using a single word or phrase.' Each picture is encoded once for its two questions; killed, the
same command goes on where it was. Totals: perception of 2,000, cognition of 800.

A line of a file is `picture <tab> question <tab> label <tab> answer`, the two questions about a picture in neighbouring
lines: what the official eval_tool/calculation.py --results_dir reads. A sub-task without its file is named, and its
group has no total. Intervals: 95 %, bootstrap over the pictures of each sub-task, without width where all score alike.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.table import Table

from unimllm.command_line import CommandLine, check_given, number, open_model, out_of_memory_told, run, run_command
from unimllm.errors import UserError
from unimllm.fingerprint import fingerprint, json_fingerprint
from unimllm.images import check_outputs, check_readable, open_picture
from unimllm.inference import checkpoint_of
from unimllm.metrics import mme
from unimllm.metrics.intervals import percentiles
from unimllm.questions import KeptAnswers, answer_questions
from unimllm.report import (
    about_model,
    as_range,
    describe_run,
    describe_start,
    model_told,
    open_table,
    print_table,
    rounding_told,
    speed_told,
    write_json,
)


def main(argv: list[str] | None = None) -> None:
    run_command({"answer": answer, "score": score}, __doc__, argv)


def parse_score(argv: list[str]) -> argparse.Namespace:
    parser = CommandLine("eval/mme.py score", __doc__)
    parser.add_argument("results_dir", nargs="?", type=Path, help="the folder of <sub-task>.txt")
    parser.add_report_options()
    args = parser.parse_args(argv)
    if args.results_dir is None:
        raise UserError("the folder of <sub-task>.txt is missing; see --help")
    return args


def score(argv: list[str]) -> None:
    """Score a folder of result files."""
    args, start = parse_score(argv), describe_start(__file__, ["score", *argv])
    check_outputs([args.json], [args.results_dir / f"{task}.txt" for task in mme.PERCEPTION | mme.COGNITION])
    results = score_folder(args.results_dir, args.seed)
    files = [args.results_dir / f"{task}.txt" for task in results["subtasks"]]
    name = args.name or args.results_dir.resolve().name
    tell(args, results, start, model=name, fingerprint=fingerprint(*files), fingerprint_of="answers")


def tell(args: argparse.Namespace, results: dict, start: dict, **about: str | None) -> None:
    """A table, and JSON where it is asked for; `start` and `about` are for `describe_run`."""
    limited = bool(results["missing"] or results["incomplete"])
    results = {"benchmark": "MME"} | results
    results |= describe_run(
        start, seed=args.seed, num_samples={"questions": results["num_questions"]}, limited=limited, **about
    )
    if args.json:
        write_json(args.json, results)
    print_table(make_table(results))


# ---- answer --------------------------------------------------------------------------------------------------------


def parse_answer(argv: list[str]) -> argparse.Namespace:
    parser = CommandLine("eval/mme.py answer", __doc__)
    parser.add_argument("release", nargs="?", type=Path, help="the folder of MME's release")
    parser.add_argument("--out", type=Path, help="the folder for <sub-task>.txt")
    parser.add_argument("--suffix", help=f"what follows each question in the prompt (the release's {mme.SUFFIX!r})")
    parser.add_argument("--batch-size", type=number(int, 1), default=64, help="questions at once (%(default)s)")
    parser.add_model_options()
    parser.add_report_options()
    args = parser.parse_args(argv)
    if args.release is None:
        raise UserError("the folder of MME's release is missing; see --help")
    check_given(args, out="the folder for <sub-task>.txt")
    return args


def answer(argv: list[str]) -> None:
    """Ask the model, write result files as the official calculation reads them, and score them."""
    args, start = parse_answer(argv), describe_start(__file__, ["answer", *argv])
    asked = mme.read_release(args.release)
    pictures = dict.fromkeys(row.picture for of_task in asked.values() for row in of_task)
    texts = (path for task in asked for path in (args.release / task).rglob("*.txt"))
    check_outputs([*(args.out / f"{task}.txt" for task in asked), args.json], [*texts, *pictures])
    check_readable(pictures)
    checkpoint = checkpoint_of(args.model)  # once: a folder that is trained in may hold a newer one any time
    model, processor = open_model(checkpoint, args.device, args.dtype)
    about = about_model(checkpoint, args.name or args.model)
    rows = [(task, row) for task, of_task in asked.items() for row in of_task]
    if args.suffix is not None:
        rows = [(task, replace(row, question=mme.with_suffix(row.question, args.suffix))) for task, row in rows]
    questions = [(str(row.picture), row.question) for _, row in rows]
    data = {"pictures_fingerprint": fingerprint(*pictures)}
    keep = KeptAnswers(args.out, checkpoint, about | data | rounding_told(model, args.batch_size))
    data["questions_fingerprint"] = json_fingerprint([[task, r.picture.name, r.question, r.label] for task, r in rows])
    with out_of_memory_told(args.batch_size):
        said = answer_questions(model, processor, questions, open_picture, args.batch_size, keep=keep)
    answered: dict[str, list[mme.Answered]] = {task: [] for task in asked}
    for (task, row), text in zip(rows, said.texts, strict=True):
        question = row.question.replace("\n", " ").replace("\t", " ")  # one field of one line
        answered[task].append(mme.Answered(row.picture.name, question, row.label, " ".join(text.split())))
    for task, of_task in answered.items():
        mme.write_results(args.out / f"{task}.txt", of_task)
    keep.remove()
    results = score_tasks(answered, args.seed) | {"speed": said.speed} | data | model_told(model)
    tell(args, results, start, **about)


# ---- score ---------------------------------------------------------------------------------------------------------


def score_folder(folder: Path, seed: int) -> dict:
    """All sub-tasks that a folder holds.

    Raises:
        UserError: the folder holds none, or a file is no result file.
    """
    files = {task: folder / f"{task}.txt" for tasks in mme.GROUPS.values() for task in tasks}
    found = {task: mme.read_results(path) for task, path in files.items() if path.is_file()}
    if not found:
        raise UserError(f"{folder} holds no result files of MME: existence.txt, count.txt, ..., code_reasoning.txt")
    return score_tasks(found, seed)


def score_tasks(found: dict[str, list[mme.Answered]], seed: int) -> dict:
    """Sub-tasks by name; the total of a group is None where one of its sub-tasks is missing."""
    rng = np.random.default_rng(seed)
    results: dict = {"subtasks": {}, "intervals": {}}
    for group, tasks in mme.GROUPS.items():
        resampled = {}
        for task in (task for task in tasks if task in found):
            rates = mme.resampled_rates(found[task], rng)
            resampled[task] = rates.pop("score")
            results["subtasks"][task] = mme.score(found[task]) | {"num_questions": len(found[task])}
            results["subtasks"][task]["intervals"] = {name: percentiles(values) for name, values in rates.items()}
            results["intervals"][task] = percentiles(resampled[task])
        if len(resampled) == len(tasks):
            results[group] = sum(results["subtasks"][task]["score"] for task in tasks)
            results["intervals"][group] = percentiles(sum(resampled.values()))
        else:
            results[group] = None
    full = mme.PERCEPTION | mme.COGNITION
    results["num_questions"] = sum(len(rows) for rows in found.values())
    results["suffix"] = mme.suffix_of(row.question for rows in found.values() for row in rows)
    results["missing"] = [task for task in full if task not in found]
    results["incomplete"] = [task for task, rows in found.items() if len(rows) != full[task]]
    return results


def make_table(results: dict) -> Table:
    """One row for each sub-task and one for each group."""
    notes = [f"no total without {', '.join(results['missing'])}"] if results["missing"] else []
    if any(low == high for low, high in results["intervals"].values()):
        notes.append("an interval without width, as at 0 and 200: all its pictures scored alike, which is no certainty")
    notes += [speed_told(results["speed"])] if "speed" in results else []
    title = f"MME, {results['model']}: {results['num_questions']:,} questions"
    table = open_table(title, ("", "score", "95 %", "acc", "acc+", "neither", "questions"), notes)
    for group, tasks in mme.GROUPS.items():
        for task in (task for task in tasks if task in results["subtasks"]):
            row = results["subtasks"][task]
            shares = (f"{100 * row[name]:.1f}" for name in ("acc", "acc_plus", "other_ratio"))
            questions = f"{row['num_questions']}" + (f" of {tasks[task]}" if task in results["incomplete"] else "")
            table.add_row(task, f"{row['score']:.2f}", as_range(results["intervals"][task], 1), *shares, questions)
        name = f"{group}, of {200 * len(tasks):,}"
        if results[group] is None:
            table.add_row(name, "no total", style="bold")
        else:
            table.add_row(name, f"{results[group]:.2f}", as_range(results["intervals"][group], 1), style="bold")
        table.add_section()
    return table


if __name__ == "__main__":
    run(main)
