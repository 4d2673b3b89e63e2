"""What single studies compute by themselves, beside independent computations and planted bugs."""

import dataclasses
import importlib.util
import itertools
import sys

import numpy as np
import pytest

from minilora import ops
from minilora.data.base import load_base
from minilora.experiments.studies import batch_size, dropout, early_stopping, init, learning_rate, modules, search
from minilora.lora import count_parameters, init_adapter
from minilora.train import Trainable

from .. import tiny


def run(**measured):
    return dataclasses.replace(tiny.fabricate(tiny.settings()), **measured)


# --- exact claims, and the bugs that they have to find ---


@pytest.fixture(autouse=True)
def _nothing_remembered():
    init.start_deviation.cache_clear()
    yield
    init.start_deviation.cache_clear()


def test_evaluation_and_start_do_not_deviate():
    for seed in range(3):
        assert dropout._evaluation_deviation(seed) == 0
        assert init.start_deviation(seed) == 0


def test_dropout_in_evaluation_is_found(monkeypatch):
    """The bug: forward draws masks whether or not it was given a generator."""
    rng = np.random.default_rng(0)
    monkeypatch.setattr(dropout, "forward", lambda *a, **k: forward(*a, **(k | {"rng": rng})))
    from minilora.model import forward

    assert dropout._evaluation_deviation(0) > 0


def test_dropout_without_rescaling_is_found(monkeypatch):
    """The bug: kept inputs are not divided by 1 - p, so that training is smaller than evaluation on average."""
    right = ops.lora_linear
    monkeypatch.setattr(
        ops, "lora_linear", lambda *a, **k: right(*a[:6], None if a[6] is None else a[6] / 2, *a[7:], **k)
    )
    assert dropout._evaluation_deviation(0) > 0


@pytest.mark.parametrize("shift", [1e-6, 1.0])
def test_a_start_that_is_not_the_base_is_found(shift, monkeypatch):
    """The bug: a zero factor that is not zero."""

    def shifted(*arguments):
        adapter = init_adapter(*arguments)
        return adapter.with_arrays({name: array + array.dtype.type(shift) for name, array in adapter.arrays().items()})

    monkeypatch.setattr(init, "init_adapter", shifted)
    assert init.start_deviation(0) > 0


def test_a_factor_that_never_moves_is_found(monkeypatch):
    """The bug: both factors zero, where no gradient leads away."""

    def zero(*arguments):
        adapter = init_adapter(*arguments)
        return adapter.with_arrays({name: np.zeros_like(array) for name, array in adapter.arrays().items()})

    monkeypatch.setattr(init, "init_adapter", zero)
    assert init.start_deviation(0) >= 1


# --- measures ---


def test_noise_scale_of_known_noise(monkeypatch):
    """Gradients G + noise with a covariance of trace 6 and |G|^2 = 3: the scale is 2 whatever the number of names."""
    rng = np.random.default_rng(0)

    class Noisy(Trainable):
        def loss_and_gradient(self, vector, batch, draws):
            return 0.0, np.ones(3) + rng.normal(0, 2**0.5, 3)

    monkeypatch.setattr(batch_size, "Trainable", Noisy)
    scales = [batch_size.noise_scale.__wrapped__(seed) for seed in range(20)]
    assert np.mean(scales) == pytest.approx(2.0, rel=0.05)


def test_roughness_is_zero_on_a_line_and_infinite_where_a_run_diverged():
    line = tuple(2.0 - 0.1 * i for i in range(9))
    assert learning_rate.roughness(run(train_loss=line)) == pytest.approx(0, abs=1e-12)
    assert learning_rate.roughness(run(train_loss=(0.0, 1.0) * 4)) == pytest.approx(2.0)
    assert learning_rate.roughness(run(train_loss=line, diverged_at=9)) == np.inf


@pytest.mark.parametrize(
    ("losses", "stop", "kept", "best"),
    [
        ((5, 4, 3, 2, 1), 4, 1, 4),  # always better: never stops
        ((5, 4, 4.1, 4.2, 4.3, 1), 4, 4, 5),  # three without gain: what comes after is not seen
        ((5, 4, 4.1, 4.2, 3, 2), 5, 2, 5),
        ((1, 2, 3, 4, 5), 3, 1, 1),  # best at the start counts as the first evaluation after it
    ],
)
def test_early_stopping_read_off_a_run(losses, stop, kept, best):
    stored = run(step=tuple(range(len(losses))), validation_loss=tuple(map(float, losses)))
    assert early_stopping.stopped_at(stored) == stop
    assert early_stopping.stopped_loss(stored) == kept
    assert early_stopping.best_step(stored) == best


