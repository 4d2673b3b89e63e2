"""Which modules get factors, how they start, what they do to the logits, and that merging keeps them."""

import copy
import dataclasses
import json
import pickle
import re
import warnings

import numpy as np
import plain
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from plain import SMALL, assert_close, difference, random_adapter, random_model, random_targets, random_tokens
from scipy import stats

from minilora import lora, lora_config, model, ops
from minilora.autodiff import value_and_gradients
from minilora.trees import fingerprint, leaves, nested

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")


def logits_of(base, adapter=None, rng=None, tokens=None):
    """Of SMALL's tokens, unless told otherwise."""
    tokens = random_tokens(base.config) if tokens is None else tokens
    return model.forward(base.params, tokens, base.config, adapter=adapter, rng=rng)


# Merging


@st.composite
def model_and_lora(draw):
    """({model's field: value}, LoraConfig): random shapes, targets, layers, ranks, scales, biases and dropout."""
    n_heads = draw(st.sampled_from([1, 2, 3]))
    fields = {
        "d_model": n_heads * draw(st.sampled_from([5, 7])),
        "n_heads": n_heads,
        "n_layers": draw(st.integers(1, 3)),
        "d_ff": draw(st.sampled_from([11, 13])),
        "dtype": draw(st.sampled_from(["float64", "float32"])),
    }
    n_layers, largest = fields["n_layers"], min(fields["d_model"], 11)
    ranks, alphas = st.integers(1, largest), st.sampled_from([0.25, 1, 3.0, 16, 64])
    targets = draw(st.lists(st.sampled_from(LINEAR), min_size=1, unique=True))
    some_targets = st.lists(st.sampled_from(targets), unique=True)
    return fields, lora.LoraConfig(
        r=draw(ranks),
        lora_alpha=draw(alphas),
        lora_dropout=draw(st.sampled_from([0.0, 0.5])),
        target_modules=draw(st.sampled_from([targets, "all-linear"])),
        layers_to_transform=draw(
            st.none()
            | st.integers(-n_layers, n_layers - 1)
            | st.lists(st.integers(0, n_layers - 1), min_size=1, unique=True)
        ),
        rank_pattern={name: draw(ranks) for name in draw(some_targets)},
        alpha_pattern={name: draw(alphas) for name in draw(some_targets)},
        bias=draw(st.sampled_from(lora_config.BIAS_MODES)),
        use_rslora=draw(st.booleans()),
    )


# Rank, input and output all of one size, so that no transpose is an error of shapes.
SQUARE = {"d_model": 10}, lora.LoraConfig(r=10, lora_alpha=3, target_modules=["q_proj", "o_proj"], bias="all")


def build(fields, config):
    """(base, adapter away from its start)."""
    base = random_model(**fields)
    return base, random_adapter(base.params, config)


@given(settings=model_and_lora())
@example(settings=SQUARE)
def test_merged_is_unmerged(settings):
    """forward(merge(params, adapter)) = forward(params, adapter), where the adapter does change the logits."""
    base, adapter = build(*settings)
    tokens = random_tokens(base.config)
    tolerance = 1e-12 if base.config.dtype == "float64" else 1e-5
    unmerged = logits_of(base, adapter, tokens=tokens)
    assert difference(unmerged, logits_of(base, tokens=tokens)) > 100 * tolerance
    merged = logits_of(model.Model(base.config, lora.merge(base.params, adapter)), tokens=tokens)
    assert merged.dtype == unmerged.dtype == base.config.dtype
    assert_close(merged, unmerged, tolerance)


@given(settings=model_and_lora())
def test_merge_makes_new_arrays_and_leaves_the_base_and_the_adapter(settings):
    """Bit for bit; and it changes exactly the weights of the factors and the biases that train."""
    base, adapter = build(*settings)
    before, arrays_before = fingerprint(base.params), fingerprint(adapter.arrays())
    merged = leaves(lora.merge(base.params, adapter))
    assert fingerprint(base.params) == before
    assert fingerprint(adapter.arrays()) == arrays_before
    old = leaves(base.params)
    assert merged.keys() == old.keys()
    for path, array in merged.items():
        for given_array in (*old.values(), *adapter.arrays().values()):
            assert not np.shares_memory(array, given_array), path
    changed = {path for path in old if (merged[path] != old[path]).any()}
    assert changed == {f"{path}.weight" for path in adapter.factors} | {f"{path}.bias" for path in adapter.biases}


def test_merge_adds_the_change_written_out():
    """Element by element, in plain Python: W_ij + (alpha / r) sum_k B_ik A_kj."""
    base = random_model()
    adapter = random_adapter(base.params, lora.LoraConfig(r=3, lora_alpha=5, target_modules=["1.up_proj"]))
    pair, weight = adapter.factors["layers.1.up_proj"], base.params["layers"][1]["up_proj"]["weight"]
    merged = lora.merge(base.params, adapter)["layers"][1]["up_proj"]["weight"]
    for i in range(13):
        for j in range(10):
            change = 5 / 3 * sum(float(pair["lora_B"][i, k]) * float(pair["lora_A"][k, j]) for k in range(3))
            assert merged[i, j] == pytest.approx(weight[i, j] + change, rel=1e-12)


def test_merge_keeps_small_changes_of_float32():
    """The product and the sum are made in float64 and rounded once."""
    base = random_model(dtype="float32")
    adapter = random_adapter(base.params, lora.LoraConfig(r=3, lora_alpha=1, target_modules="all-linear"))
    merged = leaves(lora.merge(base.params, adapter))
    for path, pair in adapter.factors.items():
        change = 1 / 3 * (pair["lora_B"].astype("float64") @ pair["lora_A"].astype("float64"))
        exact = leaves(base.params)[f"{path}.weight"].astype("float64") + change
        np.testing.assert_array_equal(merged[f"{path}.weight"], exact.astype("float32"))


def test_merging_twice_is_an_error():
    base = random_model()
    adapter = random_adapter(base.params, lora.LoraConfig(r=3))
    merged = lora.merge(base.params, adapter)
    with pytest.raises(ValueError, match=r"adapter: made for the base with fingerprint .* merged into it already"):
        lora.merge(merged, adapter)
    lora.merge(base.params, adapter)  # while the base itself can be merged into again


def test_merging_into_another_base_is_an_error():
    base, other = random_model(), random_model(seed=1)
    single = nested({path: array.astype("float32") for path, array in leaves(base.params).items()})
    adapter = random_adapter(base.params, lora.LoraConfig(r=3))
    for params in (other.params, single):
        with pytest.raises(ValueError, match="adapter: made for the base"):
            lora.merge(params, adapter)


def test_a_new_adapter_on_merged_parameters_merges_on():
    """Both changes are in the end: W + s1 B1 A1 + s2 B2 A2."""
    base = random_model()
    first = random_adapter(base.params, lora.LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "up_proj"]))
    merged = model.Model(SMALL, lora.merge(base.params, first))
    second = random_adapter(merged.params, lora.LoraConfig(r=2, lora_alpha=7, target_modules="all-linear"), seed=9)
    twice = model.Model(SMALL, lora.merge(merged.params, second))
    assert difference(logits_of(twice), logits_of(merged)) > 1e-3
    assert_close(logits_of(twice), logits_of(merged, second), 1e-12)
    path, name = "layers.2.up_proj", "up_proj"
    changes = lora.weight_changes(first)[path] + lora.weight_changes(second)[path]
    assert_close(twice.params["layers"][2][name]["weight"], base.params["layers"][2][name]["weight"] + changes, 1e-14)


