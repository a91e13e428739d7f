"""The ablation of the image tokenizer as tables: the mean over seeds, and their spread (sample standard deviation).

    python eval/compare.py runs/ablation/results

Reads what scripts/ablate_tokenizer.sh leaves in RESULTS/VARIANT/seed-N/: tokenizer.json (eval/reconstruction.py),
features.json (eval/features.py) and understanding.json (eval/scenes.py). A folder without its file is a run that has
not ended, and is named below, as are split, limit and samples, values that are null and the commits that measured.
"""

import json
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from unimllm.command_line import CommandLine, run
from unimllm.errors import UserError
from unimllm.images import check_writable
from unimllm.report import write_json

TOKENIZER, FEATURES, UNDERSTANDING = FILES = "tokenizer.json", "features.json", "understanding.json"
PROGRAMS = {TOKENIZER: "eval/reconstruction.py", FEATURES: "eval/features.py", UNDERSTANDING: "eval/scenes.py"}
GROUPS: dict[str, dict[str, tuple[str, tuple[str, ...]]]] = {  # title -> variant -> (what it is, its files)
    "Tokenizers of 4,096 ids": {
        "pixel_only": ("pixel-only VQ", FILES),
        "semantic_only": ("semantic-only VQ", FILES),
        "shared_vector": ("one codebook, trained jointly (VILA-U's way)", FILES),
        "shared_index": ("two codebooks under one index, trained jointly (TokenFlow's way)", FILES),
        "joint": ("SemHiTok, trained jointly", FILES),
        "phased": ("SemHiTok, trained in phases", FILES),
    },
    "Pixel codes under each of 256 semantic codes": {
        "m1": ("m = 1", FILES),
        "m2": ("m = 2", FILES),
        "m4": ("m = 4", FILES),
        "m8": ("m = 8", FILES),
        "phased": ("m = 16", FILES),
    },
    "Codes under a semantic code": {
        "phased": ("one set, bent for each", FILES),
        "free": ("each its own, the paper's", FILES),
    },
    "Enhance Decoder": {
        "phased": ("off", (TOKENIZER,)),
        "longer": ("off, the same decoder trained as much longer", (TOKENIZER,)),
        "enhanced": ("on: a wider decoder, trained anew", (TOKENIZER,)),
    },
    "Image head (SemHiTok in phases; models that draw, too)": {
        "flat": ("flat", (UNDERSTANDING,)),
        "factorised": ("factorised", (UNDERSTANDING,)),
    },
}
ALIKE = {  # what must be equal in all files of a name, or their numbers cannot be compared
    TOKENIZER: ("data", "split", "limit", "num_pictures", "resolution", "classes_digest", "glyphs_digest"),
    FEATURES: (
        "split", "seed", "num_pictures", "num_training_pictures", "image_size", "classes_digest", "glyphs_digest"
    ),
    UNDERSTANDING: (
        "split", "seed", "limit", "num_questions", "num_pope_questions", "reader", "reader_fingerprint", "glyphs_digest"
    ),
}  # fmt: skip
# of those, what earlier versions did not tell
LATELY = ("image_size", "classes_digest", "glyphs_digest", "reader_fingerprint")
DRAWN = ("sampling", "images_per_prompt", "num_prompts")  # of UNDERSTANDING, too, where the model drew


@dataclass
class Column:
    """One measure.

    Args:
        title: of the column.
        file: where it stands.
        read: the number, from that file; KeyError where it was not measured.
        digits: after the point.
    """

    title: str
    file: str
    read: Callable[[dict], float | None]
    digits: int = 3


@dataclass
class Results:
    """All files that are there.

    Args:
        found: (variant, seed, file) -> content.
        missing: what stands in the places of the others, in words.
    """

    found: dict[tuple[str, int, str], dict]
    missing: list[str]

    def values(self, variant: str, column: Column) -> list[float]:
        """One number for each seed that has it, in the order of the seeds."""
        numbers = []
        for (name, _, file), content in sorted(self.found.items(), key=lambda item: item[0]):
            if name == variant and file == column.file:
                try:
                    numbers.append(column.read(content))
                except KeyError:
                    continue
        return [number for number in numbers if number is not None]


