"""The HTML page of eval/report.py: bars with their intervals, then what models drew and answered, failures too.

One file with everything in it: pictures as data URIs, no script, nothing from elsewhere. All that comes out of a result
is escaped.
"""

import base64
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

from PIL import Image

from unimllm.errors import UserError
from unimllm.images import open_picture
from unimllm.result_measures import Measure, plain, told_set
from unimllm.results import GALLERY, Column, Result, make_groups

LARGEST = 256  # pixels of an embedded picture's longer side
NUM_COLORS = 6  # of bars; more models begin anew, their names stand beside

STYLE = """
:root { color-scheme: light dark; --paper: #fcfcfb; --ink: #1f2328; --soft: #656d76; --line: #e3e5e8; --track: #eff1f3;
  --card: #fff; --right: #1a7f37; --wrong: #b3261e; --c0: #3b6fd4; --c1: #d97a1e; --c2: #2f9e6e; --c3: #a24fc0;
  --c4: #b8860b; --c5: #5b6b7b }
@media (prefers-color-scheme: dark) { :root { --paper: #14171b; --ink: #e4e7ea; --soft: #9aa3ad; --line: #2b3138;
  --track: #222830; --card: #1a1f25; --right: #57c878; --wrong: #ff8278; --c0: #6f9df5; --c1: #f0a050; --c2: #54c795;
  --c3: #cb8be2; --c4: #d9b13b; --c5: #93a3b3 } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 1120px; padding: 2.5rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .4rem }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .5rem }
h3 { font-size: 1rem; margin: 1.6rem 0 .6rem }
p { margin: .3rem 0; max-width: 75ch }
.soft, figcaption span, dt { color: var(--soft) }
.note { border-left: 3px solid var(--wrong); padding-left: .8rem }
ul.key { display: flex; flex-wrap: wrap; gap: .3rem 1.4rem; list-style: none; padding: 0; margin: 1rem 0 0 }
.swatch { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .45em }
.wide { overflow-x: auto }
table { border-collapse: collapse; width: 100%; min-width: 700px; table-layout: fixed;
  font-variant-numeric: tabular-nums }
th, td { padding: .28rem .6rem .28rem 0; text-align: left; vertical-align: middle; font-weight: normal;
  overflow-wrap: anywhere }
thead th { color: var(--soft); font-size: .85rem; border-bottom: 1px solid var(--line) }
tbody { border-bottom: 1px solid var(--line) }
tbody.main th[scope=rowgroup], tbody.main .value { font-weight: 650 }
th[scope=rowgroup] { vertical-align: top }
.number { text-align: right; white-space: nowrap }
.measure { width: 27% } .model { width: 19% } .value { width: 9% } .interval { width: 15% } .samples { width: 9% }
.track { position: relative; height: 14px; background: var(--track); border-radius: 3px; margin-right: .6rem }
.track span { position: absolute; top: 0; bottom: 0 }
.bar { border-radius: 3px; opacity: .85 }
.track .whisker { top: 3px; bottom: 3px; border: solid var(--ink); border-width: 0 1.5px }
.whisker::after { content: ""; position: absolute; left: 0; right: 0; top: 50%; border-top: 1.5px solid var(--ink) }
.track .ceiling { top: -2px; bottom: -2px; border-left: 2px dashed var(--soft) }
.cards { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(var(--card), 100%), 1fr)) }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .75rem }
.card > p { margin: 0 0 .5rem; font-weight: 600; line-height: 1.35; overflow-wrap: anywhere }
.tries { display: grid; gap: .75rem; grid-template-columns: repeat(var(--beside), minmax(0, 1fr)) }
figure { margin: 0; font-size: .84rem; line-height: 1.4; overflow-wrap: anywhere }
figure img, .absent { display: block; width: 100%; aspect-ratio: 1; object-fit: contain; border-radius: 5px;
  background: var(--track); border: 3px solid transparent }
img[src^="data:image/png"] { image-rendering: pixelated }
figure.right img { border-color: var(--right) }
figure.wrong img { border-color: var(--wrong); border-style: dashed }
.absent { display: grid; place-items: center; color: var(--soft) }
figcaption { margin-top: .35rem }
figcaption b { font-weight: 650 }
.right b { color: var(--right) }
.wrong b { color: var(--wrong) }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: .4rem 0 1.4rem }
dd { margin: 0; overflow-wrap: anywhere }
code { font: .88em ui-monospace, monospace }
"""