def test_merging_without_a_change_changes_nothing():
    base = random_model()
    adapter = lora.init_adapter(
        base.params, lora.LoraConfig(target_modules="all-linear", bias="all"), np.random.default_rng(0)
    )
    assert fingerprint(lora.merge(base.params, adapter)) == fingerprint(base.params)


# Scaling


def ones_adapter(**settings):
    """A = B = 1 on a module with four inputs, r = 8: what tells alpha / r from alpha."""
    config = lora.LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj"], layers_to_transform=0, **settings)
    factors = {"layers.0.q_proj": {"lora_A": np.ones((8, 4)), "lora_B": np.ones((3, 8))}}
    return lora.Adapter(config, factors, {}, {path: config.scaling_of(path) for path in factors}, base="")


def test_eight_ones_times_two():
    """B A is 8 everywhere, times alpha / r = 2 is 16, and four ones in give 64."""
    change = lora.weight_changes(ones_adapter())["layers.0.q_proj"]
    np.testing.assert_array_equal(change, np.full((3, 4), 16.0))
    np.testing.assert_array_equal(change @ np.ones(4), np.full(3, 64.0))


def test_rslora_scales_by_the_root():
    change = lora.weight_changes(ones_adapter(use_rslora=True))["layers.0.q_proj"]
    np.testing.assert_array_equal(change, np.full((3, 4), 8 * 16 / np.sqrt(8)))


@pytest.mark.parametrize(
    ("settings", "scaling"),
    [
        ({"r": 8, "lora_alpha": 16}, 2.0),
        ({"r": 16, "lora_alpha": 16}, 1.0),  # twice the rank, half the scale
        ({"r": 8, "lora_alpha": 32}, 4.0),
        ({}, 1.0),
        ({"r": 16, "lora_alpha": 16, "use_rslora": True}, 4.0),
        ({"r": 8, "lora_alpha": 16, "rank_pattern": {"q_proj": 2}}, 8.0),  # a rank of its own is a scale of its own
        ({"r": 8, "lora_alpha": 16, "alpha_pattern": {"q_proj": 2}}, 0.25),
        ({"r": 8, "lora_alpha": 16, "rank_pattern": {"q_proj": 4}, "alpha_pattern": {"q_proj": 2}}, 0.5),
        ({"r": 8, "lora_alpha": 16, "rank_pattern": {"q_proj": 4}, "use_rslora": True}, 8.0),
        ({"r": 8, "lora_alpha": 16, "rank_pattern": {"v_proj": 2}}, 2.0),
        ({"r": 8, "lora_alpha": 16, "rank_pattern": {"proj": 2}}, 2.0),  # a suffix begins after a dot
        ({"r": 8, "lora_alpha": 16, "rank_pattern": {r"layers\.1\..*": 2}}, 8.0),
        ({"r": 8, "lora_alpha": 16, "rank_pattern": {"layers.1.q_proj": 2}}, 8.0),
        ({"r": 8, "lora_alpha": 16, "rank_pattern": {"^layers.1.q_proj": 2}}, 8.0),
        ({"r": 8, "lora_alpha": 16, "rank_pattern": {r"layers\.11\..*": 2}}, 2.0),
        ({"r": 8, "lora_alpha": 16, "rank_pattern": {".*_proj": 4, "q_proj": 2}}, 4.0),  # the first that matches
        ({"r": 8, "lora_alpha": 16, "rank_pattern": {"q_proj|v_proj": 4}}, 4.0),
    ],
)
def test_scaling_of_a_module(settings, scaling):
    assert lora.LoraConfig(**settings).scaling_of("layers.1.q_proj") == scaling


def test_ranks_and_scalings_of_an_adapter():
    """Patterns reach the factors' shapes and the adapter's scaling, module by module."""
    base = random_model(n_layers=2)
    config = lora.LoraConfig(r=4, lora_alpha=12, rank_pattern={"1.q_proj": 3}, alpha_pattern={"0.v_proj": 20})
    adapter = lora.init_adapter(base.params, config, np.random.default_rng(0))
    ranks = {path: pair["lora_A"].shape[0] for path, pair in adapter.factors.items()}
    assert ranks == {"layers.0.q_proj": 4, "layers.0.v_proj": 4, "layers.1.q_proj": 3, "layers.1.v_proj": 4}
    assert list(adapter.scaling.items()) == [
        ("layers.0.q_proj", 3.0),
        ("layers.0.v_proj", 5.0),
        ("layers.1.q_proj", 4.0),
        ("layers.1.v_proj", 3.0),
    ]


# The start


def fresh(init, dtype="float64", r=4, bias="none", base=None):
    """(base, adapter at its start), on every module."""
    base = base or random_model(dtype=dtype)
    config = lora.LoraConfig(r=r, lora_alpha=8, target_modules="all-linear", init_lora_weights=init, bias=bias)
    return base, lora.init_adapter(base.params, config, np.random.default_rng(5))


def start_gradients(init):
    """Gradients of the loss at the adapter's start."""
    base, adapter = fresh(init)
    targets = random_targets(SMALL)
    _, gradients = value_and_gradients(
        lambda arrays: ops.cross_entropy(logits_of(base, adapter.with_arrays(arrays)), targets), adapter.arrays()
    )
    return gradients


@pytest.mark.parametrize("init", lora_config.STARTS_AT_BASE)
def test_starts_at_the_base_to_the_bit(init):
    for dtype in ("float32", "float64"):
        for bias in lora_config.BIAS_MODES:
            base, adapter = fresh(init, dtype, bias=bias)
            np.testing.assert_array_equal(logits_of(base, adapter), logits_of(base))


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-14), ("float32", 1e-5)])
def test_orthogonal_starts_at_the_base_up_to_rounding(dtype, tolerance):
    base, adapter = fresh("orthogonal", dtype)
    assert all(array.all() for array in adapter.arrays().values())
    assert_close(logits_of(base, adapter), logits_of(base), tolerance)


def test_false_does_not_start_at_the_base():
    base, adapter = fresh(False)
    assert difference(logits_of(base, adapter), logits_of(base)) > 0.01


def test_every_init_is_covered():
    assert set(map(repr, lora_config.INITS)) == {*map(repr, lora_config.STARTS_AT_BASE), "'orthogonal'", "False"}
    assert set(map(repr, lora_config.STARTS_AT_BASE)) == {"True", "'gaussian'", "'he'", "'xavier'", "'zero_A'"}


@pytest.mark.parametrize("init", [init for init in lora_config.STARTS_AT_BASE if init != "zero_A"])
def test_B_moves_first(init):
    """At B = 0 the gradient of A is exactly zero, in every module, and that of B is not."""
    for name, gradient in start_gradients(init).items():
        assert gradient.any() == name.endswith("lora_B"), name


def test_with_zero_A_it_is_A_that_moves_first():
    for name, gradient in start_gradients("zero_A").items():
        assert gradient.any() == name.endswith("lora_A"), name