def main(argv: list[str] | None = None) -> None:
    parser = CommandLine("eval/compare.py", __doc__)
    parser.add_argument("results", type=Path, nargs="?", default=Path("runs/ablation/results"))
    parser.add_argument("--json", type=Path, help="also write means, spreads and the single numbers here")
    args = parser.parse_args(argv)
    if args.json:
        check_writable(args.json)
    results = read_results(args.results)
    columns = make_columns(results)
    results.missing += null_values(results, columns)
    if args.json:
        write_json(args.json, summarize(results, columns))
    print("\n\n".join(table for group in GROUPS if (table := make_table(group, results, columns))))
    print("\n" + "\n".join(f"{file}: {told_alike(values)}" for file, values in measured_on(results).items()))
    commits = commits_of(results)
    print(f"\ncommits: {', '.join(commits)}")
    if len(commits) > 1:
        print("Note: measured by more than one state of the code; what differs between rows may be the code's.")
    if results.missing:
        print("\nMissing: " + "; ".join(results.missing) + ".")


def read_results(folder: Path) -> Results:
    """Every file of every variant.

    Raises:
        UserError: there is none, one is damaged or another program's, two were measured differently or on one model.
    """
    results = Results({}, [])
    for name in dict.fromkeys(name for group in GROUPS.values() for name in group):
        wanted = [file for file in FILES if any(file in group[name][1] for group in GROUPS.values() if name in group)]
        seeds = sorted(int(path.name[5:]) for path in folder.glob(f"{name}/seed-*") if path.name[5:].isdecimal())
        for seed in seeds:
            absent = [file for file in wanted if not (folder / name / f"seed-{seed}" / file).is_file()]
            results.missing += [f"{name}, seed {seed}: {file}" for file in absent]
            for file in wanted:
                if file not in absent:
                    results.found[name, seed, file] = read_json(folder / name / f"seed-{seed}" / file)
        if not seeds:
            results.missing.append(f"{name}: not started")
    if not results.found:
        raise UserError(f"no results in {folder}: run scripts/ablate_tokenizer.sh, or name its results folder")
    check_own(results)
    check_alike(results)
    return results


def read_json(path: Path) -> dict:
    """The content of a file; UserError if it is damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("no result")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} cannot be read ({error}); remove it and run scripts/ablate_tokenizer.sh again"
        ) from error
    return content


def check_own(results: Results) -> None:
    """UserError where a file is not its program's or no result of it, or two of a name are of the same weights."""
    first: dict[tuple[str, str], str] = {}
    for (name, seed, file), content in results.found.items():
        where, program = f"{name}/seed-{seed}/{file}", content.get("program", PROGRAMS[file])
        if program != PROGRAMS[file]:
            raise UserError(
                f"{where} is of {program!r}, not of {PROGRAMS[file]}; remove it and run scripts/ablate_tokenizer.sh "
                "again"
            )
        distances = content.get("frechet", {})
        if not isinstance(distances, dict) or not all(isinstance(d, dict) for d in distances.values()):
            raise UserError(f"{where} is damaged: 'frechet' is {distances!r}")
        if content.get("fingerprint"):  # earlier versions did not tell
            other = first.setdefault((file, str(content["fingerprint"])), where)
            if other != where:
                raise UserError(
                    f"{where} and {other} are of the same weights, {content['fingerprint']}: they cannot be two runs; "
                    "remove the wrong one and run scripts/ablate_tokenizer.sh again"
                )


def commits_of(results: Results) -> list[str]:
    """The states of the code that measured, shortened."""
    commits = {str(content.get("commit") or "unknown").partition("-") for content in results.found.values()}
    return sorted(f"{commit[:7]}{' with changes' if dirty else ''}" for commit, _, dirty in commits)


def measured_on(results: Results) -> dict[str, dict]:
    """Name of a file -> split, limit and numbers of samples, which all files of that name share."""
    shared: dict[str, dict] = {}
    for (_, _, file), content in results.found.items():
        told = {k: content[k] for k in ("split", "limit", *ALIKE[file]) if k in content}  # features had no limit once
        shared.setdefault(file, {k: v for k, v in told.items() if k in ("split", "limit") or type(v) is int})
    return {file: shared[file] for file in FILES if file in shared}


def told_alike(values: dict) -> str:
    """A value of `measured_on` in words."""
    words = [f"{values['split']} split"] if "split" in values else []
    words += [f"limit {values['limit'] or 'none'}"] if "limit" in values else []
    counts = {name.removeprefix("num_"): n for name, n in values.items() if name.startswith("num_")}
    words += [f"{n:,} {name.replace('_', ' ')}" for name, n in counts.items()]
    return ", ".join(words)


