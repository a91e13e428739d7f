"""Packing: several conversations in one row, told apart by position ids that start again at 0."""

import torch

from unimllm.vocabulary import IGNORE


class PackedRow:
    """One row of `max_length` ids under construction."""

    def __init__(self, max_length: int, pad_id: int):
        self.max_length, self.pad_id = max_length, pad_id
        self.input_ids: list[int] = []
        self.labels: list[int] = []
        self.position_ids: list[int] = []

    @property
    def room(self) -> int:
        """Ids that still fit."""
        return self.max_length - len(self.input_ids)

    def add(self, input_ids: list[int], is_target: list[bool]) -> bool:
        """Append one conversation if it fits; its first id is never a target (nothing precedes it)."""
        if len(input_ids) > self.room:
            return False
        self.input_ids += input_ids
        self.labels += [
            token if target and place else IGNORE
            for place, (token, target) in enumerate(zip(input_ids, is_target, strict=True))
        ]
        self.position_ids += range(len(input_ids))
        return True

    def finish(self) -> tuple[list[int], list[int], list[int]]:
        """(input_ids, labels, position_ids), padded on the right by a sample of pad ids without targets."""
        room = self.room
        return (
            self.input_ids + [self.pad_id] * room,
            self.labels + [IGNORE] * room,
            self.position_ids + list(range(room)),
        )


def stack_rows(rows: list[PackedRow]) -> dict[str, torch.Tensor]:
    """`input_ids`, `labels`, `position_ids`, each (rows, max_length) int64."""
    finished = [row.finish() for row in rows]
    return {
        name: torch.tensor([row[i] for row in finished])
        for i, name in enumerate(("input_ids", "labels", "position_ids"))
    }