@pytest.mark.parametrize("init", ["orthogonal", False])
def test_otherwise_both_move(init):
    assert all(gradient.any() for gradient in start_gradients(init).values())


R, IN, OUT = 32, 997, 503  # large enough for a scale that is wrong by a few per cent to show


def uniform(bound):
    return stats.uniform(-bound, 2 * bound)


@pytest.mark.parametrize(
    ("init", "expected_A", "expected_B"),
    [
        (True, uniform(1 / np.sqrt(IN)), None),
        ("gaussian", stats.norm(0, 1 / R), None),
        ("he", stats.norm(0, np.sqrt(2 / IN)), None),
        ("xavier", uniform(np.sqrt(6 / (IN + R))), None),
        ("zero_A", None, uniform(1 / np.sqrt(R))),
        (False, uniform(1 / np.sqrt(IN)), uniform(1 / np.sqrt(R))),
    ],
)
def test_distribution_of_the_start(init, expected_A, expected_B):
    """Kolmogorov-Smirnov against what the table in `init_factors` says: shape and scale at once. None: all zeros."""
    factors = lora.init_factors(init, OUT, IN, R, np.random.default_rng(0))
    for array, shape, expected in zip(factors, [(R, IN), (OUT, R)], [expected_A, expected_B], strict=True):
        assert array.shape == shape
        if expected is None:
            assert not array.any()
        else:
            assert stats.kstest(array.ravel(), expected.cdf).pvalue > 1e-3
            wider = stats.kstest(array.ravel() * 1.05, expected.cdf)
            assert wider.pvalue < 1e-3, "the check would not notice a scale that is wrong by 5 %"
            assert np.linalg.matrix_rank(array) == R


def test_orthogonal_start():
    """A and B from halves of one rotation: rank r / 2 each, their product zero, entries of deviation sqrt(1/2) / 10."""
    lora_A, lora_B = lora.init_factors("orthogonal", OUT, IN, R, np.random.default_rng(0))
    assert (lora_A.shape, lora_B.shape) == ((R, IN), (OUT, R))
    assert np.abs(lora_B @ lora_A).max() < 1e-15
    for array in (lora_A, lora_B):
        assert np.linalg.matrix_rank(array) == R // 2
        assert array.std() == pytest.approx(np.sqrt(0.5) / 10, rel=0.02)


def test_orthogonal_needs_even_ranks():
    with pytest.raises(ValueError, match=r'^r: got 3, takes an even number with init_lora_weights="orthogonal"$'):
        lora.LoraConfig(r=3, init_lora_weights="orthogonal")
    with pytest.raises(ValueError, match=r"^rank_pattern\['q_proj'\]: got 5, takes an even number"):
        lora.LoraConfig(r=4, init_lora_weights="orthogonal", rank_pattern={"q_proj": 5})


@pytest.mark.parametrize("init", lora_config.INITS)
def test_every_module_starts_differently_and_by_the_seed(init):
    base = random_model()
    config = lora.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=init)
    one, same, other = (
        lora.init_adapter(base.params, config, np.random.default_rng(seed)).arrays() for seed in (0, 0, 1)
    )
    assert fingerprint(one) == fingerprint(same) != fingerprint(other)
    random = [array for array in one.values() if array.any()]
    assert len({array.tobytes() for array in random}) == len(random) > 0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_shapes_and_dtype_of_a_fresh_adapter(dtype):
    """down_proj (out 10, in 13) is the module whose sides a mistake would swap."""
    _, adapter = fresh(True, dtype, bias="all")
    shapes = {name: array.shape for name, array in adapter.factors["layers.2.down_proj"].items()}
    assert shapes == {"lora_A": (4, 13), "lora_B": (10, 4)}
    assert {array.dtype for array in adapter.arrays().values()} == {np.dtype(dtype)}


def test_an_adapter_is_made_of_copies():
    """Training a bias must not write to the base's."""
    base, adapter = fresh(True, bias="all")
    for array in adapter.arrays().values():
        for frozen in leaves(base.params).values():
            assert not np.shares_memory(array, frozen)


def test_r_above_what_a_module_can_use_warns():
    base = random_model()
    with pytest.warns(
        UserWarning, match=r"^r: got 11 for layers\.0\.q_proj, whose weight \(10, 10\) has no rank above 10$"
    ):
        lora.init_adapter(base.params, lora.LoraConfig(r=11, target_modules=["0.q_proj"]), np.random.default_rng(0))
    with pytest.warns(UserWarning, match=r"^rank_pattern\['1\.up_proj'\]: got 11 for layers\.1\.up_proj"):
        lora.init_adapter(base.params, lora.LoraConfig(rank_pattern={"1.up_proj": 11}, target_modules=["1.up_proj"]),
                          np.random.default_rng(0))  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lora.init_adapter(base.params, lora.LoraConfig(r=10, target_modules=["q_proj"]), np.random.default_rng(0))


# Which modules


def row(expected, n_layers=2, targets=("q_proj", "v_proj"), layers=None, exclude=None):
    """`expected` is "0.q 1.v" for layers.0.q_proj and layers.1.v_proj, or part of an error's message."""
    return n_layers, targets, layers, exclude, expected


EVERY = "q k v o up down"


def spelled(names, layers):
    """spelled("q v", [0, 1]) is "0.q 0.v 1.q 1.v"."""
    return " ".join(f"{layer}.{name}" for layer in layers for name in names.split())


