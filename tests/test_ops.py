"""Every operation against its plain composition, differentiated by autograd, and against finite differences."""

from collections.abc import Callable
from typing import NamedTuple

import autograd
import autograd.numpy as anp
import numpy as np
import plain
import pytest
from hypothesis import given
from hypothesis import strategies as st
from plain import assert_close

from minilora import ops
from minilora.autodiff import operation, value_and_gradients


class Case(NamedTuple):
    """An operation at some arguments; `trains` are the places of those that have a gradient."""

    operation: Callable
    plain: Callable
    arguments: list
    trains: tuple[int, ...]


def away_from_zero(x):
    """Finite differences cannot cross relu's kink."""
    return x + 0.1 * np.sign(x)


def mask_of(rng, shape):
    return ops.dropout_mask(shape, 0.4, rng, "float64")


def integer_targets(rng, shape, n_classes):
    """About a fifth are padding, the last one surely and the first one surely not."""
    targets = np.where(rng.random(shape) < 0.2, -1, rng.integers(0, n_classes, shape))
    targets.reshape(-1)[[0, -1]] = 0, -1
    return targets


def probability_targets(rng, shape, n_classes):
    weights = rng.random((*shape, n_classes))
    return weights / weights.sum(-1, keepdims=True) * (integer_targets(rng, shape, n_classes) >= 0)[..., None]


def each_run(plain_function):
    """The plain function on each run of a stack by itself; what has no axis for runs is shared."""

    def function(*arguments):
        ndims = (2, 2, 1, 2, 2, 0, 2)  # of lora_linear's arguments for one run
        return anp.stack(
            [
                plain_function(*(a[i] if np.ndim(a) > n else a for a, n in zip(arguments, ndims, strict=True)))
                for i in range(3)
            ]
        )

    return function


def lora_case(n, lead, a, b, c, mask=None, bias=True, stack=(), scaling=0.7):
    """x (*lead, 2, in) with factors for one run or for a stack of three."""
    arguments = [n((*lead, 2, a)), n((b, a)), n((*stack, b)) if bias else None, n((*stack, c, a)), n((*stack, b, c))]
    trains = (0, 1, 2, 3, 4) if bias else (0, 1, 3, 4)
    plain_function = each_run(plain.lora_linear) if stack else plain.lora_linear
    return Case(ops.lora_linear, plain_function, [*arguments, scaling, mask], trains)


STACKED = {"stack": (3,), "scaling": np.array([0.7, 2.0, 0.1]).reshape(3, 1, 1)}

