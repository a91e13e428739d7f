"""Packed rows: samples and branches see what they may see, and every question is answered as the scene demands."""

import numpy as np
import pytest
import torch
from scene_grammar import answer_from_boxes

from unimllm.conversation import ConversationTokenizer
from unimllm.data.packing import PackedRow, branch_mask, count_samples, count_tokens, num_padding, stack_rows
from unimllm.scenes.conversations import PackedConversations
from unimllm.scenes.pictures import SceneCodes
from unimllm.scenes.sources import sample_rng
from unimllm.scenes.text import sentences, train_text_tokenizer
from unimllm.vocabulary import IGNORE

POSITIONS, OFFSET, LENGTH, SCENE_SEED = 4, 5000, 100, 3


def test_a_branch_sees_the_beginning_and_itself():
    #   sample 0: beginning a b, branches c d and e; sample 1: f
    samples = torch.tensor([[0, 0, 0, 0, 0, 1]])
    branches = torch.tensor([[0, 0, 1, 1, 2, 0]])
    expected = [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]
    assert branch_mask(samples, branches)[0].int().tolist() == expected


def test_rows_hold_whole_samples_with_positions_that_branch():
    row = PackedRow(10, pad_id=0)
    assert row.add([7, 8], [True, True])  # nothing precedes the 7
    branches = [([4, 5], [False, True]), ([6], [False])]
    assert row.add_branches([1, 2, 3], [False, False, True], branches)
    assert row.room == 2 and not row.add([1, 2, 3], [False] * 3) and row.room == 2
    columns = stack_rows([row], with_mask=True)
    assert columns["input_ids"].tolist() == [[7, 8, 1, 2, 3, 4, 5, 6, 0, 0]]
    assert columns["labels"].tolist() == [[IGNORE, 8, IGNORE, IGNORE, 3, IGNORE, 5, IGNORE, IGNORE, IGNORE]]
    assert columns["position_ids"].tolist() == [[0, 1, 0, 1, 2, 3, 4, 3, 0, 1]]
    assert columns["attention_mask"].shape == (1, 1, 10, 10) and columns["attention_mask"].dtype == torch.bool
    assert "attention_mask" not in stack_rows([row])
    with pytest.raises(ValueError, match="first id of a branch"):
        row.add_branches([1], [False], [([2], [True])])


def test_padding_is_no_token_and_no_sample():
    rows = [PackedRow(10, pad_id=0) for _ in range(3)]
    rows[0].add([7, 8], [True, True])  # then eight of padding
    rows[1].add([7, 8], [False, True])
    rows[1].add_branches([1, 2, 3], [False] * 3, [([4, 5], [False, True]), ([6, 5, 5], [False, True, True])])  # full
    rows[2].add([7, 7, 7, 7], [False, True, True, True])
    rows[2].add([7, 8, 7, 7, 7], [False] * 4 + [True])  # then one of padding
    batch = stack_rows(rows)
    assert num_padding(batch).tolist() == [8, 0, 1]
    assert (count_tokens(batch), count_samples(batch)) == (21, 5)
    batch.pop("position_ids")  # rows of one sample each
    assert (count_tokens(batch), count_samples(batch)) == (30, 3)


# ---- scenes --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer(fake_world):
    return ConversationTokenizer(train_text_tokenizer(sentences(fake_world, count=2000)), POSITIONS)


def source(world, tokenizer, split="train", **shares) -> PackedConversations:
    codes = np.arange(50 * POSITIONS, dtype=np.uint32).reshape(50, POSITIONS)  # so a code names its scene
    shares = {"drawing_share": 0.0, "text_drop": 0.1, "sequential_share": 0.0} | shares
    pictures = SceneCodes(codes, OFFSET)
    return PackedConversations(world, tokenizer, pictures, SCENE_SEED, 50, LENGTH, **shares, seed=0, split=split)


def batch_row(conversations: PackedConversations, index: int) -> PackedRow:
    """A row with codes in place of pictures, as a batch has it."""
    row, _ = conversations.row(index)
    batch = conversations(range(index, index + 1))
    row.input_ids, row.labels = (batch[name][0, : len(row.input_ids)].tolist() for name in ("input_ids", "labels"))
    return row


