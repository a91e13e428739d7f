"""The results of eval/scenes.py as a table."""

from rich.table import Table

from unimllm.metrics.geneval import TAGS
from unimllm.report import add_code_use, as_range, open_table


def make_table(results: dict) -> Table:
    """One table of what `results` holds; parts that were not examined are left out."""
    notes = ["Ceilings: true renders as the reader sees them, and after encoding and decoding them."]
    notes += [f"A part of the set alone (--limit {results['limit']})."] if results["limited"] else []
    title = f"{results['model']} on scenes, {results['split']} split, seed {results['seed']}"
    table = open_table(title, ("", "score", "95 %", "reader", "tokenizer"), notes)
    _add_tokenizer(table, results)
    if "pope" in results:
        _add_understanding(table, results)
    _add_drawing(table, results)
    table.add_section()
    for key, title in (
        ("picture", "picture, alone"), ("picture_batched", "picture, batched"), ("answer", "answer, alone")
    ):  # fmt: skip
        if f"seconds_per_{key}" in results:
            table.add_row(f"seconds per {title}", f"{results[f'seconds_per_{key}']:.3f}")
    return table


def _add_tokenizer(table: Table, results: dict) -> None:
    intervals = results["intervals"]
    true_rate = f"{results['objects_read_in_true_renders']:.3f}"
    table.add_row(f"Reconstruction ({results['num_pictures']} pictures)", style="bold")
    table.add_row("PSNR, dB", f"{results['psnr']:.2f}", as_range(intervals["psnr"], 2))
    table.add_row("SSIM", f"{results['ssim']:.3f}", as_range(intervals["ssim"]))
    table.add_row(
        "objects read from reconstructions / from true renders",
        f"{results['objects_read']:.3f}", as_range(intervals["objects_read"]), true_rate,
    )  # fmt: skip
    add_code_use(table, results)


def _add_understanding(table: Table, results: dict) -> None:
    table.add_section()
    table.add_row(f"Understanding ({results['num_questions']} questions, POPE and MME apart)", style="bold")
    for split, scores in results["pope"].items():
        said_yes = scores["official"]["yes_ratio"]
        interval = as_range(results["intervals"][f"pope_f1_{split}"])
        table.add_row(f"POPE F1, {split} (says yes {said_yes:.2f})", f"{scores['official']['f1']:.3f}", interval)
    for key, title in (("pope_f1", "POPE F1, mean"), ("pope_f1_strict", "POPE F1, mean, strict parsing")):
        table.add_row(title, f"{results[key]:.3f}", as_range(results["intervals"][key]))
    for task, scores in results["mme"].items():
        shares = f"acc {100 * scores['acc']:.1f}, acc+ {100 * scores['acc_plus']:.1f}"
        interval = as_range(results["intervals"][f"mme_{task}"], 1)
        table.add_row(f"MME {task}, of 200 ({shares})", f"{scores['score']:.1f}", interval)
    interval = as_range(results["intervals"]["mme_total"], 1)
    table.add_row(f"MME, of {200 * len(results['mme'])}", f"{results['mme_total']:.1f}", interval)
    for kind, accuracy in results["question_accuracy_by_kind"].items():
        interval = as_range(results["intervals"]["question_accuracy_by_kind"][kind])
        table.add_row(f"accuracy: {kind.replace('_', ' ')}", f"{accuracy:.3f}", interval)
    interval = as_range(results["intervals"]["question_accuracy"])
    table.add_row("accuracy: all questions", f"{results['question_accuracy']:.3f}", interval)


def _add_drawing(table: Table, results: dict) -> None:
    table.add_section()
    title = "Drawing" if "geneval" in results else "Ceilings of drawing, nothing drawn"
    table.add_row(f"{title} ({results['num_prompts']} prompts)", style="bold")
    drawn, intervals = results.get("geneval", {}), results["intervals"].get("geneval", {})
    ceilings = [results["reader_ceiling"], results["tokenizer_ceiling"]]
    for tag in (*TAGS, "overall"):
        if tag in ceilings[0]:  # overall: None where --limit left a tag out
            values = ["" if scores.get(tag) is None else f"{scores[tag]:.3f}" for scores in (drawn, *ceilings)]
            interval = as_range(intervals[tag]) if intervals.get(tag) else ""
            table.add_row(f"GenEval: {tag.replace('_', ' ')}", values[0], interval, *values[1:])
