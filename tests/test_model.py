"""The whole model against its second, plain implementation; what it depends on; what it refuses."""

import autograd
import numpy as np
import plain
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plain import SMALL, assert_close, random_adapter, random_model, random_targets, random_tokens

from minilora import lora, model, ops
from minilora.autodiff import operation, value_and_gradients
from minilora.trees import fingerprint, leaves, nested

ADAPTED = lora.LoraConfig(r=3, lora_alpha=5, target_modules="all-linear", bias="all")


def adapted_model(**changes):
    """A random model, an adapter on every module and every bias of it, and the scaling that its config implies."""
    base = random_model(**changes)
    adapter = random_adapter(base.params, ADAPTED)
    return base, adapter, dict.fromkeys(adapter.factors, 5 / 3)


# Against the plain implementation


def test_logits_are_the_plain_models():
    base = random_model()
    tokens = random_tokens(SMALL)
    assert_close(model.forward(base.params, tokens, SMALL), plain.forward(leaves(base.params), tokens, SMALL), 1e-12)


def test_adapted_logits_are_the_plain_models():
    base, adapter, scaling = adapted_model()
    tokens = random_tokens(SMALL)
    expected = plain.forward(leaves(base.params) | adapter.arrays(), tokens, SMALL, scaling)
    assert plain.difference(model.forward(base.params, tokens, SMALL), expected) > 0.1
    assert_close(model.forward(base.params, tokens, SMALL, adapter=adapter), expected, 1e-12)


def losses(base, adapter, scaling, targets, masks=None):
    """(fused, plain): the loss as a function of named arrays, which take the place of the base's or the adapter's."""
    tokens, constants = random_tokens(SMALL), leaves(base.params)

    def fused(arrays, rng=None):
        logits = model.forward(base.params, tokens, SMALL, adapter=adapter.with_arrays(arrays), rng=rng)
        return ops.cross_entropy(logits, targets)

    def composed(arrays):
        return plain.cross_entropy(plain.forward({**constants, **arrays}, tokens, SMALL, scaling, masks), targets)

    return fused, composed


def assert_same_gradients(found, composed, arrays, tolerance=1e-10):
    """Value and every gradient of the plain function, by autograd."""
    value, gradients = found
    assert_close(value, composed(arrays), tolerance)
    expected = autograd.grad(composed)(arrays)
    assert gradients.keys() == expected.keys()
    for name in gradients:
        assert_close(gradients[name], expected[name], tolerance, name)


def teacher_probabilities():
    """A distribution for each token, none for the padding."""
    targets = random_targets(SMALL)
    weights = np.random.default_rng(7).random((*targets.shape, SMALL.vocab_size))
    return weights / weights.sum(-1, keepdims=True) * (targets >= 0)[..., None]


@pytest.mark.parametrize("targets", [random_targets(SMALL), teacher_probabilities()], ids=["letters", "probabilities"])
def test_gradients_of_factors_and_biases_are_autograds(targets):
    base, adapter, scaling = adapted_model()
    fused, composed = losses(base, adapter, scaling, targets)
    arrays = adapter.arrays()
    assert_same_gradients(value_and_gradients(fused, arrays), composed, arrays)


def test_gradients_with_dropout_are_autograds():
    """The plain model is given the masks that were drawn, in the order of the modules."""
    base = random_model()
    config = lora.LoraConfig(r=3, lora_alpha=5, target_modules="all-linear", lora_dropout=0.3)
    adapter = random_adapter(base.params, config)
    drawn = []
    with plain.recorded(ops, "dropout_mask", lambda arguments, mask: drawn.append(mask)):
        fused, _ = losses(base, adapter, {}, random_targets(SMALL))
        found = value_and_gradients(lambda arrays: fused(arrays, np.random.default_rng(0)), adapter.arrays())
    masks = {path: mask.reshape(3, 5, -1) for path, mask in zip(adapter.factors, drawn, strict=True)}
    _, composed = losses(base, adapter, dict.fromkeys(adapter.factors, 5 / 3), random_targets(SMALL), masks)
    assert_same_gradients(found, composed, adapter.arrays())