SELECTED = [
    # lists: exact names and dotted suffixes
    row("0.q 0.v 1.q 1.v"),
    row("0.q", n_layers=1, targets=["q_proj"]),
    row("0.q 1.q 2.q", n_layers=3, targets=["q_proj"]),
    row("0.q 0.v 1.q 1.v", targets=["v_proj", "q_proj"]),  # in the model's order whatever the list's
    row("0.q 1.q", targets=["q_proj", "q_proj"]),
    row("0.q 1.q", targets={"q_proj"}),
    row("0.q 1.q", targets=("q_proj",)),
    row("1.o", targets=["layers.1.o_proj"]),
    row("1.o", targets=["1.o_proj"]),
    row("0.up 1.q 1.up", targets=["layers.1.q_proj", "up_proj"]),
    row(spelled("up down", range(2)), targets=["up_proj", "down_proj"]),
    row(spelled(EVERY, range(2)), targets=list(LINEAR)),
    row("1.q", n_layers=11, targets=["1.q_proj"]),  # not layer 10's
    row("10.q", n_layers=11, targets=["10.q_proj"]),
    row("0.q", n_layers=11, targets=["0.q_proj"]),  # not layer 10's, which ends in 0.q_proj but not after a dot
    row("1.q 10.q", n_layers=11, targets=["layers.10.q_proj", "layers.1.q_proj"]),
    # strings: regular expressions that match the whole path
    row("0.q 0.v 1.q 1.v", targets=r".*\.(q|v)_proj"),
    row("1.k", targets=r"layers\.1\.k_proj"),
    row("1.q", n_layers=11, targets=r"layers\.1\.q_proj"),
    row("1.q 10.q", n_layers=11, targets=r"layers\.1.*\.q_proj"),
    row(spelled("q k v o", range(2)), targets=r".*\.[qkvo]_proj"),
    row(spelled("up down", range(1)), n_layers=1, targets=r".*(up|down).*"),
    row(spelled(EVERY, range(3)), n_layers=3, targets=".*"),
    row("0.down 1.down", targets=r".*\bdown_proj|nothing"),
    # all-linear
    row(spelled(EVERY, range(1)), n_layers=1, targets="all-linear"),
    row(spelled(EVERY, range(11)), n_layers=11, targets="all-linear"),
    row(spelled(EVERY, [1]), n_layers=11, targets="all-linear", layers=1),
    # layers: None, an index, a negative index, lists
    row("0.q 0.v", layers=0),
    row("0.q 0.v", layers=-0),
    row("1.q 1.v", layers=1),
    row("1.q 1.v", layers=-1),
    row("0.q 0.v", layers=-2),
    row("0.q 0.v", n_layers=1, layers=-1),
    row("0.q 0.v", n_layers=1, layers=0),
    row("2.q 2.v", n_layers=3, layers=-1),
    row("2.q 2.v", n_layers=3, layers=[2]),
    row("0.q 0.v 2.q 2.v", n_layers=3, layers=[0, 2]),
    row("0.q 0.v 2.q 2.v", n_layers=3, layers=[2, 0]),
    row("0.q 0.v 2.q 2.v", n_layers=3, layers=(0, -1)),
    row("2.q 2.v", n_layers=3, layers=[2, -1, 2]),
    row("0.q 0.v 1.q 1.v", n_layers=3, layers={0, 1}),
    row("1.q 1.v", n_layers=11, layers=1),  # not 10
    row("1.q 1.v", n_layers=11, layers=[1]),
    row("10.q 10.v", n_layers=11, layers=10),
    row("10.q 10.v", n_layers=11, layers=-1),
    row("0.q 0.v", n_layers=11, layers=-11),
    row("1.q 1.v 10.q 10.v", n_layers=11, layers=[1, 10]),
    row(spelled("q v", range(11)), n_layers=11, layers=list(range(11))),
    row("1.q 1.v", layers=np.int64(1)),
    row("1.o", n_layers=3, targets=r"layers\.[01]\.o_proj", layers=[1]),  # layers go with regular expressions too
    row("1.q 2.v", n_layers=3, targets=["1.q_proj", "2.v_proj"], layers=[1, 2]),
    row("0.q 1.q 1.v", targets=["q_proj", "1.v_proj"], layers=range(2)),
    row("0.q 1.q", targets=frozenset({"q_proj"}), layers=frozenset({0, 1})),
    # exclusions
    row("0.q 1.q", exclude=["v_proj"]),
    row("0.q 0.v 1.v", exclude=["layers.1.q_proj"]),
    row("0.q 0.v 1.v", exclude=["1.q_proj"]),
    row("1.q 1.v", exclude=r"layers\.0\..*"),
    row("0.v 1.v", exclude=r".*\.q_proj"),
    row(spelled("k v o up down", range(3)), n_layers=3, targets="all-linear", exclude=["q_proj"]),
    row(spelled("q k v o", [10]), n_layers=11, targets="all-linear", layers=-1, exclude=["up_proj", "down_proj"]),
    row("0.q 1.q 1.v", n_layers=11, layers=[0, 1], exclude=["0.v_proj"]),
    row("0.q 0.v 1.q 1.v", exclude=[]),
    row("0.q 1.q 1.v", exclude=frozenset({"0.v_proj"})),
]

REFUSED = [
    row("target_modules: 'q_porj' matches no module; there are layers.0.q_proj, ", targets=["q_porj"]),
    row("target_modules: 'q_porj' matches no module", targets=["v_proj", "q_porj"]),
    row("target_modules: 'proj' matches no module", targets=["proj"]),  # a suffix begins after a dot
    row("target_modules: 'q' matches no module", targets=["q"]),
    row("target_modules: '_proj' matches no module", targets=["_proj"]),
    row("target_modules: '' matches no module", targets=[""]),
    row("target_modules: '' matches no module", targets=""),
    row("target_modules: 'q_proj' matches no module", targets="q_proj"),  # a string must match the whole path
    row("target_modules: 'layers' matches no module", targets=["layers"]),
    row("target_modules: 'all-linear' matches no module", targets=["all-linear"]),
    row("target_modules: '.*_proj' matches no module", targets=[".*_proj"]),  # a list holds names
    row("target_modules: 'layers.2.q_proj' matches no module", targets=["layers.2.q_proj"]),
    row("target_modules: 'embed_tokens' matches no module", targets=["embed_tokens"]),
    row("target_modules: 'lm_head' matches no module", targets=["lm_head"]),  # tied to the embedding
    row("target_modules: 'norm' matches no module", targets=["norm"]),
    row("layers_to_transform: got 2, takes -2 ... 1", layers=2),
    row("layers_to_transform: got -3, takes -2 ... 1", layers=-3),
    row("layers_to_transform: got 1, takes -1 ... 0", n_layers=1, layers=1),
    row("layers_to_transform: got 11, takes -11 ... 10", n_layers=11, layers=[0, 11]),
    row("layers_to_transform: got -12, takes -11 ... 10", n_layers=11, layers=-12),
    row("exclude_modules: 'x_proj' matches no module; there are layers.0.q_proj, ", exclude=["x_proj"]),
    row("exclude_modules: 'layers' matches no module", exclude="layers"),
    row("leaves no module; there are layers.0.q_proj, ", exclude=["q_proj", "v_proj"]),
    row("leaves no module", targets="all-linear", exclude="all-linear"),
    # parts that leave each other without effect
    row(
        "target_modules: 'layers.0.q_proj' is in none of the layers that layers_to_transform=1 chooses",
        targets=["layers.0.q_proj"],
        layers=1,
    ),
    row(
        "target_modules: 'layers.0.q_proj' is in none of the layers", targets=["layers.0.q_proj", "v_proj"], layers=[1]
    ),
    row(
        "target_modules: '1.q_proj' is in none of the layers",
        n_layers=3,
        targets=["v_proj", "1.q_proj"],
        layers=[0, -1],
    ),
    row("target_modules: 'layers.0.*' is in none of the layers", targets="layers.0.*", layers=-1),
    row(
        "layers_to_transform: layer 1 has none of target_modules=('layers.0.q_proj',)",
        targets=["layers.0.q_proj"],
        layers=[0, 1],
    ),
    row("layers_to_transform: layer -1 has none of", n_layers=3, targets=r"layers\.[01]\.o_proj", layers=[1, -1]),
    row(
        "exclude_modules: 'o_proj' takes nothing out: the targets are layers.0.q_proj, layers.0.v_proj",
        exclude=["o_proj"],
    ),
    row("exclude_modules: '0.v_proj' takes nothing out", exclude=["0.v_proj", "1.q_proj"], layers=1),
    row("exclude_modules: 'layers.0.*' takes nothing out", exclude="layers.0.*", layers=[1]),
    row("leaves no module", targets=["q_proj"], layers=0, exclude=["0.q_proj"]),
]


def select(n_layers, targets, layers, exclude):
    config = lora.LoraConfig(target_modules=targets, layers_to_transform=layers, exclude_modules=exclude)
    return lora.select_modules({"layers": [None] * n_layers}, config)


