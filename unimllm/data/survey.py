"""Every sample of a source looked at once before training: how long it is, what it teaches, what is wrong with it.

Packing needs the lengths (`row_plan`), ratios need the tasks (`mixture`), and whoever trains for a week wants to hear
of bad data in the first minutes. What was found is kept beside the run and used again as long as files and tokenizer
stay; only samples whose picture was missing or that the disk did not give are looked at again, for that may pass.

Shapes: S samples.
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch.distributed as dist
from torch.utils.data import DataLoader

from unimllm.data.faults import NAMED, Fault
from unimllm.data.sample_index import SampleIndex
from unimllm.data.sample_tokens import SampleTokenizer
from unimllm.data.samples import TASKS, BadSample, Picture, pictures_of, task_of
from unimllm.data.shard_index import keep
from unimllm.errors import NothingUsable, UserError

CHUNK = 512  # samples that are looked at in one go
TELL_EVERY = 10  # seconds between two notes of progress
PICTURE_FAULTS = {
    "missing picture": "name the folder that their paths begin in with --image-root",
    "no codes": "encode them by `python -m unimllm.encode` with the same --data and --image-root as here",
}
"""Why pictures lack, and what to do where none of a source is there."""
PASSING = (*PICTURE_FAULTS, "not readable")
READERS = 5  # a number that changes where samples are read otherwise, or pictures have other keys
AFTER_NOISE = "words after a drawing"
UNANSWERED = "no answer at the end"
USED = ("cut short", UNANSWERED, "fewer captions", "duplicate id", AFTER_NOISE)  # of samples that are trained on anyhow

Finding = tuple[int, str, str]  # number of the sample, reason and message of its fault


@dataclass
class Survey:
    """What is known of the samples of a source.

    Attributes:
        lengths: (S,) int32 ids of each sample, of its longest variant that can be used; 0: it cannot be used.
        tasks: (S,) uint8 into TASKS, of what fits of a sample.
        ids: (S,) uint64 hash of its id; 0: it has none.
        findings: what is wrong, in the order of the samples.
    """

    lengths: np.ndarray
    tasks: np.ndarray
    ids: np.ndarray
    findings: list[Finding]

    def counts(self) -> dict[str, int]:
        """Usable samples of each task."""
        return {task: int(((self.tasks == t) & (self.lengths > 0)).sum()) for t, task in enumerate(TASKS)}


class Surveyor:
    """Looks at samples: a map-style dataset of chunks, so that worker processes can share the work.

    Args:
        check_picture: None for a picture that can be had, else the reason why not.
        numbers: of the samples to look at.
    """

    def __init__(
        self, index: SampleIndex, tokenizer: SampleTokenizer, check_picture: Callable[[Picture], str | None],
        numbers: np.ndarray,
    ):  # fmt: skip
        self.index, self.tokenizer, self.check_picture, self.numbers = index, tokenizer, check_picture, numbers

    def __len__(self) -> int:
        return -(-len(self.numbers) // CHUNK)

    def __getitem__(self, chunk: int) -> tuple[np.ndarray, Survey | UserError]:
        numbers = self.numbers[chunk * CHUNK : (chunk + 1) * CHUNK]
        found = empty_survey(len(numbers))
        for place, number in enumerate(numbers.tolist()):
            try:
                self._look(number, place, found)
            except BadSample as error:
                found.findings.append((number, error.reason, " ".join(str(error).split())))
            except UserError as error:  # as a value: raised in a worker, its one line would come back as a traceback
                return numbers, UserError(f"{self.index.key(number)}: {error}")
        return numbers, found

    def _look(self, number: int, place: int, found: Survey) -> None:
        """Note one sample; BadSample if it cannot be used."""
        sample = self.index.read(number)
        if sample.id:
            found.ids[place] = int.from_bytes(
                hashlib.blake2b(sample.id.encode("utf-8", "replace"), digest_size=8).digest()
            )
        usable, refused = self.tokenizer.usable(sample.variants)
        kept, whole = usable[0][1], sample.variants[0]
        for picture in pictures_of(kept):
            if fault := self.check_picture(picture):
                raise BadSample(fault, str(picture.path) if fault == "missing picture" else picture.key)
        if sample.is_cut:
            found.findings.append((number, UNANSWERED, "its last turn, a question, is left out"))
        if len(kept) < len(whole):
            message = f"the first {len(kept)} of {len(whole)} turns fit into {self.tokenizer.max_length:,} ids"
            found.findings.append((number, "cut short", message))
        if refused:
            message = f"{len(refused)} of {len(sample.variants)} are left out; the first: {refused[0]}"
            found.findings.append((number, "fewer captions", message))
        if "image_gen" in self.tokenizer.conversation.ids and tells_after_drawing(kept):
            found.findings.append((number, AFTER_NOISE, "what is said behind the picture is learnt from it with noise"))
        found.tasks[place] = TASKS.index(task_of(kept))
        found.lengths[place] = max(len(tokenized) for tokenized, _ in usable)


def tells_after_drawing(messages: list[dict]) -> bool:
    """Whether there are words in an answer behind a picture in an answer: CHEERS trains on that with noise in it."""
    kinds = [part["type"] for m in messages if m["role"] == "assistant" for part in m["content"]]
    return "image" in kinds and "text" in kinds[kinds.index("image") :]


def empty_survey(count: int) -> Survey:
    """Nothing known yet."""
    return Survey(np.zeros(count, np.int32), np.zeros(count, np.uint8), np.zeros(count, np.uint64), [])


def survey_samples(
    index: SampleIndex, tokenizer: SampleTokenizer, check_picture: Callable[[Picture], str | None],
    pictures_from: str, strict: bool = False, cache: Path | None = None, rank: int = 0, world_size: int = 1,
    num_workers: int = 0,
) -> Survey:  # fmt: skip
    """Look at all samples of a source, all ranks together; each gets the same survey.

    Args:
        pictures_from: where `check_picture` looks, in a word that changes with it.
        strict: stop at the first sample that is not used as it is.
        cache: folder where the survey is kept.

    Raises:
        NothingUsable: no sample can be used.
        UserError: a fault, with `strict`; none of the samples that have pictures can be used, for these lack.
    """
    if strict and index.faults:
        raise UserError(f"{index.faults[0]} (--strict)")
    file = cache and cache / f"survey-{survey_key(index, tokenizer, pictures_from)}.npz"
    survey = _remembered(file, rank, world_size)
    if survey is None:
        survey, numbers = empty_survey(len(index)), np.arange(len(index))
    else:
        numbers = np.array([number for number, reason, _ in survey.findings if reason in PASSING], np.int64)
    surveyor = Surveyor(index, tokenizer, check_picture, numbers)
    parts = _share(surveyor, strict, rank, world_size, num_workers)
    changed = _merge(survey, numbers, parts, index)
    usable = bool((survey.lengths > 0).any())
    if file and changed and usable and rank == 0:
        keep(file, lambda out: _write(survey, out))
    if strict:
        refuse_faulty(survey.findings, index)
    check_pictures(index, survey)
    if not usable:
        number, reason, message = survey.findings[0]
        raise NothingUsable(
            f"no sample of {index.name} can be used; the first: {Fault(reason, index.key(number), message)}"
        )
    return survey


def survey_first(
    index: SampleIndex, tokenizer: SampleTokenizer, check_picture: Callable[[Picture], str | None]
) -> Survey:
    """Look at the first samples of a source alone, CHUNK at most, for --dry-run."""
    _, survey = Surveyor(index, tokenizer, check_picture, np.arange(min(CHUNK, len(index))))[0]
    if isinstance(survey, UserError):
        raise survey
    survey.findings = sorted(survey.findings + duplicates(survey, index))
    return survey


def refuse_faulty(findings: list[Finding], index: SampleIndex) -> None:
    """UserError with the first finding but those that tell how good data is learnt."""
    for number, reason, message in findings:
        if reason != AFTER_NOISE:
            raise UserError(f"{Fault(reason, index.key(number), message)} (--strict)")


def check_pictures(index: SampleIndex, survey: Survey) -> None:
    """UserError where pictures lack and no sample with a picture is left: then they lie elsewhere."""
    lacking = [finding for finding in survey.findings if finding[1] in PICTURE_FAULTS]
    seen = (survey.lengths > 0) & (survey.tasks != TASKS.index("text"))
    if lacking and not seen.any():
        number, reason, message = lacking[0]
        raise UserError(
            f"no sample of {index.name} has its pictures; the first: {Fault(reason, index.key(number), message)}; "
            f"{PICTURE_FAULTS[reason]}"
        )


def _remembered(file: Path | None, rank: int, world_size: int) -> Survey | None:
    """The survey that rank 0 finds in its cache, for all ranks; None if there is none."""
    kept = [_read(file) if rank == 0 and file and file.exists() else None]
    if world_size > 1:
        dist.broadcast_object_list(kept, src=0)
    return kept[0]


def _share(surveyor: Surveyor, strict: bool, rank: int, world_size: int, num_workers: int) -> list:
    """All parts of a survey, this rank's share of the chunks looked at here."""
    chunks = range(rank, len(surveyor), world_size)
    workers = {"num_workers": num_workers, "multiprocessing_context": "fork"} if num_workers and len(chunks) > 1 else {}
    loader = DataLoader(surveyor, batch_size=None, sampler=chunks, **workers)
    parts, error, told = [], None, time.monotonic()
    for numbers, part in loader:
        try:
            if isinstance(part, UserError):
                raise part
            if strict:
                refuse_faulty(part.findings, surveyor.index)
        except UserError as found:  # raised below: the others would wait for this process
            error = found
            break
        parts.append((np.asarray(numbers), part))
        if rank == 0 and time.monotonic() >= told + TELL_EVERY:
            told, share = time.monotonic(), len(parts) / len(chunks)
            print(f"looking at {surveyor.index.name}: {share:.0%} of {len(surveyor.numbers):,} samples", flush=True)
    everyone: list = [(parts, error)]
    if world_size > 1:
        everyone *= world_size
        dist.all_gather_object(everyone, (parts, error))
    for _, error in everyone:
        if error:
            raise error
    return [part for parts, _ in everyone for part in parts]


