"""Results of several models side by side: one Markdown table, and one HTML page with bars and what they drew.

    python eval/report.py results/                                  # the table
    python eval/report.py results/ more/scores.json --html report.html --markdown table.md

Takes the JSON files that eval/scenes.py, pope.py, mme.py, geneval.py, reconstruction.py, pictures.py and features.py
write with --json. Results of one name share a column unless they are of other weights; pope.py, mme.py, geneval.py and
pictures.py take the name from --name.
The page is one file; it shows drawings and answers where `eval/scenes.py --json FILE --save-pictures FOLDER` or
`eval/geneval.py score FOLDER --json FILE` left them.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from unimllm.command_line import CommandLine, run
from unimllm.errors import UserError
from unimllm.images import check_writable, write_atomically
from unimllm.results import Column, Result, make_columns, make_groups, read_results
from unimllm.results_page import embed, in_words, make_page

STDOUT = Path("-")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = CommandLine("eval/report.py", __doc__)
    parser.add_argument("results", nargs="*", type=Path, help="JSON files, and folders that hold them")
    parser.add_argument("--html", type=Path, help="write the page here")
    parser.add_argument("--markdown", type=Path, help="write the table here; -: to stdout (as without --html)")
    args = parser.parse_args(argv)
    if not args.results:
        raise UserError("the folder of results is missing; see --help")
    if not args.html and not args.markdown:
        args.markdown = STDOUT
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    for path in filter(None, (args.html, args.markdown if args.markdown != STDOUT else None)):
        check_writable(path)
    results, refused = read_results(args.results)
    columns = make_columns(results)
    notes = [f"{result.path} does not tell {', '.join(result.missing)}" for result in results if result.missing]
    if args.html:
        pictures, unread = embed(columns)
        notes += [f"{len(unread)} pictures are not shown: {unread[0]}"] if unread else []
        write(args.html, make_page(columns, refused, pictures))
    if args.markdown == STDOUT:
        print(as_bytes(make_markdown(columns)).decode(), end="")
    elif args.markdown:
        write(args.markdown, make_markdown(columns))
    for path in filter(None, (args.html, args.markdown if args.markdown != STDOUT else None)):
        print(f"{path}: {len(results)} results in {len(columns)} columns", file=sys.stderr)
    if refused:
        notes.append(f"{len(refused)} of {len(refused) + len(results)} files are not shown: {'; '.join(refused)}")
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def write(path: Path, text: str) -> None:
    """A text file, whole or not at all."""
    write_atomically(path, lambda file: file.write(as_bytes(text)))


def as_bytes(text: str) -> bytes:
    """UTF-8; names in JSON and of files can hold what it cannot say, which becomes a question mark."""
    return text.encode(errors="replace")


# ---- Markdown ------------------------------------------------------------------------------------------------------


def make_markdown(columns: list[Column]) -> str:
    """The table, and under it what marks mean, how every column was measured, and what to beware of."""
    head = ["measure", "samples", *(cell(column.title) for column in columns)]
    lines = [head, ["---", "---:", *("---" for _ in columns)]]
    for group, names in make_groups(columns).items():
        lines.append([f"**{cell(group)}**", *("" for _ in head[1:])])
        lines += [row(columns, (group, name)) for name in names]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return table + "\n\n" + "\n".join(notes_under(columns)) + "\n"


def row(columns: list[Column], key: tuple[str, str]) -> list[str]:
    """One measure: its name, on how many samples, and what each column has."""
    found = [column.measure(key) for column in columns]
    counts = [f"{m.num_samples:,}" for m, _ in filter(None, found) if m.num_samples is not None]
    values = []
    for entry in found:
        if entry is None:
            values.append("-")
            continue
        measure, limited = entry
        told = measure.shown(measure.value) + ("\\*" if limited else "")
        told = f"**{told}**" if measure.main else told
        told += f" ({measure.shown_interval()})" if measure.shown_interval() else ""
        values.append(told + (f", ceiling {measure.shown(measure.ceiling)}" if measure.ceiling is not None else ""))
    main = next(m.main for m, _ in filter(None, found))
    return [f"**{cell(key[1])}**" if main else cell(key[1]), " / ".join(dict.fromkeys(counts)), *values]


def notes_under(columns: list[Column]) -> Iterator[str]:
    """How to read the table, and the command behind every column with its warnings."""
    results = [result for column in columns for result in column.results]
    yield "In brackets 95 % intervals; the ceiling is what a perfect model would get from the same judge."
    if any(result.limited for result in results):
        yield "\\* measured on a part of the set alone."
    yield ""
    for column in columns:
        for result in column.results:
            yield f"- {cell(column.title)}: {source(result)}"
            yield from (f"  - Warning: {cell(warning)}." for warning in result.warnings)


def source(result: Result) -> str:
    """Command, commit, seed, fingerprint, dtype, device and sampling of a result, as far as they are told."""
    content, made = result.content, result.made
    command = " ".join(str(content.get("command") or result.program).replace("`", "'").split())
    commit, _, dirty = str(made.get("commit") or "unknown").partition("-")
    drawn = "" if made is content else "drawn at "
    facts = [f"{drawn}commit {commit[:7]}{' with changes' if dirty else ''}", f"seed {made.get('seed')}"]
    if content.get("fingerprint"):
        facts.append(f"{content.get('fingerprint_of', 'weights')} {content['fingerprint']}")
    if made.get("dtype"):
        facts.append(f"{made['dtype']} on {made.get('gpu') or made.get('device')}")
    facts += filter(None, [in_words(made.get("sampling"))])
    return f"`{command}`, {cell(', '.join(facts))}"


def cell(text: str) -> str:
    """Text that breaks neither the table nor the page it stands on."""
    return " ".join(text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").split())


if __name__ == "__main__":
    run(main)
