"""Rows of samples for the training loop: `PackedSamples(range)` -> a batch, a function of (seed, row numbers) alone.

Whatever the number of ranks and workers, row i holds the same samples in the same words, so shards need not be dealt
out, nothing is lost or seen twice, and a resumed run goes on bit for bit, on another number of ranks too.
"""

import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from unimllm.conversation import Tokenized
from unimllm.data.faults import Fault
from unimllm.data.packing import PackedRow, stack_rows
from unimllm.data.picture_ids import OnlinePixels, StoredCodes
from unimllm.data.row_plan import RowPlan
from unimllm.data.sample_index import SampleIndex
from unimllm.data.sample_tokens import SampleTokenizer
from unimllm.data.samples import BadSample, Picture, pictures_of
from unimllm.errors import UserError
from unimllm.images import UnreadablePicture

_WORDS = 6  # what a generator is for; the last number of its seed (see `order`)

MAX_LOST = 100  # samples in a row whose pictures cannot be had, after which something else is wrong than a few pictures
INSTEAD = "its place stays empty"

Member = tuple[int, int, int]  # source, number in it, epoch of its stream
Made = tuple[Tokenized, list]  # ids and targets of a sample, and what was loaded of its pictures


class PackedSamples:
    """The sample source of `train/pretrain.py` and `train/sft.py` with --data.

    Args:
        indices: of the sources, as the plan numbers them.
        plan: which samples share a row.
        tokenizer: the one that the plan's lengths were measured with.
        pictures: where pictures come from.
        text_drop: share of the plain drawing prompts that are left out, for classifier-free guidance.
        seed: decides which caption of several is taken, and which prompts are left out.
        strict: raise what is otherwise skipped and listed.
        num_threads: that read and decode pictures.
    """

    def __init__(
        self, indices: list[SampleIndex], plan: RowPlan, tokenizer: SampleTokenizer,
        pictures: OnlinePixels | StoredCodes, text_drop: float, seed: int, strict: bool = False, num_threads: int = 8,
    ):  # fmt: skip
        self.indices, self.plan, self.tokenizer, self.pictures = indices, plan, tokenizer, pictures
        self.text_drop, self.seed, self.strict, self.num_threads = text_drop, seed, strict, num_threads
        self.ids = tokenizer.conversation.ids
        self.num_lost = 0  # samples in a row that could not be had
        warnings.filterwarnings("ignore", module=r"PIL\.")  # oddities in metadata; what matters is raised

    def __call__(self, rows: range) -> dict[str, torch.Tensor | list[Fault]]:
        """Rows by number.

        Returns:
            input_ids, labels, position_ids (rows, max_length) int64, as `packing.stack_rows` has them. With
            OnlinePixels placeholders stand where pictures go, in the labels too where they are targets, and
            pixel_values (pictures, 3, S, S) float32 holds them in reading order. skipped: faults met only now; their
            samples leave their place in the row empty.

        Raises:
            UserError: with `strict`, a fault; MAX_LOST samples in a row without their pictures; or a file changed
                since it was looked through.
        """
        members = [self.plan.row(number) for number in rows]
        worded = [self._try_words(member) for row in members for member in row]
        with ThreadPoolExecutor(self.num_threads) as threads:  # the text tokenizer stays outside: it is not for threads
            asked = [pair for _, *found in worded for pair in self._of_each(*found)]
            loads = threads.map(lambda pair: self._try_load(*pair), asked)
            made = [self._join(member, found, loads) for member, *found in worded]
        faults = [fault for fault in made if isinstance(fault, Fault)]
        if faults and self.strict:
            raise UserError(f"{faults[0]} (--strict)")
        self._watch(made)
        queue, loaded = iter(made), []
        packed = [self._pack([next(queue) for _ in row], loaded) for row in members]
        batch = stack_rows(packed)
        self.pictures.place(batch, loaded, self.ids["image"])
        return batch | {"skipped": faults}

    def describe(self, rows: range) -> str:
        """Where the samples of rows lie: `row 5: mine.json:1, mine.json:7; row 6: ...`."""
        told = [", ".join(self.indices[source].key(n) for source, n, _ in self.plan.row(row)) for row in rows]
        return "; ".join(f"row {row:,}: {where}" for row, where in zip(rows, told, strict=True))

    def epochs_at(self, num_rows: int) -> float:
        """See `RowPlan.epochs`."""
        return self.plan.epochs(num_rows)

    def _watch(self, made: list[Made | Fault]) -> None:
        """UserError where so many samples in a row cannot be had that their disk must be gone."""
        for sample in made:
            if isinstance(sample, Fault):
                self.num_lost += 1
            elif sample[1]:
                self.num_lost = 0
            if self.num_lost >= MAX_LOST:
                raise UserError(
                    f"{MAX_LOST} samples with pictures in a row cannot be had, the last of them {sample}; is their disk"
                    " there? The same command goes on from the last checkpoint"
                )

    def words(self, source: int, number: int, epoch: int) -> tuple[Tokenized, list[Picture]]:
        """One sample as the row has it: its ids, which are targets, its pictures; BadSample if it is none."""
        rng = np.random.default_rng([self.seed, source, number, epoch, _WORDS])
        variants = list(self.indices[source].read(number).variants)
        while True:  # of those that can be used each is drawn as often
            messages = variants.pop(int(rng.integers(len(variants))))
            try:
                tokenized, kept = self.tokenizer(messages)
                break
            except BadSample:
                if not variants:
                    raise
        if rng.random() < self.text_drop and is_drawing(messages):
            tokenized = self.tokenizer.conversation.without_text(messages)
        return tokenized, pictures_of(kept)

    def _try_words(self, member: Member) -> tuple[Member, Tokenized | Fault, list[Picture]]:
        """A sample's ids and pictures, or what keeps it from being read now: its file changed, its disk fails."""
        try:
            return member, *self.words(*member)
        except BadSample as error:
            return member, Fault(error.reason, self.indices[member[0]].key(member[1]), str(error), INSTEAD), []

    def _of_each(self, tokenized: Tokenized | Fault, pictures: list[Picture]) -> Iterator[tuple[Picture, bool]]:
        """The pictures of a sample, and of each whether it is drawn: its placeholders are targets."""
        if not isinstance(tokenized, Fault):
            yield from zip(pictures, self.tokenizer.conversation.drawn(tokenized), strict=True)

    def _try_load(self, picture: Picture, is_drawn: bool):
        try:
            return self.pictures.load(picture, is_drawn)
        except UnreadablePicture as error:
            return error

    def _join(self, member: Member, found: list, loads: Iterator) -> Made | Fault:
        """A sample with its loaded pictures, or the fault of the first that could not be had."""
        tokenized, pictures = found
        loaded = [next(loads) for _ in pictures]
        for error in loaded:
            if isinstance(error, UnreadablePicture):
                return Fault(error.reason, self.indices[member[0]].key(member[1]), str(error), INSTEAD)
        return tokenized if isinstance(tokenized, Fault) else (tokenized, loaded)

    def _pack(self, samples: list[Made | Fault], loaded: list) -> PackedRow:
        """A row of those samples that could be had; their pictures are added to `loaded`."""
        row = PackedRow(self.plan.max_length, self.ids["pad"])
        for sample in samples:
            if isinstance(sample, Fault):
                continue
            tokenized, pictures = sample
            if not row.add(tokenized.input_ids, tokenized.is_target):
                raise UserError("a sample is longer than when its file was looked through; start again")
            loaded += pictures
        return row


def is_drawing(messages: list[dict]) -> bool:
    """Whether a conversation is a text that asks for a picture, and the picture."""
    if len(messages) != 2:
        return False
    question, answer = ([part["type"] for part in message["content"]] for message in messages)
    return question == ["text"] and answer == ["image"]