@dataclass(frozen=True)
class Try:
    """A model's drawing or answer: its row of the gallery, and the picture."""

    row: dict
    file: Path


def make_page(columns: list[Column], refused: list[str], pictures: dict[Path, str]) -> str:
    """The whole page.

    Args:
        columns: see `results.make_columns`.
        refused: a line about each file that could not be read.
        pictures: see `embed`.
    """
    models = " and ".join(column.title for column in columns) if len(columns) < 3 else f"{len(columns)} models"
    parts = [
        "<!doctype html>", '<html lang="en">', "<head>", '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>Results of {escape(models)}</title>", f"<style>{STYLE}</style>", "</head>", "<body>",
        f"<h1>Results of {escape(models)}</h1>", *introduction(columns, refused), *charts(columns),
        *gallery(columns, pictures), *runs(columns), "</body>", "</html>",
    ]  # fmt: skip
    return "\n".join(parts) + "\n"


def introduction(columns: list[Column], refused: list[str]) -> Iterator[str]:
    """How to read the page, whose bars are which, and what could not be read."""
    yield (
        "<p>Whiskers are 95 % intervals, of each model alone. Where those of two do not overlap, their difference is "
        "hardly chance. Where they do, it may be real all the same: both saw the same pictures, and a paired test, "
        "which is not made here, can tell more. A dashed line is a ceiling, what a perfect model would get from the "
        "same judge.</p>"
    )
    if any(result.limited for column in columns for result in column.results):
        yield "<p>* measured on a part of the set alone.</p>"
    for line in refused:
        yield f'<p class="note">Not shown: {escape(line)}</p>'
    if len(columns) > 1:
        yield '<ul class="key">'
        yield from (f"<li>{swatch(i)}{escape(column.title)}</li>" for i, column in enumerate(columns))
        yield "</ul>"


def swatch(index: int) -> str:
    return f'<span class="swatch" style="background:var(--c{index % NUM_COLORS})"></span>'


# ---- bars ----------------------------------------------------------------------------------------------------------


def charts(columns: list[Column]) -> Iterator[str]:
    """A table with bars for each group."""
    for group, names in make_groups(columns).items():
        yield f'<h2>{escape(group)}</h2>\n<div class="wide"><table>'
        model = '<th scope="col" class="model">model</th>' if len(columns) > 1 else ""
        numbers = "".join(f'<th scope="col" class="number {name}">{title}</th>' for name, title in
                          (("value", "value"), ("interval", "95 %"), ("samples", "samples")))  # fmt: skip
        yield f'<thead><tr><th scope="col" class="measure">measure</th>{model}<th></th>{numbers}</tr></thead>'
        taking_part = [i for i, c in enumerate(columns) if any(c.measure((group, name)) for name in names)]
        for name in names:
            yield from chart_rows(columns, taking_part, (group, name))
        yield "</table></div>"


def chart_rows(columns: list[Column], taking_part: list[int], key: tuple[str, str]) -> Iterator[str]:
    """One measure: a row for each of the columns with these indices."""
    found = [columns[i].measure(key) for i in taking_part]
    known = [measure for measure, _ in filter(None, found)]
    ends = [n for m in known for n in (m.value, m.ceiling, *(m.interval or ())) if n is not None]
    top = known[0].top or 1.05 * max(ends, default=1) or 1
    comparable = known[0].top is not None or len(known) > 1  # a bar of no scale beside no other says nothing
    yield f"<tbody{' class=main' if known[0].main else ''}>"
    for row, (i, entry) in enumerate(zip(taking_part, found, strict=True)):
        yield "<tr>"
        if row == 0:
            yield f'<th scope="rowgroup" rowspan="{len(taking_part)}">{escape(key[1])}</th>'
        if len(columns) > 1:
            title = escape(columns[i].title)
            yield f"<td>{swatch(i)}{title}</td>"
        if entry is None:
            yield '<td></td><td class="number value">-</td><td></td><td></td>'
        else:
            measure, limited = entry
            samples = "" if measure.num_samples is None else f"{measure.num_samples:,}"
            yield f"<td>{bar(measure, top, i) if comparable else ''}</td>"
            yield f'<td class="number value">{measure.shown(measure.value)}{"*" if limited else ""}</td>'
            yield f'<td class="number soft">{measure.shown_interval()}</td><td class="number soft">{samples}</td>'
        yield "</tr>"
    yield "</tbody>"


