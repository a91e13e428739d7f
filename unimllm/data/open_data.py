"""From the words behind `--data` to the source of packed rows that the training loop reads."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from unimllm.data.faults import NAMED
from unimllm.data.mixture import Mixture, parse_ratios
from unimllm.data.packed_samples import PackedSamples
from unimllm.data.picture_ids import OnlinePixels, StoredCodes
from unimllm.data.row_plan import RowPlan
from unimllm.data.sample_index import DataOption, SampleIndex, open_samples, parse_data
from unimllm.data.sample_tokens import SampleTokenizer
from unimllm.data.samples import TASKS
from unimllm.data.shown_samples import shown_samples
from unimllm.data.survey import Survey, ids_met_before, report, survey_samples
from unimllm.errors import NothingUsable, UserError


@dataclass(frozen=True)
class DataOptions:
    """What the command line says of the data.

    Attributes:
        data: places with weights.
        data_format: of `sample_index.FORMATS`; None: recognised.
        image_root: folder that paths of pictures are relative to; None: that of the file that names them.
        ratios: understanding:drawing:text; None: as the sources have them.
        strict: stop at the first place or sample that is not used as it is.
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
        UserError: nothing there that can be used; with `strict`, one place or sample that cannot be.
    """
    ratios = parse_ratios(options.ratios) if options.ratios else None
    sources = [parse_data(word) for word in options.data]
    places = [source.place for source in sources]
    found, empty = look_through(places, options, tokenizer, pictures, cache, rank, world_size, num_workers)
    left_out = [told_empty(sources[number], error) for number, error in empty.items()]
    sources = [sources[number] for number in found]
    indices, surveys = zip(*found.values(), strict=True)
    mixture = Mixture(indices, surveys, [source.weight for source in sources], ratios, seed)
    plan = RowPlan(mixture, max_length, seed)
    plan.extend(num_rows)  # before worker processes start: they inherit it
    if rank == 0:
        told = [describe(plan, indices, surveys, num_rows), *told_ids(indices, surveys), *left_out]
        print("\n".join(told), flush=True)
    about = {
        "sources": [
            {"place": source.place, "weight": source.weight, "samples": len(survey.lengths), "files": index.fingerprint}
            for source, index, survey in zip(sources, indices, surveys, strict=True)
        ],
        "ratios": options.ratios,
        "image_root": str(options.image_root) if options.image_root else None,
        "samples": sum(sum(survey.counts().values()) for survey in surveys),
        "fingerprint": fingerprint(indices, surveys, plan),
    }
    return PackedSamples(indices, plan, tokenizer, pictures, text_drop, seed, options.strict), about


def open_validation(
    place: str, options: DataOptions, tokenizer: SampleTokenizer, pictures: OnlinePixels | StoredCodes,
    max_length: int, max_rows: int, cache: Path, rank: int = 0, world_size: int = 1, num_workers: int = 0,
) -> tuple[PackedSamples, int]:  # fmt: skip
    """Look through a place of validation data and plan its rows, the same in every run: no seed but 0, no text dropped.

    Args:
        options: the format, the image root and the strictness of this place too.
        max_rows: that are looked at; of a large place they come from one window of samples (`mixture.WINDOW`).

    Returns:
        (the source, how many of its rows to look at: no sample is in them twice).
    """
    found, _ = look_through([place], options, tokenizer, pictures, cache, rank, world_size, num_workers)
    indices, surveys = zip(*found.values(), strict=True)
    plan = RowPlan(Mixture(indices, surveys, [1.0], None, seed=0), max_length, seed=0)
    plan.extend(1)
    num_rows = min(max_rows, plan.ends[0])
    if rank == 0:
        held = sum(len(plan.row(row)) for row in range(num_rows))
        print(f"validation on {num_rows:,} rows with {held:,} of its samples", flush=True)
    return PackedSamples(indices, plan, tokenizer, pictures, 0.0, 0, options.strict), num_rows


def look_through(
    places: list[str], options: DataOptions, tokenizer: SampleTokenizer, pictures: OnlinePixels | StoredCodes,
    cache: Path, rank: int, world_size: int, num_workers: int,
) -> tuple[dict[int, tuple[SampleIndex, Survey]], dict[int, NothingUsable]]:  # fmt: skip
    """What lies at some places, by their numbers, which rank 0 tells, and why nothing of the others can be used.

    Raises:
        UserError: nothing at any place can be used; with `strict`, at one of them.
    """
    found: dict[int, tuple[SampleIndex, Survey]] = {}
    empty: dict[int, NothingUsable] = {}
    for number, place in enumerate(places):
        try:
            index = open_samples(place, options.data_format, options.image_root, cache, rank, world_size)
            survey = survey_samples(
                index, tokenizer, pictures.check, pictures.name, options.strict, cache, rank, world_size, num_workers
            )
        except NothingUsable as error:
            if options.strict and len(places) > 1:
                raise UserError(f"{error} (--strict)") from error
            empty[number] = error
            continue
        if rank == 0:
            print("\n".join([report(index, survey), *shown_samples(index, survey, tokenizer)]), flush=True)
        found[number] = index, survey
    if not found:
        others = f"; and so it is at the other {len(empty) - 1:,} places" if len(empty) > 1 else ""
        raise UserError(f"{empty[0]}{others}")
    return found, empty


def told_ids(indices: list[SampleIndex], surveys: list[Survey]) -> list[str]:
    """A line on sources that have ids of sources before them: the same samples, or both number theirs from 0."""
    counts = zip(indices, ids_met_before(surveys), strict=True)
    told = [f"{count:,} of {name_of(index)}" for index, count in counts if count]
    more = f" and those of {len(told) - NAMED:,} more" if len(told) > NAMED else ""
    return [f"  ids that places before have, too: {', '.join(told[:NAMED])}{more}; all are used"] if told else []


def told_empty(source: DataOption, error: NothingUsable) -> str:
    """What becomes of a source of which nothing can be used, and of its weight."""
    weight = "" if source.weight == 1 else f", so that its weight of {source.weight:g} does nothing"
    return f"warning: {error}; {source.place} is left out{weight} (--strict: an error)"


def fingerprint(indices: list[SampleIndex], surveys: list[Survey], plan: RowPlan) -> str:
    """Twelve hex digits that change with anything that decides which samples a row holds."""
    digest = hashlib.sha256(f"{plan.mixture.streams} {plan.max_length} {plan.seed}".encode())
    for index, survey in zip(indices, surveys, strict=True):
        digest.update(index.fingerprint.encode() + survey.lengths.tobytes() + survey.tasks.tobytes())
    return digest.hexdigest()[:12]


def differences(before: dict, now: dict) -> list[str]:
    """What differs between two notes of `open_data`: `b.json is new`, `a.json: weight 3 -> 1`, `--ratios 2:1 -> none`.

    Empty where something else does, as the length of rows or the order of samples, and of an older version's note.
    """
    if not all(isinstance(source, dict) for source in before["sources"]):  # places alone
        return []
    old, new = ({source["place"]: source for source in about["sources"]} for about in (before, now))
    told = [f"{place} is left out" for place in old if place not in new]
    told += [f"{place} is new" for place in new if place not in old]
    for place in (place for place in old if place in new):
        a, b = old[place], new[place]
        if a["weight"] != b["weight"]:
            told.append(f"{place}: weight {a['weight']:g} -> {b['weight']:g}")
        if a["files"] != b["files"]:
            told.append(f"{place}: other files, {a['samples']:,} samples -> {b['samples']:,}")
    for name in ("ratios", "image_root", "codes"):
        if before[name] != now[name]:
            told.append(f"--{name.replace('_', '-')} {before[name] or 'none'} -> {now[name] or 'none'}")
    return told


def describe(plan: RowPlan, indices: list[SampleIndex], surveys: list[Survey], num_rows: int) -> str:
    """How full the rows are, how often the run goes through what it reads, and what --ratios leaves out."""
    mixture = plan.mixture
    lines = [f"{num_rows:,} rows of {plan.max_length:,} ids, {plan.fill():.0%} full, go through"]
    windows = len(plan.ends) * num_rows / plan.ends[-1]
    for stream in mixture.streams:
        passes = windows * mixture.window_size * stream.share / stream.size
        name = name_of(indices[stream.source])
        lines.append(f"  {name}, {TASKS[stream.task]}: {stream.size:,} samples {passes:.2f} times, {stream.share:.1%}")
    used = {(stream.source, TASKS[stream.task]) for stream in mixture.streams}
    for source, survey in enumerate(surveys):
        for task, size in survey.counts().items():
            if size and (source, task) not in used:
                lines.append(f"  {name_of(indices[source])}, {task}: {size:,} samples never, by --ratios")
    return "\n".join(lines)


def name_of(index: SampleIndex) -> str:
    """The last part of a source's path."""
    return os.path.basename(index.name.rstrip("/"))