# name -> what it is made of, for leading axes `lead` and three sizes, with n = rng.standard_normal
CASES = {
    "linear": lambda n, rng, lead, a, b, c: Case(
        ops.linear, plain.linear, [n((*lead, 2, a)), n((b, a)), n(b)], (0, 1, 2)
    ),
    "linear without bias": lambda n, rng, lead, a, b, c: Case(
        ops.linear, plain.linear, [n((*lead, 2, a)), n((b, a)), None], (0, 1)
    ),
    "linear onto the residual stream": lambda n, rng, lead, a, b, c: Case(
        ops.linear, plain.linear, [n((*lead, 2, a)), n((b, a)), n(b), n((*lead, 2, b))], (0, 1, 2, 3)
    ),
    "linear onto streams of their own": lambda n, rng, lead, a, b, c: Case(
        ops.linear, plain.linear, [n((2, a)), n((b, a)), n(b), n((3, 2, b))], (0, 1, 2, 3)
    ),
    "linear with a bias a run": lambda n, rng, lead, a, b, c: Case(
        ops.linear, lambda x, w, b: plain.linear(x, w, b[:, None]), [n((2, a)), n((b, a)), n((3, b))], (0, 1, 2)
    ),
    "lora_linear": lambda n, rng, lead, a, b, c: lora_case(n, lead, a, b, c),
    "lora_linear with dropout": lambda n, rng, lead, a, b, c: lora_case(
        n, lead, a, b, c, mask=mask_of(rng, (*lead, 2, a))
    ),
    "lora_linear without bias": lambda n, rng, lead, a, b, c: lora_case(n, lead, a, b, c, bias=False),
    "lora_linear onto the residual stream": lambda n, rng, lead, a, b, c: Case(
        ops.lora_linear,
        plain.lora_linear,
        [*lora_case(n, lead, a, b, c).arguments, n((*lead, 2, b))],
        (0, 1, 2, 3, 4, 7),
    ),
    "lora_linear of a stack": lambda n, rng, lead, a, b, c: lora_case(n, (3,), a, b, c, **STACKED),
    "lora_linear of a stack with dropout": lambda n, rng, lead, a, b, c: lora_case(
        n, (3,), a, b, c, mask=mask_of(rng, (3, 2, a)), **STACKED
    ),
    "lora_linear of a stack on one input": lambda n, rng, lead, a, b, c: lora_case(n, (), a, b, c, **STACKED),
    "layer_norm": lambda n, rng, lead, a, b, c: Case(
        ops.layer_norm, plain.layer_norm, [n((*lead, 2, a)), n(a), n(a), 1e-2], (0, 1, 2)
    ),
    "layer_norm with a bias a run": lambda n, rng, lead, a, b, c: Case(
        ops.layer_norm,
        lambda x, gain, bias, eps: plain.layer_norm(x, gain, bias[:, None], eps),
        [n((2, a)), n(a), n((3, a)), 1e-2],
        (0, 1, 2),
    ),
    "relu": lambda n, rng, lead, a, b, c: Case(ops.relu, plain.relu, [away_from_zero(n((*lead, a)))], (0,)),
    "causal_attention": lambda n, rng, lead, a, b, c: Case(
        ops.causal_attention, plain.causal_attention, [n((*lead, 2 * a, 3 * b)) for _ in "qkv"] + [a, 3], (0, 1, 2)
    ),
    "causal_attention on keys that runs share": lambda n, rng, lead, a, b, c: Case(
        ops.causal_attention,
        lambda q, k, v, n_tokens, n_heads: plain.causal_attention(q, k + 0 * q, v, n_tokens, n_heads),
        [n((3, 2 * a, 3 * b)), n((2 * a, 3 * b)), n((3, 2 * a, 3 * b)), a, 3],
        (0, 1, 2),
    ),
    "embed": lambda n, rng, lead, a, b, c: Case(
        ops.embed, plain.embed, [rng.integers(0, b, (*lead, a)), n((b, c)), n((a + 2, c))], (1, 2)
    ),
    "cross_entropy": lambda n, rng, lead, a, b, c: Case(
        ops.cross_entropy, plain.cross_entropy, [n((*lead, a, b)), integer_targets(rng, (*lead, a), b)], (0,)
    ),
    "cross_entropy to probabilities": lambda n, rng, lead, a, b, c: Case(
        ops.cross_entropy, plain.cross_entropy, [n((*lead, a, b)), probability_targets(rng, (*lead, a), b)], (0,)
    ),
    "cross_entropy of runs that share targets": lambda n, rng, lead, a, b, c: Case(
        ops.cross_entropy,
        lambda logits, targets: plain.cross_entropy(logits, np.broadcast_to(targets, (3, *targets.shape))),
        [n((3, 2, a, b)), integer_targets(rng, (2, a), b)],
        (0,),
    ),
    "reshape": lambda n, rng, lead, a, b, c: Case(
        ops.reshape, lambda x, *shape: anp.reshape(x, shape), [n((*lead, a, b)), b, -1], (0,)
    ),
}


def make_case(name, lead=(3, 2), sizes=(7, 5, 11), seed=0, dtype="float64"):
    """All arrays are read-only, so that an operation that writes to its arguments fails."""
    rng = np.random.default_rng(seed)
    case = CASES[name](rng.standard_normal, rng, lead, *sizes)
    for i, argument in enumerate(case.arguments):
        if isinstance(argument, np.ndarray):
            if argument.dtype == "float64":
                case.arguments[i] = argument.astype(dtype)
            case.arguments[i].flags.writeable = False
    return case


TRAINING = [(name, place) for name in CASES for place in make_case(name).trains]


def with_arguments(case, arrays):
    """The arguments with some of them replaced, by place."""
    return [arrays.get(i, argument) for i, argument in enumerate(case.arguments)]


def weighted_sum(function, case, weights):
    """A scalar whose gradient with respect to the answer is `weights`: arrays by place -> number."""
    return lambda arrays: (function(*with_arguments(case, arrays)) * weights).sum()


