"""Mixtures and packing plans: everything a function of numbers, every sample once in each epoch of its source."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unimllm.data.mixture import Mixture, make_streams, parse_ratios
from unimllm.data.open_data import describe
from unimllm.data.order import EpochOrder, across_lanes
from unimllm.data.row_plan import RowPlan, best_fit
from unimllm.data.survey import Survey
from unimllm.errors import UserError


class Index:
    """So much of a SampleIndex as a mixture asks for."""

    memory = 0

    def __init__(self, chunk_sizes: list[int], name: str = "mine"):
        self.chunk_sizes, self.name = np.array(chunk_sizes), name

    def num_lanes(self, num_sharing: int) -> int:
        return 3


def survey(lengths: list[int], tasks: list[int]) -> Survey:
    return Survey(np.array(lengths, np.int32), np.array(tasks, np.uint8), np.zeros(len(lengths), np.uint64), [])


def test_a_whole_epoch_is_what_each_sample_of_it_is():
    order = EpochOrder(np.array([5, 1, 7, 3]), seed=4, num_lanes=3)
    for epoch in range(3):
        expected = [order.picture(epoch * 16 + i) for i in range(16)]
        assert order.epoch(epoch).tolist() == expected and sorted(expected) == list(range(16))
    assert [across_lanes(i, 13, 3, run=2) for i in range(13)] == [0, 1, 4, 5, 8, 9, 2, 3, 6, 7, 10, 11, 12]


# Source 0: six samples for understanding, one unusable, two texts. Source 1: four drawings.
SURVEYS = [survey([5, 6, 0, 7, 8, 9, 5, 4, 3], [0, 0, 0, 0, 0, 0, 0, 2, 2]), survey([10, 2, 3, 4], [1] * 4)]
INDICES = [Index([4, 5]), Index([4])]


def shares(weights, ratios) -> dict[tuple[int, int], float]:
    return {(s.source, s.task): round(s.share, 6) for s in make_streams(SURVEYS, weights, ratios)}


def test_shares_by_hand():
    assert shares([1, 1], None) == {(0, 0): 0.5, (0, 2): 0.166667, (1, 1): 0.333333}
    assert shares([1, 2], None) == {(0, 0): 0.375, (0, 2): 0.125, (1, 1): 0.5}
    assert shares([1, 5], (5, 4, 1)) == {(0, 0): 0.5, (0, 2): 0.1, (1, 1): 0.4}
    assert shares([1, 1], (1, 1, 0)) == {(0, 0): 0.5, (1, 1): 0.5}
    with pytest.raises(UserError, match="wants drawing, but no source"):
        make_streams(SURVEYS[:1], [1], (1, 1, 0))


@pytest.mark.parametrize("ratios", [None, (1, 1, 0)])
def test_what_ratios_leave_out_is_told(ratios):
    plan = RowPlan(Mixture(INDICES, SURVEYS, [1, 1], ratios, 0), 16, seed=0)
    plan.extend(1)
    lines = describe(plan, INDICES, SURVEYS, 1).splitlines()
    assert [line for line in lines if "never" in line] == ["  mine, text: 2 samples never, by --ratios"] * bool(ratios)


@pytest.mark.parametrize("text", ["1:2", "a:b:c", "1:-1:1", "0:0:0", "1:inf:1"])
def test_bad_ratios_are_refused(text):
    with pytest.raises(UserError, match="three numbers are wanted, understanding:drawing:text"):
        parse_ratios(text)


@pytest.mark.parametrize(("weights", "ratios"), [([1, 1], None), ([1, 3.7], None), ([1, 1], (1, 7, 0.3))])
def test_every_sample_comes_once_in_each_epoch_of_its_stream(weights, ratios):
    mixture = Mixture(INDICES, SURVEYS, weights, ratios, seed=1)
    assert mixture.window_size == 12
    seen: Counter = Counter()
    lengths = []
    for window in range(200):
        due = mixture.window(window)
        lengths.append(len(due))
        seen.update(zip(due.sources.tolist(), due.numbers.tolist(), due.epochs.tolist(), strict=True))
    assert set(seen.values()) == {1} and not any((source, number) == (0, 2) for source, number, _ in seen)
    assert abs(sum(lengths) - 2400) <= 3 and max(lengths) - min(lengths) <= 6
    for stream in mixture.streams:
        own = [(n, e) for s, n, e in seen if s == stream.source and SURVEYS[s].tasks[n] == stream.task]
        assert abs(len(own) - 2400 * stream.share) <= 1
        whole = Counter(e for _, e in own)
        assert all(count == stream.size for epoch, count in whole.items() if epoch < max(whole))


def test_windows_of_one_pass_hold_each_sample_once():
    mixture = Mixture(INDICES, SURVEYS, [1, 1], None, seed=0)
    for window in range(5):
        due = mixture.window(window)
        assert len(due) == 12 and set(due.epochs.tolist()) == {window}
    first, other = mixture.window(0), Mixture(INDICES, SURVEYS, [1, 1], None, seed=1).window(0)
    assert first.numbers.tolist() != other.numbers.tolist()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=80))
def test_bins_hold_everything_once_and_never_too_much(lengths):
    bins = best_fit(np.array(lengths), 50)
    assert sorted(member for bin_ in bins for member in bin_) == list(range(len(lengths)))
    assert all(sum(lengths[member] for member in bin_) <= 50 for bin_ in bins)
    assert len(bins) <= 1.5 * -(-sum(lengths) // 50) + 1


def test_best_fit_by_hand():
    assert best_fit(np.array([4, 3, 7, 6, 3, 1]), 10) == [[2, 1], [3, 0], [4, 5]]


def test_rows_are_nearly_full():
    lengths = np.random.default_rng(0).integers(20, 600, 4096).tolist()
    plan = RowPlan(Mixture([Index([4096])], [survey(lengths, [0] * 4096)], [1], None, 0), 2048, 0)
    plan.extend(1)
    assert plan.fill() > 0.98
    assert plan.epochs(0) == 0 and plan.epochs(plan.ends[0]) == 0.5  # a window of 2,048 of the 4,096 samples
    assert plan.epochs(plan.ends[0] // 2) == pytest.approx(0.25, abs=0.01)
    plan.extend(plan.ends[0] + 1)
    assert plan.epochs(plan.ends[1]) == 1


def test_a_row_is_the_same_whoever_asks_first():
    def plan() -> RowPlan:
        return RowPlan(Mixture(INDICES, SURVEYS, [1, 2.5], (2, 2, 1), seed=3), 12, seed=3)

    one, other = plan(), plan()
    rows = [one.row(i) for i in range(60)]
    assert [other.row(i) for i in reversed(range(60))] == rows[::-1]
    assert all(sum(SURVEYS[s].lengths[n] for s, n, _ in row) <= 12 for row in rows)
    seen = Counter(member for row in rows for member in row)
    assert set(seen.values()) == {1}
    assert any(row != plan().row(i + 60) for i, row in enumerate(rows[:3]))  # the next windows differ
