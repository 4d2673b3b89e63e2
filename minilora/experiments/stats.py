"""Intervals of paired differences, and the verdict rule."""

import math
from typing import NamedTuple

import numpy as np

from minilora.experiments.study import N_SEEDS


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
