"""AdamW against the textbook in plain Python numbers, and learning-rate schedules."""

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora import lora, optim
from minilora.optim import scheduled

LR, B1, B2, EPS, DECAY = 0.03, 0.8, 0.95, 1e-6, 0.4
ADAMW = optim.AdamW(LR, (B1, B2), EPS, DECAY)
START = [1.0, -2.0, 0.5, 0.0, 3.0]


def slope(p, t):
    """The gradient that one number sees at step t: of a bowl, with a disturbance that changes sign."""
    return 3 * (p - 0.7) + math.cos(5 * t) - p**3 / 10


def textbook(p, n_steps, decay):
    """One number's trajectory. The moments are written as sums over all past gradients, not as running means."""
    gradients, trajectory = [], []
    for t in range(1, n_steps + 1):
        gradients.append(slope(p, t))
        m = math.fsum((1 - B1) * B1 ** (t - i) * g for i, g in enumerate(gradients, start=1))
        v = math.fsum((1 - B2) * B2 ** (t - i) * g * g for i, g in enumerate(gradients, start=1))
        m_hat, v_hat = m / (1 - B1**t), v / (1 - B2**t)
        p = p - LR * (m_hat / (math.sqrt(v_hat) + EPS) + decay * p)
        trajectory.append(p)
    return trajectory


def run(adamw, n_steps, start=START, gradient=None):
    """The trajectory of `update`, as rows."""
    gradient = gradient or (lambda parameters, t: np.array([slope(p, t) for p in parameters]))
    parameters = np.array(start)
    state, rows = adamw.init(parameters), []
    for t in range(1, n_steps + 1):
        parameters, state = adamw.update(parameters, gradient(parameters, t), state)
        assert state.step == t
        rows.append(parameters)
    return np.array(rows)


def test_a_hundred_steps_are_the_textbooks():
    for decay in (0.0, DECAY):
        found = run(optim.AdamW(LR, (B1, B2), EPS, decay), 100)
        expected = np.transpose([textbook(p, 100, decay) for p in START])
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_the_first_step_is_the_learning_rate():
    """Whatever the size of the gradient: the bias corrections make m / sqrt(v) its sign."""
    gradient = np.array([1e-3, -7.0, 1e5])
    adamw = optim.AdamW(0.01, eps=0.0, weight_decay=0.0)
    parameters, _ = adamw.update(np.zeros(3), gradient, adamw.init(np.zeros(3)))
    np.testing.assert_allclose(parameters, [-0.01, 0.01, -0.01], rtol=1e-14)


@given(size=st.floats(1e-6, 1e6), decay=st.sampled_from([0.01, 0.4, 2.0]))
def test_decay_is_decoupled(size, decay):
    """It takes lr wd p off, whatever the gradient; inside the gradient it would be divided by the gradient's size."""
    rng = np.random.default_rng(0)
    start = rng.standard_normal(7)
    ends = []
    for weight_decay in (decay, 0.0):
        adamw, parameters = optim.AdamW(LR, weight_decay=weight_decay), start
        state = adamw.init(start)
        parameters, state = adamw.update(parameters, size * np.ones(7), state)
        ends.append(parameters)
    np.testing.assert_allclose(ends[0] - ends[1], -LR * decay * start, rtol=1e-12, atol=1e-15)


def test_without_a_gradient_each_step_shrinks_by_lr_times_decay():
    rows = run(ADAMW, 20, gradient=lambda parameters, t: np.zeros(5))
    for t, row in enumerate(rows, start=1):
        np.testing.assert_allclose(row, (1 - LR * DECAY) ** t * np.array(START), rtol=1e-14)


def test_without_a_gradient_a_lora_change_shrinks_by_the_square():
    """Decay pulls the adapted model towards its base: (1 - lr wd) for A times (1 - lr wd) for B, a step."""
    rng = np.random.default_rng(0)
    factors = {"lora_A": rng.standard_normal((2, 5)), "lora_B": rng.standard_normal((3, 2))}
    adapter = lora.Adapter(lora.LoraConfig(r=2), {"layers.0.q_proj": factors}, {}, {"layers.0.q_proj": 4.0}, base="")
    after = {}
    for name, array in adapter.arrays().items():
        after[name], _ = ADAMW.update(array, np.zeros_like(array), ADAMW.init(array))
    before, shrunk = (lora.weight_changes(one)["layers.0.q_proj"] for one in (adapter, adapter.with_arrays(after)))
    np.testing.assert_allclose(shrunk, (1 - LR * DECAY) ** 2 * before, rtol=1e-13)


