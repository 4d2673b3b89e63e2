"""Stacked runs are the runs done singly: to the bit on the same batches, to rounding where they are padded."""

import dataclasses
import inspect
import shutil

import numpy as np
import plain
import pytest
from blas import blas_threads
from hypothesis import given
from hypothesis import strategies as st

import minilora as ml
from minilora import stack, train
from minilora.stack import FineTuning, fit_stack, stack_adapters
from minilora.trees import fingerprint

BASES = {dtype: plain.random_model(dtype=dtype) for dtype in ("float32", "float64")}
CONFIG = ml.TrainConfig(steps=7, batch_size=3, learning_rate=3e-2, weight_decay=0.1, evaluate_every=3)
LORA = ml.LoraConfig(r=3, target_modules="all-linear")


def dataset(seed=0, n=8, longest=7, probabilities=False):
    """Sequences of random lengths; padding is at the end, as in real data."""
    rng = np.random.default_rng(seed)
    inputs = rng.integers(0, plain.SMALL.vocab_size, (n, longest))
    targets = np.roll(inputs, -1, axis=1)
    targets[np.arange(longest) >= rng.integers(2, longest + 1, n)[:, None]] = -1
    if probabilities:
        targets = np.eye(plain.SMALL.vocab_size)[targets] * (targets >= 0)[..., None]
    return ml.Dataset(inputs, targets)


TRAIN, VALIDATION = dataset(0), dataset(1)


def run(lora=LORA, seed=0, data=TRAIN, config=CONFIG, **changes):
    return FineTuning(dataclasses.replace(lora, **changes), data, VALIDATION, config, seed)


def singly(base, one):
    return ml.fit(base, one.lora, one.train, one.validation, one.config, one.seed, progress=False)


def assert_same(found, expected, tolerance=0.0):
    """Every measurement and every trained array, at the best step and at the end."""
    assert found.steps == expected.steps
    assert (found.best_step, found.stopped_early) == (expected.best_step, expected.stopped_early)
    for name in ("train_loss", "validation_loss"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=0, atol=tolerance)
    for kept in ("best", "final"):
        arrays = getattr(found, kept).arrays()
        for name, array in getattr(expected, kept).arrays().items():
            assert arrays[name].shape == array.shape, name
            np.testing.assert_allclose(arrays[name], array, rtol=0, atol=tolerance, err_msg=name)


def assert_all_same(base, runs, found, tolerance=0.0):
    """Each run of a stack as `fit` does it."""
    for one, history in zip(runs, found, strict=True):
        assert_same(history, singly(base, one), tolerance)


loras = st.builds(
    ml.LoraConfig,
    r=st.integers(1, 5),
    lora_alpha=st.sampled_from([1, 4, 16]),
    lora_dropout=st.sampled_from([0.0, 0.3]),
    target_modules=st.just("all-linear"),
    use_rslora=st.booleans(),
    init_lora_weights=st.sampled_from([True, "gaussian", "zero_A"]),
)
configs = st.builds(
    lambda rate, schedule, steps: dataclasses.replace(
        CONFIG, learning_rate=rate, schedule=schedule, warmup_steps=steps
    ),
    st.sampled_from([1e-3, 1e-2]),
    st.sampled_from(["constant", "linear", "cosine"]),
    st.integers(0, 2),
)


