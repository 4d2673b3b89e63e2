"""Sampling names."""

import dataclasses
import math
import re

import numpy as np
import pytest

import minilora as ml
from minilora.generate import sample_tokens
from minilora.trees import cast, leaves, nested


@pytest.fixture(scope="module")
def base():
    return ml.load_base()


@pytest.fixture(scope="module")
def adapter(base):
    """Far from its start: B is random."""
    lora = ml.LoraConfig(r=4, lora_alpha=16, init_lora_weights=False, target_modules="all-linear")
    return ml.init_adapter(base.params, lora, np.random.default_rng(1))


def shortened(base):
    """The same model with room for two letters, to draw many names fast."""
    params = dict(leaves(base.params))
    params["embed_positions.weight"] = params["embed_positions.weight"][:2]
    return ml.Model(dataclasses.replace(base.config, context_length=2), nested(params))


def sample(base, n=50, seed=0, **options):
    return ml.sample_names(base, n, np.random.default_rng(seed), **options)


def next_letter_probabilities(model, tokens, adapter=None, temperature=1.0):
    logits = ml.forward(model.params, [tokens], model.config, adapter=adapter)[0, -1].astype("float64")
    return np.exp(logits / temperature) / np.exp(logits / temperature).sum()


@pytest.mark.parametrize("temperature", [0, 0.7, 1, 3])
def test_the_same_generator_state_gives_the_same_names(base, temperature):
    one, same, other = (sample(base, seed=seed, temperature=temperature) for seed in (0, 0, 1))
    assert one == same
    assert (one == other) == (temperature == 0)
    assert len(one) == 50


def test_a_generator_moves_on(base):
    rng = np.random.default_rng(0)
    assert ml.sample_names(base, 20, rng) != ml.sample_names(base, 20, rng)


@pytest.mark.parametrize("temperature", [0.5, 1, 50])
def test_names_are_letters_and_fit_the_context(base, temperature):
    names = sample(base, 200, temperature=temperature)
    assert all(len(name) <= base.config.context_length for name in names)
    assert set("".join(names)) <= set("abcdefghijklmnopqrstuvwxyz")
    assert len(set(names)) > 150


def test_a_name_may_fill_the_context(base):
    """A model that never ends a name is cut where the context is full."""
    endless = ml.Model(base.config, cast(base.params, "float32"))
    tokens = endless.params["embed_tokens"]["weight"]
    tokens[0] = -10 * tokens[1:].mean(0) / np.linalg.norm(tokens[1:].mean(0))
    endless.params["norm"]["bias"] += 10 * tokens[1:].mean(0) / np.linalg.norm(tokens[1:].mean(0))
    assert {len(name) for name in sample(endless)} == {base.config.context_length}


def test_temperature_zero_is_greedy(base):
    """Letter by letter: each is the likeliest after those before it."""
    names = sample(base, 3, temperature=0)
    tokens = [0]
    while len(tokens) <= base.config.context_length:
        tokens.append(int(ml.forward(base.params, [tokens], base.config)[0, -1].argmax()))
        if tokens[-1] == 0:
            break
    assert names == ml.decode(np.array([tokens[1:]])) * 3
    assert len(names[0]) > 0


def test_a_low_temperature_approaches_the_greedy_name(base):
    assert sample(base, 20, temperature=1e-3) == sample(base, 20, temperature=0)


def test_the_smallest_temperature_overflows_nothing(base):
    assert sample(base, 2, temperature=5e-324) == sample(base, 2, temperature=0)


def chi_square(letters, p):
    """Chi-square over the letters that are expected five times or more, and how many these are."""
    expected = len(letters) * p
    counts, likely = np.bincount(letters, minlength=27), expected >= 5
    return ((counts - expected) ** 2 / expected)[likely].sum(), likely.sum()


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("adapted", [False, True])
def test_letters_come_as_often_as_softmax_says(base, adapter, temperature, adapted):
    """The first letter, and the second after an "a". In expectation chi-square is the number of letters less one."""
    model, adapter = shortened(base), adapter if adapted else None
    tokens = sample_tokens(model, 8000, np.random.default_rng(3), adapter, temperature)
    after_a = tokens[tokens[:, 0] == 1, 1]
    for drawn, before in ((tokens[:, 0], [0]), (after_a, [0, 1])):
        found, n = chi_square(drawn, next_letter_probabilities(model, before, adapter, temperature))
        assert n > 5
        assert n / 4 < found < 2 * n + 5