def test_early_stopping_read_off_is_that_of_fit():
    """The rule of the study against `fit` with the same patience."""
    from minilora.experiments.engine.runner import base, lora_config, task
    from minilora.train import TrainConfig, fit

    of = tiny.settings(n_train=40, learning_rate=1e-2, target_modules="all-linear")
    train, validation, _ = task(of)
    settings = {"steps": 150, "batch_size": 8, "learning_rate": 1e-2, "evaluate_every": 10, "evaluation_size": 100}
    whole = fit(base("surnames"), lora_config(of), train, validation, TrainConfig(**settings), 0)
    stopped = fit(
        base("surnames"),
        lora_config(of),
        train,
        validation,
        TrainConfig(**settings, patience=early_stopping.PATIENCE),
        0,
    )
    stored = run(step=whole.steps, train_loss=whole.train_loss, validation_loss=whole.validation_loss)
    assert stopped.stopped_early
    assert whole.steps[early_stopping.stopped_at(stored)] == stopped.steps[-1]
    assert early_stopping.stopped_loss(stored) == stopped.best_loss


@pytest.mark.parametrize("name", modules.EQUAL)
def test_budgets_are_equal_to_the_parameter(name):
    from minilora.experiments.engine.runner import lora_config

    config = lora_config(tiny.settings(**modules.EQUAL[name], lora_alpha=2.0 * modules.EQUAL[name]["r"]))
    count = count_parameters(load_base().params, config)
    assert count.trainable == 2 * modules.BUDGET
    assert {config.scaling_of(f"layers.0.{part}_proj") for part in name.split()} <= {2.0} or name == "all six"


def test_profiles_that_differ_are_found_and_equal_ones_are_not():
    rng = np.random.default_rng(0)
    noise = [rng.normal(0, 0.01, (6, 8)) for _ in range(2)]
    tilt = np.linspace(-0.1, 0.1, 6)[:, None]
    found = modules.profile_difference(noise[0] + tilt, noise[1])
    np.testing.assert_allclose(found, np.linalg.norm(tilt), atol=0.05)
    assert abs(modules.profile_difference(*noise).mean()) < 0.02


# --- searches ---

LOSSES = np.random.default_rng(1).normal(size=len(search.POINTS))


@pytest.mark.parametrize("name", search.SEARCHES)
def test_a_search_does_so_many_runs_and_keeps_the_best(name):
    found = search.SEARCHES[name](LOSSES, seed=3)
    assert len(found) == search.N_TRIALS
    assert all(later <= earlier for earlier, later in itertools.pairwise(found))
    assert set(found) <= set(LOSSES)
    assert found == search.SEARCHES[name](LOSSES, seed=3)


def test_the_grid_is_the_grid():
    assert search.found_by_grid(LOSSES, 0)[-1] == min(
        LOSSES[i] for i, (r, ratio, _, p) in enumerate(search.POINTS) if r in (4, 16) and ratio == 2 and p in (0.0, 0.3)
    )


def test_bayes_learns_where_settings_act_by_themselves():
    """On a loss that is a sum of one term a setting, it ends nearer to the best than chance does."""
    losses = np.array(
        [
            abs(np.log10(rate) + 2.5) + 0.1 * abs(np.log2(r) - 3) + 0.05 * abs(np.log2(ratio) - 1) + 0.3 * p
            for r, ratio, rate, p in search.POINTS
        ]
    )
    ends = {name: np.mean([find(losses, seed)[-1] for seed in range(30)]) for name, find in search.SEARCHES.items()}
    assert ends["Bayesian"] < ends["random"] - 0.02


def test_the_table_is_in_the_order_of_the_points():
    n = len(search.POINTS)
    runs = [tiny.fabricate(tiny.Settings(**cell, seed=seed)) for seed in (1, 0) for cell in search.CELLS[:n][::-1]]
    found = search.table(tiny.Runs(runs), search.SEARCHED)
    assert found.shape == (n, 2)
    for i in (0, 17, n - 1):
        r, ratio, rate, dropout_p = search.POINTS[i]
        of = {"r": r, "lora_alpha": float(ratio * r), "learning_rate": rate, "lora_dropout": dropout_p}
        np.testing.assert_array_equal(found[i], tiny.Runs(runs).per_seed(lambda one: one.final, **of))


def test_the_rows_of_a_recipe_are_its_settings_at_each_rate():
    for recipe in (*search.RECIPE.values(), *search.OPPOSITE.values()):
        points = [dict(zip(search.SPACE, search.POINTS[i], strict=True)) for i in search.rows_of(recipe)]
        assert points == [recipe | {"learning_rate": rate} for rate in search.SPACE["learning_rate"]]


def test_without_optuna_a_line_says_what_to_install(monkeypatch, capsys, tmp_path):
    from minilora.experiments import __main__ as command

    assert importlib.util.find_spec("optuna"), "else nothing is tested"
    monkeypatch.setitem(sys.modules, "optuna", None)
    search._searched.cache_clear()
    assert command.main(["search", "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error == "error: the study 'search' needs Optuna: pip install 'minilora[search]'\n"
    assert not (tmp_path / "out" / "runs").exists()
