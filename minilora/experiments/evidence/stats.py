"""Intervals of paired differences, and the verdict rule."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

N_SEEDS = 8  # pairs below which the verdict rule decides nothing


class Estimate(NamedTuple):
    """A mean over seeds with its 95 % interval."""

    mean: float
    low: float
    high: float
    n: int


def estimate(values: np.ndarray) -> Estimate:
    """Mean and Student's t interval of one value a seed; the interval is infinite for a single seed.

    >>> mean, low, high, n = estimate(np.array([1.0, 2.0, 3.0]))
    >>> print(f"{mean:g} [{low:.3f}, {high:.3f}], n={n}")
    2 [-0.484, 4.484], n=3
    """
    from scipy.stats import t  # here, as it takes longer to import than the rest of minilora together

    n, mean = len(values), float(np.mean(values))
    if n < 2 or not np.isfinite(values).all():
        return Estimate(mean, -math.inf, math.inf, n)
    half = float(t.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n))
    return Estimate(mean, mean - half, mean + half, n)


def verdict(effect: Estimate, smallest_effect: float, exact: bool = False) -> str:
    """The rule, for an effect that is positive in the predicted direction.

    Supported: the whole interval lies beyond the smallest effect worth having. Contradicted: it lies wholly on the
    other side of zero. Inconclusive otherwise, and always below 8 seeds. An exact claim holds if nothing deviates.

    >>> [verdict(Estimate(0.3, low, high, 8), 0.1) for low, high in [(0.2, 0.4), (0.0, 0.6), (-0.4, -0.1)]]
    ['supported', 'inconclusive', 'contradicted']
    """
    if exact:
        nothing_deviates = effect.mean == 0 and (effect.n == 1 or effect.low == effect.high == 0)
        return "supported" if nothing_deviates else "contradicted"
    if effect.n < N_SEEDS:
        return "inconclusive"
    if effect.low > smallest_effect:
        return "supported"
    return "contradicted" if effect.high < 0 else "inconclusive"


def bootstrap_interval(values: np.ndarray) -> tuple[float, float]:
    """95 % interval by the bias-corrected and accelerated bootstrap (Efron 1987), beside Student's t of `estimate`.

    >>> low, high = bootstrap_interval(np.array([1.0, 2.0, 3.0, 4.0]))
    >>> 1.0 <= low < 2.5 < high <= 4.0
    True
    """
    from scipy.stats import bootstrap

    if len(values) < 2 or not np.isfinite(values).all():
        return -math.inf, math.inf
    if np.ptp(values) <= 1e-12 * np.abs(values).max():  # no spread, no resampling
        return float(values.min()), float(values.max())
    found = bootstrap((values,), np.mean, n_resamples=9999, method="BCa", rng=np.random.default_rng(0))
    return tuple(map(float, found.confidence_interval))  # type: ignore[return-value]


def p_values(values: np.ndarray, smallest_effect: float) -> tuple[float, float]:
    """One-sided p of Student's t: that the mean is not above the smallest effect, that it is not below zero.

    They are below 0.025 where `verdict` says supported, or contradicted.

    >>> supported, contradicted = p_values(np.array([1.0, 2.0, 3.0, 2.0]), 0.5)
    >>> supported < 0.025 < contradicted
    True
    """
    from scipy.stats import t

    n = len(values)
    if n < 2 or not np.isfinite(values).all():
        return 1.0, 1.0
    mean, error = float(np.mean(values)), float(np.std(values, ddof=1) / math.sqrt(n))
    if error == 0:
        return float(mean <= smallest_effect), float(mean >= 0)
    return float(t.sf((mean - smallest_effect) / error, n - 1)), float(t.cdf(mean / error, n - 1))


def holm(ps: Sequence[float]) -> list[float]:
    """p-values adjusted for their number (Holm 1979, "A simple sequentially rejective multiple test procedure").

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted, largest = [1.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[i]))
        adjusted[i] = largest
    return adjusted


def profile_difference(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """How far two profiles (places, seeds) differ, in the direction in which the *other* seeds say they do: (seeds,).

    Zero on average where the profiles are the same, as the noise of a seed has no direction that other seeds know.
    """
    difference = one - other
    directions = difference.sum(1, keepdims=True) - difference  # from the other seeds
    if difference.shape[1] == 1:
        directions = difference  # there are none
    return (difference * directions).sum(0) / np.linalg.norm(directions, axis=0)


def slope(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Least-squares slope of each column of y against x: (n,), (n, seeds) -> (seeds,)."""
    centered = x - x.mean()
    return centered @ y / (centered @ centered)


def optimum(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Where each column of y is lowest, between grid points by the parabola through the three around the lowest.

    At an edge of the grid it is the edge. x must be evenly spaced. (n,), (n, seeds) -> (seeds,)

    >>> x = np.array([0.0, 1.0, 2.0, 3.0])
    >>> optimum(x, ((x - 1.25) ** 2)[:, None])
    array([1.25])
    """
    places = []
    for column in y.T:
        i = int(np.argmin(column))
        offset = 0.0
        if 0 < i < len(x) - 1 and np.isfinite(column[i - 1 : i + 2]).all():
            left, middle, right = column[i - 1 : i + 2]
            curvature = left - 2 * middle + right
            offset = 0.5 * (left - right) / curvature if curvature > 0 else 0.0
        places.append(x[i] + offset * (x[1] - x[0]))
    return np.array(places)