def test_nothing_follows_the_end(base):
    tokens = sample_tokens(base, 200, np.random.default_rng(0), None, 1.0)
    assert tokens.shape == (200, base.config.context_length)
    ended = np.cumsum(tokens == 0, axis=1) > 0
    assert not tokens[ended].any()


def test_an_adapter_changes_the_names(base, adapter):
    assert sample(base, adapter=adapter) != sample(base)
    merged = ml.Model(base.config, ml.merge(base.params, adapter))
    assert sample(merged) == sample(base, adapter=adapter)


def test_an_adapter_at_its_start_changes_nothing(base):
    fresh = ml.init_adapter(base.params, ml.LoraConfig(lora_dropout=0.5), np.random.default_rng(0))
    assert sample(base, adapter=fresh) == sample(base)


def test_an_adapter_for_another_base_is_refused(base, adapter):
    other = ml.Model(base.config, cast(base.params, "float32"))
    other.params["norm"]["bias"] += 1
    with pytest.raises(ValueError, match="fingerprint"):
        sample(other, adapter=adapter)


def test_sampling_changes_no_parameter(base, adapter):
    before = {path: array.copy() for path, array in leaves(base.params).items()}
    sample(base, adapter=adapter)
    assert all(np.array_equal(array, before[path]) for path, array in leaves(base.params).items())


def test_no_names_are_an_empty_list(base):
    assert sample(base, 0) == []
    assert sample(base, 0, temperature=0) == []


@pytest.mark.parametrize("n", [-1, 1.5, "3", None, True])
def test_a_bad_number_of_names_is_refused(base, n):
    with pytest.raises(ValueError, match=r"^n: got .* takes an integer of at least 0"):
        sample(base, n)


@pytest.mark.parametrize("temperature", [-0.1, math.nan, math.inf, "1", None])
def test_a_bad_temperature_is_refused(base, temperature):
    with pytest.raises(ValueError, match=r"^temperature: got .* takes a finite number of at least 0"):
        sample(base, temperature=temperature)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"rng": 0}, "rng: got 0, takes a numpy.random.Generator"),
        ({"rng": None}, "rng: got None, takes a numpy.random.Generator"),
        ({"rng": np.random.RandomState(0)}, "rng: got a RandomState, takes a numpy.random.Generator"),
        ({"model": {"layers": []}}, "model: got a dict, takes a Model"),
        ({"adapter": ml.LoraConfig()}, "adapter: got a LoraConfig, takes an Adapter"),
    ],
    ids=lambda x: str(x)[:30],
)
@pytest.mark.parametrize("n", [0, 2])
def test_an_argument_of_another_kind_is_named(base, n, changed, says):
    """Also where no name is asked for."""
    arguments = {"model": base, "n": n, "rng": np.random.default_rng(0)} | changed
    with pytest.raises(TypeError, match=f"^{re.escape(says)}"):
        ml.sample_names(**arguments)


def test_a_fully_tuned_model_is_no_adapter(base):
    with pytest.raises(TypeError, match=r"^adapter: got a Model, takes an Adapter \(a Model, .* is used by itself"):
        sample(base, adapter=base)


def test_a_model_of_something_else_than_letters_is_refused():
    """Tokens above 26 are no letters; they must not come out as '{' or '~'."""
    config = dataclasses.replace(ml.ModelConfig(), vocab_size=40)
    model = ml.Model(config, ml.init_params(config, np.random.default_rng(0)))
    with pytest.raises(ValueError, match="vocab_size"):
        sample(model)


def test_float64_models_sample_too(base):
    double = ml.Model(dataclasses.replace(base.config, dtype="float64"), cast(base.params, "float64"))
    assert sample(double, 20) == sample(base, 20)