@pytest.mark.parametrize(("n_layers", "targets", "layers", "exclude", "expected"), SELECTED)
def test_selected_modules(n_layers, targets, layers, exclude, expected):
    paths = [f"layers.{short}_proj" for short in expected.split()]
    assert select(n_layers, targets, layers, exclude) == paths


@pytest.mark.parametrize(("n_layers", "targets", "layers", "exclude", "message"), REFUSED)
def test_refused_selections(n_layers, targets, layers, exclude, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        select(n_layers, targets, layers, exclude)


@pytest.mark.parametrize("name", ["rank_pattern", "alpha_pattern"])
@pytest.mark.parametrize("key", ["o_proj", "proj", "layers.0.q_proj", "v_porj"])
def test_a_pattern_that_matches_no_adapted_module_is_refused(name, key):
    config = lora.LoraConfig(layers_to_transform=1, **{name: {"q_proj": 2, key: 3}})
    with pytest.raises(
        ValueError, match=f"^{name}: {re.escape(repr(key))} matches none of the adapted modules layers.1.q_proj, "
    ):
        lora.select_modules(random_model().params, config)


@pytest.mark.parametrize(("n_layers", "layers"), [(1, None), (3, 1), (11, [1]), (11, -1)])
def test_the_adapter_is_where_it_was_selected(n_layers, layers):
    """In each place, a pair of factors alone does to the logits what its change added to that weight by hand does."""
    base = random_model(n_layers=n_layers)
    config = lora.LoraConfig(r=3, layers_to_transform=layers)
    adapter = random_adapter(base.params, config)
    assert list(adapter.factors) == lora.select_modules(base.params, config)
    for path in adapter.factors:
        alone = dataclasses.replace(adapter, factors={path: adapter.factors[path]})
        params = leaves(base.params)
        params[f"{path}.weight"] = params[f"{path}.weight"] + lora.weight_changes(alone)[path]
        expected = logits_of(model.Model(base.config, nested(params)))
        assert difference(expected, logits_of(base)) > 1e-6
        assert_close(logits_of(base, alone), expected, 1e-12)


# What trains


def trainable_names(bias):
    base = random_model(n_layers=2)
    config = lora.LoraConfig(r=3, target_modules=["q_proj", "up_proj"], layers_to_transform=1, bias=bias)
    return sorted(lora.init_adapter(base.params, config, np.random.default_rng(0)).arrays())


FACTORS = ["layers.1.q_proj.lora_A", "layers.1.q_proj.lora_B", "layers.1.up_proj.lora_A", "layers.1.up_proj.lora_B"]
BIASED = (*LINEAR, "input_layernorm", "post_attention_layernorm")


def test_with_bias_none_the_factors_train():
    assert trainable_names("none") == FACTORS


def test_with_bias_lora_only_the_biases_of_adapted_modules_train_too():
    assert trainable_names("lora_only") == sorted([*FACTORS, "layers.1.q_proj.bias", "layers.1.up_proj.bias"])


def test_with_bias_all_every_bias_trains_too():
    """Those of layers without factors, and the layer norms'."""
    biases = [f"layers.{i}.{name}.bias" for i in range(2) for name in BIASED]
    assert trainable_names("all") == sorted([*FACTORS, *biases, "norm.bias"])


@pytest.mark.parametrize("bias", ["lora_only", "all"])
def test_every_bias_that_trains_is_used(bias):
    """Each has a gradient; a key's has none but rounding, as softmax does not see a shift of all scores."""
    base = random_model()
    config = lora.LoraConfig(r=3, target_modules="all-linear", layers_to_transform=1, bias=bias)
    adapter = random_adapter(base.params, config)
    _, gradients = value_and_gradients(
        lambda arrays: ops.cross_entropy(logits_of(base, adapter.with_arrays(arrays)), random_targets(SMALL)),
        adapter.arrays(),
    )
    for name, gradient in gradients.items():
        assert (np.abs(gradient).max() > 1e-6) != name.endswith("k_proj.bias"), name


def test_biases_start_as_the_bases():
    base, adapter = fresh(True, bias="all")
    for path, bias in adapter.biases.items():
        np.testing.assert_array_equal(bias, leaves(base.params)[f"{path}.bias"])


def test_an_adapters_arrays_go_round():
    _, adapter = fresh("gaussian", bias="all")
    doubled = adapter.with_arrays({name: 2 * array for name, array in adapter.arrays().items()})
    assert list(doubled.arrays()) == list(adapter.arrays())
    for name, array in adapter.arrays().items():
        np.testing.assert_array_equal(doubled.arrays()[name], 2 * array)
    assert (doubled.config, doubled.scaling, doubled.base) == (adapter.config, adapter.scaling, adapter.base)


def test_arrays_of_other_names_are_refused():
    """One that is not there cannot be left as it was, and one too many would be lost."""
    _, adapter = fresh("gaussian", bias="all")
    arrays = adapter.arrays()
    one = "layers.1.q_proj.lora_B"
    fewer = {name: array for name, array in arrays.items() if name != one}
    with pytest.raises(ValueError, match=rf"^arrays: lacks {re.escape(one)}; has unexpected nothing$"):
        adapter.with_arrays(fewer)
    with pytest.raises(ValueError, match=r"^arrays: lacks nothing; has unexpected layers\.1\.q_proj\.lora_C$"):
        adapter.with_arrays(arrays | {"layers.1.q_proj.lora_C": arrays[one]})


# Counting


def total_parameters(c):
    """Of a model, from the architecture: tables; attention, MLP and two norms a layer; the final norm."""
    d, f = c.d_model, c.d_ff
    return (c.vocab_size + c.context_length) * d + c.n_layers * (4 * (d * d + d) + 2 * d * f + f + d + 4 * d) + 2 * d


@given(settings=model_and_lora())
def test_counts_are_the_sizes_of_the_arrays(settings):
    base, adapter = build(*settings)
    count = lora.count_parameters(base.params, adapter.config)
    sizes = {name: array.size for name, array in adapter.arrays().items()}
    assert count.trainable == sum(sizes.values()) == sum(count.per_module.values())
    assert count.total == total_parameters(base.config) + sum(sizes[name] for name in sizes if ".lora_" in name)
    for path, n in count.per_module.items():
        assert n == sum(size for name, size in sizes.items() if name.rpartition(".")[0] == path)


@pytest.mark.parametrize(
    ("settings", "trainable"),
    [
        ({"r": 8}, 2 * 2 * 8 * (32 + 32)),
        ({"r": 1, "target_modules": ["q_proj"], "layers_to_transform": 0}, 64),
        ({"r": 3, "target_modules": ["up_proj", "down_proj"]}, 2 * 2 * 3 * (32 + 128)),
        ({"r": 5, "target_modules": "all-linear"}, 2 * 5 * (4 * 64 + 2 * 160)),
        ({"r": 5, "rank_pattern": {"0.q_proj": 7}}, 3 * 5 * 64 + 7 * 64),
        ({"r": 5, "bias": "lora_only"}, 4 * 5 * 64 + 4 * 32),
        ({"r": 5, "bias": "all"}, 4 * 5 * 64 + 2 * (4 * 32 + 128 + 32 + 2 * 32) + 32),
    ],
)
def test_counts_by_the_closed_form(settings, trainable):
    """On the default model: d 32, d_ff 128, two layers."""
    params = model.init_params(model.ModelConfig(), np.random.default_rng(0))
    assert lora.count_parameters(params, lora.LoraConfig(**settings)).trainable == trainable


def test_count_of_full_fine_tuning():
    base = random_model()
    count = lora.count_parameters(base.params, None)
    assert count.trainable == count.total == total_parameters(SMALL)
    assert count.total == sum(array.size for array in leaves(base.params).values())
    assert sum(count.per_module.values()) == count.total
    assert count.per_module["layers.1.up_proj"] == 13 * 10 + 13


# Dropout


def dropping_model(p=0.5, **changes):
    """(base, adapter with dropout), on every module."""
    base = random_model(**changes)
    config = lora.LoraConfig(r=3, target_modules="all-linear", lora_dropout=p)
    return base, random_adapter(base.params, config)


def masks_of(base, adapter, rng, tokens=None):
    """{path: the mask drawn for it in one training pass}."""
    masks = []
    with plain.recorded(ops, "lora_linear", lambda arguments, answer: masks.append(arguments[6])):
        logits_of(base, adapter, rng, tokens)
    return dict(zip(adapter.factors, masks, strict=True))


def test_evaluation_is_without_dropout():
    """Two passes bit-equal, also after a training pass, and equal to those of the same factors without dropout."""
    base, adapter = dropping_model()
    first = logits_of(base, adapter)
    logits_of(base, adapter, np.random.default_rng(0))
    np.testing.assert_array_equal(logits_of(base, adapter), first)
    without = dataclasses.replace(adapter, config=dataclasses.replace(adapter.config, lora_dropout=0.0))
    np.testing.assert_array_equal(logits_of(base, without), first)


def test_training_is_with_dropout():
    """A pass with a generator differs from evaluation, and from the next pass with the same generator."""
    base, adapter = dropping_model()
    rng = np.random.default_rng(0)
    one, next_one, evaluated = logits_of(base, adapter, rng), logits_of(base, adapter, rng), logits_of(base, adapter)
    assert difference(one, evaluated) > 1e-3
    assert difference(next_one, evaluated) > 1e-3
    assert difference(one, next_one) > 1e-3
    np.testing.assert_array_equal(logits_of(base, adapter, np.random.default_rng(0)), one)


def test_at_p_zero_a_generator_changes_nothing():
    base, adapter = dropping_model(p=0.0)
    np.testing.assert_array_equal(logits_of(base, adapter, np.random.default_rng(0)), logits_of(base, adapter))


def test_dropout_leaves_the_base_alone():
    """It is on the input of A: at B = 0 even p = 0.9 changes no bit."""
    base, adapter = dropping_model(p=0.9)
    zero = adapter.with_arrays({name: array * (".lora_B" not in name) for name, array in adapter.arrays().items()})
    np.testing.assert_array_equal(logits_of(base, zero, np.random.default_rng(0)), logits_of(base))


def test_mean_over_masks_is_close_to_evaluation():
    """With a change so small that the rest of the model is linear in it, the mean over masks is evaluation's."""
    base, adapter = dropping_model()
    small = adapter.with_arrays(
        {name: array * (1e-4 if "lora_B" in name else 1) for name, array in adapter.arrays().items()}
    )
    rng, plain_logits = np.random.default_rng(0), logits_of(base)
    changes = np.array([logits_of(base, small, rng) - plain_logits for _ in range(400)])
    evaluated, error = logits_of(base, small) - plain_logits, changes.std(0) / np.sqrt(400)
    assert (np.abs(changes.mean(0) - evaluated) < 5 * error).all()
    assert np.linalg.norm(error) < 0.2 * np.linalg.norm(evaluated)  # so that a mean twice too large could not pass


@pytest.mark.parametrize("p", [0.25, 0.5])
def test_masks_are_of_elements(p):
    """A mask has the shape of its module's input, zeros and 1/(1-p), and no two tokens share one."""
    base, adapter = dropping_model(p)
    for path, mask in masks_of(base, adapter, np.random.default_rng(0)).items():
        n_in = adapter.factors[path]["lora_A"].shape[1]
        assert mask.shape == (15, n_in), path  # batch and tokens are one axis
        assert set(np.unique(mask)) == {0.0, 1 / (1 - p)}, path
    tokens = random_tokens(SMALL, (31,))
    mask = masks_of(base, adapter, np.random.default_rng(0), tokens)["layers.0.down_proj"].reshape(-1, 13)
    assert len(np.unique(mask, axis=0)) > 100  # of 155 rows


def test_identical_rows_differ_in_training():
    """The same token at every place of a model without positions: every row is alike, but for the masks."""
    base, adapter = dropping_model()
    base.params["embed_positions"]["weight"][:] = 0
    tokens = np.full((2, 7), 3)
    evaluated = logits_of(base, adapter, tokens=tokens).reshape(14, 17)
    assert_close(evaluated, np.broadcast_to(evaluated[0], (14, 17)), 1e-13)
    trained = logits_of(base, adapter, np.random.default_rng(0), tokens).reshape(14, 17)
    for i in range(14):
        for j in range(i):
            assert difference(trained[i], trained[j]) > 1e-3


def test_modules_with_the_same_input_have_different_masks():
    base, adapter = dropping_model()
    masks = [mask.tobytes() for mask in masks_of(base, adapter, np.random.default_rng(0)).values()]
    assert len(set(masks)) == len(masks) == 18


def test_dropout_without_a_generator_is_an_error():
    with pytest.raises(TypeError, match=r"numpy\.random\.Generator"):
        ops.dropout_mask((3, 5), 0.5, None, "float64")


# LoraConfig's fields

BAD = {
    "r": ([0, -1, 2.5, 8.0, True, "8", None, float("nan")], "an integer of at least 1"),
    "lora_alpha": ([0, -1, float("nan"), float("inf"), True, "16", None, [16]], "a finite number above 0"),
    "lora_dropout": ([1, 1.0, -0.1, float("nan"), True, "0.1", None], "a number in [0, 1)"),
    "target_modules": ([[], (), None, 3, ["q_proj", 3], {"q_proj": 1}, b"q"], "a list, tuple or set of names, a "),
    "layers_to_transform": (["first", 1.0, True, "0", 0.5, {}], "an integer, a list, tuple, set, range or array of"),
    "exclude_modules": ([3, [None], {}], "a list, tuple or set of names, a regular expression, or 'all-linear'"),
    "rank_pattern": ([None, [], "q_proj", 3], "a dict from a module's name or pattern to a number"),
    "alpha_pattern": ([None, [], "q_proj", 3], "a dict from a module's name or pattern to a number"),
    "bias": (["lora", "ALL", None, True, False], "one of 'none', 'all', 'lora_only'"),
    "init_lora_weights": (["kaiming", "True", 1, 0, None, "Gaussian"], "one of True, 'gaussian', 'he', "),
    "use_rslora": ([1, 0, None, "yes"], "one of True, False"),
}  # fmt: skip


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, (values, _) in BAD.items() for value in values])
def test_bad_fields(field, value):
    """The message names the field, what it got and what it takes."""
    with pytest.raises(ValueError, match=re.escape(f"{field}: got {value!r}, takes {BAD[field][1]}")):
        lora.LoraConfig(**{field: value})