def check_operation(case):
    """Answer and every gradient, against the plain composition and against central differences."""
    trained = {i: case.arguments[i] for i in case.trains}
    answer = case.operation(*case.arguments)
    assert_close(answer, case.plain(*case.arguments), 1e-10, "answer")
    rng = np.random.default_rng(99)
    weights = rng.standard_normal(np.shape(answer))
    fused, composed = (weighted_sum(function, case, weights) for function in (case.operation, case.plain))
    _, gradients = value_and_gradients(fused, trained)
    for i, array in trained.items():
        expected = autograd.grad(lambda array, i=i: composed({i: array}))(array)
        assert_close(gradients[i], expected, 1e-10, f"gradient of argument {i} against autograd")
        direction, h = rng.standard_normal(array.shape), 1e-5
        slope = (fused({i: array + h * direction}) - fused({i: array - h * direction})) / (2 * h)
        size = np.linalg.norm(gradients[i]) * np.linalg.norm(direction)
        assert abs(slope - (gradients[i] * direction).sum()) <= 1e-7 * size, f"argument {i}, finite differences"


primes = st.permutations((3, 5, 7, 11)).map(lambda sizes: tuple(sizes[:3]))
leading_axes = st.sampled_from([(), (1,), (2,), (2, 3)])


@pytest.mark.parametrize("name", CASES)
@given(lead=leading_axes, sizes=primes, seed=st.integers(0, 1000))
def test_operation_and_gradients(name, lead, sizes, seed):
    """In float64, for any leading axes and any sizes."""
    check_operation(make_case(name, lead, sizes, seed))


MISTAKES = {
    "a part in a thousand too large": lambda gradient: 1.001 * gradient,
    "no gradient": lambda gradient: 0 * gradient,
    "one row wrong": lambda gradient: gradient * (1 - np.eye(len(gradient))[0].reshape(-1, *[1] * (gradient.ndim - 1))),
    "summed away": lambda gradient: gradient.sum(keepdims=True),
}


def with_gradient(case, place, change):
    """The operation with one of its gradients changed: `change` takes the right function and returns another."""

    def function(*arguments):
        answer, gradients = case.operation.__wrapped__(*arguments)
        changed = list(gradients)
        changed[place] = change(gradients[place])
        return answer, tuple(changed)

    return case._replace(operation=operation(function))


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)
@pytest.mark.parametrize(("name", "place"), TRAINING)
def test_a_wrong_gradient_is_noticed(name, place, mistake):
    planted = with_gradient(make_case(name), place, lambda gradient: lambda g: mistake(gradient(g)))
    with pytest.raises(AssertionError, match=f"argument {place}"):
        check_operation(planted)


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_answer_is_noticed(name):
    case = make_case(name)
    planted = case._replace(operation=lambda *arguments: 1.001 * case.operation(*arguments))
    with pytest.raises(AssertionError, match="answer"):
        check_operation(planted)


@pytest.mark.parametrize(("name", "place"), TRAINING)
def test_nothing_is_computed_for_frozen_arguments(name, place):
    """Each argument in turn trains alone: the gradients of all others fail when called."""

    def trap(gradient):
        def fail(g):
            raise AssertionError("computed a gradient for a frozen argument")

        return fail

    case = make_case(name)
    expected = value_and_gradients(
        lambda x: case.operation(*with_arguments(case, x)).sum(), {place: case.arguments[place]}
    )
    for other in case.trains:
        if other != place:
            case = with_gradient(case, other, trap)
    found = value_and_gradients(
        lambda x: case.operation(*with_arguments(case, x)).sum(), {place: case.arguments[place]}
    )
    np.testing.assert_array_equal(found[1][place], expected[1][place])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CASES)
def test_dtype_is_kept(name, dtype):
    case = make_case(name, dtype=dtype)
    trained = {i: case.arguments[i] for i in case.trains}
    value, gradients = value_and_gradients(lambda x: case.operation(*with_arguments(case, x)).sum(), trained)
    assert case.operation(*case.arguments).dtype == value.dtype == dtype
    assert {i: gradient.dtype for i, gradient in gradients.items()} == dict.fromkeys(trained, np.dtype(dtype))


