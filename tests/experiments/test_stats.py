"""Intervals, the verdict rule with its error rates, slopes and optima."""

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.experiments.stats import Estimate, estimate, optimum, slope, verdict

INF, NAN = math.inf, math.nan

# Quantiles of Student's t at 0.975, as printed in tables, for n - 1 degrees of freedom
T_TABLE = {2: 12.706205, 3: 4.302653, 5: 2.776445, 8: 2.364624, 16: 2.131450, 31: 2.042272}


@pytest.mark.parametrize("n", T_TABLE)
def test_the_interval_is_students(n):
    values = np.random.default_rng(n).normal(0.3, 2.0, n)
    half = T_TABLE[n] * statistics.stdev(values.tolist()) / n**0.5
    got = estimate(values)
    assert got.n == n
    assert got.mean == pytest.approx(statistics.fmean(values.tolist()), rel=1e-12)
    assert (got.mean - got.low, got.high - got.mean) == pytest.approx((half, half), rel=1e-6)


@pytest.mark.parametrize(
    "values", [[0.5], [1.0, INF, 2.0], [1.0, NAN, 2.0], [-INF, 1.0], [INF, INF]], ids=str
)  # fmt: skip
def test_one_seed_or_a_value_that_is_not_finite_has_no_interval(values):
    got = estimate(np.array(values))
    assert (got.low, got.high, got.n) == (-INF, INF, len(values))


def test_equal_values_have_an_interval_of_no_width():
    assert estimate(np.array([0.25] * 8)) == Estimate(0.25, 0.25, 0.25, 8)


@pytest.mark.parametrize(
    ("low", "high", "smallest", "expected"),
    [
        (0.11, 0.3, 0.1, "supported"),
        (0.1, 0.3, 0.1, "inconclusive"),  # beyond the smallest effect, not at it
        (0.05, 0.3, 0.1, "inconclusive"),  # an effect, but maybe none worth having
        (0.0, 0.3, 0.0, "inconclusive"),
        (0.0, 0.0, 0.0, "inconclusive"),
        (0.001, 0.3, 0.0, "supported"),
        (-0.1, 0.2, 0.1, "inconclusive"),
        (-0.2, 0.0, 0.1, "inconclusive"),  # zero is not the other side of zero
        (-0.2, -1e-9, 0.1, "contradicted"),
        (0.01, 0.05, 0.1, "inconclusive"),  # too small, but on the predicted side
        (-INF, INF, 0.1, "inconclusive"),
        (NAN, NAN, 0.1, "inconclusive"),
    ],
)
def test_the_verdict_rule(low, high, smallest, expected):
    assert verdict(Estimate((low + high) / 2, low, high, 8), smallest) == expected
    assert verdict(Estimate((low + high) / 2, low, high, 7), smallest) == "inconclusive", "7 seeds decide nothing"


@pytest.mark.parametrize("values", [[INF] * 8, [NAN] * 8, [1.0] * 7 + [INF], [-1.0] * 7 + [-INF]], ids=str)
def test_values_that_are_not_finite_decide_nothing(values):
    assert verdict(estimate(np.array(values)), 0.1) == "inconclusive"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0] * 8, "supported"),
        ([0.0] * 3, "supported"),
        ([0.0], "supported"),  # one deviation of exactly 0 is all there is to know
        ([1.0] * 8, "contradicted"),
        ([0.0] * 7 + [1e-12], "contradicted"),
        ([-1.0, 1.0] * 4, "contradicted"),  # the mean is 0, the deviations are not
        ([1.0], "contradicted"),
    ],
    ids=str,
)
def test_an_exact_claim_holds_to_the_bit_whatever_the_number_of_seeds(values, expected):
    assert verdict(estimate(np.array(values)), 0.0, exact=True) == expected


def test_an_exact_claim_that_was_not_measured_is_not_supported():
    assert verdict(estimate(np.array([NAN] * 8)), 0.0, exact=True) != "supported"


def _verdicts(true_effect: float, smallest: float, n_studies: int = 3000) -> dict[str, float]:
    """Share of each verdict among simulated studies of 8 seeds, whose noise has deviation 1."""
    studies = np.random.default_rng(0).normal(true_effect, 1.0, (n_studies, 8))
    found = [verdict(estimate(values), smallest) for values in studies]
    return {kind: found.count(kind) / n_studies for kind in ("supported", "inconclusive", "contradicted")}


def test_error_rates_of_the_rule():
    """2.5 % of the studies may miss on one side; 3000 simulated ones scatter by 0.3 % around that."""
    at_the_limit = _verdicts(true_effect=0.5, smallest=0.5)
    assert 0.015 < at_the_limit["supported"] < 0.035
    nothing = _verdicts(true_effect=0.0, smallest=0.5)
    assert nothing["supported"] < 0.005
    assert 0.015 < nothing["contradicted"] < 0.035
    assert 0.015 < _verdicts(true_effect=0.0, smallest=0.0)["supported"] < 0.035


def test_a_true_effect_is_found():
    assert _verdicts(true_effect=2.5, smallest=0.5)["supported"] > 0.95
    assert _verdicts(true_effect=-2.5, smallest=0.5)["contradicted"] > 0.95


numbers = st.floats(-100, 100)


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=4), st.lists(numbers, min_size=2, max_size=9))
def test_slope_of_a_line_is_its_slope(lines, places):
    x = np.array(places)
    if np.ptp(x) < 1e-3:
        x[0] += 1.0 if x[0] >= x[1] else -1.0
    y = np.stack([a + b * x for a, b in lines], axis=1)  # (places, seeds)
    np.testing.assert_allclose(slope(x, y), [b for _, b in lines], rtol=1e-8, atol=1e-6)


def test_slope_is_the_least_squares_one():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=7), rng.normal(size=(7, 3))
    np.testing.assert_allclose(slope(x, y), np.polyfit(x, y, 1)[0], rtol=1e-10)


@given(st.floats(0.51, 4.49), st.floats(0.01, 100), st.floats(-10, 10), st.floats(0.1, 3), numbers)
def test_optimum_of_a_parabola_is_its_bottom(bottom, curvature, height, spacing, start):
    x = start + spacing * np.arange(6.0)
    bottom = start + spacing * bottom
    y = height + curvature * (x - bottom) ** 2
    np.testing.assert_allclose(optimum(x, y[:, None]), [bottom], atol=1e-5 * spacing)


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ([1, 2, 3, 4], 0.0),  # at an edge of the grid: the edge, and nothing beyond
        ([4, 3, 2, 1], 3.0),
        ([4, 1, 4, 9], 1.0),
        ([INF, 1, 2, 3], 1.0),  # no parabola through a run that diverged
        ([3, 2, 1, INF], 2.0),
        ([INF, INF, INF, 1], 3.0),
        ([INF, INF, INF, INF], 0.0),
        ([2, 2, 2, 2], 0.0),
        ([3, 1, 1, 3], 1.5),
    ],
    ids=str,
)
def test_optimum_at_edges_and_beside_diverged_runs(column, expected):
    column = np.array(column, float)
    assert optimum(np.arange(4.0), np.stack([column, [9, 1, 9, 25]], axis=1)).tolist() == [expected, 1.0]
