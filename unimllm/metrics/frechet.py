"""Distances between two sets of pictures in the features of some network: Frechet (FID, arXiv 1706.08500) and KID.

Which network it is decides the name: see `unimllm.metrics.networks`. Shapes: n pictures, D features of each.
"""

import numpy as np

ENOUGH = 10_000  # pictures: below, the covariance of some 2,000 features is singular and the Frechet distance too large
KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000
KID_MOST = 50_000  # pictures of a set whose features are kept for KID: 0.4 GB of Inception's 2,048


class GaussianStatistics:
    """Mean and covariance of features in float64, batch by batch; what several ranks accumulated is merged.

    Neither the order of the features nor how they were split changes the result beyond float64's rounding: parts are
    joined by their means and centred products (Chan, Golub and LeVeque 1983), never by sums of squares.

    Args:
        dim: D.
    """

    def __init__(self, dim: int):
        self.count = 0
        self.mean = np.zeros(dim)
        self.scatter = np.zeros((dim, dim))  # sum of (x - mean)(x - mean)^T

    def update(self, features: np.ndarray) -> None:
        """Take in (n, D) features of any float type.

        Raises:
            ValueError: another D, or features that are not finite.
        """
        features = np.asarray(features, np.float64)
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise ValueError(f"features are {features.shape}; these statistics are of (n, {len(self.mean)})")
        if not np.isfinite(features).all():
            raise ValueError("features hold NaN or infinity: the network or its input is broken")
        if not len(features):
            return
        part = GaussianStatistics(len(self.mean))
        part.count, part.mean = len(features), features.mean(0)
        centered = features - part.mean  # (n, D)
        part.scatter = centered.T @ centered  # (D, n) x (n, D) -> (D, D)
        self.merge(part)

    def merge(self, other: "GaussianStatistics") -> None:
        """Join what another one has taken in, such as that of another rank."""
        if other.mean.shape != self.mean.shape:
            raise ValueError(f"statistics of {len(other.mean)} and of {len(self.mean)} features cannot be merged")
        total = self.count + other.count
        if not other.count:
            return
        apart = other.mean - self.mean
        self.scatter = self.scatter + other.scatter + np.outer(apart, apart) * (self.count * other.count / total)
        self.mean = self.mean + apart * (other.count / total)
        self.count = total

    def covariance(self) -> np.ndarray:
        """(D, D), divided by n - 1 as every FID does; ValueError for fewer than 2 pictures."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 pictures, got {self.count}")
        return self.scatter / (self.count - 1)


def frechet_distance(mean1: np.ndarray, covariance1: np.ndarray, mean2: np.ndarray, covariance2: np.ndarray) -> float:
    """Squared Frechet distance of two Gaussians: |mean1 - mean2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)).

    The trace of the root is taken over the eigenvalues of the symmetric C1^(1/2) C2 C1^(1/2), which are those of C1 C2
    and never negative. So singular covariances need no term added to their diagonal.

    Args:
        mean1, mean2: (D,) float64.
        covariance1, covariance2: (D, D) float64, symmetric and positive semi-definite.
    """
    root = _root(covariance1)
    eigenvalues = np.linalg.eigvalsh(root @ covariance2 @ root)  # (D,)
    trace_of_root = np.sqrt(eigenvalues.clip(0)).sum()
    distance = ((mean1 - mean2) ** 2).sum() + np.trace(covariance1) + np.trace(covariance2) - 2 * trace_of_root
    return float(max(distance, 0.0))  # rounding may leave a hair less


def _root(covariance: np.ndarray) -> np.ndarray:
    """The symmetric square root of a positive semi-definite matrix."""
    eigenvalues, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(eigenvalues.clip(0))) @ vectors.T


def kid(
    first: np.ndarray,
    second: np.ndarray,
    num_pairs: int = 0,
    num_subsets: int = KID_SUBSETS,
    subset_size: int = KID_SUBSET_SIZE,
    seed: int = 0,
) -> tuple[float, float]:
    """Kernel inception distance (arXiv 1801.01401): mean and standard deviation over random subsets of `mmd2`.

    Unlike the Frechet distance its mean does not depend on how many pictures there are. The deviation is that of one
    subset, not the error of the mean.

    Args:
        first, second: (n, D) and (n', D) features.
        num_pairs: so many first rows of both belong together one by one, as pictures and their reconstructions do; see
            `mmd2`.
        num_subsets: how many are drawn, each without repeats.
        subset_size: pictures of each set in a subset; no more than there are.
        seed: of the drawing.

    Raises:
        ValueError: fewer than 2 pictures, subsets larger than a set, or more pairs than pictures.
    """
    if num_pairs > min(len(first), len(second)):
        raise ValueError(f"{len(first)} and {len(second)} features are no {num_pairs} pairs")
    if not 2 <= subset_size <= min(len(first), len(second)):
        raise ValueError(f"subsets of {subset_size} cannot be drawn from {len(first)} and {len(second)} pictures")
    rng = np.random.default_rng(seed)
    values, all_paired = [], num_pairs == len(first) == len(second)
    for _ in range(num_subsets):
        picked = rng.choice(len(first), subset_size, replace=False)
        of_second = picked if all_paired else rng.choice(len(second), subset_size, replace=False)
        are_pairs = (picked[:, None] == of_second) & (of_second < num_pairs)
        values.append(mmd2(first[picked].astype(np.float64), second[of_second].astype(np.float64), are_pairs))
    return float(np.mean(values)), float(np.std(values))


def mmd2(first: np.ndarray, second: np.ndarray, are_pairs: np.ndarray | None = None) -> float:
    """Unbiased estimate of the squared maximum mean discrepancy under KID's kernel (x.y / D + 1)^3.

    Args:
        first, second: (n, D) float64 features.
        are_pairs: (n, n) bool, True where x_i and y_j belong together, as an original and its reconstruction do. Their
            kernel is left out, as that of x_i with itself is left out everywhere (Gretton et al. 2012, lemma 6): with
            those terms equal sets would have a distance below zero.
    """
    n = len(first)
    within = sum((k.sum() - np.trace(k)) / (n * (n - 1)) for k in (_kernel(first, first), _kernel(second, second)))
    across = _kernel(first, second)  # (n, n)
    return float(within - 2 * across.mean(where=True if are_pairs is None else ~are_pairs))


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(n, D) x (D, n') -> (n, n')."""
    return (x @ y.T / x.shape[1] + 1) ** 3


class FrechetComparison:
    """Takes two sets of pictures as features, batch by batch, and says how far the sets are apart."""

    def __init__(self):
        self.statistics: tuple[GaussianStatistics, GaussianStatistics] | None = None  # until D is known
        self.num_pairs = 0
        self._kept: list[tuple[np.ndarray, np.ndarray]] | None = []  # features for KID; None once there are too many

    @property
    def counts(self) -> tuple[int, int]:
        """Pictures of both sets so far."""
        return tuple(statistics.count for statistics in self.statistics) if self.statistics else (0, 0)

    def update(self, originals: np.ndarray, reconstructions: np.ndarray) -> None:
        """Take in (n, D) features of pictures and (n, D) of their reconstructions, in the same order.

        Pictures of one set without a counterpart come after all pairs, with (0, D) features of the other.

        Raises:
            ValueError: unequal numbers of both, or pairs after pictures without a counterpart.
        """
        if len(originals) and len(reconstructions):
            if len(originals) != len(reconstructions) or self.counts != (self.num_pairs, self.num_pairs):
                raise ValueError(f"{len(originals)} and {len(reconstructions)} features are no pairs, or come too late")
            self.num_pairs += len(originals)
        if self.statistics is None:
            self.statistics = GaussianStatistics(originals.shape[1]), GaussianStatistics(originals.shape[1])
        for statistics, features in zip(self.statistics, (originals, reconstructions), strict=True):
            statistics.update(features)
        if max(self.counts) > KID_MOST:
            self._kept = None
        elif self._kept is not None:
            self._kept.append((originals, reconstructions))

    def result(self) -> dict[str, float | int]:
        """`distance` and `num_features`; for sets of up to KID_MOST pictures `kid_mean`, `kid_std`, `kid_subset_size`.

        Raises:
            ValueError: fewer than 2 pictures.
        """
        moments = [value for s in self.statistics for value in (s.mean, s.covariance())]
        result = {"distance": frechet_distance(*moments), "num_features": len(moments[0])}
        if self._kept is None:
            return result
        first, second = (np.concatenate(features) for features in zip(*self._kept, strict=True))
        # Subsets of everything would all be the same one and have no deviation.
        size = min(KID_SUBSET_SIZE, max(2, min(self.counts) // 2))
        mean, deviation = kid(first, second, self.num_pairs, subset_size=size)
        return result | {"kid_mean": mean, "kid_std": deviation, "kid_subset_size": size}
