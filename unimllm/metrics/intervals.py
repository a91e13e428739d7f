"""95 % confidence intervals: Wilson's for a share, the bootstrap over clusters for everything else."""

from collections.abc import Callable, Sequence

import numpy as np

Z = 1.959964  # 97.5 % quantile of the normal distribution
RESAMPLES = 1000


def wilson(num_right: float, num_all: int) -> tuple[float, float]:
    """Wilson's score interval of a share of independent trials; honest at 0 and 1, where the bootstrap has no width."""
    if num_all == 0:
        return 0.0, 1.0
    share, penalty = num_right / num_all, Z**2 / num_all
    center = (share + penalty / 2) / (1 + penalty)
    half = Z * (share * (1 - share) / num_all + penalty / (4 * num_all)) ** 0.5 / (1 + penalty)
    return max(0.0, center - half), min(1.0, center + half)


def bootstrap(statistic: Callable[[np.ndarray], float], clusters: Sequence[int], seed: int = 0) -> tuple[float, float]:
    """Percentile interval of a statistic under resampling of whole clusters.

    Args:
        statistic: indices of samples (with repeats) -> value.
        clusters: for each sample the number of its cluster, such as its picture: answers about one picture are not
            independent, and resampling them one by one would make the interval too narrow.
        seed: of the resampling.
    """
    order = np.argsort(clusters, kind="stable")
    starts = np.unique(np.asarray(clusters)[order], return_index=True)[1]
    members = np.split(order, starts[1:])
    rng = np.random.default_rng(seed)
    values = [
        statistic(np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))]))
        for _ in range(RESAMPLES)
    ]
    return percentiles(values)


def bootstrap_mean(values: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """`bootstrap` of the mean of independent values, fast enough for tens of thousands of pictures."""
    rng = np.random.default_rng(seed)
    means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(RESAMPLES)]
    return percentiles(means)


def resampled_sums(counts: np.ndarray, clusters: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """Sums of counts under resampling of whole clusters: what every ratio of counts can be bootstrapped from at once.

    Strata (sub-tasks or tags with pictures of their own) are resampled one by one, with one `rng` for all: equal seeds
    would make them rise and fall together.

    Args:
        counts: (n, k), what each sample adds to each of k sums.
        clusters: (n,), see `bootstrap`.

    Returns:
        (RESAMPLES, k) float64.
    """
    names, members = np.unique(np.asarray(clusters), return_inverse=True)
    of_cluster = np.zeros((len(names), counts.shape[1]))
    np.add.at(of_cluster, members, counts)
    times_drawn = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES)  # (RESAMPLES, C)
    return times_drawn @ of_cluster


def percentiles(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """The 95 % interval of resampled values (RESAMPLES,)."""
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
