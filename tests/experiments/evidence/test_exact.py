"""What has to hold to the bit does, and the bugs that would break it are found."""

import dataclasses

import numpy as np
import pytest

from minilora import ops
from minilora.experiments.evidence import exact
from minilora.experiments.evidence.runs import Runs
from minilora.lora import init_adapter
from minilora.model import forward

from .. import tiny


@pytest.fixture(autouse=True)
def _nothing_remembered():
    exact.start_deviation.cache_clear()
    yield
    exact.start_deviation.cache_clear()


def test_evaluation_and_start_do_not_deviate():
    for seed in range(3):
        assert exact.evaluation_deviation(seed) == 0
        assert exact.start_deviation(seed) == 0


def test_dropout_in_evaluation_is_found(monkeypatch):
    """The bug: forward draws masks whether or not it was given a generator."""
    rng = np.random.default_rng(0)
    monkeypatch.setattr(exact, "forward", lambda *a, **k: forward(*a, **(k | {"rng": rng})))
    assert exact.evaluation_deviation(0) > 0


def test_dropout_without_rescaling_is_found(monkeypatch):
    """The bug: kept inputs are not divided by 1 - p, so that training is smaller than evaluation on average."""
    right = ops.lora_linear
    monkeypatch.setattr(
        ops, "lora_linear", lambda *a, **k: right(*a[:6], None if a[6] is None else a[6] / 2, *a[7:], **k)
    )
    assert exact.evaluation_deviation(0) > 0


@pytest.mark.parametrize("shift", [1e-6, 1.0])
def test_a_start_that_is_not_the_base_is_found(shift, monkeypatch):
    """The bug: a zero factor that is not zero."""

    def shifted(*arguments):
        adapter = init_adapter(*arguments)
        return adapter.with_arrays({name: array + array.dtype.type(shift) for name, array in adapter.arrays().items()})

    monkeypatch.setattr(exact, "init_adapter", shifted)
    assert exact.start_deviation(0) > 0


def test_a_factor_that_never_moves_is_found(monkeypatch):
    """The bug: both factors zero, where no gradient leads away."""

    def zero(*arguments):
        adapter = init_adapter(*arguments)
        return adapter.with_arrays({name: np.zeros_like(array) for name, array in adapter.arrays().items()})

    monkeypatch.setattr(exact, "init_adapter", zero)
    assert exact.start_deviation(0) >= 1


def test_counts_do_not_deviate_and_one_parameter_too_many_is_found():
    settings = [tiny.settings(r=r, seed=seed, target_modules="all-linear") for r in (1, 2) for seed in (0, 1)]
    runs = Runs([tiny.fabricate(one) for one in settings])
    assert exact.count_deviation(runs, (1, 2)).tolist() == [0.0, 0.0]
    wrong = Runs([dataclasses.replace(runs[0], trainable=runs[0].trainable + 1), *runs[1:]])
    assert exact.count_deviation(wrong, (1, 2)).tolist() == [1.0, 1.0]
