"""What contrasts measure: differences of tuned runs, the same at one rate, and a choice against its hardest rival."""

import dataclasses

import numpy as np
import pytest

from minilora.experiments.evidence.measures import difference, each_seed, given_up_by, one_rate
from minilora.experiments.evidence.runs import BEST, FINAL, MissingRunsError, Runs, given_up

from .. import tiny

RATES = (0.1, 0.2)


def _run(r: int, rate: float, seed: int):
    """A run whose best loss comes before its last: 0.2 is the better rate for r=1 and the worse for r=2."""
    best = 2.0 + 0.01 * seed + 0.1 * r + 0.5 * ((rate == 0.1) == (r == 1))
    run = tiny.fabricate(tiny.settings(r=r, learning_rate=rate, seed=seed))
    return dataclasses.replace(run, validation_loss=(3.0, best, best + rate))


RUNS = Runs([_run(r, rate, seed) for r in (1, 2) for rate in RATES for seed in range(3)])


def test_a_difference_is_between_tuned_runs():
    found = difference(BEST, {"r": 2}, {"r": 1})(RUNS)
    np.testing.assert_array_equal(
        found, RUNS.per_seed(BEST, r=2, learning_rate=0.1) - RUNS.per_seed(BEST, r=1, learning_rate=0.2)
    )
    assert found == pytest.approx([0.1] * 3)


def test_a_difference_at_one_rate_is_not_tuned():
    measure = difference(BEST, {"r": 2}, {"r": 1})
    ((label, at_rate),) = one_rate(0.1, measure).items()
    assert label == "one rate, 0.1"
    assert at_rate(RUNS) == pytest.approx([-0.4] * 3)
    np.testing.assert_array_equal(at_rate(RUNS), difference(BEST, {"r": 2}, {"r": 1}, learning_rate=0.1)(RUNS))


def test_rates_may_be_chosen_by_another_metric():
    assert difference(FINAL, {"r": 2}, {"r": 1}, by=lambda run: run.settings.learning_rate)(RUNS) == pytest.approx(
        [-0.4] * 3
    )


def test_what_is_given_up_is_against_the_hardest_of_the_tuned_rivals():
    by_rank = {r: RUNS.tuned(BEST, r=r) for r in (1, 2)}
    np.testing.assert_array_equal(given_up_by(BEST, {"r": 2}, [{"r": 1}])(RUNS), by_rank[2] - by_rank[1])
    both = given_up_by(BEST, {"r": 2}, [{"r": 1}, {"r": 2}])(RUNS)
    np.testing.assert_array_equal(both, given_up(by_rank[2], np.array(list(by_rank.values()))))


@pytest.mark.parametrize("measure", [difference(BEST, {"r": 1}, {"r": 7}), given_up_by(BEST, {"r": 1}, [{"r": 7}]),
                                     one_rate(7.0, difference(BEST, {"r": 1}, {"r": 2}))["one rate, 7"]])  # fmt: skip
def test_missing_runs_are_said_to_be_missing(measure):
    with pytest.raises(MissingRunsError):
        measure(RUNS)


def test_each_seed_is_asked_in_order():
    assert each_seed(lambda seed: 10.0 * seed)(Runs(RUNS[::-1])).tolist() == [0.0, 10.0, 20.0]
