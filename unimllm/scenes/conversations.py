"""Scenes as conversations for the language model: drawing from captions, questions with answers, packed into rows.

Most questions are asked as branches behind one picture (data/packing.py). In one long conversation they would give
each other away: of a pair with opposite answers the second follows from the first without a look at the picture, and
whatever has been asked the colour of is there. Trained on such conversations alone, a model said yes to nine questions
of ten (docs/experiments.md). A share stays sequential, so that a chat of several turns is nothing new.
"""

from functools import lru_cache

import numpy as np
import torch

from unimllm.conversation import ConversationTokenizer, Tokenized, text_message
from unimllm.data.packing import PackedRow, stack_rows
from unimllm.scenes.language import KINDS, Question, ask, caption
from unimllm.scenes.pictures import SceneCodes, ScenePixels
from unimllm.scenes.program import Scene, World
from unimllm.scenes.sources import sample_rng

MAX_TURNS = 8  # of a conversation about one picture
MIN_QUESTION_ROOM = 12  # ids that a question with its answer takes
REMEMBERED = 4096  # drawings, and as many questions, whose ids are remembered: 10 MB at 64 positions

Part = tuple[list[int], list[bool]]  # ids of a sample, and which of them are targets


class PackedConversations:
    """Rows of packed conversations about scenes; row `i` is a function of (seed, i) alone.

    Args:
        world: samples the scenes again from their seed, for their captions and questions.
        tokenizer: renders conversations.
        pictures: of the scenes by their numbers.
        scene_seed: of the scenes.
        num_scenes: that there are.
        max_length: ids of a row.
        drawing_share: share of the conversations that draw.
        text_drop: share of those whose prompt is left out, for classifier-free guidance.
        sequential_share: share of the pictures asked about in one conversation of several turns, not in branches.
        seed: of the rows.
        split: of the scenes, one of `program.SPLITS`.
    """

    def __init__(
        self, world: World, tokenizer: ConversationTokenizer, pictures: SceneCodes | ScenePixels, scene_seed: int,
        num_scenes: int, max_length: int, drawing_share: float, text_drop: float, sequential_share: float, seed: int,
        split: str = "train",
    ):  # fmt: skip
        self.world, self.tokenizer, self.pictures = world, tokenizer, pictures
        self.scene_seed, self.num_scenes, self.max_length = scene_seed, num_scenes, max_length
        self.drawing_share, self.text_drop, self.sequential_share = drawing_share, text_drop, sequential_share
        self.seed, self.split = seed, split
        self._draw = lru_cache(maxsize=REMEMBERED)(self._tokenize_drawing)
        self._branch = lru_cache(maxsize=REMEMBERED)(self._tokenize_question)

    def __call__(self, indices: range) -> dict[str, torch.Tensor]:
        rows, loaded = [], []
        for index in indices:
            row, shown = self.row(index)
            rows.append(row)
            loaded += [self.pictures.load(number, scene) for number, scene in shown]
        batch = stack_rows(rows, with_mask=True)
        self.pictures.place(batch, loaded, self.tokenizer.ids["image"])
        return batch

    def row(self, index: int) -> tuple[PackedRow, list[tuple[int, Scene]]]:
        """Conversations drawn until the next one does not fit; the last asks as many questions as there is room for.

        Returns:
            (the row with placeholders for pictures, the numbers of their scenes and these, in reading order).
        """
        rng = np.random.default_rng([self.seed, index, 1])
        row, shown = PackedRow(self.max_length, self.tokenizer.ids["pad"]), []
        while row.room >= self.tokenizer.num_positions + 2:  # a picture and its marks: no conversation takes less
            number = int(rng.integers(self.num_scenes))
            scene = self.world.sample(sample_rng(self.scene_seed, number), self.split)
            if rng.random() < self.drawing_share:
                drawing = self.drawing(scene, rng)
                added = row.add(drawing.input_ids, drawing.is_target)
            elif rng.random() < self.sequential_share:
                messages = self.conversation(scene, rng, row.room)
                tokenized = self.tokenizer(messages) if messages else None
                added = bool(messages) and row.add(tokenized.input_ids, tokenized.is_target)
            else:
                added = self._add_questions(row, scene, rng)
            if not added:
                break
            shown.append((number, scene))
        return row, shown

    def drawing(self, scene: Scene, rng: np.random.Generator) -> Tokenized:
        """A caption, and the picture as the answer; now and then without the caption."""
        drop = rng.random() < self.text_drop
        # A caption that is left out takes no numbers from the row's.
        return self._draw(caption(scene, rng.spawn(1)[0] if drop else rng), drop)

    def _tokenize_drawing(self, words: str, drop: bool) -> Tokenized:
        messages = [text_message("user", words), text_message("assistant", "", images=1)]
        return self.tokenizer.without_text(messages) if drop else self.tokenizer(messages)

    def conversation(self, scene: Scene, rng: np.random.Generator, room: int) -> list[dict]:
        """The picture, and up to MAX_TURNS questions of different kinds with their answers, within `room` ids."""
        messages: list[dict] = []
        used = self.tokenizer.num_positions + 4
        kinds = list(rng.permutation(KINDS))
        while kinds and used + MIN_QUESTION_ROOM < room and len(messages) < 2 * MAX_TURNS:
            for question in ask(scene, self.world, rng, kinds.pop())[:1]:  # the other of a pair would give itself away
                used += len(question.text.split()) + len(question.answer.split()) + 6
                if used < room:
                    messages += turn(question, images=0 if messages else 1)
        return messages

    def _add_questions(self, row: PackedRow, scene: Scene, rng: np.random.Generator) -> bool:
        """Questions of every kind, pairs together, as branches behind the picture; those that do not fit are left."""
        start: Part | None = None
        branches: list[Part] = []
        used = 0
        for kind in rng.permutation(KINDS):
            for question in ask(scene, self.world, rng, str(kind)):
                beginning, branch = self._branch(question)
                length = len(branch[0]) + (0 if start else len(beginning[0]))
                if used + length > row.room:
                    continue
                used += length
                start = start or beginning
                branches.append(branch)
        return bool(start) and row.add_branches(*start, branches)

    def _tokenize_question(self, question: Question) -> tuple[Part, Part]:
        """What comes up to the end of the picture, and the question with its answer."""
        tokenized = self.tokenizer(turn(question, images=1))
        ids, targets = tokenized.input_ids, tokenized.is_target
        cut = ids.index(self.tokenizer.ids["image_end"]) + 1
        return (ids[:cut], targets[:cut]), (ids[cut:], targets[cut:])


def turn(question: Question, images: int) -> list[dict]:
    """A question and its answer, with so many pictures before the question."""
    return [text_message("user", question.text, images), text_message("assistant", question.answer)]
