"""Frechet distance and KID: closed forms, scipy's matrix root, brute-force sums, and no dependence on order."""

import numpy as np
import pytest

from unimllm.metrics import frechet
from unimllm.metrics.frechet import FrechetComparison, GaussianStatistics, frechet_distance, kid, mmd2


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def statistics_of(*batches: np.ndarray) -> GaussianStatistics:
    statistics = GaussianStatistics(batches[0].shape[1])
    for batch in batches:
        statistics.update(batch)
    return statistics


# ---- mean and covariance -------------------------------------------------------------------------------------------


def test_batches_give_numpy_s_mean_and_covariance(rng):
    features = rng.normal(1000, 1, (57, 6))  # far from 0, where sums of squares would lose every digit
    statistics = statistics_of(features[:1], features[1:30], features[30:30], features[30:])
    assert statistics.count == 57
    assert statistics.mean == pytest.approx(features.mean(0), rel=1e-14)
    assert statistics.covariance() == pytest.approx(np.cov(features.T), rel=1e-10)


def test_order_and_ranks_do_not_matter(rng):
    features = rng.normal(5, 3, (40, 4)).astype(np.float32)
    whole = statistics_of(features)
    shuffled = statistics_of(*np.array_split(features[rng.permutation(40)], 7))
    ranks = [statistics_of(features[r::3]) for r in range(3)]
    merged = GaussianStatistics(4)
    for rank in (2, 0, 1):
        merged.merge(ranks[rank])
    merged.merge(GaussianStatistics(4))  # a rank without pictures
    for other in (shuffled, merged):
        assert other.count == 40
        assert other.mean == pytest.approx(whole.mean, rel=1e-13)
        assert other.covariance() == pytest.approx(whole.covariance(), rel=1e-12)
    assert ranks[0].count == 14  # merging leaves the parts as they were


def test_statistics_refuse_what_they_cannot_hold():
    statistics = GaussianStatistics(3)
    with pytest.raises(ValueError, match=r"\(2, 4\).*\(n, 3\)"):
        statistics.update(np.zeros((2, 4)))
    with pytest.raises(ValueError, match="NaN"):
        statistics.update(np.array([[0, np.nan, 0]]))
    statistics.update(np.zeros((1, 3)))
    with pytest.raises(ValueError, match="at least 2 pictures, got 1"):
        statistics.covariance()
    with pytest.raises(ValueError, match="cannot be merged"):
        statistics.merge(GaussianStatistics(4))


# ---- Frechet distance ----------------------------------------------------------------------------------------------


def test_frechet_distance_by_hand():
    zero, one = np.zeros(1), np.eye(1)
    # One dimension: (m1 - m2)^2 + (s1 - s2)^2.
    assert frechet_distance(zero, 4 * one, zero + 3, 9 * one) == pytest.approx(9 + 1)
    # Covariances that commute: the sum over their axes.
    first, second = np.diag([1.0, 4.0, 0.0]), np.diag([9.0, 4.0, 16.0])
    assert frechet_distance(np.zeros(3), first, np.array([1.0, 2, 2]), second) == pytest.approx(9 + 4 + 0 + 16)
    # A rotation by 90 degrees swaps the axes: (1 - 3)^2 twice.
    turn = np.array([[0.0, -1], [1, 0]])
    ellipse = np.diag([1.0, 9.0])
    assert frechet_distance(np.zeros(2), ellipse, np.zeros(2), turn @ ellipse @ turn.T) == pytest.approx(8)


def test_frechet_distance_agrees_with_scipy_s_matrix_root(rng):
    linalg = pytest.importorskip("scipy.linalg")
    for dim in (2, 5, 24):
        (mean1, cov1), (mean2, cov2) = (
            (x.mean(0), np.cov(x.T)) for x in (rng.normal(size=(60, dim)) @ rng.normal(size=(dim, dim)) for _ in "ab")
        )
        root = linalg.sqrtm(cov1 @ cov2)
        expected = ((mean1 - mean2) ** 2).sum() + np.trace(cov1 + cov2 - 2 * root.real)
        assert frechet_distance(mean1, cov1, mean2, cov2) == pytest.approx(expected, rel=1e-9)
        assert frechet_distance(mean2, cov2, mean1, cov1) == pytest.approx(expected, rel=1e-9)


def test_singular_covariances_need_no_help(rng):
    few = rng.normal(size=(5, 30))  # rank 4 in 30 dimensions
    cov = np.cov(few.T)
    assert frechet_distance(few.mean(0), cov, few.mean(0), cov) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(np.zeros(30), np.zeros((30, 30)), np.zeros(30), cov) == pytest.approx(np.trace(cov))
    # Scaling by 2: sum of (2 s - s)^2 over the axes = the trace.
    assert frechet_distance(np.zeros(30), cov, np.zeros(30), 4 * cov) == pytest.approx(np.trace(cov), rel=1e-6)


# ---- KID -----------------------------------------------------------------------------------------------------------


def brute_force_mmd2(x: np.ndarray, y: np.ndarray, paired: bool) -> float:
    def kernel(a, b):
        return (float(np.dot(a, b)) / len(a) + 1) ** 3

    n = len(x)
    others = [(i, j) for i in range(n) for j in range(n) if i != j]
    across = others if paired else [(i, j) for i in range(n) for j in range(n)]
    within_x = sum(kernel(x[i], x[j]) for i, j in others) / len(others)
    within_y = sum(kernel(y[i], y[j]) for i, j in others) / len(others)
    return within_x + within_y - 2 * sum(kernel(x[i], y[j]) for i, j in across) / len(across)


