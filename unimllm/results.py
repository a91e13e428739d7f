"""Result files of eval/*.py as measures that stand side by side in columns, one for each model.

Every program writes other JSON; a function here under the program's name tells what of it is shown, in which order.
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from semhitok.errors import first_line
from unimllm.errors import UserError
from unimllm.json_rows import read_text

FACTS = (
    "program", "model", "fingerprint", "commit", "command", "versions", "seed", "num_samples", "limited",
)  # fmt: skip
"""What every result carries, see `report.describe_run`."""

GALLERY = {  # part -> what its rows hold; see unimllm/gallery.py
    "drawings": ("filename", "tag", "prompt", "correct", "reason"),
    "questions": ("filename", "kind", "question", "answer", "said", "correct"),
    "wrong_answers": ("filename", "kind", "question", "answer", "said", "correct"),
}

Interval = tuple[float, float]


@dataclass(frozen=True)
class Measure:
    """One number.

    Args:
        group: what it was measured on; equal only where two models can be compared.
        name: plain, unique in its group.
        value: None where it could not be measured.
        interval: of 95 %.
        num_samples: what it was measured on.
        ceiling: what a perfect model would get.
        digits: after the point.
        top: where its scale ends, which begins at 0; None: with the greatest value.
        main: whether it sums up others.
    """

    group: str
    name: str
    value: float | None
    interval: Interval | None = None
    num_samples: int | None = None
    ceiling: float | None = None
    digits: int = 3
    top: float | None = 1
    main: bool = False

    def __post_init__(self):
        numbers = (self.value, self.ceiling, self.num_samples, *(self.interval or ()))
        wrong = [n for n in numbers if n is not None and (type(n) not in (int, float) or not math.isfinite(n))]
        if wrong or (self.interval and len(self.interval) != 2):
            raise ValueError(f"{self.name!r} is {wrong[0] if wrong else self.interval!r}, no number")

    @property
    def key(self) -> tuple[str, str]:
        return self.group, self.name

    def shown(self, number: float | None) -> str:
        """A number of this scale for people."""
        return "-" if number is None else f"{number:,.{self.digits}f}"

    def shown_interval(self) -> str:
        """The interval for people, empty where there is none."""
        if self.interval is None or None in self.interval:
            return ""
        return f"{self.shown(self.interval[0])} to {self.shown(self.interval[1])}"


@dataclass(frozen=True)
class Result:
    """One file.

    Args:
        path: of the JSON file.
        content: of it.
        program: that wrote it, such as "eval/scenes.py".
        measures: in the order in which they are shown.
        missing: what of FACTS it lacks: an earlier version wrote it.
    """

    path: Path
    content: dict
    program: str
    measures: list[Measure]
    missing: list[str]

    @property
    def model(self) -> str:
        return str(self.content.get("model", self.path.stem))

    @property
    def limited(self) -> bool:
        """Whether it was measured on a part of the set alone."""
        return bool(self.content.get("limited", self.content.get("limit") is not None))

    @property
    def weights(self) -> str | None:
        """The fingerprint of the model's weights, None if unknown."""
        known = self.content.get("fingerprint") and self.content.get("fingerprint_of") == "weights"
        return str(self.content["fingerprint"]) if known else None

    def shown(self, part: str) -> list[tuple[dict, Path]]:
        """Rows of a part of the gallery with their pictures."""
        gallery = self.content.get("gallery", {})
        folder = self.path.parent / gallery.get("folder", "")
        return [(row, folder / row["filename"]) for row in gallery.get(part, [])]


@dataclass
class Column:
    """All results of one model.

    Args:
        results: which share no measure.
        title: the model's name, with more where two columns would have the same.
    """

    results: list[Result]
    title: str = field(default="")

    def measure(self, key: tuple[str, str]) -> tuple[Measure, bool] | None:
        """A measure, and whether it has a value of a part of the set alone; None if it was not measured."""
        found = ((m, r.limited and m.value is not None) for r in self.results for m in r.measures if m.key == key)
        return next(found, None)


# ---- reading -------------------------------------------------------------------------------------------------------


def read_results(paths: list[Path]) -> tuple[list[Result], list[str]]:
    """Every JSON file in folders, and single ones; and a line about each that is no result.

    Raises:
        UserError: there is no result, or no such file or folder.
    """
    results, refused = [], []
    for path in json_files(paths):
        try:
            results.append(read_result(path))
        except UserError as error:
            refused.append(str(error))
    if not results:
        where = ", ".join(map(str, paths))
        found = f" ({'; '.join(refused)})" if refused else ""
        raise UserError(f"no results in {where}{found}: `python eval/scenes.py --json FILE` makes one")
    return results, refused


def json_files(paths: list[Path]) -> list[Path]:
    """The files named and those below the folders named, each once, without what lies beside GenEval's pictures."""
    files: list[Path] = []
    for path in paths:
        if not path.exists():
            raise UserError(f"{path}: no such file or folder")
        below = sorted(path.rglob("*.json")) if path.is_dir() else [path]
        files += [file for file in below if file.name != "generation.json" or file == path]
    return list({file.resolve(): file for file in files}.values())


