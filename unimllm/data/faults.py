"""Pictures that cannot be read are skipped, never in silence: what was wrong, with which, and how often."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

NAMED = 3  # skipped pictures of each reason whose keys are told


@dataclass(frozen=True)
class Fault:
    """One picture, or one file of pictures, that was skipped."""

    reason: str
    """A few words that recur: "empty", "damaged", ..."""
    key: str
    """Where it lies: a path, a tar and its member, a parquet file and its row."""
    message: str
    """What the decoder or the file system said."""
    instead: str = "another picture takes its place"
    """What the run does without it."""

    def __str__(self) -> str:
        return f"{self.key}: {self.reason}: {self.message}"


class FaultLog:
    """Counts faults by reason, each time they are met; names the first few of each, then tells powers of ten.

    Args:
        counts: of an earlier part of the run.
    """

    def __init__(self, counts: dict[str, int] | None = None):
        self.counts = Counter(counts or {})
        self.named: dict[str, set[str]] = defaultdict(set)

    def add(self, faults: Iterable[Fault]) -> None:
        """Count these, and tell what is due."""
        for fault in faults:
            self.counts[fault.reason] += 1
            named = self.named[fault.reason]
            if len(named) < NAMED and fault.key not in named:
                named.add(fault.key)
                print(f"skipped {fault}; {fault.instead}", flush=True)
            if _is_power_of_ten(self.counts.total()):
                print(self, flush=True)

    def __str__(self) -> str:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in self.counts.most_common())
        return f"skipped a picture {self.counts.total():,} times so far ({reasons})"


def _is_power_of_ten(count: int) -> bool:
    return count >= 10 and str(count).rstrip("0") == "1"