def _merge(survey: Survey, numbers: np.ndarray, parts: list, index: SampleIndex) -> bool:
    """Put what was found of some samples into the survey; returns whether it changed."""
    before = survey.findings
    asked = set(numbers.tolist())
    findings = [finding for finding in before if finding[0] not in asked and finding[1] != "duplicate id"]
    for looked_at, part in parts:
        survey.lengths[looked_at], survey.tasks[looked_at] = part.lengths, part.tasks
        survey.ids[looked_at] = part.ids
        findings += part.findings
    survey.findings = sorted(findings + duplicates(survey, index))
    return survey.findings != before or len(numbers) == len(survey.lengths)


def duplicates(survey: Survey, index: SampleIndex) -> list[Finding]:
    """The usable samples whose id an earlier one has. LLaVA's own data repeats ids, so they are used, and told."""
    usable = np.flatnonzero((survey.ids != 0) & (survey.lengths > 0))
    _, first, which = np.unique(survey.ids[usable], return_index=True, return_inverse=True)
    again = np.flatnonzero(first[which] != np.arange(len(usable)))
    return [
        (int(usable[a]), "duplicate id", f"as in {index.key(int(usable[first[which[a]]]))}; both are used")
        for a in again
    ]


def ids_met_before(surveys: list[Survey]) -> list[int]:
    """Of each source, how many ids of its usable samples are those of a sample in a source before it.

    Only their hashes are compared, all at once: 24 bytes a sample for that moment, 2.4 GB of 10^8.
    """
    own = [np.unique(survey.ids[(survey.ids != 0) & (survey.lengths > 0)]) for survey in surveys]
    ends = np.cumsum([len(ids) for ids in own])
    _, first = np.unique(np.concatenate(own), return_index=True)
    new = np.bincount(np.searchsorted(ends, first, side="right"), minlength=len(own))
    return [len(ids) - int(count) for ids, count in zip(own, new, strict=True)]