@pytest.mark.parametrize("name", CASES)
def test_float32_is_float64_to_rounding(name):
    single, double = make_case(name, dtype="float32"), make_case(name)
    _, rough = value_and_gradients(lambda x: single.operation(*with_arguments(single, x)).sum(),
                                   {i: single.arguments[i] for i in single.trains})  # fmt: skip
    _, exact = value_and_gradients(lambda x: double.operation(*with_arguments(double, x)).sum(),
                                   {i: double.arguments[i] for i in double.trains})  # fmt: skip
    assert_close(single.operation(*single.arguments), double.operation(*double.arguments), 1e-5)
    for i in exact:
        np.testing.assert_allclose(rough[i], exact[i], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_backward_can_be_called_again_in_any_order_and_writes_to_nothing(name):
    """The gradient of a sum reaches both terms as one array, so writing to it would spoil the other's."""
    case = make_case(name)
    answer, gradients = case.operation.__wrapped__(*case.arguments)
    g = np.random.default_rng(5).standard_normal(np.shape(answer))
    g.flags.writeable = False
    first = {i: gradients[i](g) for i in case.trains}
    again = {i: gradients[i](g.copy()) for i in reversed(case.trains)}
    for i in case.trains:
        np.testing.assert_array_equal(first[i], again[i])


# linear and lora_linear


def test_lora_linear_without_a_mask_is_that_with_a_mask_of_ones():
    arguments = make_case("lora_linear").arguments
    ones = np.ones_like(arguments[0])
    np.testing.assert_array_equal(ops.lora_linear(*arguments), ops.lora_linear(*arguments[:-1], ones))


def test_lora_linear_at_zero_B_is_linear_to_the_bit():
    x, weight, bias, lora_A, lora_B, scaling, _ = make_case("lora_linear").arguments
    adapted = ops.lora_linear(x, weight, bias, lora_A, np.zeros_like(lora_B), scaling, None)
    np.testing.assert_array_equal(adapted, ops.linear(x, weight, bias))


def test_the_mask_drops_the_input_of_A_alone():
    x, weight, bias, lora_A, lora_B, scaling, _ = make_case("lora_linear").arguments
    nothing = np.zeros_like(x)
    np.testing.assert_array_equal(
        ops.lora_linear(x, weight, bias, lora_A, lora_B, scaling, nothing), ops.linear(x, weight, bias)
    )


def test_eight_ones_times_two():
    """(alpha / r) B A x with A = B = 1, r = 8, alpha = 16 and x four ones is 2 * 8 * 4; alpha alone would give 512."""
    x, weight = np.ones((1, 4)), np.zeros((3, 4))
    y = ops.lora_linear(x, weight, None, np.ones((8, 4)), np.ones((3, 8)), 16 / 8, None)
    np.testing.assert_array_equal(y, np.full((1, 3), 64.0))


# dropout


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("p", [0.1, 0.5, 0.75])
def test_mask_values_are_zero_or_the_inverse_of_what_stays(p, dtype):
    mask = ops.dropout_mask((101, 103), p, np.random.default_rng(0), dtype)
    assert mask.dtype == dtype
    assert set(np.unique(mask)) == {np.dtype(dtype).type(0), np.dtype(dtype).type(1 / (1 - p))}
    dropped = (mask == 0).mean()
    assert abs(dropped - p) < 5 * np.sqrt(p * (1 - p) / mask.size)
    assert abs(mask.mean() - 1) < 5 * np.sqrt(p / (1 - p) / mask.size)


def test_mask_elements_are_independent():
    """Neighbours along every axis are dropped together as often as chance has it."""
    p, dropped = 0.3, ops.dropout_mask((31, 37, 41), 0.3, np.random.default_rng(1), "float64") == 0
    for axis in range(3):
        n = dropped.shape[axis]
        both = (dropped.take(range(n - 1), axis) & dropped.take(range(1, n), axis)).mean()
        assert abs(both - p * p) < 5 * np.sqrt(p * p / dropped.size)


def test_one_seed_drops_the_same_elements_in_both_precisions():
    masks = [ops.dropout_mask((11, 13), 0.5, np.random.default_rng(2), dtype) for dtype in ("float32", "float64")]
    np.testing.assert_array_equal(*masks)


def test_mask_at_p_zero_is_one():
    np.testing.assert_array_equal(ops.dropout_mask((5, 7), 0.0, np.random.default_rng(0), "float64"), np.ones((5, 7)))


def test_mask_without_a_generator_is_an_error():
    with pytest.raises(TypeError, match=r"numpy\.random\.Generator"):
        ops.dropout_mask((5, 7), 0.5, None, "float32")


def test_mean_over_masks_is_the_evaluation():
    """lora_linear is linear in the mask, so the mean over masks is the answer without one, up to sampling."""
    *arguments, _ = make_case("lora_linear").arguments
    x, rng = arguments[0], np.random.default_rng(3)
    answers = [ops.lora_linear(*arguments, ops.dropout_mask(x.shape, 0.5, rng, x.dtype)) for _ in range(2000)]
    error = np.std(answers, axis=0) / np.sqrt(2000)
    assert (error > 0).all()
    assert (np.abs(np.mean(answers, axis=0) - ops.lora_linear(*arguments, None)) < 5 * error).all()


# layer_norm and relu


def test_layer_norm_has_mean_zero_and_variance_one():
    x = 7 + 5 * np.random.default_rng(0).standard_normal((3, 5, 11))
    y = ops.layer_norm(x, np.ones(11), np.zeros(11), 0.0)
    np.testing.assert_allclose(y.mean(-1), 0, atol=1e-14)
    np.testing.assert_allclose(y.var(-1), 1, rtol=1e-14)


def test_layer_norm_of_equal_features_is_the_bias():
    """Variance 0, where only eps keeps the answer finite."""
    bias = np.arange(7.0)
    np.testing.assert_array_equal(ops.layer_norm(np.full((2, 7), 3.0), np.ones(7), bias, 1e-5), [bias, bias])


def test_relu_and_its_gradient_at_zero():
    x = np.array([-2.0, 0.0, 3.0])
    value, gradients = value_and_gradients(lambda a: (ops.relu(a["x"]) * np.array([5.0, 7.0, 11.0])).sum(), {"x": x})
    assert value == 33.0
    np.testing.assert_array_equal(gradients["x"], [0.0, 0.0, 11.0])


# causal_attention


def attention_inputs(n_tokens=7, d=15, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((2, n_tokens, d)) for _ in "qkv"]


def attend(q, k, v, n_heads):
    """Of sequences (2, T, d) given as such."""
    rows = [x.reshape(-1, x.shape[-1]) for x in (q, k, v)]
    return ops.causal_attention(*rows, q.shape[1], n_heads).reshape(q.shape)


def test_attention_sees_no_later_token():
    """Keys and values after t change the answers after t, and none up to t by a single bit."""
    q, k, v = attention_inputs()
    before = attend(q, k, v, 3)
    for t in range(6):
        later_k, later_v = k.copy(), v.copy()
        later_k[:, t + 1 :] += 1
        later_v[:, t + 1 :] -= 1
        after = attend(q, later_k, later_v, 3)
        np.testing.assert_array_equal(after[:, : t + 1], before[:, : t + 1])
        assert (after[:, t + 1 :] != before[:, t + 1 :]).all()


def test_the_first_token_attends_to_itself():
    q, k, v = attention_inputs()
    np.testing.assert_array_equal(attend(q, k, v, 3)[:, 0], v[:, 0])


def test_attention_is_a_weighted_mean():
    """With one value everywhere, the answer is that value whatever the weights."""
    q, k, v = attention_inputs()
    everywhere = np.broadcast_to(v[:, :1], v.shape)
    np.testing.assert_allclose(attend(q, k, everywhere, 3), everywhere, rtol=1e-14)


@pytest.mark.parametrize("head", [0, 1, 2])
@pytest.mark.parametrize("changed", [0, 1, 2], ids=["q", "k", "v"])
def test_a_change_for_one_head_alters_that_heads_features_alone(head, changed):
    inputs = attention_inputs()
    before = attend(*inputs, 3)
    own = slice(5 * head, 5 * head + 5)
    inputs[changed][..., own] = inputs[changed][..., own][..., ::-1] * 2
    altered = (attend(*inputs, 3) != before).any((0, 1))
    np.testing.assert_array_equal(altered, [5 * head <= feature < 5 * head + 5 for feature in range(15)])


def test_attention_with_large_scores_is_finite():
    """Scores of 1e6 overflow exp unless the maximum is taken off first; warnings are errors here."""
    q, k, v = attention_inputs()
    _, gradients = value_and_gradients(
        lambda x: ops.causal_attention(x["q"], 1e6 * k[0], v[0], 7, 3).sum(), {"q": q[0]}
    )
    assert np.isfinite(gradients["q"]).all()
    favourite = np.argmax(q[0, -1, :5] @ k[0, :, :5].T)  # one key takes all
    np.testing.assert_array_equal(attend(q, 1e6 * k, v, 3)[0, -1, :5], v[0, favourite, :5])


# embed


def test_embed_adds_up_gradients_of_repeated_tokens_and_has_none_for_unused_rows():
    tokens = np.array([[2, 2, 0], [2, 1, 0]])
    arrays = {"tokens": np.zeros((5, 7)), "positions": np.zeros((4, 7))}
    _, gradients = value_and_gradients(lambda a: ops.embed(tokens, a["tokens"], a["positions"]).sum(), arrays)
    np.testing.assert_array_equal(gradients["tokens"][:, 0], [2, 1, 3, 0, 0])
    np.testing.assert_array_equal(gradients["positions"][:, 0], [2, 2, 2, 0])


# cross_entropy


def test_cross_entropy_of_equal_logits_is_log_of_the_vocabulary():
    loss = ops.cross_entropy(np.full((3, 5, 11), 7.0), np.zeros((3, 5), dtype=int))
    assert loss == pytest.approx(np.log(11), rel=1e-15)


def test_padding_counts_for_nothing():
    """Neither the loss nor any gradient depends on the logits there, and its own gradient is exactly zero."""
    logits, targets = make_case("cross_entropy", lead=(3,)).arguments
    padding = targets == -1
    assert padding.any()
    other = np.where(padding[..., None], -3 * logits + 1, logits)
    results = [value_and_gradients(lambda a: ops.cross_entropy(a["x"], targets), {"x": x}) for x in (logits, other)]
    assert results[0][0] == results[1][0]
    np.testing.assert_array_equal(results[0][1]["x"][~padding], results[1][1]["x"][~padding])
    assert not results[0][1]["x"][padding].any()


def test_the_mean_is_over_what_is_to_predict():
    logits, targets = make_case("cross_entropy", lead=(3,)).arguments
    kept = targets >= 0
    assert ops.cross_entropy(logits, targets) == pytest.approx(
        ops.cross_entropy(logits[kept][:, None], targets[kept][:, None]), rel=1e-14
    )


def test_each_run_of_a_stack_has_its_own_mean():
    """Also where they have different numbers of tokens to predict, or share their targets."""
    logits, targets = make_case("cross_entropy", lead=(3, 2)).arguments
    assert len(set((targets >= 0).sum((1, 2)))) > 1
    own = [ops.cross_entropy(*run) for run in zip(logits, targets, strict=True)]
    np.testing.assert_array_equal(ops.cross_entropy(logits, targets), own)
    shared = [ops.cross_entropy(run, targets[0]) for run in logits]
    np.testing.assert_array_equal(ops.cross_entropy(logits, targets[0]), shared)


@pytest.mark.parametrize("targets", [np.full((2, 3), -1), np.zeros((2, 3, 5))], ids=["integers", "probabilities"])
def test_nothing_to_predict_is_a_loss_of_zero(targets):
    logits = np.random.default_rng(0).standard_normal((2, 3, 5))
    value, gradients = value_and_gradients(lambda a: ops.cross_entropy(a["x"], targets), {"x": logits})
    assert value == 0
    assert not gradients["x"].any()


def test_certain_probabilities_are_integer_targets():
    logits, targets = make_case("cross_entropy", lead=(3,)).arguments
    certain = (targets[..., None] == np.arange(5)).astype(float)
    results = [
        value_and_gradients(lambda a, t=t: ops.cross_entropy(a["x"], t), {"x": logits}) for t in (targets, certain)
    ]
    assert results[0][0] == results[1][0]
    np.testing.assert_array_equal(results[0][1]["x"], results[1][1]["x"])


def test_large_logits_do_not_overflow():
    logits = np.array([[[1e4, 0.0, -1e4], [-1e4, 1e4, 0.0]]])
    value, gradients = value_and_gradients(lambda a: ops.cross_entropy(a["x"], np.array([[0, 2]])), {"x": logits})
    assert value == 5000.0
    np.testing.assert_array_equal(gradients["x"], [[[0, 0, 0], [0, 0.5, -0.5]]])