@pytest.mark.parametrize("paired", [False, True])
def test_mmd2_is_the_brute_force_sum(rng, paired):
    x, y = rng.normal(size=(7, 5)), rng.normal(0.5, 2, (7, 5))
    are_pairs = np.eye(7, dtype=bool) if paired else None
    assert mmd2(x, y, are_pairs) == pytest.approx(brute_force_mmd2(x, y, paired), rel=1e-12)
    # All of both sets in every subset: each subset is the whole, in whatever order it was drawn.
    mean, deviation = kid(x, y, 7 * paired, num_subsets=4, subset_size=7)
    assert mean == pytest.approx(brute_force_mmd2(x, y, paired), rel=1e-12)
    assert deviation == pytest.approx(0, abs=1e-12)


def test_mmd2_by_hand():
    # D = 1: the kernel is (xy + 1)^3; k(0, anything) = 1, k(1, 1) = 8, k(1, 2) = 27.
    x, y = np.array([[0.0], [1]]), np.array([[0.0], [2]])
    assert mmd2(x, y) == pytest.approx(1 + 1 - 2 * (1 + 1 + 1 + 27) / 4)
    assert mmd2(x, y, np.eye(2, dtype=bool)) == pytest.approx(1 + 1 - 2 * 1)


def test_equal_pairs_are_at_distance_zero_and_only_as_pairs(rng):
    x = rng.normal(size=(20, 3))
    assert kid(x, x, 20, subset_size=10) == pytest.approx((0, 0), abs=1e-12)
    assert kid(x, x, subset_size=20)[0] < -0.1  # every x_i meets itself across the sets but not within one


def test_one_picture_without_a_counterpart_leaves_the_others_pairs(rng):
    x = rng.normal(size=(60, 3))
    y = x + 0.05 * rng.normal(size=(60, 3))
    whole, one_less = kid(x, y, 60, subset_size=30)[0], kid(x, y[:59], 59, subset_size=30)[0]
    assert abs(one_less - whole) < 0.05 < 0.2 < abs(kid(x, y[:59], subset_size=30)[0])


def test_kid_does_not_depend_on_the_number_of_pictures(rng):
    def sets(n):
        return rng.normal(0, 1, (n, 4)), rng.normal(0.6, 1, (n, 4))

    small = [mmd2(*sets(10)) for _ in range(400)]
    large = mmd2(*sets(1500))
    assert np.mean(small) == pytest.approx(large, abs=5 * np.std(small) / 400**0.5) and large > 1
    # Random subsets of a set estimate what the whole set estimates.
    x, y = sets(300)
    mean, deviation = kid(x, y, num_subsets=200, subset_size=60)
    assert mean == pytest.approx(mmd2(x, y), abs=4 * deviation / 200**0.5) and deviation > 0
    assert kid(x, y, subset_size=60) == kid(x, y, subset_size=60)


def test_kid_refuses_impossible_subsets():
    x = np.zeros((5, 2))
    with pytest.raises(ValueError, match="subsets of 6"):
        kid(x, x, subset_size=6)
    with pytest.raises(ValueError, match="subsets of 1 "):
        kid(x, x, subset_size=1)
    with pytest.raises(ValueError, match="no 5 pairs"):
        kid(x, x[:4], 5, subset_size=2)


# ---- both of originals and reconstructions -------------------------------------------------------------------------


def test_comparison_joins_batches(rng):
    originals = rng.normal(size=(30, 4))
    reconstructions = originals + rng.normal(0, 0.5, (30, 4))
    comparison = FrechetComparison()
    for rows in (slice(0, 16), slice(16, 30)):
        comparison.update(originals[rows], reconstructions[rows])
    result = comparison.result()
    expected = frechet_distance(
        originals.mean(0), np.cov(originals.T), reconstructions.mean(0), np.cov(reconstructions.T)
    )
    assert result["distance"] == pytest.approx(expected, rel=1e-9) and result["num_features"] == 4
    assert result["kid_subset_size"] == 15
    assert (result["kid_mean"], result["kid_std"]) == pytest.approx(kid(originals, reconstructions, 30, subset_size=15))


def test_sets_that_are_not_paired_come_one_after_the_other(rng):
    first, second = rng.normal(size=(30, 4)), rng.normal(0.5, 1, (20, 4))
    comparison = FrechetComparison()
    for rows in (slice(0, 16), slice(16, 30)):
        comparison.update(first[rows], second[:0])
    comparison.update(first[:0], second)
    result = comparison.result()
    expected = frechet_distance(first.mean(0), np.cov(first.T), second.mean(0), np.cov(second.T))
    assert result["distance"] == pytest.approx(expected, rel=1e-9) and result["kid_subset_size"] == 10
    assert (result["kid_mean"], result["kid_std"]) == pytest.approx(kid(first, second, subset_size=10))


def test_kid_is_for_small_sets(rng, monkeypatch):
    monkeypatch.setattr(frechet, "KID_MOST", 8)
    comparison = FrechetComparison()
    comparison.update(rng.normal(size=(8, 2)), rng.normal(size=(8, 2)))
    assert "kid_mean" in comparison.result()
    comparison.update(rng.normal(size=(1, 2)), rng.normal(size=(1, 2)))
    assert set(comparison.result()) == {"distance", "num_features"} and comparison.statistics[1].count == 9


def test_pairs_come_before_pictures_without_a_counterpart():
    comparison = FrechetComparison()
    comparison.update(np.ones((1, 2)), np.ones((0, 2)))
    with pytest.raises(ValueError, match="1 and 1 features are no pairs, or come too late"):
        comparison.update(np.ones((1, 2)), np.ones((1, 2)))


def test_one_picture_is_no_set():
    comparison = FrechetComparison()
    comparison.update(np.ones((1, 2)), np.ones((1, 2)))
    with pytest.raises(ValueError, match="at least 2 pictures"):
        comparison.result()