def test_gradients_of_every_parameter_are_autograds():
    """Full fine-tuning: the embedding collects its gradient from both of its uses."""
    base, tokens, targets = random_model(), random_tokens(SMALL), random_targets(SMALL)
    found = value_and_gradients(
        lambda a: ops.cross_entropy(model.forward(nested(a), tokens, SMALL), targets), leaves(base.params)
    )
    assert_same_gradients(
        found, lambda a: plain.cross_entropy(plain.forward(a, tokens, SMALL), targets), leaves(base.params)
    )


def test_the_plain_check_notices_a_wrong_gradient():
    base, adapter, scaling = adapted_model()
    fused, composed = losses(base, adapter, scaling, random_targets(SMALL))
    value, gradients = value_and_gradients(fused, adapter.arrays())
    gradients["layers.1.v_proj.lora_A"] = gradients["layers.1.v_proj.lora_A"] * 1.000001
    with pytest.raises(AssertionError, match=r"layers\.1\.v_proj\.lora_A"):
        assert_same_gradients((value, gradients), composed, adapter.arrays())


# What is computed


def test_nothing_is_computed_for_the_frozen_base(monkeypatch):
    """Every gradient asked for over the whole backward pass: none of a base array, none below the first adapter."""
    called = []

    def spied(name):
        function = getattr(ops, name).__wrapped__

        def spy(*arguments):
            answer, gradients = function(*arguments)
            return answer, tuple(
                (lambda g, i=i, gradient=gradient: called.append((name, i)) or gradient(g))
                for i, gradient in enumerate(gradients)
            )

        return operation(spy)

    for name in ("linear", "lora_linear", "layer_norm", "causal_attention", "relu", "embed", "cross_entropy"):
        monkeypatch.setattr(ops, name, spied(name))
    base = random_model()
    adapter = random_adapter(base.params, lora.LoraConfig(r=3, target_modules=["v_proj"], layers_to_transform=1))
    fused, _ = losses(base, adapter, {}, random_targets(SMALL))
    value_and_gradients(fused, adapter.arrays())
    x, A, B, v, onto = 0, 3, 4, 2, 3
    layer_1 = [("lora_linear", A), ("lora_linear", B), ("causal_attention", v), ("linear", x)]
    mlp = [("layer_norm", x), ("linear", x), ("relu", x), ("linear", x), ("linear", onto)]
    layer_2 = [("layer_norm", x), *[("linear", x)] * 4, *[("causal_attention", i) for i in range(3)], ("linear", onto)]
    head = [("layer_norm", x), ("linear", x), ("cross_entropy", x)]
    assert sorted(called) == sorted([*layer_1, *mlp, *layer_2, *mlp, *head])


def test_nothing_is_written_to():
    base, adapter, _ = adapted_model()
    tokens = random_tokens(SMALL)
    for array in (*leaves(base.params).values(), *adapter.arrays().values(), tokens):
        array.flags.writeable = False
    fused, _ = losses(base, adapter, {}, random_targets(SMALL))
    value_and_gradients(fused, adapter.arrays())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_dtype_is_kept(dtype, dropout):
    base = random_model(dtype=dtype)
    config = lora.LoraConfig(r=3, target_modules="all-linear", bias="all", lora_dropout=dropout, use_rslora=True)
    adapter = random_adapter(base.params, config)
    logits = model.forward(base.params, random_tokens(SMALL), SMALL, adapter=adapter)
    fused, _ = losses(base, adapter, {}, random_targets(SMALL))
    value, gradients = value_and_gradients(lambda a: fused(a, np.random.default_rng(0)), adapter.arrays())
    assert logits.dtype == value.dtype == dtype
    assert {gradient.dtype for gradient in gradients.values()} == {np.dtype(dtype)}


def test_float32_is_float64_to_rounding():
    """The same parameters in both precisions."""
    single, tokens = random_model(dtype="float32"), random_tokens(SMALL)
    double = nested({path: array.astype("float64") for path, array in leaves(single.params).items()})
    assert_close(model.forward(single.params, tokens, SMALL), model.forward(double, tokens, SMALL), 1e-5)


