"""From the words behind `--data` to the source of packed rows that the training loop reads."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from unimllm.data.mixture import Mixture, parse_ratios
from unimllm.data.packed_samples import PackedSamples
from unimllm.data.picture_ids import OnlinePixels, StoredCodes
from unimllm.data.row_plan import RowPlan
from unimllm.data.sample_index import SampleIndex, open_samples, parse_data
from unimllm.data.sample_tokens import SampleTokenizer
from unimllm.data.samples import TASKS
from unimllm.data.survey import Survey, report, survey_samples


@dataclass(frozen=True)
class DataOptions:
    """What the command line says of the data.

    Attributes:
        data: places with weights.
        data_format: of `sample_index.FORMATS`; None: recognised.
        image_root: folder that paths of pictures are relative to; None: that of the file that names them.
        ratios: understanding:drawing:text; None: as the sources have them.
        strict: stop at the first fault.
    """

    data: list[str]
    data_format: str | None = None
    image_root: Path | None = None
    ratios: str | None = None
    strict: bool = False


def open_data(
    options: DataOptions, tokenizer: SampleTokenizer, pictures: OnlinePixels | StoredCodes, max_length: int,
    text_drop: float, seed: int, num_rows: int, cache: Path, rank: int = 0, world_size: int = 1, num_workers: int = 0,
) -> tuple[PackedSamples, dict]:  # fmt: skip
    """Look through the data and plan the rows; called by every rank alike, rank 0 tells what there is.

    Args:
        max_length: ids of a row.
        text_drop: share of the plain drawing prompts that are emptied.
        num_rows: that the run will ask for.
        cache: folder where what was found is kept.

    Returns:
        (the source, what to note of the data in run.json).

    Raises:
        UserError: nothing there that can be used; with `strict`, any fault.
    """
    ratios = parse_ratios(options.ratios) if options.ratios else None
    sources = [parse_data(word) for word in options.data]
    indices, surveys = [], []
    for source in sources:
        index = open_samples(source.place, options.data_format, options.image_root, cache, rank, world_size)
        survey = survey_samples(
            index, tokenizer, pictures.check, pictures.name, options.strict, cache, rank, world_size, num_workers
        )
        if rank == 0:
            print(report(index, survey), flush=True)
        indices.append(index)
        surveys.append(survey)
    mixture = Mixture(indices, surveys, [source.weight for source in sources], ratios, seed)
    plan = RowPlan(mixture, max_length, seed)
    plan.extend(num_rows)  # before worker processes start: they inherit it
    if rank == 0:
        print(describe(plan, indices, num_rows), flush=True)
    about = {
        "sources": [source.place for source in sources],
        "samples": sum(sum(survey.counts().values()) for survey in surveys),
        "fingerprint": fingerprint(indices, surveys, mixture),
    }
    return PackedSamples(indices, plan, tokenizer, pictures, text_drop, seed, options.strict), about


def fingerprint(indices: list[SampleIndex], surveys: list[Survey], mixture: Mixture) -> str:
    """Twelve hex digits that change with anything that decides which samples a row holds."""
    digest = hashlib.sha256(str(mixture.streams).encode())
    for index, survey in zip(indices, surveys, strict=True):
        digest.update(index.fingerprint.encode() + survey.lengths.tobytes() + survey.tasks.tobytes())
    return digest.hexdigest()[:12]


def describe(plan: RowPlan, indices: list[SampleIndex], num_rows: int) -> str:
    """How full the rows are, and how often the run goes through what it reads."""
    mixture = plan.mixture
    lines = [f"{num_rows:,} rows of {plan.max_length:,} ids, {plan.fill():.0%} of them samples, go through"]
    windows = len(plan.ends) * num_rows / plan.ends[-1]
    for stream in mixture.streams:
        passes = windows * mixture.window_size * stream.share / stream.size
        name = os.path.basename(indices[stream.source].name.rstrip("/"))
        lines.append(f"  {name}, {TASKS[stream.task]}: {stream.size:,} samples {passes:.2f} times, {stream.share:.1%}")
    return "\n".join(lines)
