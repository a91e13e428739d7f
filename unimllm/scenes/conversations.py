"""Scenes as conversations for the language model: drawing from captions, questions with answers, packed into rows."""

import numpy as np
import torch

from unimllm.conversation import ConversationTokenizer, text_message
from unimllm.data.packing import PackedRow, stack_rows
from unimllm.scenes.language import KINDS, ask, caption
from unimllm.scenes.program import Scene, World
from unimllm.scenes.sources import sample_rng

MAX_QUESTIONS = 8  # about one picture
MIN_QUESTION_ROOM = 12  # ids that a question with its answer takes


class PackedConversations:
    """Rows of packed conversations about cached scenes; row `i` is a function of (seed, i) alone.

    Args:
        world: samples the scenes again from their seed, for their captions and questions.
        tokenizer: renders conversations.
        codes: (scenes, N) flat codes of scene `i` of `scene_seed`.
        scene_seed: the seed under which the codes were made.
        image_offset: the first image id.
        max_length: ids of a row.
        drawing_share: share of the conversations that draw.
        text_drop: share of those whose prompt is emptied, for classifier-free guidance.
        seed: of the rows.
    """

    def __init__(
        self, world: World, tokenizer: ConversationTokenizer, codes: np.ndarray, scene_seed: int, image_offset: int,
        max_length: int, drawing_share: float, text_drop: float, seed: int,
    ):  # fmt: skip
        self.world, self.tokenizer, self.codes, self.scene_seed = world, tokenizer, codes, scene_seed
        self.image_offset, self.max_length = image_offset, max_length
        self.drawing_share, self.text_drop, self.seed = drawing_share, text_drop, seed

    def __call__(self, indices: range) -> dict[str, torch.Tensor]:
        return stack_rows([self.row(i) for i in indices])

    def row(self, index: int) -> PackedRow:
        """Conversations drawn until the next one does not fit; the last asks as many questions as there is room for."""
        rng = np.random.default_rng([self.seed, index, 1])
        row = PackedRow(self.max_length, self.tokenizer.ids["pad"])
        while True:
            number = int(rng.integers(len(self.codes)))
            scene = self.world.sample(sample_rng(self.scene_seed, number))
            if rng.random() < self.drawing_share:
                messages = self.drawing(scene, rng)
            else:
                messages = self.questions(scene, rng, row.room)
            if not messages or not self._add(row, messages, number):
                return row

    def drawing(self, scene: Scene, rng: np.random.Generator) -> list[dict]:
        """A caption, and the picture as the answer."""
        text = "" if rng.random() < self.text_drop else caption(scene, rng)
        return [text_message("user", text), text_message("assistant", "", images=1)]

    def questions(self, scene: Scene, rng: np.random.Generator, room: int) -> list[dict]:
        """The picture, and up to MAX_QUESTIONS questions of different kinds with their answers, within `room` ids."""
        messages: list[dict] = []
        used = self.tokenizer.num_positions + 4
        kinds = list(rng.permutation(KINDS))
        while kinds and used + MIN_QUESTION_ROOM < room and len(messages) < 2 * MAX_QUESTIONS:
            for question in ask(scene, self.world, rng, kinds.pop())[:1]:  # the other of a pair would give itself away
                turn = [
                    text_message("user", question.text, images=0 if messages else 1),
                    text_message("assistant", question.answer),
                ]
                used += len(question.text.split()) + len(question.answer.split()) + 6
                if used < room:
                    messages += turn
        return messages

    def _add(self, row: PackedRow, messages: list[dict], number: int) -> bool:
        tokenized = self.tokenizer(messages)
        ids = iter((self.codes[number].astype(np.int64) + self.image_offset).tolist())
        placeholder = self.tokenizer.ids["image"]
        input_ids = [next(ids) if token == placeholder else token for token in tokenized.input_ids]
        return row.add(input_ids, tokenized.is_target)