# What the logits depend on


@given(t=st.integers(1, 6), seed=st.integers(0, 1000))
def test_a_later_token_changes_no_earlier_logit(t, seed):
    """To the bit before t; and it does change those from t on."""
    base, adapter, _ = adapted_model()
    tokens = random_tokens(SMALL, n_tokens=7, seed=seed)
    changed = tokens.copy()
    changed[:, t] = (tokens[:, t] + 1) % SMALL.vocab_size
    before, after = (model.forward(base.params, x, SMALL, adapter=adapter) for x in (tokens, changed))
    np.testing.assert_array_equal(after[:, :t], before[:, :t])
    assert (after[:, t:] != before[:, t:]).any(-1).all()


def test_every_earlier_token_matters():
    """The other half of causality: the last logits depend on each token."""
    base = random_model()
    tokens = random_tokens(SMALL, n_tokens=7)
    last = model.forward(base.params, tokens, SMALL)[:, -1]
    for t in range(7):
        changed = tokens.copy()
        changed[:, t] = (tokens[:, t] + 1) % SMALL.vocab_size
        assert (model.forward(base.params, changed, SMALL)[:, -1] != last).any(-1).all()


def test_logits_of_a_prefix_are_a_prefix_of_the_logits():
    base = random_model()
    tokens = random_tokens(SMALL, n_tokens=7)
    whole = model.forward(base.params, tokens, SMALL)
    for t in range(1, 7):
        assert_close(model.forward(base.params, tokens[:, :t], SMALL), whole[:, :t], 1e-12)


def test_sequences_do_not_see_each_other():
    base = random_model()
    tokens = random_tokens(SMALL)
    together = model.forward(base.params, tokens, SMALL)
    for i, alone in enumerate(tokens):
        assert_close(model.forward(base.params, alone[None], SMALL)[0], together[i], 1e-12)


@pytest.mark.parametrize("leading", [(), (1,), (3,), (2, 3), (2, 1, 3)])
def test_any_leading_axes(leading):
    base, adapter, _ = adapted_model()
    tokens = random_tokens(SMALL, leading)
    logits = model.forward(base.params, tokens, SMALL, adapter=adapter)
    assert logits.shape == (*leading, 5, 17)
    flat = model.forward(base.params, tokens.reshape(-1, 5), SMALL, adapter=adapter)
    assert_close(logits.reshape(-1, 5, 17), flat, 1e-12)


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8"])
def test_any_integers_are_tokens(dtype):
    base, tokens = random_model(), random_tokens(SMALL)
    expected = model.forward(base.params, tokens, SMALL)
    np.testing.assert_array_equal(model.forward(base.params, tokens.astype(dtype), SMALL), expected)
    np.testing.assert_array_equal(model.forward(base.params, tokens.tolist(), SMALL), expected)


# What is refused


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([[0, 17]], r"tokens: got 17, takes 0 \.\.\. 16 \(vocab_size = 17\)"),
        ([[0, -1]], r"tokens: got -1, takes 0 \.\.\. 16"),
        ([[0] * 8], "tokens: got 8 in a row, takes at most context_length = 7"),
        ([[0.0, 1.0]], r"tokens: got float64 of shape \(1, 2\), takes an integer array"),
        ([[True, False]], "tokens: got bool of shape"),
        ([["a", "b"]], "tokens: got <U1 of shape"),
        (3, r"tokens: got int64 of shape \(\), takes an integer array"),
    ],
)
def test_bad_tokens(tokens, message):
    with pytest.raises(ValueError, match=message):
        model.forward(random_model().params, tokens, SMALL)


@pytest.mark.parametrize("shape", [(0, 5), (3, 0)])
def test_no_tokens_are_no_logits_or_an_error_about_tokens(shape):
    try:
        logits = model.forward(random_model().params, np.zeros(shape, dtype=int), SMALL)
    except ValueError as error:
        assert "tokens:" in str(error)  # noqa: PT017 (either is right)
    else:
        assert logits.shape == (*shape, 17)


