"""Losses on the way: those of `evaluate`, and the base, at which every run starts, evaluated once."""

import numpy as np
import plain
import pytest

import minilora as ml
from minilora import evaluation
from minilora.dataset import Dataset
from minilora.evaluation import Evaluator
from minilora.trees import cast

CONFIG = ml.ModelConfig(vocab_size=11, context_length=7, d_model=10, n_heads=5, n_layers=2, d_ff=14, dtype="float64")
BASE = ml.Model(CONFIG, cast(ml.init_params(CONFIG, np.random.default_rng(0)), "float64"))


def sequences(n, seed):
    """Of different lengths."""
    rng = np.random.default_rng(seed)
    inputs, targets = rng.integers(0, 11, (n, 7)), rng.integers(0, 11, (n, 7))
    targets[np.arange(7) >= rng.integers(1, 8, (n, 1))] = -1
    return Dataset(inputs, targets)


TRAIN, VALIDATION = sequences(90, 1), sequences(150, 2)


def fresh(**fields):
    return ml.init_adapter(BASE.params, ml.LoraConfig(target_modules="all-linear", **fields), np.random.default_rng(0))


@pytest.mark.parametrize("fields", [{"init_lora_weights": False}, {"bias": "all"}, {}, {"init_lora_weights": "zero_A"}])
def test_the_losses_are_those_of_evaluate_to_the_bit(fields):
    adapter = fresh(**fields)
    expected = [ml.evaluate(BASE, data, adapter) for data in (TRAIN, VALIDATION)]
    assert Evaluator(BASE, TRAIN, VALIDATION, None).losses(adapter) == expected


def test_biases_that_moved_are_not_taken_for_the_base():
    lora = ml.LoraConfig(target_modules="all-linear", bias="all")
    moved = plain.random_adapter(BASE.params, lora, 0)
    zeros = {name: array * (".lora_" not in name) for name, array in moved.arrays().items()}
    one = Evaluator(BASE, TRAIN, VALIDATION, None)
    assert one.losses(moved.with_arrays(zeros)) != one.losses(fresh())


def test_the_base_is_evaluated_once(monkeypatch):
    one, passes, counted = Evaluator(BASE, TRAIN, VALIDATION, None), [], evaluation.mean_loss
    monkeypatch.setattr(evaluation, "mean_loss", lambda *arguments: passes.append(1) or counted(*arguments))
    found = [one.losses(fresh()), one.losses(fresh(r=2)), one.losses(fresh(init_lora_weights="zero_A"))]
    assert len(passes) == 2  # training and validation data
    assert found[0] == found[1] == found[2]
    one.losses(fresh(init_lora_weights=False))
    assert len(passes) == 4


def test_runs_of_a_stack_on_the_same_data_share_it(monkeypatch):
    passes, counted = [], evaluation.mean_loss
    monkeypatch.setattr(evaluation, "mean_loss", lambda *arguments: passes.append(1) or counted(*arguments))
    config = ml.TrainConfig(steps=2, evaluate_every=2)
    runs = [ml.FineTuning(ml.LoraConfig(lora_alpha=alpha), TRAIN, VALIDATION, config, 0) for alpha in (1, 2, 4)]
    ml.fit_stack(BASE, runs, progress=False)
    assert len(passes) == 2 + 3 * 2  # the base, and each run at its end