@given(
    members=st.lists(st.tuples(loras, configs, st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=4),
    bias=st.sampled_from(["none", "lora_only", "all"]),
    probabilities=st.booleans(),
)
def test_a_stack_is_its_runs_done_singly(members, bias, probabilities):
    """Each with its own seed, data, rank, alpha, dropout and rate, in float64: the property that padding rests on."""
    base = BASES["float64"]
    lengths = (5, 7, 6)
    runs = [
        run(dataclasses.replace(lora, bias=bias), seed, dataset(10 + data, 8, lengths[data], probabilities), config)
        for lora, config, seed, data in members
    ]
    assert_all_same(base, runs, fit_stack(base, runs, progress=False), 1e-10)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bias", ["none", "all"])
def test_runs_on_the_same_batches_are_the_same_to_the_bit_in_any_stack(dtype, bias):
    """Learning rate, alpha and dropout of their own: whatever a run is stacked with, and wherever in the stack."""
    base = BASES[dtype]
    runs = [
        run(config=dataclasses.replace(CONFIG, learning_rate=rate), lora_alpha=alpha, lora_dropout=p, bias=bias)
        for rate in (1e-3, 3e-2)
        for alpha, p in ((1, 0.0), (8, 0.3), (8, 0.0))
    ]
    expected = [singly(base, one) for one in runs]
    for order in ([0, 1, 2, 3, 4, 5], [5, 1], [3], [4, 2, 0]):
        for i, found in zip(order, fit_stack(base, [runs[i] for i in order], progress=False), strict=True):
            assert_same(found, expected[i])


def test_the_same_to_the_bit_at_the_size_of_the_studies():
    """BLAS may choose its kernel by size, so the shipped base with its own names."""
    base, (names, validation) = ml.load_base("surnames"), ml.names_task("female", 50, 0)
    config = ml.TrainConfig(steps=6, batch_size=16, evaluate_every=3, evaluation_size=40)
    lora = ml.LoraConfig(r=8, target_modules="all-linear")
    runs = [
        FineTuning(
            dataclasses.replace(lora, lora_dropout=p),
            names,
            validation,
            dataclasses.replace(config, learning_rate=x),
            0,
        )
        for p in (0.0, 0.1)
        for x in (1e-3, 1e-2)
    ]
    assert_all_same(base, runs, fit_stack(base, runs, progress=False))


def test_padding_stays_zero():
    """Under gradients, dropout and decay."""
    stacked = []
    adapters = [ml.init_adapter(BASES["float64"].params, dataclasses.replace(LORA, r=r), np.random.default_rng(r))
                for r in (2, 5)]  # fmt: skip
    trainable = train.Trainable(BASES["float64"], stack_adapters(adapters), stack=(2,))
    adamw = ml.AdamW(weight_decay=0.1)
    vector, state = trainable.vector, adamw.init(trainable.vector)
    for _ in range(3):
        _, gradient = trainable.loss_and_gradient(vector, TRAIN, None)
        vector, state = adamw.update(vector, gradient, state, np.array([[0.1], [0.2]]))
        stacked.append(trainable.at(vector))
    for pair in stacked[-1].factors.values():
        assert not pair["lora_A"][0, 2:].any()
        assert not pair["lora_B"][0, :, 2:].any()
        assert pair["lora_A"][0, :2].all()
        assert pair["lora_A"][1].all()


def test_a_member_is_the_adapter_that_was_stacked():
    adapters = [plain.random_adapter(BASES["float64"].params, dataclasses.replace(LORA, r=r, bias="all"), r)
                for r in (4, 1, 2)]  # fmt: skip
    stacked = stack_adapters(adapters)
    for i, adapter in enumerate(adapters):
        member = stacked.member(i)
        assert type(member) is ml.Adapter
        assert (member.config, member.scaling, member.base) == (adapter.config, adapter.scaling, adapter.base)
        for name, array in adapter.arrays().items():
            np.testing.assert_array_equal(member.arrays()[name], array)


def test_a_run_that_diverges_does_not_take_the_others_with_it():
    base = BASES["float32"]
    calm = dataclasses.replace(CONFIG, weight_decay=0.0)
    healthy, wild = run(config=calm), run(config=dataclasses.replace(calm, learning_rate=1e30))
    runs = [healthy, wild, run(config=calm, lora_alpha=1)]
    found = fit_stack(base, runs, progress=False)
    with pytest.raises(ml.DivergedError) as expected:
        singly(base, wild)
    assert isinstance(found[1], ml.DivergedError)
    assert (found[1].step, found[1].measured, str(found[1])) == (
        expected.value.step,
        expected.value.measured,
        str(expected.value),
    )
    for i in (0, 2):
        assert_same(found[i], singly(base, runs[i]))


def test_all_diverged_ends_early():
    wild = run(config=dataclasses.replace(CONFIG, steps=1000, learning_rate=1e30, weight_decay=0.0))
    seen = []
    (found,) = fit_stack(BASES["float32"], [wild], progress=False, watch=lambda i, step, adapter: seen.append(step))
    assert isinstance(found, ml.DivergedError)
    assert max(seen, default=0) < 10


def test_each_run_stops_early_by_itself():
    base = BASES["float64"]
    patient = dataclasses.replace(CONFIG, steps=30, evaluate_every=3, patience=2)
    runs = [run(config=dataclasses.replace(patient, learning_rate=rate)) for rate in (1e-4, 0.1)]
    found = fit_stack(base, runs, progress=False)
    assert [one.stopped_early for one in found] == [False, True]
    assert_all_same(base, runs, found)


def test_watch_sees_each_run_at_each_evaluation():
    seen = []
    runs = [run(), run(lora_alpha=1)]
    found = fit_stack(
        BASES["float64"], runs, progress=False, watch=lambda i, step, adapter: seen.append((i, step, adapter))
    )
    assert [(i, step) for i, step, _ in seen] == [(i, step) for step in (0, 3, 6, 7) for i in (0, 1)]
    assert seen[-1][2].arrays().keys() == found[1].final.arrays().keys()


@pytest.mark.usefixtures("two_blas_threads")
def test_blas_is_held_to_one_thread_and_restored_after():
    inside = []
    fit_stack(BASES["float64"], [run()], progress=False, watch=lambda i, step, adapter: inside.append(blas_threads()))
    assert inside == [{1}] * 4
    assert blas_threads() == {2}


def test_what_a_stack_trained_can_be_saved_and_merged(tmp_path):
    """Adapters of a padded stack are views into it."""
    base = BASES["float64"]
    for history in fit_stack(base, [run(r=2), run(r=5)], progress=False):
        ml.save_adapter(history.final, tmp_path / "adapter")
        loaded = ml.load_adapter(tmp_path / "adapter", base.params)
        for name, array in history.final.arrays().items():
            np.testing.assert_array_equal(loaded.arrays()[name], array)
        merged = ml.Model(base.config, ml.merge(base.params, history.final))
        assert ml.evaluate(merged, VALIDATION) == pytest.approx(history.validation_loss[-1], rel=1e-12)
        shutil.rmtree(tmp_path / "adapter")


def test_the_base_is_not_written_to():
    base = plain.random_model(dtype="float64")
    before = fingerprint(base.params)
    fit_stack(base, [run(), run(lora_dropout=0.2)], progress=False)
    assert fingerprint(base.params) == before


REFUSED = {
    "got none": [],
    "batch_size: got": [run(), run(config=dataclasses.replace(CONFIG, batch_size=2))],
    "evaluate_every: got": [run(), run(config=dataclasses.replace(CONFIG, evaluate_every=1))],
    "weight_decay: got": [run(), run(config=dataclasses.replace(CONFIG, weight_decay=0.2))],
    "steps: got": [run(), run(config=dataclasses.replace(CONFIG, steps=3))],
    "train: got targets both": [run(), run(data=dataset(probabilities=True))],
    "takes one target_modules": [run(), run(target_modules=["q_proj"])],
    r"runs\[1\]\.seed: got -1": [run(), run(seed=-1)],
    r"runs\[0\]\.train: got 1 sequences with nothing to predict": [run(data=TRAIN._replace(
        targets=np.where(np.arange(8)[:, None] == 3, -1, TRAIN.targets)))],
}  # fmt: skip
WRONG_KINDS = {
    r"runs\[1\]: got a tuple, takes a FineTuning": [run(), (LORA, TRAIN, VALIDATION, CONFIG, 0)],
    r"runs\[1\]\.lora: got None, takes a LoraConfig": [run(), FineTuning(None, TRAIN, VALIDATION, CONFIG, 0)],
    r"runs\[0\]\.lora: got a dict": [FineTuning({"r": 2}, TRAIN, VALIDATION, CONFIG, 0)],
    r"runs\[0\]\.config: got a dict": [FineTuning(LORA, TRAIN, VALIDATION, {"steps": 1}, 0)],
    r"runs\[0\]\.train: got a list": [FineTuning(LORA, [TRAIN], VALIDATION, CONFIG, 0)],
    r"runs\[0\]\.validation\.targets: got a list": [
        FineTuning(LORA, TRAIN, VALIDATION._replace(targets=VALIDATION.targets.tolist()), CONFIG, 0)],
    "runs: got 3, takes a list of FineTuning": 3,
}  # fmt: skip


@pytest.mark.parametrize(("says", "runs"), REFUSED.items(), ids=REFUSED)
def test_refused_stacks(says, runs):
    with pytest.raises(ValueError, match=says):
        fit_stack(BASES["float64"], runs, progress=False)


@pytest.mark.parametrize(("says", "runs"), WRONG_KINDS.items(), ids=WRONG_KINDS)
def test_an_argument_of_another_kind_is_named(says, runs):
    with pytest.raises(TypeError, match=f"^{says}"):
        fit_stack(BASES["float64"], runs, progress=False)


def test_what_is_no_base_and_no_watch_is_named():
    with pytest.raises(TypeError, match=r"^base: got a dict, takes a Model"):
        fit_stack(BASES["float64"].params, [run()])
    with pytest.raises(TypeError, match=r"^watch: got 'often', takes a function of"):
        fit_stack(BASES["float64"], [run()], watch="often")


def test_runs_may_come_from_a_generator():
    base = BASES["float64"]
    assert_all_same(base, [run()], fit_stack(base, (one for one in [run()]), progress=False))


@pytest.mark.parametrize(("one", "other"), [("uint8", "uint8"), ("int8", "int64"), ("uint64", "int64")])
def test_integers_of_every_dtype_can_be_padded(one, other):
    """-1, nothing to predict, is no number of an unsigned dtype, nor is every token one of int8."""
    base = BASES["float64"]
    runs = []
    for i, (dtype, length) in enumerate([(one, 5), (other, 7)]):
        whole = dataset(i, 8, length)
        full = np.where(whole.targets < 0, 0, whole.targets)
        runs.append(run(data=ml.Dataset(whole.inputs.astype(dtype), full.astype(dtype))))
    assert_all_same(base, runs, fit_stack(base, runs, progress=False), 1e-10)


def test_a_stack_of_adapters_is_none_and_of_nothing_is_refused():
    """It is for training alone: saved, merged or evaluated is one of its members."""
    base = BASES["float64"]
    stacked = stack_adapters([ml.init_adapter(base.params, LORA, np.random.default_rng(i)) for i in range(2)])
    for use in (
        lambda: ml.merge(base.params, stacked),
        lambda: ml.evaluate(base, VALIDATION, stacked),
        lambda: ml.weight_changes(stacked),
    ):
        with pytest.raises(TypeError, match=r"^adapter: got an AdapterStack, takes an Adapter"):
            use()
    with pytest.raises(ValueError, match=r"^adapters: got none"):
        stack_adapters([])
    with pytest.raises(TypeError, match=r"^adapters\[1\]: got a LoraConfig, takes an Adapter"):
        stack_adapters([stacked.member(0), LORA])


def test_adapters_of_different_bases_are_refused():
    other = plain.random_model(seed=9)
    pair = [ml.init_adapter(base.params, LORA, np.random.default_rng(0)) for base in (BASES["float64"], other)]
    with pytest.raises(ValueError, match="stack"):
        stack_adapters(pair)


MUTANTS = {
    "all runs at the first one's rate": ("np.array(rates)[:, None]", "np.array(rates[:1])[:, None]"),
    "one dropout for all": ("Draw(s.dropout, shape)", "Draw(streams[0].dropout, shape)"),
    "padding of targets counted": ("padding = -1 if", "padding = 0 if"),
    "all runs see the first one's batches": ("if all(run.train is", "if any(run.train is"),
    "dropout drawn for the padded batch": (
        "[part.shape for part in inputs]",
        "[_padded(inputs).shape[1:]] * len(inputs)",
    ),
}


@pytest.mark.parametrize(("right", "wrong"), MUTANTS.values(), ids=MUTANTS)
def test_planted_bugs_are_noticed(right, wrong, monkeypatch):
    source = inspect.getsource(stack)
    assert source.count(right) == 1, right
    bugged = dict(vars(stack))
    exec(source.replace(right, wrong), bugged)
    rates = [dataclasses.replace(CONFIG, learning_rate=rate) for rate in (1e-3, 3e-2)]
    runs = [run(seed=i, config=rates[i], lora_dropout=0.3, data=dataset(i, 8, 5 + 2 * i)) for i in (0, 1)]
    base = BASES["float64"]
    assert_all_same(base, runs, fit_stack(base, runs, progress=False), 1e-10)
    runs = [bugged["FineTuning"](**vars(one)) for one in runs]
    found = bugged["fit_stack"](base, runs, progress=False)
    with pytest.raises(AssertionError):
        assert_all_same(base, runs, found, 1e-10)
