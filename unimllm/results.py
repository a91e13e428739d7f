"""Result files of eval/*.py as measures that stand side by side in columns, one for each model."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

from semhitok.errors import first_line
from unimllm.errors import UserError
from unimllm.json_rows import read_text
from unimllm.result_measures import MEASURES, Measure, told_data

FACTS = (
    "program", "model", "fingerprint", "commit", "command", "versions", "seed", "num_samples", "limited",
)  # fmt: skip
"""What every result carries, see `report.describe_run`."""

GALLERY = {  # part -> what its rows hold; see unimllm/gallery.py
    "drawings": ("filename", "tag", "prompt", "correct", "reason"),
    "questions": ("filename", "kind", "question", "answer", "said", "correct"),
    "wrong_answers": ("filename", "kind", "question", "answer", "said", "correct"),
}


@dataclass(frozen=True)
class Result:
    """One file.

    Args:
        path: of the JSON file.
        content: of it.
        program: that wrote it, such as "eval/scenes.py".
        measures: in the order in which they are shown.
        missing: what of FACTS it lacks: an earlier version wrote it.
        data: see `told_data`.
        apart: what of its data tells it from results that would be in its groups, see `tell_apart`; in brackets.
    """

    path: Path
    content: dict
    program: str
    measures: list[Measure]
    missing: list[str]
    data: dict[str, str] = field(default_factory=dict)
    apart: str = ""

    @property
    def model(self) -> str:
        return str(self.content.get("model", self.path.stem))

    @property
    def limited(self) -> bool:
        """Whether it was measured on a part of the set alone."""
        return bool(self.content.get("limited", self.content.get("limit") is not None))

    @property
    def warnings(self) -> list[str]:
        """What to beware of in its numbers."""
        warnings = self.content.get("warnings")
        return list(map(str, warnings)) if isinstance(warnings, list) else []

    @property
    def weights(self) -> str | None:
        """The fingerprint of the model's weights, None if unknown."""
        known = self.content.get("fingerprint") and self.content.get("fingerprint_of") == "weights"
        return str(self.content["fingerprint"]) if known else None

    @property
    def made(self) -> dict:
        """Where it is told how the answers or pictures were made: those of GenEval are drawn by another run."""
        drawn = self.content.get("generation")
        return drawn if isinstance(drawn, dict) else self.content

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
    return tell_apart(results), refused


def tell_apart(results: list[Result]) -> list[Result]:
    """The results, those of one group over other data in groups that tell it."""
    groups = [{measure.group for measure in result.measures} for result in results]
    told = []
    for result, own in zip(results, groups, strict=True):
        beside = [other for other, theirs in zip(results, groups, strict=True) if own & theirs]
        differs = [
            f"{what} {digest}" for what, digest in result.data.items()
            if {other.data.get(what, digest) for other in beside} != {digest}
        ]  # fmt: skip
        apart = f" ({', '.join(differs)})" if differs else ""
        measures = [replace(measure, group=measure.group + apart) for measure in result.measures]
        told.append(replace(result, measures=measures, apart=apart))
    return told


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
        measures, data = list(MEASURES[program](content)), told_data(content)
        check_gallery(content.get("gallery", {}))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        lacks = f"it lacks {error}" if isinstance(error, KeyError) else first_line(error)
        raise UserError(f"{path} is no whole result of {program}: {lacks}") from error
    return Result(path, content, program, measures, [name for name in FACTS if name not in content], data)


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
        fitting = [
            column for column in columns
            if column.results[0].model == result.model
            and len({r.weights for r in (*column.results, result)} - {None}) < 2
            and not any(column.measure(key) for key in keys)
        ]  # fmt: skip
        if len(fitting) == 1:
            fitting[0].results.append(result)
        else:  # none, or several of which it may belong to any
            columns.append(Column([result]))
    for column in columns:
        column.title = title_of(column, columns)
    return columns


def title_of(column: Column, columns: list[Column]) -> str:
    """The model's name; where several columns have it, with the fingerprint of the weights, or else the first file."""
    model = column.results[0].model
    alike = [other for other in columns if other.results[0].model == model]
    if len(alike) == 1:
        return model
    prints = [next((r.weights for r in other.results if r.weights), None) for other in alike]
    if None not in prints and len(set(prints)) == len(prints):
        return f"{model} ({prints[alike.index(column)]})"
    labels = shortest_labels([other.results[0].path for other in alike])
    return f"{model} ({labels[alike.index(column)]})"


def shortest_labels(paths: list[Path]) -> list[str]:
    """One text for each path that tells it from the others: `a/1/x.json`, `b/1/x.json` -> `a`, `b`.

    Either one part of the path, counted from its end, or all from there on, without the suffix; the whole path where
    only suffixes differ.
    """
    parts = [(*path.parent.parts, path.stem) for path in paths]
    places = range(1, 1 + max(map(len, parts)))
    ways = [[p[-n] if n <= len(p) else "" for p in parts] for n in places]
    ways += [[str(Path(*p[-n:])) for p in parts] for n in places]
    ways = [labels for labels in ways if all(labels) and len(set(labels)) == len(labels)]
    return min(ways, key=lambda labels: len("".join(labels)), default=list(map(str, paths)))


def make_groups(columns: list[Column]) -> dict[str, list[str]]:
    """Group -> names of its measures, in the order of the first column that has them."""
    groups: dict[str, dict[str, None]] = {}
    for column in columns:
        for result in column.results:
            for measure in result.measures:
                groups.setdefault(measure.group, {})[measure.name] = None
    return {group: list(names) for group, names in groups.items()}