def test_without_a_gradient_and_decay_nothing_moves():
    rows = run(optim.AdamW(LR, weight_decay=0.0), 3, gradient=lambda parameters, t: np.zeros(5))
    np.testing.assert_array_equal(rows, [START] * 3)


def test_elements_do_not_see_each_other():
    together = run(ADAMW, 20)
    for i, p in enumerate(START):
        np.testing.assert_array_equal(run(ADAMW, 20, start=[p])[:, 0], together[:, i])


def test_nothing_is_written_to():
    """Neither the parameters, nor the gradient, nor the state: a step can be taken again from where it started."""
    parameters, gradient = np.array(START), np.array([0.3, -0.1, 2.0, 5.0, -7.0])
    _, state = ADAMW.update(parameters, gradient, ADAMW.init(parameters))
    for array in (parameters, gradient, state.first, state.second):
        array.flags.writeable = False
    one, one_state = ADAMW.update(parameters, gradient, state)
    again, again_state = ADAMW.update(parameters, gradient, state)
    np.testing.assert_array_equal(one, again)
    for array, other in zip(one_state, again_state, strict=True):
        np.testing.assert_array_equal(array, other)
    assert state.step == 1


def test_a_schedules_learning_rate_replaces_the_optimizers():
    """In the decay too."""
    start, gradient = np.array(START), np.ones(5)
    scheduled_step, _ = ADAMW.update(start, gradient, ADAMW.init(start), 0.5)
    other = optim.AdamW(0.5, (B1, B2), EPS, DECAY)
    expected, _ = other.update(start, gradient, other.init(start))
    np.testing.assert_array_equal(scheduled_step, expected)
    unmoved, _ = ADAMW.update(start, gradient, ADAMW.init(start), 0.0)
    np.testing.assert_array_equal(unmoved, start)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dtype_is_kept(dtype):
    start = np.array(START, dtype)
    parameters, state = ADAMW.update(start, np.ones(5, dtype), ADAMW.init(start))
    assert parameters.dtype == state.first.dtype == state.second.dtype == dtype


@pytest.mark.parametrize(
    "settings",
    [
        {"learning_rate": np.float64(0.1)},
        {"betas": (np.float64(0.9), np.float64(0.99))},
        {"eps": np.float64(1e-8)},
        {"weight_decay": np.float64(0.1)},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_numpy_numbers_do_not_change_the_dtype(settings):
    """Grids often come from np.logspace; a NumPy scalar promotes float32 where a Python number does not."""
    start, adamw = np.array(START, "float32"), optim.AdamW(**settings)
    parameters, state = adamw.update(start, np.ones(5, "float32"), adamw.init(start))
    assert parameters.dtype == state.first.dtype == state.second.dtype == "float32"


def test_a_numpy_learning_rate_for_one_step_does_not_change_the_dtype():
    start = np.array(START, "float32")
    parameters, _ = ADAMW.update(start, np.ones(5, "float32"), ADAMW.init(start), np.float64(0.1))
    assert parameters.dtype == "float32"


def test_eps_zero_takes_zero_over_zero_as_zero():
    """eps = 0 is allowed, and at the start of LoRA the gradient of A is exactly zero."""
    adamw = optim.AdamW(LR, eps=0.0, weight_decay=0.0)
    parameters, _ = adamw.update(np.array([1.0, 2.0]), np.array([0.0, 3.0]), adamw.init(np.zeros(2)))
    np.testing.assert_allclose(parameters, [1.0, 2.0 - LR], rtol=1e-14)


def test_defaults_are_pytorchs():
    assert optim.AdamW() == optim.AdamW(learning_rate=0.001, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01)


NOT_NEGATIVE = "a finite number of at least 0"
BAD = {
    "learning_rate": ([-0.1, float("nan"), float("inf"), True, "0.1", None], NOT_NEGATIVE),
    "eps": ([-1e-8, float("nan"), float("inf"), True, "0", None], NOT_NEGATIVE),
    "weight_decay": ([-0.01, float("nan"), float("inf"), True, "0", None], NOT_NEGATIVE),
    "betas": ([0.9, (0.9,), (0.9, 0.99, 0.999), None, "ab"], "two numbers in [0, 1)"),
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, (values, _) in BAD.items() for value in values])
def test_bad_fields(field, value):
    with pytest.raises(ValueError, match=re.escape(f"{field}: got {value!r}, takes {BAD[field][1]}")):
        optim.AdamW(**{field: value})


@pytest.mark.parametrize("beta", [1, -0.1, float("nan"), True, "0.9", None], ids=repr)
@pytest.mark.parametrize("place", [0, 1])
def test_bad_betas(beta, place):
    betas = [0.5, 0.5]
    betas[place] = beta
    with pytest.raises(ValueError, match=re.escape(f"betas: got {beta!r}, takes two numbers in [0, 1)")):
        optim.AdamW(betas=tuple(betas))


# Schedules


def test_the_schedules_there_are():
    assert optim.SCHEDULES == ("constant", "linear", "cosine")


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [2.0, 2.0, 2.0, 2.0]),
        ("linear", [2.0, 1.5, 1.0, 0.5]),
        ("cosine", [2.0, 1 + math.sqrt(0.5), 1.0, 1 - math.sqrt(0.5)]),
    ],
)
def test_schedules_without_warm_up(schedule, expected):
    assert [scheduled(schedule, 2.0, step, 4) for step in range(4)] == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize(
    ("schedule", "after"),
    [
        ("constant", [2.0, 2.0, 2.0, 2.0]),
        ("linear", [2.0, 1.5, 1.0, 0.5]),
        ("cosine", [2.0, 1 + math.sqrt(0.5), 1.0, 1 - math.sqrt(0.5)]),
    ],
)
def test_warm_up_comes_before(schedule, after):
    """Five updates in equal parts up to the peak, then the schedule over the four that are left."""
    found = [scheduled(schedule, 2.0, step, 9, warmup_steps=5) for step in range(9)]
    assert found == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0, *after], rel=1e-14)