def read_result(path: Path) -> Result:
    """One file; UserError if it is damaged or none of ours."""
    text = read_text(path)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON: {error}") from error
    program = program_of(content) if isinstance(content, dict) else None
    if program not in MEASURES:
        told = f"of {program!r}, which is" if program else "of"
        raise UserError(f"{path} is {told} none of {', '.join(MEASURES)}")
    try:
        measures = list(MEASURES[program](content))
        check_gallery(content.get("gallery", {}))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        lacks = f"it lacks {error}" if isinstance(error, KeyError) else first_line(error)
        raise UserError(f"{path} is no whole result of {program}: {lacks}") from error
    return Result(path, content, program, measures, [name for name in FACTS if name not in content])


def check_gallery(gallery: dict) -> None:
    """KeyError or TypeError if a row lacks something or holds no text where there must be some."""
    rows = [row for part in GALLERY for row in gallery.get(part, [])]
    if not all(isinstance(text, str) for text in (gallery.get("folder", ""), *(row.get("found", "") for row in rows))):
        raise TypeError("a folder or what was found in its gallery is no text")
    for part, names in GALLERY.items():
        for row in gallery.get(part, []):
            for name in names:
                if type(row[name]) is not (bool if name == "correct" else str):
                    raise TypeError(f"{name!r} in its gallery is {row[name]!r}")


def program_of(content: dict) -> str | None:
    """Which program wrote a result; earlier versions did not say it."""
    if "program" in content:
        return str(content["program"])
    benchmark = str(content.get("benchmark", ""))
    if benchmark in ("POPE", "MME"):
        return f"eval/{benchmark.lower()}.py"
    if benchmark.startswith("GenEval"):
        return "eval/geneval.py"
    return next((p for p, key in (("eval/scenes.py", "reader_ceiling"), ("eval/reconstruction.py", "frechet"))
                 if key in content), None)  # fmt: skip


# ---- side by side --------------------------------------------------------------------------------------------------


def make_columns(results: list[Result]) -> list[Column]:
    """One column for each model; two runs that measured the same, or other weights of the same name, stand apart."""
    columns: list[Column] = []
    for result in results:
        keys = {measure.key for measure in result.measures}
        for column in columns:
            same = column.results[0].model == result.model
            weights = {r.weights for r in (*column.results, result)} - {None}
            if same and len(weights) < 2 and not any(column.measure(key) for key in keys):
                column.results.append(result)
                break
        else:
            columns.append(Column([result]))
    for column in columns:
        column.title = title_of(column, columns)
    return columns


def title_of(column: Column, columns: list[Column]) -> str:
    """The model's name; where several columns have it, with the fingerprint of the weights, or else the files."""
    model = column.results[0].model
    alike = [other for other in columns if other.results[0].model == model]
    if len(alike) == 1:
        return model
    prints = [next((r.weights for r in other.results if r.weights), None) for other in alike]
    if None not in prints and len(set(prints)) == len(prints):
        return f"{model} ({prints[alike.index(column)]})"
    return f"{model} ({', '.join(str(result.path) for result in column.results)})"


def make_groups(columns: list[Column]) -> dict[str, list[str]]:
    """Group -> names of its measures, in the order of the first column that has them."""
    groups: dict[str, dict[str, None]] = {}
    for column in columns:
        for result in column.results:
            for measure in result.measures:
                groups.setdefault(measure.group, {})[measure.name] = None
    return {group: list(names) for group, names in groups.items()}


# ---- what each program measured ------------------------------------------------------------------------------------


def plain(name: str) -> str:
    """`color_attr` -> `color attr`."""
    return name.replace("_", " ")


def of_codes(r: dict, group: str) -> Iterator[Measure]:
    for name in ("semantic", "flat"):
        yield Measure(group, f"{name} codes used", r[f"{name}_code_use"], num_samples=r["num_pictures"], digits=2)


def of_scenes(r: dict) -> Iterator[Measure]:
    """eval/scenes.py."""
    on, intervals = f"Scenes, {r.get('split', 'test')} split, seed {r['seed']}", r["intervals"]
    group, n = f"{on}: reconstruction", r["num_pictures"]
    yield Measure(group, "PSNR, dB", r["psnr"], intervals["psnr"], n, digits=2, top=None)
    yield Measure(group, "SSIM", r["ssim"], intervals["ssim"], n)
    yield Measure(
        group, "objects read from reconstructions, of those read from true renders", r["objects_read"],
        intervals["objects_read"], n,
    )  # fmt: skip
    yield from of_codes(r, group)
    if "pope" in r:
        yield from of_answers(r, f"{on}: understanding")
    if "geneval" in r:
        yield from of_drawings(r, f"{on}: drawing")
    for name in ("picture", "picture_batched", "answer"):
        if f"seconds_per_{name}" in r:
            title = f"seconds for one {name.partition('_')[0]}{' of a batch' if 'batched' in name else ''}"
            yield Measure(f"{on}: speed on {r['processor']}", title, r[f"seconds_per_{name}"], digits=2, top=None)


