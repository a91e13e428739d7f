"""Files of rows as the benchmarks hand them around: JSON lines, or one JSON array of objects."""

import json
from collections.abc import Iterable
from pathlib import Path

from unimllm.errors import UserError
from unimllm.images import write_atomically


def read_rows(path: Path, needed: tuple[str, ...] = ()) -> list[dict]:
    """The rows of a file of JSON lines, or of one JSON array; empty lines are passed over.

    Args:
        needed: keys that every row must have.

    Raises:
        UserError: no such file, no rows, or a row that is no JSON object or lacks a key; it is named by its number.
    """
    text = read_text(path)
    if text.lstrip().startswith("["):
        rows = list(enumerate(_parse(text, f"{path}"), 1))
    else:
        rows = [(n, _parse(line, f"{path}, line {n}")) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not rows:
        raise UserError(f"{path} is empty")
    for number, row in rows:
        missing = [key for key in needed if key not in row] if isinstance(row, dict) else None
        if missing is None:
            raise UserError(f"{path}, row {number}: not a JSON object")
        if missing:
            raise UserError(f"{path}, row {number} lacks {missing[0]!r}; it has {', '.join(map(repr, row))}")
    return [row for _, row in rows]


def write_rows(path: Path, rows: Iterable[dict]) -> None:
    """A file of JSON lines, whole or not at all; UserError if the place cannot be written."""
    text = "".join(json.dumps(row) + "\n" for row in rows)
    write_atomically(path, lambda file: file.write(text.encode()))


def read_text(path: Path) -> str:
    """A whole text file; UserError if it cannot be read or is no UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text in UTF-8 (byte {error.start})") from error


def _parse(text: str, where: str):
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(f"{where} is no JSON: {error}") from error


def json_trouble(error: ValueError | RecursionError) -> str:
    """What JSON that Python cannot read has too much of, or else the error's own words, without the line.

    Of an error of the syntax they end where a place is to follow, such as `in column 5`.
    """
    if isinstance(error, json.JSONDecodeError):
        return error.msg.removesuffix(" at").removesuffix(" starting")
    if isinstance(error, RecursionError):
        return "brackets nested too deeply"
    return "a number of too many digits" if "integer string conversion" in str(error) else str(error)