def test_every_field_is_covered():
    assert set(BAD) == {field.name for field in dataclasses.fields(lora.LoraConfig)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers_to_transform": []}, "layers_to_transform: got an empty list, takes None for every layer"),
        ({"layers_to_transform": [0, "1"]}, "layers_to_transform: got '1', takes an integer"),
        ({"layers_to_transform": [0, True]}, "layers_to_transform: got True, takes an integer"),
        ({"target_modules": "(q_proj"}, "target_modules: got '(q_proj', takes a regular expression"),
        ({"exclude_modules": "*"}, "exclude_modules: got '*', takes a regular expression"),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern['q_proj']: got 0, takes an integer of at least 1"),
        ({"rank_pattern": {"q_proj": 2.0}}, "rank_pattern['q_proj']: got 2.0, takes an integer of at least 1"),
        ({"rank_pattern": {"[": 2}}, "rank_pattern: got '[', takes a regular expression"),
        ({"rank_pattern": {3: 2}}, "rank_pattern: got 3, takes a regular expression"),
        ({"alpha_pattern": {"q_proj": -1}}, "alpha_pattern['q_proj']: got -1, takes a finite number above 0"),
        ({"alpha_pattern": {"q_proj": "1"}}, "alpha_pattern['q_proj']: got '1', takes a finite number above 0"),
    ],
)
def test_bad_parts_of_fields(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        lora.LoraConfig(**settings)


def test_unknown_fields_are_refused():
    with pytest.raises(TypeError, match="lora_alfa"):
        lora.LoraConfig(lora_alfa=16)


def test_defaults():
    """PEFT's, but for its targets, which depend on the model."""
    assert vars(lora.LoraConfig()) == {
        "r": 8,
        "lora_alpha": 8,
        "lora_dropout": 0.0,
        "target_modules": ("q_proj", "v_proj"),
        "layers_to_transform": None,
        "exclude_modules": None,
        "rank_pattern": {},
        "alpha_pattern": {},
        "bias": "none",
        "init_lora_weights": True,
        "use_rslora": False,
    }


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        lora.LoraConfig().r = 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r": np.array([3, 5])}, "r: got array"),
        ({"lora_alpha": np.array([3.0, 5.0])}, "lora_alpha: got array"),
        ({"lora_alpha": 10**400}, "lora_alpha: got 1000"),
        ({"rank_pattern": {"(?i)Q_PROJ": 2}}, "rank_pattern: got '(?i)Q_PROJ', takes a regular expression"),
    ],
    ids=["array r", "array alpha", "integer too large for a float", "pattern that cannot be part of another"],
)
def test_odd_values_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        lora.select_modules(random_model().params, lora.LoraConfig(**settings))


