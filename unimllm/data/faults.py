"""Pictures that cannot be read are skipped, never in silence: what was wrong, with which, and how often."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

NAMED = 3  # skipped pictures of each kind whose keys are told


@dataclass(frozen=True)
class Fault:
    """One picture, or one file of pictures, that was skipped."""

    kind: str
    """A few words that recur: "empty", "damaged", ..."""
    key: str
    """Where it lies: a path, a tar and its member, a parquet file and its row."""
    reason: str
    """What the decoder or the file system said."""

    def __str__(self) -> str:
        return f"{self.key}: {self.kind}: {self.reason}"


class UnreadablePicture(Exception):
    """A picture that cannot be read. Its arguments are those of a `Fault` but for the key: kind and reason."""


class FaultLog:
    """Counts faults by kind; tells the first few of each kind by key, then the counts at each power of ten.

    Args:
        counts: of an earlier part of the run.
    """

    def __init__(self, counts: dict[str, int] | None = None):
        self.counts = Counter(counts or {})

    def add(self, faults: Iterable[Fault]) -> None:
        """Count these, and tell what is due."""
        for fault in faults:
            self.counts[fault.kind] += 1
            if self.counts[fault.kind] <= NAMED:
                print(f"skipped {fault}; another picture takes its place", flush=True)
            if _is_power_of_ten(self.counts.total()):
                print(self, flush=True)

    def __str__(self) -> str:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in self.counts.most_common())
        return f"{self.counts.total():,} pictures skipped so far ({kinds})"


def _is_power_of_ten(count: int) -> bool:
    return count >= 10 and set(str(count)[1:]) == {"0"} and str(count)[0] == "1"
