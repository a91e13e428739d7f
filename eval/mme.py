"""MME's scores from result files, as its own calculation does: acc, acc+, perception of 2,000, cognition of 800.

    python eval/mme.py score RESULTS_DIR                   # RESULTS_DIR/existence.txt, count.txt, ... OCR.txt, ...
    python eval/mme.py score RESULTS_DIR --json mme.json

A line of a file is `picture <tab> question <tab> label <tab> answer`, the two questions about a picture in neighbouring
lines: what the official eval_tool/calculation.py --results_dir reads. A sub-task without its file is named, and its
group has no total. Intervals: 95 %, bootstrap over the pictures of each sub-task.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from unimllm.command_line import CommandLine, nearest, number, run
from unimllm.errors import UserError
from unimllm.fingerprint import fingerprint
from unimllm.images import check_writable
from unimllm.metrics import mme
from unimllm.metrics.intervals import percentiles, resampled_sums
from unimllm.report import as_range, describe_run, write_json

COMMANDS = ("score",)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = CommandLine("eval/mme.py", __doc__)
    parser.add_argument("command", nargs="?", help="score")
    parser.add_argument("results_dir", nargs="?", type=Path, help="the folder of <sub-task>.txt")
    parser.add_argument("--name", help="of the model, for the report (default: the folder's)")
    parser.add_argument("--json", type=Path, help="also write the results here")
    parser.add_argument("--seed", type=number(int, 0), default=0, help="of the intervals")
    args = parser.parse_args(argv)
    if args.command not in COMMANDS:
        what = f"unknown command {args.command!r}{nearest(args.command, COMMANDS)}" if args.command else "no command"
        raise UserError(f"{what}; it is `score RESULTS_DIR`, see --help")
    if args.results_dir is None:
        raise UserError("the folder of <sub-task>.txt is missing; see --help")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if args.json:
        check_writable(args.json)
    results = {"benchmark": "MME"} | score_folder(args.results_dir, args.seed)
    answers = fingerprint(*(args.results_dir / f"{task}.txt" for task in results["subtasks"]))
    results |= describe_run(
        __file__, argv, model=args.name or args.results_dir.resolve().name, fingerprint=answers,
        fingerprint_of="answers", seed=args.seed, num_samples={"questions": results["num_questions"]},
        limited=bool(results["missing"] or results["incomplete"]),
    )  # fmt: skip
    if args.json:
        write_json(args.json, results)
    Console(width=None if sys.stdout.isatty() else 100).print(make_table(results))  # a pipe has no width


def score_folder(folder: Path, seed: int) -> dict:
    """All sub-tasks that a folder holds; a group's total is None where one of its files is not there.

    Raises:
        UserError: the folder holds none, or a file is no result file.
    """
    files = {task: folder / f"{task}.txt" for tasks in mme.GROUPS.values() for task in tasks}
    found = {task: mme.read_results(path) for task, path in files.items() if path.is_file()}
    if not found:
        raise UserError(f"{folder} holds no result files of MME: existence.txt, count.txt, ..., code_reasoning.txt")
    rng = np.random.default_rng(seed)
    results: dict = {"subtasks": {}, "intervals": {}}
    for group, tasks in mme.GROUPS.items():
        resampled = {}
        for task in (task for task in tasks if task in found):
            counted = mme.outcomes(found[task])
            sums = resampled_sums(counted, range(len(counted)), rng)
            rates = mme.rates(sums, len(counted))
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
    results["missing"] = [task for task in full if task not in found]
    results["incomplete"] = [task for task, rows in found.items() if len(rows) != full[task]]
    return results


def make_table(results: dict) -> Table:
    """One row for each sub-task and one for each group."""
    caption = f"no total without {', '.join(results['missing'])}" if results["missing"] else None
    title = f"MME, {results['model']}: {results['num_questions']:,} questions"
    table = Table(title=title, caption=caption, box=box.SIMPLE_HEAD)
    for heading in ("", "score", "95 %", "acc", "acc+", "neither", "questions"):
        table.add_column(heading, justify="right" if heading else "left", no_wrap=True)
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