def test_an_array_of_layers_is_taken_or_refused_by_name():
    try:
        config = lora.LoraConfig(layers_to_transform=np.array([0, 2]))
    except ValueError as error:
        assert str(error).startswith("layers_to_transform: got ")  # noqa: PT017 (either is right)
    else:
        assert config == lora.LoraConfig(layers_to_transform=[0, 2])


@pytest.mark.parametrize(
    "settings",
    [
        {"lora_alpha": np.float64(16)},
        {"r": np.int64(4)},
        {"lora_dropout": np.float64(0.3)},
        {"alpha_pattern": {"q_proj": np.float64(3)}},
        {"rank_pattern": {"q_proj": np.int64(3)}},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_numpy_numbers_in_a_config_do_not_change_the_dtype(settings):
    """Grids often come from np.logspace; a NumPy scalar promotes float32 where a Python number does not."""
    base = random_model(dtype="float32")
    adapter = random_adapter(base.params, lora.LoraConfig(**{"r": 4} | settings))
    assert {array.dtype for array in adapter.arrays().values()} == {np.dtype("float32")}
    value, gradients = value_and_gradients(
        lambda arrays: ops.cross_entropy(
            logits_of(base, adapter.with_arrays(arrays), np.random.default_rng(0)), random_targets(SMALL)
        ),
        adapter.arrays(),
    )
    assert {value.dtype, *(gradient.dtype for gradient in gradients.values())} == {np.dtype("float32")}


def test_names_and_layers_have_no_order():
    """Equal configs are equal, hash alike and are written alike, whoever lists the names."""
    one = lora.LoraConfig(target_modules=["q_proj", "v_proj"], exclude_modules=["a", "b"], layers_to_transform=[0, 2])
    for others in (
        {"target_modules": ("v_proj", "q_proj"), "exclude_modules": ("b", "a"), "layers_to_transform": (2, 0)},
        {"target_modules": {"v_proj", "q_proj"}, "exclude_modules": {"b", "a"}, "layers_to_transform": {2, 0}},
        {"target_modules": frozenset({"v_proj", "q_proj"}), "exclude_modules": {"a": 1, "b": 2}.keys()},
        {"layers_to_transform": range(0, 3, 2), "target_modules": ["q_proj", "v_proj", "q_proj"]},
        {"layers_to_transform": np.array([2, 0]), "target_modules": [np.str_("v_proj"), "q_proj"]},
    ):
        other = dataclasses.replace(one, **others)
        assert (other, hash(other), repr(other)) == (one, hash(one), repr(one))
    assert {one: 1}[dataclasses.replace(one)] == 1


@pytest.mark.parametrize("nothing", [None, [], (), set(), frozenset()])
def test_an_empty_exclusion_is_none(nothing):
    assert lora.LoraConfig(exclude_modules=nothing) == lora.LoraConfig()


@pytest.mark.parametrize("layers", [[], (), set(), range(0), np.array([], dtype=int)])
def test_no_layers_at_all_are_refused(layers):
    with pytest.raises(ValueError, match="layers_to_transform: got an empty list, takes None for every layer"):
        lora.LoraConfig(layers_to_transform=layers)


@pytest.mark.parametrize(
    "change",
    [
        lambda patterns: patterns.__setitem__("q_proj", 3),
        lambda patterns: patterns.update(q_proj=3),
        lambda patterns: patterns.setdefault("x", 3),
        lambda patterns: patterns.pop("q_proj"),
        lambda patterns: patterns.clear(),
        lambda patterns: patterns.popitem(),
        lambda patterns: patterns.__delitem__("q_proj"),
        lambda patterns: patterns.__ior__({"x": 3}),
    ],
)
@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
def test_the_patterns_of_a_frozen_config_are_frozen(field, change):
    given = {"q_proj": 2}
    config = lora.LoraConfig(**{field: given})
    with pytest.raises(TypeError, match=r"cannot be changed: dataclasses\.replace"):
        change(getattr(config, field))
    given["q_proj"] = 9  # nor is it the dict that was given
    assert getattr(config, field) == {"q_proj": 2}


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one)),
                                    lambda one: lora.LoraConfig(**json.loads(json.dumps(dataclasses.asdict(one)))),
                                    dataclasses.replace])  # fmt: skip