def bar(measure: Measure, top: float, index: int) -> str:
    """A bar from 0 to `top`, its whisker and its ceiling."""
    if measure.value is None:
        return ""

    def percent(number: float) -> str:
        return f"{100 * min(1, max(0, number / top)):.2f}%"

    parts = [f'<span class="bar" style="left:0;width:{percent(measure.value)};background:var(--c{index % NUM_COLORS})">'
             "</span>"]  # fmt: skip
    told = measure.shown(measure.value)
    if measure.shown_interval():
        low, high = measure.interval
        parts.append(f'<span class="whisker" style="left:{percent(low)};width:{percent(min(high, top) - low)}"></span>')
        told += f", {measure.shown_interval()}"
    if measure.ceiling is not None:
        title = f"ceiling {measure.shown(measure.ceiling)}"
        parts.append(f'<span class="ceiling" style="left:{percent(measure.ceiling)}" title="{title}"></span>')
        told += f", {title}"
    return f'<div class="track" role="img" aria-label="{told}">{"".join(parts)}</div>'


# ---- the gallery ---------------------------------------------------------------------------------------------------


def gallery(columns: list[Column], pictures: dict[Path, str]) -> Iterator[str]:
    """Drawings and questions side by side, then wrong answers model by model."""
    drawings = tries_by(columns, "drawings", ("tag", "prompt"))
    for group, tag in dict.fromkeys(key[:2] for key in drawings):
        shown = {key[2]: tries for key, tries in drawings.items() if key[:2] == (group, tag)}
        yield f"<h2>Drawings: {escape(plain(tag))}</h2>"
        yield f'<p class="soft">{escape(group)}: the first prompts and the first picture of each, none chosen.</p>'
        yield from cards(list(shown.items()), columns, pictures, drawing_told)
    asked = tries_by(columns, "questions", ("kind", "question", "filename"))
    if asked:
        yield '<h2>Questions</h2>\n<p class="soft">The first of every kind, none chosen.</p>'
        yield from cards([(key[2], tries) for key, tries in asked.items()], columns, pictures, answer_told)
    for column in columns:
        wrong = tries_by([column], "wrong_answers", ("kind", "question", "filename"))
        if wrong:
            yield f'<h2>Wrong answers of {escape(column.title)}</h2>\n<p class="soft">The first ones that it gave.</p>'
            yield from cards([(key[2], tries) for key, tries in wrong.items()], [column], pictures, answer_told)


def tries_by(columns: list[Column], part: str, names: tuple[str, ...]) -> dict[tuple, list[Try | None]]:
    """What each model made of the same thing: (what it is a part of, the row's values of `names`) -> a try or None."""
    tries: dict[tuple, list[Try | None]] = {}
    for i, column in enumerate(columns):
        for result in column.results:
            for row, file in result.shown(part):
                key = (told_set(result.content) + result.apart, *(str(row[name]) for name in names))
                of_columns = tries.setdefault(key, [None] * len(columns))
                of_columns[i] = of_columns[i] or Try(row, file)
    return tries


def cards(
    entries: list[tuple[str, list[Try | None]]],
    columns: list[Column],
    pictures: dict[Path, str],
    told: Callable[[dict], str],
) -> Iterator[str]:
    """A card for each (heading, one try for each column), without columns that have none at all."""
    taking_part = [i for i in range(len(columns)) if any(tries[i] for _, tries in entries)]
    beside = min(len(taking_part), 3)
    yield f'<div class="cards" style="--beside:{beside};--card:{110 * beside + 105}px">'
    for heading, tries in entries:
        yield f'<div class="card"><p>{escape(heading)}</p><div class="tries">'
        for i in taking_part:
            attempt = tries[i]
            title = f"<span>{escape(columns[i].title)}</span><br>" if len(columns) > 1 else ""
            if attempt is None:
                yield f'<figure><div class="absent">none</div><figcaption>{title}</figcaption></figure>'
                continue
            uri = pictures.get(attempt.file)
            absent = f'<div class="absent">no picture {escape(attempt.file.name)}</div>'
            shown = f'<img src="{uri}" alt="{escape(heading)}" loading="lazy">' if uri else absent
            word = "right" if attempt.row["correct"] else "wrong"
            caption = f"{title}<b>{word}</b>{told(attempt.row)}"
            yield f'<figure class="{word}">{shown}<figcaption>{caption}</figcaption></figure>'
        yield "</div></div>"
    yield "</div>"