def survey_key(index: SampleIndex, tokenizer: SampleTokenizer, pictures_from: str) -> str:
    """Changes with the files, their image root, the text tokenizer, the positions of a picture and what fits."""
    conversation = tokenizer.conversation
    text = conversation.tokenizer
    files = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in index.files()]
    vocabulary = sorted(text.get_vocab().items())
    words = [index.fingerprint, files, vocabulary, text.chat_template, conversation.num_positions]
    roots = [str(shard.image_root.resolve()) for shard in index.shards if hasattr(shard, "image_root")]
    words += [tokenizer.max_length, tokenizer.marks, pictures_from, roots, READERS]
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:24]


def _write(survey: Survey, out) -> None:
    np.savez(out, lengths=survey.lengths, tasks=survey.tasks, ids=survey.ids, findings=json.dumps(survey.findings))


def _read(file: Path) -> Survey:
    with np.load(file) as kept:
        findings = [tuple(finding) for finding in json.loads(str(kept["findings"]))]
        return Survey(kept["lengths"], kept["tasks"], kept["ids"], findings)


def report(index: SampleIndex, survey: Survey) -> str:
    """What a source holds and what is wrong with it, in lines; the first few faults of each reason by file and line."""
    return "\n".join([f"data {index}: {told_counts(survey)}", *told_faults(index, survey.findings)])


def told_counts(survey: Survey) -> str:
    """How many samples of each task can be used, `9 understanding, 3 text`."""
    counts = survey.counts().items()
    return ", ".join(f"{count:,} {task}" for task, count in counts if count) or "none can be used"


def told_faults(index: SampleIndex, findings: list[Finding]) -> list[str]:
    """Lines of what is wrong with the files of a source and with samples in it, by reason."""
    lines = [str(fault) for fault in index.faults]
    for reason, count in Counter(reason for _, reason, _ in findings).most_common():
        lines.append(f"  {reason}: {count:,} {'used all the same' if reason in USED else 'left out'}")
        named = [(number, message) for number, r, message in findings if r == reason][:NAMED]
        lines += [f"    {index.key(number)}: {message}" for number, message in named]
    return lines