def test_a_config_can_be_copied_pickled_and_written(copied):
    """As workers in other processes and folders on disk need it."""
    config = lora.LoraConfig(rank_pattern={"q_proj": 2, "v.*": 3}, alpha_pattern={"v_proj": 1.5}, target_modules=["k"])
    other = copied(config)
    assert (other, hash(other)) == (config, hash(config))
    assert list(other.rank_pattern) == ["q_proj", "v.*"]  # the first that matches counts
    with pytest.raises(TypeError, match="cannot be changed"):
        other.rank_pattern["q_proj"] = 3


def test_an_unknown_pattern_can_be_read_like_a_dict():
    assert lora.LoraConfig(rank_pattern={"q_proj": 2}).rank_pattern | {"v_proj": 1} == {"q_proj": 2, "v_proj": 1}


# Arguments of another kind, numbers that overflow


BASE = random_model()
FRESH = lora.init_adapter(BASE.params, lora.LoraConfig(r=2), np.random.default_rng(0))
RNG = np.random.default_rng(0)
TOKENS = random_tokens(SMALL)
NO_PARAMS = "params: got a Model, takes the nested dict of a Model's parameters, model.params"
NO_DICT = "config: got a dict, takes a "
OLD = np.random.RandomState(0)


def logits(params=BASE.params, config=SMALL, **options):
    return model.forward(params, TOKENS, config, **options)


WRONG_KINDS = {
    "forward: a model": (lambda: logits(BASE), NO_PARAMS),
    "forward: nothing": (lambda: logits(None), "params: got None, takes"),
    "forward: a dict as config": (lambda: logits(config=vars(SMALL)), NO_DICT + "ModelConfig"),
    "forward: a model as adapter": (lambda: logits(adapter=BASE), "adapter: got a Model, takes an Adapter"),
    "forward: a config as adapter": (lambda: logits(adapter=FRESH.config), "adapter: got a LoraConfig, takes an"),
    "forward: a seed": (lambda: logits(adapter=FRESH, rng=0), "rng: got 0, takes a numpy.random.Generator"),
    "forward: a seed, no adapter": (lambda: logits(rng=0), "rng: got 0, takes a numpy.random.Generator"),
    "forward: RandomState": (lambda: logits(adapter=FRESH, rng=OLD), "rng: got a RandomState, takes a numpy.random.G"),
    "init_adapter: a model": (lambda: lora.init_adapter(BASE, FRESH.config, RNG), NO_PARAMS),
    "init_adapter: a dict": (lambda: lora.init_adapter(BASE.params, {"r": 2}, RNG), NO_DICT + "LoraConfig"),
    "init_adapter: a seed": (lambda: lora.init_adapter(BASE.params, FRESH.config, 0), "rng: got 0, takes a numpy"),
    "init_adapter: nothing": (lambda: lora.init_adapter(BASE.params, FRESH.config, None), "rng: got None, takes"),
    "init_params: a seed": (lambda: model.init_params(SMALL, 0), "rng: got 0, takes a numpy.random.Generator"),
    "init_params: a dict": (lambda: model.init_params(vars(SMALL), RNG), NO_DICT + "ModelConfig"),
    "select_modules: a model": (lambda: lora.select_modules(BASE, FRESH.config), NO_PARAMS),
    "select_modules: nothing": (lambda: lora.select_modules(BASE.params, None), "config: got None, takes a LoraC"),
    "count_parameters: a model": (lambda: lora.count_parameters(BASE, FRESH.config), NO_PARAMS),
    "count_parameters: a model, all": (lambda: lora.count_parameters(BASE, None), NO_PARAMS),
    "count_parameters: a dict": (lambda: lora.count_parameters(BASE.params, {"r": 2}), NO_DICT + "LoraConfig"),
    "count_parameters: an adapter": (lambda: lora.count_parameters(BASE.params, FRESH), "config: got an Adapter"),
    "merge: a model": (lambda: lora.merge(BASE, FRESH), NO_PARAMS),
    "merge: a model as adapter": (lambda: lora.merge(BASE.params, BASE), "adapter: got a Model, takes an Adapter (a"),
    "weight_changes: a model": (lambda: lora.weight_changes(BASE), "adapter: got a Model, takes an Adapter"),
    "merge: no factors": (
        lambda: lora.merge(BASE.params, dataclasses.replace(FRESH, factors=None)),
        "adapter.factors: got None, takes a dict",
    ),
    "merge: another config": (
        lambda: lora.merge(BASE.params, dataclasses.replace(FRESH, config={"r": 2})),
        "adapter.config: got a dict, takes a LoraConfig",
    ),
    "weight_changes: a dict": (lambda: lora.weight_changes(FRESH.factors), "adapter: got a dict, takes an Adapter"),
}


@pytest.mark.parametrize("wrong", WRONG_KINDS)
def test_an_argument_of_another_kind_is_named(wrong):
    use, says = WRONG_KINDS[wrong]
    with pytest.raises(TypeError, match=f"^{re.escape(says)}"):
        use()


def test_a_dict_of_something_else_is_no_parameters():
    for other in ({}, vars(SMALL), leaves(BASE.params), {"layers": ()}):
        with pytest.raises(ValueError, match=r"^params: got a dict without a list of 'layers'"):
            lora.select_modules(other, FRESH.config)


def huge(dtype, size):
    base = random_model(dtype=dtype)
    adapter = lora.init_adapter(base.params, lora.LoraConfig(r=2, target_modules=["v_proj"]), np.random.default_rng(0))
    return base, adapter.with_arrays({name: np.full_like(one, size) for name, one in adapter.arrays().items()})


@pytest.mark.parametrize(("dtype", "size"), [("float32", 1e30), ("float32", 3e38), ("float64", 1e300)])
def test_a_merge_that_overflows_is_refused_and_the_module_named(dtype, size):
    """And NumPy warns of nothing, which would be an error here."""
    base, adapter = huge(dtype, size)
    with pytest.raises(ValueError, match=r"^adapter: (merged,|the change of) layers\.0\.v_proj.* holds NaN"):
        lora.merge(base.params, adapter)


def test_a_change_that_overflows_is_refused_and_the_module_named():
    for size in (1e300, np.nan, np.inf):
        with pytest.raises(
            ValueError, match=r"^adapter: the change of layers\.0\.v_proj holds NaN or infinite numbers"
        ):
            lora.weight_changes(huge("float64", size)[1])
    lora.weight_changes(huge("float32", 1e30)[1])  # it is in float64


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"lora_alpha": 1e300}, "lora_alpha: got 1e+300"),
        ({"lora_alpha": 1e-60}, "lora_alpha: got 1e-60"),
        ({"alpha_pattern": {"1.v_proj": 1e60}}, "alpha_pattern['1.v_proj']: got 1e+60"),
    ],
)
def test_a_scale_that_is_infinite_or_zero_in_float32_is_refused(settings, named):
    """With the one all logits are NaN, with the other the adapter is nothing and nothing trains."""
    config = lora.LoraConfig(r=2, **settings)
    lora.init_adapter(random_model(dtype="float64").params, config, np.random.default_rng(0))
    with pytest.raises(ValueError, match=f"^{re.escape(named)}, which makes the scale of layers.*float32"):
        lora.init_adapter(random_model(dtype="float32").params, config, np.random.default_rng(0))
