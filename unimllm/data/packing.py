"""Packing: several samples in one row, told apart by position ids that start again at 0.

A sample may branch: a beginning (a picture, say), and behind it several continuations (a question and its answer each)
that all see the beginning and never one another. So one picture in the row serves many questions, and each is learnt as
if it had been the only one. The position ids of every branch go on from the beginning's last.
"""

import numpy as np
import torch

from unimllm.vocabulary import IGNORE


class PackedRow:
    """One row of `max_length` ids under construction."""

    def __init__(self, max_length: int, pad_id: int):
        self.max_length, self.pad_id = max_length, pad_id
        self.input_ids: list[int] = []
        self.labels: list[int] = []
        self.position_ids: list[int] = []
        self.samples: list[int] = []
        self.branches: list[int] = []

    @property
    def room(self) -> int:
        """Ids that still fit."""
        return self.max_length - len(self.input_ids)

    def add(self, input_ids: list[int], is_target: list[bool]) -> bool:
        """Append one sample if it fits; its first id is never a target (nothing precedes it)."""
        return self.add_branches(input_ids, is_target, [])

    def add_branches(
        self, input_ids: list[int], is_target: list[bool], branches: list[tuple[list[int], list[bool]]]
    ) -> bool:
        """Append a sample that begins with `input_ids` and goes on in each of `branches`, if all of it fits.

        The first id of a branch must be no target: in the row another branch may precede it.
        """
        if len(input_ids) + sum(len(ids) for ids, _ in branches) > self.room:
            return False
        sample = self.samples[-1] + 1 if self.samples else 0
        self._append(input_ids, [False, *is_target[1:]], 0, sample, 0)
        for number, (ids, targets) in enumerate(branches, 1):
            if targets[0]:
                raise ValueError("the first id of a branch is a target: nothing in the row comes before it")
            self._append(ids, targets, len(input_ids), sample, number)
        return True

    def _append(self, ids: list[int], targets: list[bool], start: int, sample: int, branch: int) -> None:
        self.input_ids += ids
        self.labels += [token if target else IGNORE for token, target in zip(ids, targets, strict=True)]
        self.position_ids += range(start, start + len(ids))
        self.samples += [sample] * len(ids)
        self.branches += [branch] * len(ids)

    def finish(self) -> dict[str, list[int]]:
        """The row, padded on the right by a sample of pad ids without targets."""
        room = self.room
        return {
            "input_ids": self.input_ids + [self.pad_id] * room,
            "labels": self.labels + [IGNORE] * room,
            "position_ids": self.position_ids + list(range(room)),
            "samples": self.samples + [-1] * room,
            "branches": self.branches + [0] * room,
        }


def stack_rows(rows: list[PackedRow], with_mask: bool = False) -> dict[str, torch.Tensor]:
    """`input_ids`, `labels`, `position_ids`, each (rows, max_length) int64.

    Args:
        rows: of one length.
        with_mask: add `attention_mask`, (rows, 1, max_length, max_length) bool; needed as soon as a sample branches
            (without it the position ids tell the samples apart, but a branch would look like a sample of its own).
    """
    finished = [row.finish() for row in rows]
    columns = {
        name: torch.from_numpy(np.array([row[name] for row in finished], np.int64)) for name in finished[0]
    }  # numpy reads lists of lists in half of torch's time
    samples, branches = columns.pop("samples"), columns.pop("branches")
    if with_mask:
        columns["attention_mask"] = branch_mask(samples, branches).unsqueeze(1)
    return columns


def num_padding(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """(B,) int64, ids at the end of each row of `stack_rows` that stand for nothing."""
    ids, length = batch["input_ids"], batch["position_ids"][:, -1:] + 1  # of the last sample, or of less in a branch
    is_last = torch.arange(ids.shape[1], device=ids.device) >= ids.shape[1] - length  # (B, T)
    is_empty = (ids == ids[:, -1:]) & (batch["labels"] == IGNORE)  # no sample is like that: each has targets
    return torch.where((is_empty | ~is_last).all(1), length[:, 0], 0)


def count_tokens(batch: dict[str, torch.Tensor]) -> int:
    """Ids of packed rows without their padding; of rows without position ids all."""
    held = batch["input_ids"].numel()
    return held - int(num_padding(batch).sum()) if "position_ids" in batch else held


def count_samples(batch: dict[str, torch.Tensor]) -> int:
    """Samples in packed rows; without position ids each row is one."""
    if "position_ids" not in batch:
        return len(batch["input_ids"])
    return int((batch["position_ids"] == 0).sum() - (num_padding(batch) > 0).sum())


def sample_bounds(position_ids: torch.Tensor) -> torch.Tensor:
    """Where each sample of packed rows without branches begins, and the last one ends: (samples + 1,) int32.

    All rows count as one long one, so that a batch may have several.

    Args:
        position_ids: (B, T) int64, 0 where a sample begins, as at the beginning of every row.
    """
    starts = (position_ids.flatten() == 0).nonzero().flatten()
    return torch.cat([starts, starts.new_tensor([position_ids.numel()])]).int()


def flash_arguments(position_ids: torch.Tensor) -> dict[str, torch.Tensor | int]:
    """`sample_bounds` in the words of transformers' flash attention; no mask of T x T is made.

    Returns:
        cu_seq_lens_q and _k: the bounds; max_length_q and _k: ids of the longest sample.
    """
    bounds = sample_bounds(position_ids)
    longest = int(bounds.diff().max())
    return {"cu_seq_lens_q": bounds, "cu_seq_lens_k": bounds, "max_length_q": longest, "max_length_k": longest}


def branch_mask(samples: torch.Tensor, branches: torch.Tensor) -> torch.Tensor:
    """What each position may look at: of its own sample and not later, the beginning (branch 0) and its own branch.

    Args:
        samples, branches: (B, T) int64.

    Returns:
        (B, T, T) bool, True where the query of the row may see the key of the column.
    """
    length = samples.shape[-1]
    causal = torch.ones(length, length, dtype=torch.bool, device=samples.device).tril()
    same_sample = samples[:, :, None] == samples[:, None, :]  # (B, queries, keys)
    same_branch = (branches[:, None, :] == 0) | (branches[:, :, None] == branches[:, None, :])
    return causal & same_sample & same_branch