def drawing_told(row: dict) -> str:
    """Why a drawing is wrong, and what was seen in it."""
    reason = f": {escape('; '.join(row['reason'].splitlines()))}" if row["reason"] else ""
    return reason + (f"<br><span>seen: {escape(row['found'])}</span>" if row.get("found") else "")


def answer_told(row: dict) -> str:
    """What was said, and what would have been right."""
    expected = "" if row["correct"] else f"<br><span>expected: {escape(row['answer'])}</span>"
    return f": {escape(row['said']) or '(nothing)'}{expected}"


def embed(columns: list[Column]) -> tuple[dict[Path, str], list[str]]:
    """Data URIs of all pictures of the galleries, and a line about each that cannot be read."""
    files = {
        file for column in columns for result in column.results for part in GALLERY for _, file in result.shown(part)
    }
    uris, unread = {}, []
    for file in sorted(files):
        try:
            uris[file] = data_uri(open_picture(file))
        except UserError as error:
            unread.append(str(error))
    return uris, unread


def data_uri(picture: Image.Image) -> str:
    """A picture as text for `src`, at most LARGEST pixels wide and high: PNG if it was small, else JPEG."""
    small = max(picture.size) <= LARGEST // 2
    picture.thumbnail((LARGEST, LARGEST))
    file = io.BytesIO()
    picture.save(file, "PNG" if small else "JPEG", **({} if small else {"quality": 88}))
    return f"data:image/{'png' if small else 'jpeg'};base64,{base64.b64encode(file.getvalue()).decode()}"


# ---- where it comes from -------------------------------------------------------------------------------------------


def runs(columns: list[Column]) -> Iterator[str]:
    """How every number can be made again, and what to beware of."""
    yield "<h2>How to repeat it</h2>"
    for column in columns:
        for result in column.results:
            yield f"<h3>{escape(column.title)}: {escape(result.program)}</h3>"
            yield from (f'<p class="note">Warning: {escape(warning)}.</p>' for warning in result.warnings)
            yield "<dl>"
            for name, value in told_of(result).items():
                shown = f"<code>{escape(value)}</code>" if name == "command" else escape(value)
                yield f"<dt>{escape(name)}</dt><dd>{shown}</dd>"
            yield "</dl>"


def told_of(result: Result) -> dict[str, str]:
    """The facts of a run in words; what is not known is left out."""
    content, made = result.content, result.made
    of = "" if made is content else " of the drawing"
    told = {"command": content.get("command"), f"commit{of}": made.get("commit")}
    if content.get("fingerprint"):
        told["fingerprint"] = f"{content['fingerprint']}, of the {content.get('fingerprint_of', 'weights')}"
    told[f"seed{of}"] = made.get("seed")
    told["samples"] = in_words(content.get("num_samples")) + (", a part of the set" if result.limited else "")
    told |= {f"sampling{of}": in_words(made.get("sampling")), f"dtype{of}": made.get("dtype")}
    told |= {f"device{of}": made.get("gpu") or made.get("device"), f"versions{of}": in_words(made.get("versions"))}
    told |= {"processor": content.get("processor"), "file": result.path}
    told["not told by the file"] = ", ".join(result.missing)
    return {name: str(value) for name, value in told.items() if value not in (None, "")}


def in_words(values: dict | None) -> str:
    """`{"pictures": 4}` -> "pictures 4"."""
    return (
        ", ".join(f"{plain(str(name))} {value}" for name, value in values.items()) if isinstance(values, dict) else ""
    )
