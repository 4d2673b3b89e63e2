"""The backward walk against autograd's own, and that it touches only what trains."""

import weakref

import autograd
import autograd.numpy as anp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.autodiff import once, operation, value_and_gradients

NAMES = ("a", "b", "c")


def random_arrays(shape=(5,), seed=0):
    """The three arrays that the tests differentiate by."""
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape) for name in NAMES}


def assert_gradients_are_autograds(function, arrays):
    """Value and gradients, array by array."""
    value, gradients = value_and_gradients(function, arrays)
    assert value == function(arrays)
    assert gradients.keys() == arrays.keys()
    for name in arrays:
        expected = autograd.grad(lambda array, name=name: function({**arrays, name: array}))(arrays[name])
        assert gradients[name].shape == expected.shape
        np.testing.assert_allclose(gradients[name], expected, rtol=1e-10, atol=1e-10, err_msg=name)


UNARY = (anp.sin, anp.tanh, lambda x: -x)
BINARY = (lambda x, y: x + y, lambda x, y: x * anp.cos(y), lambda x, y: x - 0.5 * y)
steps = st.tuples(st.sampled_from(UNARY + BINARY), st.integers(0, 99), st.integers(0, 99))


@pytest.mark.filterwarnings("ignore:Output seems independent of input")  # autograd's, where an array is not used
@given(program=st.lists(steps, min_size=1, max_size=13))
def test_any_composition_has_autograds_gradients(program):
    """Programs that use a value never, once or often, so that every order of the walk and every sum is tried."""

    def run(arrays):
        values = list(arrays.values())
        for function, i, j in program:
            left, right = values[i % len(values)], values[j % len(values)]
            values.append(function(left) if function in UNARY else function(left, right))
        return anp.sum(values[-1] * values[-2 % len(values)])

    assert_gradients_are_autograds(run, random_arrays())


def test_broadcasting_and_products():
    arrays = {"a": np.arange(15.0).reshape(5, 3) / 7, "b": np.arange(3.0), "c": np.arange(21.0).reshape(3, 7) / 5}
    assert_gradients_are_autograds(lambda x: anp.sum(anp.tanh((x["a"] + x["b"]) @ x["c"])), arrays)


def test_an_array_that_is_not_used_has_gradient_zero():
    arrays = random_arrays()
    _, gradients = value_and_gradients(lambda x: (x["a"] * 3).sum(), arrays)
    np.testing.assert_array_equal(gradients["a"], np.full(5, 3.0))
    for name in "bc":
        np.testing.assert_array_equal(gradients[name], np.zeros(5))


def test_a_constant_has_gradient_zero():
    value, gradients = value_and_gradients(lambda x: 3.0, random_arrays())
    assert value == 3.0
    assert not any(gradient.any() for gradient in gradients.values())


def test_the_answer_may_be_an_array_itself():
    value, gradients = value_and_gradients(lambda x: x["a"], {"a": np.array(2.0), "b": np.ones(3)})
    assert value == 2.0
    assert gradients["a"] == 1.0


def test_the_function_sees_values_and_they_are_not_written_to():
    arrays = random_arrays()
    for array in arrays.values():
        array.flags.writeable = False
    value, _ = value_and_gradients(lambda x: (x["a"] * x["b"] + x["a"]).sum(), arrays)
    assert value == (arrays["a"] * arrays["b"] + arrays["a"]).sum()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_gradients_have_the_arrays_dtype(dtype):
    arrays = {name: array.astype(dtype) for name, array in random_arrays().items()}
    value, gradients = value_and_gradients(lambda x: (x["a"] * x["b"] + x["a"]).sum(), arrays)
    assert value.dtype == dtype
    assert {gradient.dtype for gradient in gradients.values()} == {np.dtype(dtype)}  # the unused c's too


@operation
def trapped_product(x, y):
    """x y, whose derivative by y must not be asked for."""

    def trap(g):
        raise AssertionError("computed a gradient for a frozen array")

    return x * y, (lambda g: g * y, trap)


def test_gradients_of_frozen_arrays_are_not_called():
    arrays = random_arrays()
    frozen = arrays.pop("b")
    _, gradients = value_and_gradients(lambda x: trapped_product(x["a"], frozen).sum(), arrays)
    np.testing.assert_array_equal(gradients["a"], frozen)


def test_the_trap_works():
    with pytest.raises(AssertionError, match="frozen"):
        value_and_gradients(lambda x: trapped_product(x["a"], x["b"]).sum(), random_arrays())


def test_an_operation_is_differentiated_by_autograd_too():
    x, y = np.array([2.0, 3.0]), np.array([5.0, 7.0])
    gradient = autograd.grad(lambda x: (trapped_product(x, y) * x).sum())(x)
    np.testing.assert_array_equal(gradient, 2 * x * y)


def test_an_operation_outside_a_trace_is_just_the_function():
    answer = trapped_product(np.array([2.0]), np.array([5.0]))
    assert type(answer) is np.ndarray
    assert trapped_product.__doc__.startswith("x y")


def test_an_operation_keeps_no_state_between_calls():
    """Two calls in one trace: each has its own backward."""
    x = np.array([2.0, 3.0])
    _, gradients = value_and_gradients(
        lambda a: (trapped_product(a["x"], 5 * np.ones(2)) + trapped_product(a["x"], 7 * np.ones(2))).sum(), {"x": x}
    )
    np.testing.assert_array_equal(gradients["x"], [12.0, 12.0])


def test_what_only_gradients_of_frozen_arrays_need_is_freed():
    """So the tape of a frozen base does not hold every input of every module."""
    frozen = np.ones(3)
    freed = weakref.ref(frozen)

    @operation
    def plus(x, y):
        return x + y, (lambda g: g, lambda g: g * y)  # the second needs y, for no good reason

    answers = []

    def run(arrays):
        nonlocal frozen
        answers.append(plus(arrays["x"], frozen))
        frozen = None
        assert freed() is None
        return answers[0].sum()

    value_and_gradients(run, {"x": np.zeros(3)})


def test_a_gradient_is_summed_over_the_axes_along_which_its_argument_was_repeated():
    @operation
    def product(x, y):
        return x * y, (lambda g: g * y, lambda g: g * x)

    x, y = np.array([2.0, 3.0]), np.arange(8.0).reshape(2, 2, 2)
    _, gradients = value_and_gradients(lambda a: product(a["x"], a["y"]).sum(), {"x": x, "y": y})
    np.testing.assert_array_equal(gradients["x"], y.sum((0, 1)))
    np.testing.assert_array_equal(gradients["y"], np.broadcast_to(x, y.shape))


def test_once_computes_once_for_each_gradient_it_is_given():
    calls = []
    double = once(lambda g: calls.append(1) or 2 * g)
    one, other = np.ones(2), np.zeros(2)
    assert double(one) is double(one)
    np.testing.assert_array_equal(double(other), [0, 0])
    np.testing.assert_array_equal(double(one), [2, 2])
    assert len(calls) == 3


def test_the_gradient_of_several_losses_is_each_ones_own():
    """A vector of losses, as stacked runs have: the gradient of their sum, in which each array meets its own loss."""
    x = np.array([2.0, 3.0])
    values, gradients = value_and_gradients(lambda a: trapped_product(a["x"], x), {"x": x})
    np.testing.assert_array_equal(values, x * x)
    np.testing.assert_array_equal(gradients["x"], x)
