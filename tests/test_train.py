"""Training: what may change and what may not, what a seed fixes, what is measured, and how it fails."""

import dataclasses
import math
import pickle
import re

import numpy as np
import pytest
from blas import blas_threads
from hypothesis import given, settings
from hypothesis import strategies as st

import minilora as ml
from minilora import evaluation
from minilora import train as train_module
from minilora.dataset import Dataset, batches, check_dataset, evaluation_batches
from minilora.optim import scheduled
from minilora.train import Trainable
from minilora.trees import cast, fingerprint, leaves, nested

CONFIG = ml.ModelConfig(vocab_size=11, context_length=7, d_model=6, n_heads=2, n_layers=2, d_ff=5)  # no two sizes alike
LORA = ml.LoraConfig(r=3, lora_alpha=12, target_modules=["q_proj", "v_proj"])
LAYER_NORMS = {f"layers.{i}.{name}" for i in (0, 1) for name in ("input_layernorm", "post_attention_layernorm")}
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj")


def make_base(dtype="float32"):
    """A model with every array away from its start, so that no bias is zero and no layer norm the identity."""
    rng = np.random.default_rng(5)
    config = dataclasses.replace(CONFIG, dtype=dtype)
    start = ml.init_params(config, rng)
    moved = {path: array + 0.3 * rng.standard_normal(array.shape) for path, array in leaves(start).items()}
    return ml.Model(config, cast(nested(moved), dtype))


def sequences(n, seed):
    """Counting modulo 11 from a random start in random steps: something that can be learned. Lengths 1 to 7."""
    rng = np.random.default_rng(seed)
    start, stride, length = rng.integers(0, 11, (n, 1)), rng.integers(1, 3, (n, 1)), rng.integers(1, 8, (n, 1))
    place = np.arange(8)
    tokens = (start + stride * place) % 11
    return Dataset(tokens[:, :-1], np.where(place[:-1] < length, tokens[:, 1:], -1))


BASE, TRAIN, VALIDATION = make_base(), sequences(23, 1), sequences(13, 2)


def fit(lora=LORA, base=BASE, train=TRAIN, validation=VALIDATION, seed=0, watch=None, **changes):
    """A short run; `changes` are TrainConfig fields."""
    fields = {"batch_size": 5, "evaluate_every": 4, "learning_rate": 0.02} | changes
    if "epochs" not in fields:
        fields.setdefault("steps", 8)
    return ml.fit(base, lora, train, validation, ml.TrainConfig(**fields), seed, progress=False, watch=watch)


def arrays_of(trained):
    """{name: array} of what a run returns, Adapter or Model."""
    return leaves(trained.params) if isinstance(trained, ml.Model) else trained.arrays()


def same_bits(a, b):
    """The same names with the same bytes."""
    return a.keys() == b.keys() and all(a[name].tobytes() == b[name].tobytes() for name in a)


# --- what changes and what does not ---


@pytest.mark.parametrize("bias", ["none", "all", "lora_only", "full fine-tuning"])
def test_the_base_is_unchanged_in_every_bit(bias):
    base = make_base()
    before = {path: array.copy() for path, array in leaves(base.params).items()}
    lora = None if bias == "full fine-tuning" else dataclasses.replace(LORA, bias=bias, lora_dropout=0.3)
    history = fit(lora, base)
    assert history.train_loss[-1] != history.train_loss[0]  # something trained
    assert same_bits(leaves(base.params), before)
    for array in leaves(base.params).values():  # and now any write at all raises
        array.setflags(write=False)
    fit(lora, base)
    assert not any(np.shares_memory(a, b) for a in arrays_of(history.final).values() for b in before.values())


def paths(modules, layers=(0, 1)):
    return {f"layers.{i}.{name}" for i in layers for name in modules.split()}


# LoraConfig fields -> the modules that get factors, the modules whose bias trains
WHAT_TRAINS = [
    ({"target_modules": ["q_proj", "v_proj"]}, paths("q_proj v_proj"), set()),
    ({"target_modules": ["k_proj"], "bias": "lora_only"}, paths("k_proj"), paths("k_proj")),
    ({"target_modules": ["o_proj", "down_proj"], "layers_to_transform": -1, "bias": "lora_only"},
     paths("o_proj down_proj", [1]), paths("o_proj down_proj", [1])),
    ({"target_modules": r".*\.0\..*_proj", "exclude_modules": ["up_proj"]},
     paths("q_proj k_proj v_proj o_proj down_proj", [0]), set()),
    ({"target_modules": ["up_proj"], "layers_to_transform": [0], "bias": "all"},
     paths("up_proj", [0]), paths(" ".join(LINEAR)) | LAYER_NORMS | {"norm"}),
    ({"target_modules": "all-linear", "bias": "all", "init_lora_weights": "zero_A"},
     paths(" ".join(LINEAR)), paths(" ".join(LINEAR)) | LAYER_NORMS | {"norm"}),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "factors", "biases"), WHAT_TRAINS)
