"""Searches that look losses up: what they may do, and that they do it."""

import itertools
from functools import partial

import numpy as np
import optuna
import pytest

from minilora.experiments.evidence import searches

SIZES = {"r": 3, "ratio": 3, "learning_rate": 6, "lora_dropout": 3}
PLACES = np.array(list(itertools.product(*map(range, SIZES.values()))))
LOSSES = np.random.default_rng(1).normal(size=len(PLACES))
GRID = [i for i, place in enumerate(PLACES) if place[0] != 1 and place[1] == 1]
SEARCHES = {
    "grid": partial(searches.grid_search, points=GRID),
    "random": partial(searches.random_search, n=len(GRID)),
    "Bayesian": partial(searches.bayesian_search, n=len(GRID), sizes=SIZES),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_a_search_does_so_many_runs_and_keeps_the_best(name):
    found = SEARCHES[name](LOSSES, seed=3)
    assert len(found) == len(GRID)
    assert all(later <= earlier for earlier, later in itertools.pairwise(found))
    assert set(found) <= set(LOSSES)
    np.testing.assert_array_equal(found, SEARCHES[name](LOSSES, seed=3))


def test_the_grid_is_searched_to_its_end():
    assert SEARCHES["grid"](LOSSES, 0)[-1] == LOSSES[GRID].min()


def test_bayes_learns_where_settings_act_by_themselves():
    """On a loss that is a sum of one term a setting, it ends nearer to the best than chance does."""
    losses = np.abs(PLACES - [1, 1, 2, 0]) @ [0.1, 0.1, 0.5, 0.1]
    ends = {name: np.mean([find(losses, seed)[-1] for seed in range(30)]) for name, find in SEARCHES.items()}
    assert ends["Bayesian"] < ends["random"] - 0.02


def test_each_setting_is_sampled_by_itself(monkeypatch):
    """Optuna 5 would sample them jointly by default, from what was asked so far."""
    made = []
    create = optuna.create_study
    monkeypatch.setattr(optuna, "create_study", lambda **given: made.append(create(**given)) or made[-1])
    SEARCHES["Bayesian"](LOSSES, seed=0)
    (search,) = made
    assert search.sampler.infer_relative_search_space(search, search.trials[-1]) == {}


def test_regrets_are_above_the_best_of_each_seed_over_repeats_of_its_own():
    losses = np.random.default_rng(2).normal(size=(9, 2))
    asked = []

    def in_order(one, seed):
        asked.append(seed)
        return np.minimum.accumulate(one)

    found = searches.regrets(in_order, losses, repeats=3)
    np.testing.assert_allclose(found, np.minimum.accumulate(losses) - losses.min(0), atol=1e-12)
    assert asked == list(range(6)), "no two searches draw alike"