def split_row(row: PackedRow, tokenizer) -> list[tuple[int, int, str, str]]:
    """(scene, branch, text, targets) of every branch of a row, or of its beginning where nothing branches."""
    columns = [np.array(c) for c in (row.input_ids, row.labels, row.samples, row.branches)]
    ids, labels, samples, branches = columns
    found = []
    for sample in sorted(set(samples)):
        own = samples == sample
        scene = (ids[own & (ids >= OFFSET)][0] - OFFSET) // POSITIONS
        for branch in sorted(set(branches[own]) - {0}) or [0]:
            chosen = own & (branches == branch) & (ids < OFFSET)
            targets = labels[own & (branches == branch)]
            decode = tokenizer.tokenizer.decode
            found.append(
                (int(scene), int(branch), decode(ids[chosen]), decode(targets[(targets >= 0) & (targets < OFFSET)]))
            )
    return found


@pytest.mark.parametrize("split", ["train", "validation"])
def test_every_branch_is_one_question_with_the_right_answer(split, fake_world, tokenizer):
    conversations = source(fake_world, tokenizer, split)
    yes_and_no = 0
    for index in range(60):
        row = batch_row(conversations, index)
        asked = split_row(row, tokenizer)
        answers = []
        for scene, branch, text, target in asked:
            question, answer = text.removesuffix("<|end|>").split("<|assistant|>")
            assert branch > 0 and target == answer + "<|end|>"
            if "picture" not in question and "What is" not in question and "Describe" not in question:
                right = fake_world.sample(sample_rng(SCENE_SEED, scene), split)
                assert answer == answer_from_boxes(right, question, fake_world.image_size)
            answers.append(answer)
        yes_and_no += answers.count("yes") - answers.count("no")
        assert len(asked) >= 3 and row.room >= 0
    assert abs(yes_and_no) < 60  # no habit to learn


def test_a_sequential_conversation_gives_no_pair_away(fake_world, tokenizer):
    conversations = source(fake_world, tokenizer, sequential_share=1.0)
    for index in range(40):
        for _, branch, text, _ in split_row(batch_row(conversations, index), tokenizer):
            kinds = [question.split()[:2] for question in text.split("<|user|>")[1:]]
            assert branch == 0 and kinds.count(["Is", "there"]) <= 2  # existence, and "Is there only one"


@pytest.mark.parametrize("drawing_share", [0.0, 0.5, 1.0])
def test_rows_are_the_same_whatever_was_tokenized_before(drawing_share, fake_world, tokenizer):
    shares = {"drawing_share": drawing_share, "sequential_share": 0.2}
    used = source(fake_world, tokenizer, **shares)
    before = used(range(20))
    again, fresh = used(range(12, 20)), source(fake_world, tokenizer, **shares)(range(12, 20))
    assert used._branch.cache_info().hits + used._draw.cache_info().hits > 0
    for name, column in before.items():
        assert torch.equal(again[name], column[12:]) and torch.equal(fresh[name], column[12:])


def test_a_full_row_tries_no_other_scene(fake_world, tokenizer, monkeypatch):
    conversations = source(fake_world, tokenizer, drawing_share=0.5)
    tried, sample = [], fake_world.sample
    monkeypatch.setattr(fake_world, "sample", lambda *args: tried.append(args) or sample(*args))
    rows = [conversations.row(index) for index in range(40)]
    full = [row.room < POSITIONS + 2 for row, _ in rows]
    assert 0 < sum(full) < 40
    assert len(tried) == sum(len(shown) for _, shown in rows) + full.count(False)


def test_drawings_are_pictures_as_targets(fake_world, tokenizer):
    row = batch_row(source(fake_world, tokenizer, drawing_share=1.0), 0)
    image = [label for label in row.labels if label >= OFFSET]
    assert image and len(image) % POSITIONS == 0 and image == [i for i in row.input_ids if i >= OFFSET]