@pytest.mark.parametrize("field", ["vocab_size", "context_length", "d_model", "n_heads", "n_layers", "d_ff"])
@pytest.mark.parametrize("value", [0, -1, 2.0, 2.5, True, "8", None, float("nan")], ids=repr)
def test_bad_sizes(field, value):
    with pytest.raises(ValueError, match=f"^{field}: got {value!r}, takes an integer of at least 1$"):
        model.ModelConfig(**{field: value})


@pytest.mark.parametrize("value", ["float16", "double", None, 64, np.float32], ids=repr)
def test_bad_dtypes(value):
    with pytest.raises(ValueError, match=r"^dtype: got .*, takes one of 'float32', 'float64'$"):
        model.ModelConfig(dtype=value)


def test_defaults():
    stated = model.ModelConfig(27, 16, d_model=32, n_heads=4, n_layers=2, d_ff=128, dtype="float32")
    assert model.ModelConfig() == stated


def test_heads_must_divide_the_features():
    with pytest.raises(ValueError, match=r"^n_heads: got 3, takes a divisor of d_model = 32$"):
        model.ModelConfig(n_heads=3)


def test_unknown_fields_are_refused():
    with pytest.raises(TypeError, match="n_head"):
        model.ModelConfig(n_head=4)


def test_configs_are_frozen():
    with pytest.raises(AttributeError):
        SMALL.n_layers = 4


# Fresh parameters


def test_names_and_shapes_of_the_parameters():
    shapes = {path: array.shape for path, array in leaves(random_model(n_layers=1).params).items()}
    square = {f"layers.0.{name}_proj.weight": (10, 10) for name in "qkvo"}
    biases = {f"layers.0.{name}_proj.bias": (10,) for name in "qkvo"}
    mlp = {"layers.0.up_proj.weight": (13, 10), "layers.0.down_proj.weight": (10, 13)}
    mlp_biases = {"layers.0.up_proj.bias": (13,), "layers.0.down_proj.bias": (10,)}
    norms = {f"{name}.{part}": (10,) for part in ("weight", "bias")
             for name in ("layers.0.input_layernorm", "layers.0.post_attention_layernorm", "norm")}  # fmt: skip
    tables = {"embed_tokens.weight": (17, 10), "embed_positions.weight": (7, 10)}
    assert shapes == square | biases | mlp | mlp_biases | norms | tables


def test_scales_of_fresh_parameters():
    """As documented, on a model large enough for a wrong scale to show."""
    config = model.ModelConfig(vocab_size=211, context_length=199, d_model=202, n_heads=2, n_layers=3, d_ff=307)
    params = leaves(model.init_params(config, np.random.default_rng(0)))
    onto_residual = 1 / np.sqrt(6)  # of three layers, two writes each
    expected = {"embed_tokens": 0.1, "embed_positions": 0.1, "up_proj": 202**-0.5}
    expected |= {f"{name}_proj": 202**-0.5 for name in "qkv"}
    expected |= {"o_proj": onto_residual * 202**-0.5, "down_proj": onto_residual * 307**-0.5}
    for path, array in params.items():
        module, kind = path.split(".")[-2:]
        if "norm" in module:
            np.testing.assert_array_equal(array, np.ones(202) if kind == "weight" else np.zeros(202))
        elif kind == "bias":
            assert not array.any()
        else:
            deviation = expected[module]
            assert array.std() == pytest.approx(deviation, rel=0.02), path
            assert abs(array.mean()) < 5 * deviation / np.sqrt(array.size), path


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_fresh_parameters_are_the_seeds(dtype):
    config = model.ModelConfig(dtype=dtype)
    one, same, other = (model.init_params(config, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert {array.dtype for array in leaves(one).values()} == {np.dtype(dtype)}
    assert fingerprint(one) == fingerprint(same) != fingerprint(other)
    weights = [array.tobytes() for array in leaves(one).values() if array.ndim == 2]
    assert len(set(weights)) == len(weights)
