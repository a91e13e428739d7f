"""Figures of eval/speed.py and eval/speed_gpu.py: as rows, in the JSON, by --only."""

from collections.abc import Iterable
from dataclasses import dataclass

from unimllm.command_line import nearest
from unimllm.errors import UserError


@dataclass
class Row:
    """One figure.

    Attributes:
        what: for people.
        value: the figure.
        key: its name in the JSON.
        samples: what it was measured on -> how many: "positions", "pictures", "samples"; empty where it is of none.
        unit: of the value.
    """

    what: str
    value: float
    key: str
    samples: dict[str, int]
    unit: str = "CPU-s"


def split_only(only: str | None, known: Iterable[str]) -> list[str]:
    """The names in --only, none where it is not given; UserError for one that is not known."""
    names = only.split(",") if only else []
    for name in names:
        if name not in known:
            raise UserError(f"--only {name}: no such measurement{nearest(name, known)}; known: {', '.join(known)}")
    return names


def figures_of(rows: list[Row]) -> dict:
    """What the JSON holds of them: each value under its key, and in "num_samples" what it was measured on."""
    return {row.key: row.value for row in rows} | {"num_samples": {row.key: row.samples for row in rows if row.samples}}


def in_words(samples: dict[str, int]) -> str:
    """`{"positions": 1024}` -> "1,024 positions"."""
    return ", ".join(f"{n:,} {what.removesuffix('s') if n == 1 else what}" for what, n in samples.items())