def of_answers(r: dict, group: str) -> Iterator[Measure]:
    intervals, n = r["intervals"], r["num_pope_questions"]
    for split in r["pope"]:
        yield Measure(group, f"POPE F1, {split}", r[f"pope_f1_{split}"], intervals[f"pope_f1_{split}"], n)
    yield Measure(group, "POPE F1, mean", r["pope_f1"], intervals.get("pope_f1"), n * len(r["pope"]), main=True)
    counts = r.get("num_questions_by_kind", {})
    for kind, accuracy in r["question_accuracy_by_kind"].items():
        interval = intervals["question_accuracy_by_kind"][kind]
        yield Measure(group, f"questions: {plain(kind)}", accuracy, interval, counts.get(kind))
    n, accuracy = r["num_questions"], r["question_accuracy"]
    yield Measure(group, "questions: all", accuracy, intervals["question_accuracy"], n, main=True)


def of_drawings(r: dict, group: str) -> Iterator[Measure]:
    counts = r.get("num_pictures_by_tag", {})
    for tag, share in r["geneval"].items():
        n = r["num_prompts"] * r["images_per_prompt"] if tag == "overall" else counts.get(tag)
        yield Measure(
            group, f"GenEval-style: {plain(tag)}", share, r["intervals"]["geneval"][tag], n,
            ceiling=r["tokenizer_ceiling"][tag], main=tag == "overall",
        )  # fmt: skip


def of_pope(r: dict) -> Iterator[Measure]:
    """eval/pope.py."""
    total = sum(split["num_questions"] for split in r["splits"].values())
    rows = [(name, split, split["num_questions"]) for name, split in r["splits"].items()]
    rows += [("mean", r["mean"], total)] if len(rows) > 1 else []
    for parsing in ("official", "strict"):
        for name, entry, n in rows:
            for score, title in (("accuracy", "accuracy"), ("f1", "F1"), ("yes_ratio", "says yes")):
                interval = r["intervals"][name][parsing][score]
                main = name == "mean" and score != "yes_ratio"
                yield Measure(
                    f"POPE, {parsing} parsing", f"{title}, {name}", entry[parsing][score], interval, n, main=main
                )


def of_mme(r: dict) -> Iterator[Measure]:
    """eval/mme.py."""
    subtasks = r["subtasks"]
    for group, top in (("perception", 2000), ("cognition", 800)):
        title = f"{group}, of {top:,}"
        yield Measure("MME", title, r[group], r["intervals"].get(group), digits=1, top=top, main=True)
    for task, entry in subtasks.items():
        n = entry["num_questions"]
        yield Measure("MME", f"{plain(task)}, of 200", entry["score"], r["intervals"][task], n, digits=1, top=200)


def of_geneval(r: dict) -> Iterator[Measure]:
    """eval/geneval.py."""
    group, intervals = str(r["benchmark"]), r["intervals"]
    for tag, share in r["scores"].items():
        n = r["num_pictures_by_tag"].get(tag, r["num_pictures"])
        yield Measure(group, plain(tag), share, intervals[tag], n, main=tag == "overall")
    for name, title, n in (("correct_pictures", "pictures right", r["num_pictures"]),
                           ("correct_prompts", "prompts with any picture right", r["num_prompts"])):  # fmt: skip
        yield Measure(group, title, r[name], intervals.get(name), n)


def of_reconstruction(r: dict) -> Iterator[Measure]:
    """eval/reconstruction.py."""
    split = f", {r['split']} split" if r.get("split") else ""
    group, n = f"Reconstruction of {r['data']}{split}, {r['resolution']} x {r['resolution']}", r["num_pictures"]
    for key, title, digits, top in (
        ("psnr", "PSNR, dB", 2, None), ("ssim", "SSIM", 3, 1),
        ("lpips", f"LPIPS ({r.get('lpips_backbone')}), less is better", 3, None),
    ):  # fmt: skip
        if key in r:
            yield Measure(group, title, r[key], r["intervals"][key], n, digits=digits, top=top)
    for name, values in r["frechet"].items():
        yield Measure(group, f"{name}, less is better", values["distance"], num_samples=n, digits=2, top=None)
        if "kid_mean" in values:
            title = f"{values['kid_name']} x 1000, less is better"
            yield Measure(group, title, 1000 * values["kid_mean"], num_samples=n, digits=2, top=None)
    yield from of_codes(r, group)


MEASURES: dict[str, Callable[[dict], Iterator[Measure]]] = {
    "eval/scenes.py": of_scenes,
    "eval/pope.py": of_pope,
    "eval/mme.py": of_mme,
    "eval/geneval.py": of_geneval,
    "eval/reconstruction.py": of_reconstruction,
}
