"""What single studies compute by themselves, beside independent computations and planted bugs."""

import dataclasses
import importlib.util
import sys

import numpy as np
import pytest

from minilora.command_line import install
from minilora.data.base import load_base
from minilora.experiments.evidence import searches
from minilora.experiments.studies import batch_size, early_stopping, learning_rate, modules, search
from minilora.lora import count_parameters
from minilora.train import Trainable

from .. import tiny


def run(**measured):
    return dataclasses.replace(tiny.fabricate(tiny.settings()), **measured)


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


# --- searches ---


def test_the_grid_is_two_ranks_and_dropouts_at_alpha_2r_and_each_rate():
    grid = [search.POINTS[i] for i in search.GRID]
    assert {(point["r"], point["ratio"], point["lora_dropout"]) for point in grid} == {
        (r, 2, p) for r in (4, 16) for p in (0.0, 0.3)
    }
    assert len(grid) == search.N_TRIALS == 4 * len(search.SPACE["learning_rate"])


def test_the_table_is_in_the_order_of_the_points():
    n = len(search.POINTS)
    runs = [tiny.fabricate(tiny.Settings(**cell, seed=seed)) for seed in (1, 0) for cell in search.CELLS[:n][::-1]]
    found = search.table(tiny.Runs(runs), search.SEARCHED)
    assert found.shape == (n, 2)
    for i in (0, 17, n - 1):
        of = dict(search.POINTS[i])
        of["lora_alpha"] = float(of.pop("ratio") * of["r"])
        np.testing.assert_array_equal(found[i], tiny.Runs(runs).per_seed(lambda one: one.final, **of))


def test_the_rows_of_a_recipe_are_its_settings_at_each_rate():
    for recipe in (*search.RECIPE.values(), *search.OPPOSITE.values()):
        points = [search.POINTS[i] for i in search.rows_of(recipe)]
        assert points == [recipe | {"learning_rate": rate} for rate in search.SPACE["learning_rate"]]


def test_without_optuna_a_line_says_what_to_install(monkeypatch, capsys, tmp_path):
    from minilora.experiments import __main__ as command

    assert importlib.util.find_spec("optuna"), "else nothing is tested"
    monkeypatch.setitem(sys.modules, "optuna", None)
    searches._regrets.cache_clear()
    assert command.main(["search", "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error == f"error: the study 'search' needs Optuna: {install('search')}\n"
    assert not (tmp_path / "out" / "runs").exists()