def test_what_trains_and_what_does_not_are_a_partition(fields, factors, biases):
    """The trained arrays are those of the specification and all move; every other array of the model stays, in bits."""
    start = {}
    lora = ml.LoraConfig(r=3, lora_dropout=0.1, **fields)
    # A key bias shifts all scores of a query alike, so softmax does not see it and it has no gradient: decay moves it.
    history = fit(lora, weight_decay=0.1, watch=lambda step, trained: start.setdefault("trained", trained))
    trained = {f"{p}.{name}" for p in factors for name in ("lora_A", "lora_B")} | {f"{p}.bias" for p in biases}
    before, after = arrays_of(start["trained"]), arrays_of(history.final)
    assert after.keys() == before.keys() == trained
    assert all((after[name] != before[name]).any() for name in trained)

    base, merged = leaves(BASE.params), leaves(ml.merge(BASE.params, history.final))
    may_change = {f"{p}.weight" for p in factors} | {f"{p}.bias" for p in biases}
    assert merged.keys() == base.keys() >= may_change
    changed = {path for path in base if merged[path].tobytes() != base[path].tobytes()}
    assert changed == may_change


def test_full_fine_tuning_trains_every_array():
    history = fit(lora=None, weight_decay=0.1)
    before, after = leaves(BASE.params), leaves(history.final.params)
    assert after.keys() == before.keys()
    assert all((after[path] != before[path]).any() for path in before)
    assert isinstance(history.best, ml.Model)
    assert history.best.config == BASE.config


