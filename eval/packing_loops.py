"""LLaVA's padded batches and our packed rows of the same samples, for eval/speed.py and eval/speed_gpu.py."""

from collections.abc import Iterator

import numpy as np
import torch
from speed_rows import Row

from unimllm.conversation import Tokenized
from unimllm.data.packing import PackedRow, stack_rows
from unimllm.data.row_plan import best_fit

PADDED_AT_ONCE = 16  # samples of a batch of LLaVA's
PADDED, PACKED = "padded, pictures encoded in the step", "packed, codes stored, "


def packed_over_padded(
    padded: float, packed: float, num_samples: int, key: str, unit: str, how: str, how_padded: str = ""
) -> list[Row]:
    """Both loops' rates in `unit` from their seconds over the same samples, and the speed-up; keys begin with `key`.

    Args:
        how: packed rows went through the model, in words.
        how_padded: the other ones did.
    """
    on = {"samples": num_samples}
    return [
        Row(PADDED + how_padded, num_samples / padded, f"{key}_padded_samples_per_s", on, unit),
        Row(PACKED + how, num_samples / packed, f"{key}_packed_samples_per_s", on, unit),
        Row("speed-up", padded / packed, f"{key}_speedup_over_padded", on, "times"),
    ]


def padded_batches(samples: list[Tokenized], pictures: list[torch.Tensor], pad_id: int) -> Iterator[dict]:
    """LLaVA's batches: 16 samples padded to the longest, with their pictures, (0 or more, 3, S, S) in 0..1 of each."""
    for start in range(0, len(samples), PADDED_AT_ONCE):
        part = samples[start : start + PADDED_AT_ONCE]
        rows = []
        for sample in part:
            rows.append(PackedRow(max(map(len, part)), pad_id))
            rows[-1].add(sample.input_ids, sample.is_target)
        batch = stack_rows(rows) | {"pixel_values": torch.cat(pictures[start : start + PADDED_AT_ONCE]) * 2 - 1}
        yield batch | {"attention_mask": batch["input_ids"] != pad_id}


def packed_batches(
    samples: list[Tokenized], stored: list[torch.Tensor], image_id: int, pad_id: int, max_length: int, num_rows: int
) -> Iterator[dict]:
    """Ours: packed rows, in which placeholders `image_id` have become the ids `stored` of the samples' pictures."""
    rows = []
    for members in best_fit(np.array(list(map(len, samples))), max_length):
        rows.append(PackedRow(max_length, pad_id))
        for member in members:
            ids = iter(stored[member].flatten().tolist())
            with_codes = [next(ids) if token == image_id else token for token in samples[member].input_ids]
            rows[-1].add(with_codes, samples[member].is_target)
    for start in range(0, len(rows), num_rows):
        yield stack_rows(rows[start : start + num_rows])
