"""What contrasts measure, as far as studies share it: one number a seed, from the runs of a study."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from minilora.experiments.evidence.runs import BEST, Metric, Runs, given_up

Measure = Callable[[Runs], np.ndarray]


def difference(
    metric: Metric, higher: Mapping[str, Any], lower: Mapping[str, Any], by: Metric = BEST, **where: Any
) -> Measure:
    """How far the metric at the settings predicted higher lies above that at those predicted lower.

    Both are tuned (by the lowest of `by`), unless `where`, which narrows both, names one learning rate.
    """

    def measure(runs: Runs) -> np.ndarray:
        return runs.tuned(metric, by, **where, **higher) - runs.tuned(metric, by, **where, **lower)

    return measure


def given_up_by(
    metric: Metric, choice: Mapping[str, Any], rivals: Sequence[Mapping[str, Any]], **where: Any
) -> Measure:
    """How far the metric at the settings chosen lies above that at those of its hardest rival, all of them tuned."""

    def measure(runs: Runs) -> np.ndarray:
        chosen, *others = (runs.tuned(metric, **where, **one) for one in (choice, *rivals))
        return given_up(chosen, np.array(others))

    return measure


def one_rate(rate: float, measure: Measure) -> dict[str, Measure]:
    """A variant of a contrast: the same on the runs at one learning rate, which leaves nothing to tune."""
    return {f"one rate, {rate:g}": lambda runs: measure(runs.where(learning_rate=rate))}


def each_seed(number: Callable[[int], float]) -> Measure:
    """What needs no run, but its seed."""
    return lambda runs: np.array([number(seed) for seed in runs.values("seed")])