@given(
    schedule=st.sampled_from(optim.SCHEDULES),
    n_steps=st.integers(1, 50),
    warmup_steps=st.integers(0, 60),
    peak=st.floats(1e-6, 10),
)
def test_schedules_rise_then_fall_within_zero_and_the_peak(schedule, n_steps, warmup_steps, peak):
    """No update is wasted on a learning rate of zero, also where the warm-up is longer than the run."""
    rates = [scheduled(schedule, peak, step, n_steps, warmup_steps) for step in range(n_steps)]
    assert all(0 < rate <= peak * (1 + 1e-15) for rate in rates)
    turn = min(warmup_steps, n_steps)
    assert rates[:turn] == sorted(rates[:turn])
    assert rates[turn:] == sorted(rates[turn:], reverse=True)
    if turn < n_steps:
        assert rates[turn] == peak


@pytest.mark.parametrize("shape", [(4,), (1,), (5, 1), ()])
@pytest.mark.parametrize("which", ["gradient", "first", "second"])
def test_shapes_that_would_be_broadcast_are_refused(which, shape):
    """One number would move all parameters alike, without a word."""
    parameters = np.array(START)
    state, other = ADAMW.init(parameters), np.ones(shape)
    arguments = (other, state) if which == "gradient" else (np.ones(5), state._replace(**{which: other}))
    with pytest.raises(ValueError, match=r"^gradient, state: got shapes .*, takes that of the parameters, \(5,\)$"):
        ADAMW.update(parameters, *arguments)


def test_what_is_no_array_is_named():
    with pytest.raises(TypeError, match=r"^parameters: got a list, takes a NumPy array$"):
        ADAMW.init(START)


def test_a_state_of_another_kind_is_named():
    parameters = np.array(START)
    with pytest.raises(TypeError, match=r"^state: got None, takes an AdamWState"):
        ADAMW.update(parameters, parameters, None)
    with pytest.raises(TypeError, match=r"^state: got a tuple, takes an AdamWState"):
        ADAMW.update(parameters, parameters, tuple(ADAMW.init(parameters)))


@pytest.mark.parametrize("rate", [-0.1, float("nan"), np.array([[0.1], [-0.1]])])
def test_a_rate_that_is_none_is_refused(rate):
    """A schedule passes its own, which the config has not seen."""
    parameters = np.ones((2, 3))
    with pytest.raises(ValueError, match=r"^learning_rate: got .*, takes numbers of at least 0$"):
        ADAMW.update(parameters, parameters, ADAMW.init(parameters), rate)
