"""The order of training pictures, and how ranks and workers share it; all of it is arithmetic on sample numbers."""

import itertools
import os
import signal
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unimllm.data.order import EpochOrder, across_lanes
from unimllm.errors import UserError
from unimllm.training.batches import MicroBatches, name_dead_worker, open_batches
from unimllm.training.config import TrainConfig

# ---- order ----------------------------------------------------------------------------------------------------------


def test_lanes_by_hand():
    assert [across_lanes(p, 6, 3, run=1) for p in range(6)] == [0, 2, 4, 1, 3, 5]
    assert [across_lanes(p, 7, 3, run=1) for p in range(7)] == [0, 3, 5, 1, 4, 6, 2]
    assert [across_lanes(p, 9, 2, run=2) for p in range(9)] == [0, 1, 4, 5, 2, 3, 6, 7, 8]


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 300), st.integers(1, 70), st.integers(1, 5))
def test_lanes_lose_nothing(total, lanes, run):
    assert sorted(across_lanes(p, total, lanes, run) for p in range(total)) == list(range(total))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any), st.integers(0, 3), st.integers(1, 5))
def test_every_epoch_visits_every_picture_once(sizes, seed, lanes):
    order = EpochOrder(np.array(sizes), seed, lanes)
    count = sum(sizes)
    asked = [order.picture(i) for i in range(3 * count)]
    for epoch in range(3):
        assert sorted(asked[epoch * count : (epoch + 1) * count]) == list(range(count))
    again = EpochOrder(np.array(sizes), seed, lanes)  # whoever asks, and in whatever order
    assert [again.picture(i) for i in reversed(range(3 * count))] == asked[::-1]


def test_epochs_and_seeds_differ_and_batches_mix_the_chunks():
    sizes = np.full(100, 50)
    order = EpochOrder(sizes, seed=0)
    first = [order.picture(i) for i in range(5000)]
    assert first != [order.picture(i) for i in range(5000, 10_000)]
    assert first != [EpochOrder(sizes, seed=1).picture(i) for i in range(5000)]
    assert len({p // 50 for p in first[:256]}) >= 60  # of 100 chunks, in one batch of 256
    reader = [p // 50 for step in range(19) for p in first[step * 256 : step * 256 + 32]]  # rank 0 of 8
    assert len(set(reader)) <= 16 + 8  # 8 lanes of 78 pictures: it reads a few chunks and no others


# ---- sharding and resuming, by arithmetic ---------------------------------------------------------------------------


def numbers(indices: range) -> dict:
    return {"indices": torch.tensor(list(indices))}


def seen_by(rank: int, world_size: int, config: TrainConfig, steps: int, first_step: int = 0) -> list[int]:
    batches = MicroBatches(numbers, config, rank, world_size, first_step * config.batch_size)
    count = steps * config.per_device(world_size)[1]
    return [i for batch in itertools.islice(batches, count) for i in batch["indices"].tolist()]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 6])
def test_ranks_share_samples_without_overlap_or_loss(world_size):
    config = TrainConfig(batch_size=24, micro_batch_size=2)
    shares = [seen_by(rank, world_size, config, steps=5) for rank in range(world_size)]
    assert sorted(sum(shares, [])) == list(range(120))


@pytest.mark.parametrize("num_pictures", [7, 10, 11])  # divided by neither ranks nor batch
def test_epochs_are_whole_for_any_number_of_ranks(num_pictures):
    config = TrainConfig(batch_size=4, micro_batch_size=1)
    order = EpochOrder(np.ones(num_pictures), seed=3)
    for world_size in (1, 2, 4):
        shares = [seen_by(rank, world_size, config, steps=num_pictures) for rank in range(world_size)]
        counts = Counter(order.picture(i) for i in sum(shares, []))  # 4 x num_pictures samples: four epochs
        assert counts == {number: 4 for number in range(num_pictures)}


def test_resuming_goes_on_where_it_stopped():
    config = TrainConfig(batch_size=6, micro_batch_size=1)
    straight = seen_by(1, 2, config, steps=5)
    assert seen_by(1, 2, config, steps=2) + seen_by(1, 2, config, steps=3, first_step=2) == straight


# ---- workers ---------------------------------------------------------------------------------------------------------


def dies(indices: range) -> dict:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def fails(indices: range) -> dict:
    raise UserError("one line")


def test_a_worker_that_dies_is_noticed():
    config = TrainConfig(batch_size=2, num_workers=1)
    with pytest.raises(UserError, match=r"a data worker died: .*lower --train.num_workers"), name_dead_worker():
        next(open_batches(dies, config, 0, 1, 0))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_error_of_the_source_stays_one_line(num_workers):
    with pytest.raises(UserError) as caught:
        next(open_batches(fails, TrainConfig(batch_size=2, num_workers=num_workers), 0, 1, 0))
    assert str(caught.value) == "one line"