@pytest.mark.parametrize("lora", [dataclasses.replace(LORA, target_modules="all-linear", bias="all"), None])
def test_the_gradient_vector_is_the_derivative_along_any_direction(lora):
    """So each entry of the vector is the derivative for the array that it is laid out as."""
    base, rng = make_base("float64"), np.random.default_rng(0)
    start = base if lora is None else ml.init_adapter(base.params, lora, rng)
    trainable = Trainable(base, start)
    vector = trainable.vector + 0.1 * rng.standard_normal(trainable.vector.shape)
    _, gradient = trainable.loss_and_gradient(vector, TRAIN, None)
    for place in trainable.places.values():
        direction = np.zeros_like(vector)
        direction[place] = rng.standard_normal(direction[place].shape)
        above, below = (trainable.loss_and_gradient(vector + h * direction, TRAIN, None)[0] for h in (1e-6, -1e-6))
        assert (above - below) / 2e-6 == pytest.approx(gradient @ direction, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("lora", [dataclasses.replace(LORA, lora_dropout=0.2, bias="all"), None])
def test_the_dtype_of_the_base_stays(dtype, lora):
    history = fit(lora, make_base(dtype))
    for trained in (history.best, history.final):
        assert {array.dtype for array in arrays_of(trained).values()} == {np.dtype(dtype)}


# --- it learns ---


@pytest.mark.parametrize(("lora", "left"), [(LORA, 0.9), (None, 0.5)])
def test_training_reduces_the_loss(lora, left):
    """LoRA by less: it cannot make much of a base that knows nothing. Seen: 0.77 and 0.12 of the start are left."""
    history = fit(lora, steps=150, evaluate_every=50)
    assert history.train_loss[-1] < left * history.train_loss[0]
    assert history.best_loss < left * history.validation_loss[0]


# --- what a seed fixes ---


def test_a_seed_fixes_every_bit_of_a_run():
    lora = dataclasses.replace(LORA, lora_dropout=0.3, bias="lora_only")
    one, same, other = (fit(lora, seed=seed) for seed in (7, 7, 8))
    for field in ("steps", "train_loss", "validation_loss", "best_step", "stopped_early"):
        assert getattr(one, field) == getattr(same, field)
    for name in ("best", "final"):
        assert same_bits(arrays_of(getattr(one, name)), arrays_of(getattr(same, name)))
        assert not same_bits(arrays_of(getattr(one, name)), arrays_of(getattr(other, name)))
    assert one.train_loss != other.train_loss


def spy_on_batches(monkeypatch):
    """A list to which every run adds the list of its batches."""
    runs, original = [], train_module.batches

    def spied(*arguments):
        runs.append([])
        for batch in original(*arguments):
            runs[-1].append(batch)
            yield batch

    monkeypatch.setattr(train_module, "batches", spied)
    return runs


def test_runs_that_share_a_seed_see_the_same_batches_whatever_they_train(monkeypatch):
    """Else a comparison of ranks would compare orders of the data too."""
    runs = spy_on_batches(monkeypatch)
    for lora in (LORA, ml.LoraConfig(r=1, lora_dropout=0.5, target_modules="all-linear", bias="all"), None):
        fit(lora, seed=3)
    fit(LORA, seed=4)
    one, *others, of_another_seed = [[batch.inputs.tolist() for batch in run] for run in runs]
    assert len(one) == 8
    assert all(other == one for other in others)
    assert of_another_seed != one


def test_dropout_does_not_move_the_start_of_the_factors():
    starts = []
    for p in (0.0, 0.4):
        watch = lambda step, trained: starts.append(trained) if step == 0 else None  # noqa: E731
        fit(dataclasses.replace(LORA, lora_dropout=p), watch=watch)
    assert same_bits(arrays_of(starts[0]), arrays_of(starts[1]))


# --- steps, epochs, batches ---


def numbered(n):
    """n sequences of one token, each its own number."""
    column = np.arange(n)[:, None]
    return Dataset(column, column)


@given(n=st.integers(1, 40), batch_size=st.integers(1, 12), epochs=st.integers(1, 4), seed=st.integers(0, 99))
def test_an_epoch_shows_every_sequence_once(n, batch_size, epochs, seed):
    """All batches are full but the last of an epoch, which is what is left."""
    n_steps = ml.TrainConfig(epochs=epochs, batch_size=batch_size).total_steps(n)
    shown = [batch.inputs[:, 0] for batch in batches(numbered(n), batch_size, n_steps, np.random.default_rng(seed))]
    assert n_steps == len(shown) == epochs * math.ceil(n / batch_size)
    per_epoch = len(shown) // epochs
    for i in range(epochs):
        *full, last = epoch = shown[i * per_epoch : (i + 1) * per_epoch]
        assert sorted(np.concatenate(epoch)) == list(range(n))
        assert all(len(batch) == batch_size for batch in full)
        assert 1 <= len(last) == n - batch_size * len(full)


def test_each_epoch_has_its_own_order():
    first, second = (batch.inputs.tolist() for batch in batches(numbered(50), 50, 2, np.random.default_rng(0)))
    assert sorted(first) == sorted(second) == numbered(50).inputs.tolist()
    assert first != second != numbered(50).inputs.tolist() != first


def test_inputs_and_targets_stay_together_and_are_cut_to_the_longest():
    dataset = sequences(23, 1)
    for batch in batches(dataset, 4, 12, np.random.default_rng(0)):
        length = batch.inputs.shape[1]
        assert (batch.targets >= 0).any(0)[-1]  # the last column has something to predict
        for inputs, targets in zip(batch.inputs, batch.targets, strict=True):
            assert (
                (dataset.inputs[:, :length] == inputs).all(1) & (dataset.targets[:, :length] == targets).all(1)
            ).any()


@pytest.mark.parametrize(("asked", "updates"), [({"steps": 7}, 7), ({"epochs": 2}, 10), ({"epochs": 1}, 5)])
def test_steps_or_epochs_say_how_many_updates(monkeypatch, asked, updates):
    """23 sequences in batches of 5 are 5 updates an epoch, the last of 3 sequences."""
    runs = spy_on_batches(monkeypatch)
    history = fit(**asked)
    sizes = [len(batch.inputs) for batch in runs[0]]
    assert sizes == ([5, 5, 5, 5, 3] * 2)[:updates]
    assert history.steps[-1] == updates


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_the_optimizer_gets_its_settings_and_the_schedule(monkeypatch, schedule):
    calls, original = [], ml.AdamW.update_in_place

    def spied(self, parameters, gradient, state, learning_rate):
        calls.append((self, learning_rate))
        return original(self, parameters, gradient, state, learning_rate)

    monkeypatch.setattr(ml.AdamW, "update_in_place", spied)
    optimizer = {"learning_rate": 0.03, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.2}
    fit(steps=9, schedule=schedule, warmup_steps=2, **optimizer)
    assert {adamw for adamw, _ in calls} == {ml.AdamW(**optimizer)}
    assert [lr for _, lr in calls] == [scheduled(schedule, 0.03, step, 9, 2) for step in range(9)]


# --- what is measured ---


@pytest.mark.parametrize(
    ("steps", "every", "expected"),
    [(7, 3, (0, 3, 6, 7)), (6, 3, (0, 3, 6)), (2, 50, (0, 2)), (3, 1, (0, 1, 2, 3)), (1, 1, (0, 1))],
)
def test_the_start_and_the_end_are_always_evaluated_and_once(steps, every, expected):
    watched = []
    history = fit(steps=steps, evaluate_every=every, watch=lambda step, trained: watched.append((step, trained)))
    assert history.steps == tuple(step for step, _ in watched) == expected
    assert len(history.train_loss) == len(history.validation_loss) == len(expected)
    measured = [(ml.evaluate(BASE, TRAIN, a), ml.evaluate(BASE, VALIDATION, a)) for _, a in watched]
    assert measured == list(zip(history.train_loss, history.validation_loss, strict=True))


@pytest.mark.parametrize("lora", [dataclasses.replace(LORA, lora_dropout=0.4, target_modules="all-linear"), None])
def test_the_losses_are_measured_in_evaluation_mode(lora):
    """The loss that the run recorded is the one that `evaluate` finds, each time and to the bit: no dropout."""
    history = fit(lora)
    arguments = (history.final, TRAIN) if lora is None else (BASE, TRAIN, history.final)
    assert history.train_loss[-1] == ml.evaluate(*arguments) == ml.evaluate(*arguments)
    assert history.train_loss[0] == ml.evaluate(BASE, TRAIN)  # the adapter starts at the base
    if lora is not None:
        dry = dataclasses.replace(history.final, config=dataclasses.replace(lora, lora_dropout=0))
        assert history.train_loss[-1] == ml.evaluate(BASE, TRAIN, dry)


def test_dropout_is_on_in_training():
    """Otherwise the test above would hold for a run that never drops anything."""
    dropped = fit(dataclasses.replace(LORA, lora_dropout=0.4))
    assert not same_bits(arrays_of(dropped.final), arrays_of(fit(LORA).final))


def overfitting_run(lora=LORA, **changes):
    """Random labels: the validation loss falls to that of guessing, then rises."""
    noise = np.random.default_rng(4)
    train = TRAIN._replace(targets=np.where(TRAIN.targets >= 0, noise.integers(0, 11, TRAIN.targets.shape), -1))
    other = VALIDATION._replace(targets=noise.permutation(VALIDATION.targets))
    fields = {"learning_rate": 0.1, "steps": 60, "evaluate_every": 3} | changes
    return other, fit(lora, train=train, validation=other, **fields)


@pytest.mark.parametrize("lora", [LORA, None])
def test_the_best_is_that_of_the_best_step(lora):
    validation, history = overfitting_run(lora)
    assert 0 < history.best_step < history.steps[-1]  # else nothing is told apart
    assert history.best_loss == min(history.validation_loss) < history.validation_loss[-1]
    assert history.steps[history.validation_loss.index(history.best_loss)] == history.best_step
    for trained, loss in ((history.best, history.best_loss), (history.final, history.validation_loss[-1])):
        found = ml.evaluate(trained, validation) if lora is None else ml.evaluate(BASE, validation, trained)
        assert found == loss
    assert history.overfit == history.validation_loss[-1] - min(history.validation_loss) > 0


def test_patience_stops_early_and_says_so():
    _, full = overfitting_run()
    _, stopped = overfitting_run(patience=3)
    losses = full.validation_loss
    best_until = np.minimum.accumulate(losses)
    since_best = [i - losses.index(best) for i, best in enumerate(best_until)]
    n = since_best.index(3) + 1  # evaluations until three in a row brought nothing better
    assert 4 <= n < len(losses)
    assert (stopped.steps, stopped.validation_loss) == (full.steps[:n], losses[:n])
    assert (stopped.stopped_early, full.stopped_early) == (True, False)
    assert stopped.best_step == full.steps[losses.index(best_until[n - 1])]


def test_a_run_that_did_all_its_steps_did_not_stop_early(monkeypatch):
    """Patience may run out at the very last evaluation; there is nothing left to stop then."""
    losses = iter([(3.0, 3.0), (2.0, 2.0), (2.5, 2.5)])
    monkeypatch.setattr(train_module.Evaluator, "losses", lambda *arguments: next(losses))
    history = fit(steps=8, patience=1)
    assert (history.steps, history.validation_loss) == ((0, 4, 8), (3.0, 2.0, 2.5))
    assert not history.stopped_early


@pytest.mark.parametrize(("steps", "every", "most"), [(8, 4, 1), (9, 4, 2), (60, 3, 19), (4, 4, 0), (3, 50, 0)])
def test_patience_that_can_never_run_out_is_refused(steps, every, most):
    """The start is always better than nothing, and at the end there is nothing left to stop."""
    if most:
        assert not fit(steps=steps, evaluate_every=every, patience=most).stopped_early
    with pytest.raises(ValueError, match=f"^patience: got {most + 1}, takes None or at most the {most} evaluations"):
        ml.TrainConfig(steps=steps, evaluate_every=every, patience=most + 1)


@pytest.mark.parametrize(("epochs", "updates"), [(1, 5), (3, 15)])
def test_with_epochs_the_settings_are_held_to_the_steps_once_these_are_known(epochs, updates):
    """23 sequences in batches of 5 are 5 updates an epoch."""
    for fine in ({"warmup_steps": updates - 1}, {"patience": updates - 1, "evaluate_every": 1}):
        fit(epochs=epochs, **fine)
    with pytest.raises(ValueError, match=f"^warmup_steps: got {updates}, takes fewer than the {updates} steps"):
        fit(epochs=epochs, warmup_steps=updates)
    with pytest.raises(ValueError, match=f"^patience: got {updates}, takes None or at most the {updates - 1} eval"):
        fit(epochs=epochs, patience=updates, evaluate_every=1)


def test_evaluation_size_takes_the_first_sequences_of_each_set():
    history = fit(evaluation_size=6)
    train, validation = (Dataset(d.inputs[:6], d.targets[:6]) for d in (TRAIN, VALIDATION))
    assert history.train_loss[-1] == ml.evaluate(BASE, train, history.final) != ml.evaluate(BASE, TRAIN, history.final)
    assert history.validation_loss[-1] == ml.evaluate(BASE, validation, history.final)
    assert fit(evaluation_size=1000).train_loss == fit().train_loss


def test_evaluation_size_may_not_leave_nothing_to_predict():
    silent = VALIDATION._replace(targets=np.where(np.arange(13)[:, None] < 2, -1, VALIDATION.targets))
    fit(validation=silent, evaluation_size=3)
    with pytest.raises(ValueError, match=r"^evaluation_size: got 2, which leaves nothing to predict in validation$"):
        fit(validation=silent, evaluation_size=2)


# --- evaluate ---


def token_losses(model, dataset):
    """-log softmax(logits)[target] of every token with a target, written out."""
    logits = ml.forward(model.params, dataset.inputs, model.config).astype("float64")
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    losses = -np.take_along_axis(log_p, np.maximum(dataset.targets, 0)[..., None], -1)[..., 0]
    return losses[dataset.targets >= 0]


@pytest.mark.parametrize("n", [1, 128, 129, 300])
def test_evaluate_is_the_mean_over_tokens(n):
    """Over tokens, not over sequences or evaluation batches, of which these are one to three."""
    base, dataset = make_base("float64"), sequences(n, 3)
    assert len(evaluation_batches(dataset)) == math.ceil(n / 128)
    assert ml.evaluate(base, dataset) == pytest.approx(token_losses(base, dataset).mean(), rel=1e-12)


def test_evaluate_takes_probabilities_as_targets():
    base = make_base("float64")
    targets = np.where(VALIDATION.targets[..., None] == np.arange(11), 1.0, 0.0)
    certain = Dataset(VALIDATION.inputs, targets)
    assert ml.evaluate(base, certain) == pytest.approx(ml.evaluate(base, VALIDATION), rel=1e-12)

    logits = ml.forward(base.params, VALIDATION.inputs, base.config)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    counted = VALIDATION.targets >= 0
    entropy = -(p * np.log(p)).sum(-1)[counted].mean()
    own = Dataset(VALIDATION.inputs, p * counted[..., None])
    assert ml.evaluate(base, own) == pytest.approx(entropy, rel=1e-12)
    other = make_base("float64")
    other.params["norm"]["bias"] += 0.5
    assert ml.evaluate(other, own) > entropy  # Gibbs


def test_training_on_probabilities_approaches_the_distribution():
    base = make_base()
    uniform = np.full((*TRAIN.targets.shape, 11), 1 / 11)
    history = fit(None, base, Dataset(TRAIN.inputs, uniform), Dataset(TRAIN.inputs, uniform), steps=150)
    assert history.train_loss[0] - math.log(11) > 0.1
    assert 0 <= history.train_loss[-1] - math.log(11) < 0.01


def test_an_adapter_for_another_base_is_refused():
    adapter, other = fit().final, make_base()
    other.params["norm"]["bias"][0] += 1e-3
    with pytest.raises(ValueError, match="fingerprint"):
        ml.evaluate(other, VALIDATION, adapter)
    with pytest.raises(ValueError, match="fingerprint"):  # merged into it already
        ml.evaluate(ml.Model(CONFIG, ml.merge(BASE.params, adapter)), VALIDATION, adapter)


# --- settings and data that are refused ---

BAD_SETTINGS = [
    ({"steps": 0}, "steps"), ({"steps": 1.5}, "steps"), ({"steps": True}, "steps"), ({"steps": None}, "steps, epochs"),
    ({"epochs": 2}, "steps, epochs"), ({"steps": None, "epochs": 0}, "epochs"),
    ({"batch_size": 0}, "batch_size"), ({"batch_size": "8"}, "batch_size"), ({"batch_size": None}, "batch_size"),
    ({"learning_rate": 0}, "learning_rate"), ({"learning_rate": -1e-3}, "learning_rate"),
    ({"learning_rate": math.inf}, "learning_rate"), ({"learning_rate": math.nan}, "learning_rate"),
    ({"learning_rate": "1e-3"}, "learning_rate"), ({"learning_rate": 10**400}, "learning_rate"),
    ({"schedule": "cosin"}, "schedule"), ({"schedule": None}, "schedule"),
    ({"warmup_steps": -1}, "warmup_steps"), ({"warmup_steps": 0.1}, "warmup_steps"),
    ({"betas": (0.9, 1.0)}, "betas"), ({"betas": (-0.1, 0.9)}, "betas"), ({"betas": 0.9}, "betas"),
    ({"betas": (0.9,)}, "betas"), ({"eps": -1e-8}, "eps"), ({"weight_decay": -0.1}, "weight_decay"),
    ({"weight_decay": math.nan}, "weight_decay"), ({"evaluate_every": 0}, "evaluate_every"),
    ({"evaluation_size": 0}, "evaluation_size"), ({"patience": 0}, "patience"), ({"patience": 2.0}, "patience"),
    # each fine by itself, and together without effect
    ({"warmup_steps": 10}, "warmup_steps"), ({"warmup_steps": 10**9}, "warmup_steps"),
    ({"patience": 3}, "patience"), ({"evaluate_every": 2, "patience": 5}, "patience"),
    ({"learning_rate": 0.1, "weight_decay": 10.0}, "learning_rate, weight_decay"),
    ({"learning_rate": 2, "weight_decay": 1e3}, "learning_rate, weight_decay"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "named"), BAD_SETTINGS, ids=lambda x: str(x)[:40])
def test_a_bad_setting_is_named(changes, named):
    with pytest.raises(ValueError, match=f"^{named}: got .* takes "):
        ml.TrainConfig(**{"steps": 10} | changes)


@pytest.mark.parametrize("seed", [-1, 1.5, "0", None])
def test_a_bad_seed_is_named(seed):
    """None too: it would make a run that nobody can repeat."""
    with pytest.raises(ValueError, match=r"seed: got .* takes"):
        fit(seed=seed)


def test_an_unknown_setting_is_refused():
    with pytest.raises(TypeError, match="batchsize"):
        ml.TrainConfig(steps=1, batchsize=4)


def test_a_config_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ml.TrainConfig(steps=1).steps = 2


PROBABILITIES = np.full((13, 7, 11), 1 / 11)
BAD_DATA = {
    "no sequences": lambda i, t: (i[:0], t[:0]),
    "token above the vocabulary": lambda i, t: (i + 1, t),
    "token below 0": lambda i, t: (i - 1, t),
    "inputs not integers": lambda i, t: (i * 1.0, t),
    "too long": lambda i, t: (np.hstack([i, i]), np.hstack([t, t])),
    "target above the vocabulary": lambda i, t: (i, t + 1),
    "target below -1": lambda i, t: (i, t - 1),
    "targets not integers": lambda i, t: (i, t * 1.0),
    "targets boolean": lambda i, t: (i, t > 0),
    "fewer targets": lambda i, t: (i, t[:-1]),
    "shorter targets": lambda i, t: (i, t[:, :-1]),
    "nothing to predict": lambda i, t: (i, np.full_like(t, -1)),
    "probabilities all zero": lambda i, t: (i, 0 * PROBABILITIES),
    "probabilities below 0": lambda i, t: (i, -PROBABILITIES),
    "probabilities NaN": lambda i, t: (i, np.nan * PROBABILITIES),
    "probabilities that sum to 2": lambda i, t: (i, 2 * PROBABILITIES),
    "probabilities of another vocabulary": lambda i, t: (i, PROBABILITIES[..., :-1]),
    "one sequence without its axis": lambda i, t: (i[0], t[0]),
    "an axis too many": lambda i, t: (i[None], t[None]),
    "no tokens": lambda i, t: (i[:, :0], t[:, :0]),
    "tokens as objects": lambda i, t: (i.astype(object), t),
    "targets as objects": lambda i, t: (i, t.astype(object)),
    "probabilities infinite": lambda i, t: (i, np.inf * PROBABILITIES),
    "probabilities as complex numbers": lambda i, t: (i, 1j * PROBABILITIES),
    "a number for all": lambda i, t: (np.array(3), np.array(3)),
}


@pytest.mark.parametrize("bad", BAD_DATA)
@pytest.mark.parametrize("which", ["train", "validation"])
def test_bad_data_is_refused_and_named(which, bad):
    full = sequences(13, 9)._replace(inputs=np.tile(np.arange(7), (13, 1)) + 4)  # 4 ... 10: both ends are close
    full.inputs[0, 0], full.targets[0, 0] = 0, 10
    fit(**{which: full})  # good as it is
    with pytest.raises(ValueError, match=which):
        fit(**{which: Dataset(*BAD_DATA[bad](*full))})


def test_evaluate_refuses_bad_data_too():
    with pytest.raises(ValueError, match="dataset: got no sequences"):
        ml.evaluate(BASE, Dataset(TRAIN.inputs[:0], TRAIN.targets[:0]))


NOT_DATASETS = {
    "lists": (ml.Dataset(TRAIN.inputs.tolist(), TRAIN.targets.tolist()), r"\.inputs: got a list, takes a NumPy array"),
    "a list of targets": (ml.Dataset(TRAIN.inputs, TRAIN.targets.tolist()), r"\.targets: got a list, takes a NumPy"),
    "a pair": (tuple(TRAIN), r": got a tuple, takes a Dataset\(inputs, targets\)"),
    "a list of datasets": ([TRAIN, VALIDATION], ": got a list, takes a Dataset"),
    "inputs alone": (TRAIN.inputs, ": got an array, takes a Dataset"),
    "none": (None, ": got None, takes a Dataset"),
}


@pytest.mark.parametrize("bad", NOT_DATASETS)
def test_what_is_no_dataset_is_refused_wherever_one_is_taken(bad):
    data, says = NOT_DATASETS[bad]
    for name in ("train", "validation"):
        with pytest.raises(TypeError, match=f"^{name}{says}"):
            fit(**{name: data})
    with pytest.raises(TypeError, match=f"^dataset{says}"):
        ml.evaluate(BASE, data)


def test_every_training_sequence_needs_a_target():
    """A batch of none would be moved by momentum alone. To evaluate on, such a sequence counts for nothing."""
    silent = TRAIN._replace(targets=np.where(np.isin(np.arange(23), [4, 9])[:, None], -1, TRAIN.targets))
    with pytest.raises(
        ValueError, match=r"^train: got 2 sequences with nothing to predict, the first at index 4, takes"
    ):
        fit(train=silent, batch_size=1)
    others = np.delete(np.arange(23), [4, 9])
    kept = ml.Dataset(TRAIN.inputs[others], TRAIN.targets[others])
    assert ml.evaluate(BASE, silent) == pytest.approx(ml.evaluate(BASE, kept), rel=1e-6)
    fit(validation=silent)


ADAPTER = ml.init_adapter(BASE.params, LORA, np.random.default_rng(0))
SETTINGS = ml.TrainConfig(steps=2)
WRONG_KINDS = {
    "params as base": (dict(base=BASE.params), "base: got a dict, takes a Model"),
    "no base": (dict(base=None), "base: got None, takes a Model"),
    "an adapter as base": (dict(base=ADAPTER), "base: got an Adapter, takes a Model"),
    "a model of a dict": (dict(base=ml.Model(vars(CONFIG), BASE.params)), "base.config: got a dict, takes a Model"),
    "a model in a model": (dict(base=ml.Model(CONFIG, BASE)), "base.params: got a Model, takes the nested dict"),
    "a dict as lora": (dict(lora={"r": 3}), "lora: got a dict, takes a LoraConfig"),
    "an adapter as lora": (dict(lora=ADAPTER), "lora: got an Adapter, takes a LoraConfig"),
    "a dict as config": (dict(config={"steps": 2}), "config: got a dict, takes a TrainConfig"),
    "a LoraConfig as config": (dict(config=LORA), "config: got a LoraConfig, takes a TrainConfig"),
    "watch": (dict(watch=3), "watch: got 3, takes a function of (step, trained), or None"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG_KINDS)
def test_an_argument_of_another_kind_is_named(wrong):
    changed, says = WRONG_KINDS[wrong]
    arguments = dict(base=BASE, lora=LORA, train=TRAIN, validation=VALIDATION, config=SETTINGS, seed=0, progress=False)
    ml.fit(**arguments)
    with pytest.raises(TypeError, match=f"^{re.escape(says)}"):
        ml.fit(**arguments | changed)


def test_a_model_whose_arrays_are_not_those_of_its_config_is_refused():
    for broken in (CONFIG.__class__(), dataclasses.replace(CONFIG, n_layers=1), dataclasses.replace(CONFIG, d_ff=7)):
        for use in (lambda model: fit(base=model), lambda model: ml.evaluate(model, TRAIN)):
            with pytest.raises(ValueError, match=r"^(base|model)\.params: "):
                use(ml.Model(broken, BASE.params))


def test_evaluate_names_an_argument_of_another_kind():
    """After full fine-tuning `history.best` is a Model, which is evaluated by itself."""
    trained = fit(lora=None).best
    with pytest.raises(TypeError, match=r"^adapter: got a Model, takes an Adapter \(a Model, .* is used by itself"):
        ml.evaluate(BASE, VALIDATION, adapter=trained)
    with pytest.raises(TypeError, match=r"^model: got a dict, takes a Model"):
        ml.evaluate(BASE.params, VALIDATION)
    with pytest.raises(TypeError, match=r"^adapter: got a LoraConfig, takes an Adapter"):
        ml.evaluate(BASE, VALIDATION, adapter=LORA)


@given(targets=st.lists(st.lists(st.integers(-3, 13), min_size=3, max_size=3), min_size=1, max_size=4))
@settings(max_examples=50)
def test_targets_pass_exactly_when_all_are_in_range_and_one_counts(targets):
    targets = np.array(targets)
    good = (targets >= -1).all() and (targets < 11).all() and (targets >= 0).any()
    try:
        check_dataset("train", Dataset(np.zeros_like(targets), targets), CONFIG)
    except ValueError:
        assert not good
    else:
        assert good


# --- divergence ---

# NumPy warns of the overflow before the loss is looked at.
overflows = pytest.mark.filterwarnings("ignore:(overflow|invalid value) encountered:RuntimeWarning")


@overflows
def test_divergence_says_when_and_with_what_and_keeps_what_was_measured():
    with pytest.raises(ml.DivergedError) as diverged:
        fit(None, steps=20, learning_rate=1e30, evaluate_every=1, seed=7)
    error = diverged.value
    assert error.step == 1  # the first update threw the parameters out
    for part in ("step 1", "learning_rate=1e+30", "seed=7", "batch_size=5", "a lower learning_rate"):
        assert part in str(error)
    assert error.measured[0] == (0, ml.evaluate(BASE, TRAIN), ml.evaluate(BASE, VALIDATION))


@overflows
def test_divergence_of_lora_states_the_lora_settings():
    base = make_base()
    base.params["layers"][1]["up_proj"]["weight"][0, 0] = np.nan
    with pytest.raises(ml.DivergedError, match=r"step 0, with LoraConfig\(r=3, lora_alpha=12.*seed=0") as diverged:
        fit(LORA, base)
    assert diverged.value.step == 0
    assert "learning_rate may" not in str(diverged.value)  # which had no part in it yet
    assert "look at the base" in str(diverged.value)


@overflows
def test_divergence_in_the_last_update_is_noticed():
    """Then only the last evaluation sees it; a History with a loss that is no number would go on as a result."""
    with pytest.raises(ml.DivergedError, match="step 1"):
        fit(None, steps=1, learning_rate=1e30)


def test_a_diverged_error_can_be_sent_between_processes():
    """Runs are parallel; an exception that cannot be unpickled takes the whole pool down with it."""
    error = ml.DivergedError(3, "settings", [(0, 1.5, 2.5)])
    back = pickle.loads(pickle.dumps(error))
    assert (str(back), back.step, back.measured) == (str(error), 3, [(0, 1.5, 2.5)])


# --- the machine ---


@pytest.mark.usefixtures("two_blas_threads")
def test_blas_is_held_to_one_thread_in_training_and_restored_after():
    inside = []
    fit(watch=lambda step, trained: inside.append(blas_threads()))
    assert inside == [{1}] * 3
    assert blas_threads() == {2}


@pytest.mark.usefixtures("two_blas_threads")
def test_blas_threads_are_restored_after_a_failure():
    def fail(step, trained):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(watch=fail)
    assert blas_threads() == {2}


@pytest.mark.usefixtures("two_blas_threads")
def test_evaluate_holds_blas_to_one_thread_too(monkeypatch):
    inside, original = [], evaluation.forward

    def spied(*arguments, **options):
        inside.append(blas_threads())
        return original(*arguments, **options)

    monkeypatch.setattr(evaluation, "forward", spied)
    ml.evaluate(BASE, VALIDATION)
    assert inside[0] == {1}
    assert blas_threads() == {2}


def test_nothing_is_printed_where_nobody_looks(capfd):
    """The progress bar is for terminals; a log file gets none of it."""
    ml.fit(BASE, LORA, TRAIN, VALIDATION, ml.TrainConfig(steps=2), 0)
    assert capfd.readouterr() == ("", "")


def test_the_adapter_is_bound_to_the_base_it_was_trained_on():
    assert fit().final.base == fit().best.base == fingerprint(BASE.params)