def check_alike(results: Results) -> None:
    """UserError where two files of a name were not measured in the same way."""
    first: dict[tuple[str, str], tuple[str, object]] = {}
    for (name, seed, file), content in results.found.items():
        where = f"{name}/seed-{seed}/{file}"
        keys = (*ALIKE[file], *(DRAWN if "geneval" in content else ()))
        measured = {key: content.get(key) for key in keys if key in content or key not in LATELY}
        for net, distance in content.get("frechet", {}).items():
            told = [part for part in str(distance.get("library")).split(", ") if part.startswith("SigLIP ")]
            measured |= {f"the network of {net}": part for part in told}  # earlier versions did not tell which
        for key, value in measured.items():
            other, expected = first.setdefault((file, key), (where, value))
            if value != expected:
                raise UserError(
                    f"{where} has {key} {value!r} and {other} {expected!r}: they cannot be compared; "
                    "remove one and run scripts/ablate_tokenizer.sh again"
                )


def make_columns(results: Results) -> list[Column]:
    """The measures; the Frechet distance is named after its network."""
    names = {name for (_, _, file), content in results.found.items() if file == TOKENIZER
             for name in content.get("frechet", {})}  # fmt: skip
    frechet = [
        Column(name, TOKENIZER, lambda c, name=name: c["frechet"][name]["distance"], 2) for name in sorted(names)
    ]
    return [
        Column("PSNR, dB", TOKENIZER, lambda c: c["psnr"], 2),
        Column("SSIM", TOKENIZER, lambda c: c["ssim"]),
        *frechet,
        Column("semantic codes used", TOKENIZER, lambda c: c["semantic_code_use"]),
        Column("all codes used", TOKENIZER, lambda c: c["flat_code_use"]),
        Column("objects told by one code", FEATURES, lambda c: c["code"]),
        Column("questions right", UNDERSTANDING, lambda c: c["question_accuracy"]),
        Column("POPE F1", UNDERSTANDING, lambda c: c["pope_f1"]),
        Column("GenEval-style drawing", UNDERSTANDING, lambda c: c["geneval"]["overall"]),
    ]


def null_values(results: Results, columns: list[Column]) -> list[str]:
    """Which values are null, as infinite ones are and means of a part, a line each; UserError for what is no number."""
    nulls = []
    for (name, seed, file), content in results.found.items():
        for column in (column for column in columns if column.file == file):
            try:
                value = column.read(content)
            except KeyError:
                continue
            except TypeError as error:
                raise UserError(f"{name}/seed-{seed}/{file} is damaged: no {column.title} ({error})") from error
            if value is None:
                reason = "means of a part" if file == UNDERSTANDING else "infinite values"
                nulls.append(f"{name}, seed {seed}: {column.title} (null in {file}, as {reason} are)")
            elif type(value) not in (int, float) or not math.isfinite(value):
                raise UserError(f"{name}/seed-{seed}/{file}: {column.title} is {value!r}, no number")
    return nulls


def spread(values: list[float]) -> float | None:
    """Sample standard deviation; None of fewer than two."""
    return statistics.stdev(values) if len(values) > 1 else None


def cell(values: list[float], digits: int) -> str:
    """`27.31 +- 0.12 (3)`: mean, spread and number of seeds; one seed stands alone."""
    if not values:
        return ""
    mean = f"{statistics.mean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} +- {spread(values):.{digits}f} ({len(values)})"


def make_table(group: str, results: Results, columns: list[Column]) -> str:
    """One group in Markdown, without columns that nobody has; empty where nothing was measured."""
    variants = GROUPS[group]
    rows = {name: [results.values(name, c) if c.file in files else [] for c in columns]
            for name, (_, files) in variants.items()}  # fmt: skip
    shown = [i for i in range(len(columns)) if any(row[i] for row in rows.values())]
    if not shown:
        return ""
    lines = [[group, *(columns[i].title for i in shown)], ["---", *("---:" for _ in shown)]]
    lines += [[variants[name][0], *(cell(row[i], columns[i].digits) for i in shown)] for name, row in rows.items()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def summarize(results: Results, columns: list[Column]) -> dict:
    """The numbers behind the tables, by variant and measure."""
    summary: dict = {"missing": results.missing, "commits": commits_of(results), "measured_on": measured_on(results)}
    summary["variants"] = {}
    for variant in dict.fromkeys(name for name, _, _ in results.found):
        measured = {c.title: values for c in columns if (values := results.values(variant, c))}
        summary["variants"][variant] = {
            title: {"mean": statistics.mean(values), "spread": spread(values), "values": values}
            for title, values in measured.items()
        }
    return summary


if __name__ == "__main__":
    run(main)
