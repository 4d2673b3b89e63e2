"""Adapter folders between PEFT and minilora, both ways: the same logits, unmerged and merged, or a refusal by name."""

import dataclasses
import json
import tempfile
import typing
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

import safetensors.numpy  # noqa: E402
from peft.tuners.lora.corda import preprocess_corda  # noqa: E402
from peft.tuners.lora.eva import initialize_lora_eva_weights  # noqa: E402
from peft.tuners.lora.loraga import preprocess_loraga  # noqa: E402

import minilora as ml  # noqa: E402
from minilora.conformance.peers.twin import Twin, arrays  # noqa: E402
from minilora.lora_config import BIAS_MODES, INITS  # noqa: E402
from minilora.model import LINEAR  # noqa: E402
from minilora.peft_format import (  # noqa: E402
    CHANGING_INITS,
    DESCRIPTIVE,
    NEUTRAL,
    PEFT_INITS,
    PLAIN_INITS,
    PREFIX,
)
from minilora.train import Streams  # noqa: E402
from minilora.trees import cast, leaves, nested  # noqa: E402

CONFIG = ml.ModelConfig(vocab_size=29, context_length=13, d_model=12, n_heads=3, n_layers=3, d_ff=20, dtype="float64")
TOKENS = np.random.default_rng(0).integers(0, 29, (4, 13))
TARGETS = np.random.default_rng(1).integers(0, 29, (4, 13))
TOLERANCE = {"float64": 1e-10, "float32": 1e-4}  # absolute, of logits of order 1 to 10
CHANGES = 0.1  # what an adapter has to change some logit by, far above every tolerance
OURS = [field.name for field in dataclasses.fields(ml.LoraConfig)]


def make_model(config=CONFIG):
    """A model whose every array is random, biases and layer norms too, so that none of them hides at its start."""
    rng = np.random.default_rng(2)
    start = leaves(ml.init_params(config, rng))
    random = {path: array + 0.3 * rng.standard_normal(array.shape) for path, array in start.items()}
    return ml.Model(config, cast(nested(random), config.dtype))


BASE = make_model()


def ours(adapter=None, base=BASE):
    """Logits here."""
    return ml.forward(base.params, TOKENS, base.config, adapter=adapter)


def theirs(module):
    """Logits in PyTorch, in evaluation mode."""
    with torch.no_grad():
        return module.eval()(torch.tensor(TOKENS)).numpy()


def wrapped(fields, base=BASE):
    """A twin of the base with a fresh adapter of PEFT's."""
    torch.manual_seed(0)
    return peft.get_peft_model(Twin(base.config, base.params), peft.LoraConfig(**fields))


def trained_by_peft(fields, base=BASE):
    """The same after a few steps of AdamW, in training mode, so that everything that trains has moved."""
    model = wrapped(fields, base).train()
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in trainable.items()}
    optimizer = torch.optim.AdamW(trainable.values(), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        logits = model(torch.tensor(TOKENS))
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(TARGETS).flatten()).backward()
        optimizer.step()
    for name, p in trainable.items():  # a bias of k_proj changes no attention, so its gradient is zero
        assert not torch.allclose(p, before[name]) or name.endswith(("k_proj.bias", "k_proj.base_layer.bias")), name
    return model


def in_peft(folder, base=BASE):
    """A twin of the base with the adapter in the folder. PEFT warns of keys that it misses, which fails a test."""
    return peft.PeftModel.from_pretrained(Twin(base.config, base.params), str(folder))


def stored(model):
    """What PEFT stores of its adapter, under minilora's names."""
    state = peft.get_peft_model_state_dict(model)
    plain = {name.removeprefix(PREFIX).replace(".base_layer.", "."): tensor.numpy() for name, tensor in state.items()}
    return {name.removesuffix(".weight") if ".lora_" in name else name: array for name, array in plain.items()}


def check_same(model, adapter, base=BASE):
    """PEFT's model and our adapter: the output changes, and is the same in both, unmerged and merged. Unwraps `model`.

    The arrays too, as a changed bias of k_proj or a sum of two wrong scales would not show in the logits.
    """
    close = dict(rtol=0, atol=TOLERANCE[base.config.dtype])
    expected = theirs(model)
    assert np.abs(expected - theirs(Twin(base.config, base.params))).max() > CHANGES
    np.testing.assert_allclose(ours(adapter, base), expected, **close)
    theirs_stored = stored(model)
    assert adapter.arrays().keys() == theirs_stored.keys()
    for name, array in adapter.arrays().items():
        assert np.array_equal(array, theirs_stored[name]), name
    merged = ml.Model(base.config, ml.merge(base.params, adapter))
    module = model.merge_and_unload()
    np.testing.assert_allclose(theirs(module), expected, **close)
    np.testing.assert_allclose(ours(None, merged), expected, **close)
    theirs_merged = arrays(module)
    assert leaves(merged.params).keys() == theirs_merged.keys()
    for path, array in leaves(merged.params).items():
        np.testing.assert_allclose(array, theirs_merged[path], **close, err_msg=path)


# --- the twin ---


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-4)])
@pytest.mark.parametrize("n_tokens", [1, 6, 13])
def test_the_twin_has_the_same_logits_and_arrays(dtype, tolerance, n_tokens):
    base = make_model(dataclasses.replace(CONFIG, dtype=dtype))
    twin, tokens = Twin(base.config, base.params), TOKENS[:, :n_tokens]
    expected = ml.forward(base.params, tokens, base.config)
    logits = twin(torch.tensor(tokens)).detach().numpy()
    assert logits.dtype == expected.dtype == dtype
    np.testing.assert_allclose(logits, expected, rtol=0, atol=tolerance)
    assert arrays(twin).keys() == leaves(base.params).keys()
    assert all(np.array_equal(arrays(twin)[path], array) for path, array in leaves(base.params).items())


def test_the_twin_has_arrays_of_its_own():
    before = {path: array.copy() for path, array in leaves(BASE.params).items()}
    with torch.no_grad():
        for parameter in Twin(CONFIG, BASE.params).parameters():
            parameter += 1
    assert all(np.array_equal(before[path], array) for path, array in leaves(BASE.params).items())


# --- every field that both have ---

# In PEFT's words: layers need a pattern, as PEFT finds no index in "layers.0.q_proj" without one.
QV = ["q_proj", "v_proj"]
LAYERS = {"layers_pattern": "layers"}
CASES = {
    "r": {"r": 3},
    "lora_alpha": {"r": 4, "lora_alpha": 12},
    "a fraction as lora_alpha": {"lora_alpha": 0.75},
    "lora_dropout": {"lora_dropout": 0.4},
    "use_rslora": {"r": 4, "lora_alpha": 6, "use_rslora": True},
    "names": {"target_modules": ["up_proj", "down_proj", "k_proj"]},
    "paths": {"target_modules": ["layers.0.q_proj", "1.o_proj", "down_proj"]},
    "a regex": {"target_modules": r"layers\.[02]\.(q|o|up)_proj"},
    "a regex with alternatives": {"target_modules": r".*\.0\.q_proj|.*down_proj"},
    "all-linear": {"target_modules": "all-linear"},  # PEFT finds them in any module, not only in transformers' models
    "one layer": {"layers_to_transform": 1} | LAYERS,
    "layers": {"layers_to_transform": [2, 0], "layers_pattern": ["layers"]},
    "no layers": {"layers_to_transform": []},
    "exclude names": {"target_modules": "all-linear", "exclude_modules": ["up_proj", "layers.1.q_proj"]},
    "exclude by regex": {"exclude_modules": r".*\.1\..*"},
    "exclude from a regex": {"target_modules": ".*_proj", "exclude_modules": ["o_proj", "2.v_proj"]},
    "exclude nothing": {"exclude_modules": []},
    "exclude and layers": {"exclude_modules": ["layers.0.q_proj"], "layers_to_transform": [0, 1]} | LAYERS,
    "rank_pattern": {"rank_pattern": {"q_proj": 2, r"layers\.[12]\.v_proj": 5}},
    "alpha_pattern": {"alpha_pattern": {"^layers.1.q_proj": 3, "v_proj": 20}},
    "patterns with rsLoRA": {"rank_pattern": {"q_proj": 3}, "alpha_pattern": {"q_proj": 7}, "use_rslora": True},
    "lora_only": {"bias": "lora_only", "target_modules": ["o_proj", "up_proj"]},
    "all biases": {"bias": "all"},  # those of layer norms and of modules that are not adapted too
    "all biases, some layers": {"bias": "all", "target_modules": ["up_proj"], "layers_to_transform": [1]} | LAYERS,
    "random": {"init_lora_weights": False},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"r": 4, "init_lora_weights": "orthogonal"},
}  # fmt: skip
CASES = {name: {"target_modules": QV} | fields for name, fields in CASES.items()}


def as_ours(fields):
    """The same config here, which needs no pattern for layers, and says None for none."""
    return ml.LoraConfig(**{name: value for name, value in fields.items() if name in OURS and value != []})


def test_the_cases_reach_every_field():
    assert set().union(*CASES.values()) == {*OURS, "layers_pattern"}
    assert {fields.get("bias", "none") for fields in CASES.values()} == set(BIAS_MODES)
    assert {fields.get("init_lora_weights", True) for fields in CASES.values()} == set(PEFT_INITS)


@pytest.mark.parametrize("fields", CASES.values(), ids=CASES)
def test_what_peft_trains_is_the_same_here(tmp_path, fields):
    model = trained_by_peft(fields)
    model.save_pretrained(tmp_path)
    check_same(model, ml.load_adapter(tmp_path, BASE.params))


@pytest.mark.parametrize("fields", CASES.values(), ids=CASES)
def test_what_is_trained_here_is_the_same_in_peft(tmp_path, fields):
    data, lora = ml.Dataset(TOKENS, TARGETS), as_ours(fields)
    config = ml.TrainConfig(steps=3, batch_size=4, learning_rate=0.05)
    adapter = ml.fit(BASE, lora, data, data, config, seed=0, progress=False).final
    start = ml.init_adapter(BASE.params, lora, Streams.of(0).init).arrays()
    for name, array in adapter.arrays().items():
        assert not np.allclose(array, start[name]) or name.endswith("k_proj.bias"), name
    ml.save_adapter(adapter, tmp_path)
    check_same(in_peft(tmp_path), adapter)


def random_adapter(config, base=BASE):
    """Random factors and biases, none of them at its start."""
    rng = np.random.default_rng(3)
    start = ml.init_adapter(base.params, config, rng).arrays()
    moved = {
        name: (array + 0.3 * rng.standard_normal(array.shape)).astype(array.dtype) for name, array in start.items()
    }
    return ml.init_adapter(base.params, config, rng).with_arrays(moved)


OUR_OWN = {
    "he": {"init_lora_weights": "he"},
    "xavier": {"init_lora_weights": "xavier"},
    "zero_A": {"init_lora_weights": "zero_A"},
    "a layer from the end": {"layers_to_transform": -1, "bias": "lora_only"},
    "layers of all-linear": {"target_modules": "all-linear", "layers_to_transform": [0, -1], "exclude_modules": QV},
    "layers of a regex": {"target_modules": ".*[qo]_proj", "layers_to_transform": 2, "rank_pattern": {"2.o_proj": 3}},
    "layers of paths": {"target_modules": ["layers.0.q_proj", "1.q_proj"], "layers_to_transform": [0, 1]},
    # PEFT matches every module, embeddings and layer norms too, and refuses those that it cannot adapt
    "a regex for a whole layer": {"target_modules": r"layers\.0\..*"},
    "a regex for everything": {"target_modules": ".*", "exclude_modules": ".*o_proj"},
}


@pytest.mark.parametrize("fields", OUR_OWN.values(), ids=OUR_OWN)
def test_what_only_minilora_can_say_is_the_same_in_peft(tmp_path, fields):
    adapter = random_adapter(ml.LoraConfig(**{"r": 4} | fields))
    ml.save_adapter(adapter, tmp_path)
    check_same(in_peft(tmp_path), adapter)


def test_the_cases_and_our_own_reach_every_init():
    assert {one.get("init_lora_weights", True) for one in [*CASES.values(), *OUR_OWN.values()]} == set(INITS)


@pytest.mark.parametrize("bias", BIAS_MODES)
def test_float32_goes_both_ways(tmp_path, bias):
    base = make_model(dataclasses.replace(CONFIG, dtype="float32"))
    fields = {"r": 4, "target_modules": ["q_proj", "up_proj"], "bias": bias}
    model = trained_by_peft(fields, base)
    model.save_pretrained(tmp_path / "theirs")
    loaded = ml.load_adapter(tmp_path / "theirs", base.params)
    assert {array.dtype.name for array in loaded.arrays().values()} == {"float32"}
    check_same(model, loaded, base)
    ml.save_adapter(loaded, tmp_path / "ours")
    check_same(in_peft(tmp_path / "ours", base), loaded, base)


def test_many_modules_of_many_layers_go_both_ways(tmp_path):
    """From 20 targets on, PEFT looks for suffixes that mean the same; "1.q_proj" must not mean layer 11's too."""
    base = make_model(dataclasses.replace(CONFIG, n_layers=12))
    for layers in ([1, 5, 10, 11], [0, 2, 4, 6, 8]):
        adapter = random_adapter(ml.LoraConfig(r=2, target_modules="all-linear", layers_to_transform=layers), base)
        ml.save_adapter(adapter, tmp_path / "ours")
        model = in_peft(tmp_path / "ours", base)
        model.save_pretrained(tmp_path / "theirs")
        check_same(model, adapter, base)
        check_same(in_peft(tmp_path / "ours", base), ml.load_adapter(tmp_path / "theirs", base.params), base)


# --- any combination ---


@st.composite
def peft_fields(draw):
    """Any fields of PEFT's LoraConfig that minilora has too, such that each of them matches something."""
    some = lambda of: st.lists(st.sampled_from(of), min_size=1, unique=True)  # noqa: E731
    names = draw(some(LINEAR))
    spare = [name for name in LINEAR if name not in names]
    either = "|".join(names)
    places = [
        {"target_modules": names},
        {"target_modules": [f"layers.{i}.{name}" for i in range(3) for name in names]},
        {"target_modules": rf"layers\.\d\.({either})"},
        {"target_modules": names, "exclude_modules": [f"layers.1.{name}" for name in names]},
        {"target_modules": names, "exclude_modules": rf".*\.[02]\.({either})"},
        {"target_modules": names, "layers_to_transform": draw(st.one_of(st.integers(0, 2), some(range(3))))} | LAYERS,
        {"target_modules": "all-linear"} | ({"exclude_modules": spare} if spare else {}),
    ]
    init = draw(st.sampled_from(PEFT_INITS))
    ranks = st.sampled_from([2, 4]) if init == "orthogonal" else st.integers(1, 4)
    alphas = st.one_of(st.integers(1, 16), st.floats(0.5, 16))
    patterns = st.sampled_from(names).flatmap(lambda name: st.sampled_from([name, rf"layers\.\d+\.{name}"]))
    return draw(st.sampled_from(places)) | {
        "r": draw(ranks),
        "lora_alpha": draw(alphas),
        "lora_dropout": draw(st.one_of(st.just(0.0), st.floats(0.1, 0.5))),
        "rank_pattern": draw(st.dictionaries(patterns, ranks, max_size=1)),
        "alpha_pattern": draw(st.dictionaries(patterns, alphas, max_size=1)),
        "bias": draw(st.sampled_from(BIAS_MODES)),
        "init_lora_weights": init,
        "use_rslora": draw(st.booleans()),
    }


@given(fields=peft_fields())
@settings(max_examples=25, deadline=None)
def test_any_config_goes_from_peft_to_here_and_back(fields):
    model = trained_by_peft(fields)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        adapter = ml.load_adapter(folder, BASE.params)
        check_same(model, adapter)
        ml.save_adapter(adapter, Path(folder) / "again")
        check_same(in_peft(Path(folder) / "again"), adapter)


@given(fields=peft_fields(), init=st.sampled_from(INITS))
@settings(max_examples=25, deadline=None)
def test_any_config_goes_from_here_to_peft_and_back(fields, init):
    is_odd = any(r % 2 for r in (fields["r"], *fields["rank_pattern"].values()))
    config = dataclasses.replace(as_ours(fields), init_lora_weights="he" if is_odd else init)
    adapter = random_adapter(config)
    with tempfile.TemporaryDirectory() as folder:
        ml.save_adapter(adapter, folder)
        model = in_peft(folder)
        model.save_pretrained(Path(folder) / "again")
        check_same(model, adapter)
        check_same(in_peft(folder), ml.load_adapter(Path(folder) / "again", BASE.params))


# --- how factors start ---


@pytest.mark.parametrize("init", PEFT_INITS)
def test_factors_start_as_peft_s_do(init):
    """The same spread of A and of B; for a uniform start the same bounds too."""
    base = make_model(ml.ModelConfig(d_model=96, n_heads=1, n_layers=3, d_ff=300, dtype="float64"))
    fields = {"r": 16, "target_modules": ["up_proj"], "init_lora_weights": init}
    here = ml.init_adapter(base.params, ml.LoraConfig(**fields), np.random.default_rng(0)).arrays()
    there = stored(wrapped(fields, base))
    for factor in ("lora_A", "lora_B"):  # 4,608 and 14,400 numbers, so that 5 % is over four standard errors
        a, b = (np.concatenate([of[f"layers.{i}.up_proj.{factor}"].ravel() for i in range(3)]) for of in (here, there))
        assert a.std() == pytest.approx(b.std(), rel=0.05)
        if init in (True, False):
            assert abs(a).max() == pytest.approx(abs(b).max(), rel=0.01)
        assert abs(a.mean()) <= 5 * a.std() / a.size**0.5


# --- where PEFT differs ---


def test_where_patterns_overlap_their_order_in_the_file_counts(tmp_path):
    """PEFT takes the first key that matches, but sorts the keys when it saves.

    So an adapter of PEFT's whose patterns overlap is another one after PEFT has saved and loaded it; minilora reads the
    folder as PEFT does. minilora keeps the order that was given.
    """
    first, second = r"layers\.[12]\.q_proj", r"layers\.[01]\.q_proj"
    fields = {"r": 4, "target_modules": ["q_proj"], "alpha_pattern": {first: 3, second: 40}}
    model = trained_by_peft(fields)
    model.save_pretrained(tmp_path / "theirs")
    assert np.abs(theirs(in_peft(tmp_path / "theirs")) - theirs(model)).max() > CHANGES
    check_same(in_peft(tmp_path / "theirs"), ml.load_adapter(tmp_path / "theirs", BASE.params))
    adapter = random_adapter(as_ours(fields))
    assert adapter.scaling["layers.1.q_proj"] == 3 / 4
    ml.save_adapter(adapter, tmp_path / "ours")
    check_same(in_peft(tmp_path / "ours"), adapter)


@pytest.mark.filterwarnings("ignore:.* changes the base weights")
@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_an_init_that_changes_the_base_is_read_once_peft_has_converted_it(tmp_path, init):
    """These inits are refused, as they take from the base what they put into the factors.

    PEFT can store the difference to the start instead: plain LoRA on the base as it was, of twice the rank.
    """
    base = make_model(dataclasses.replace(CONFIG, dtype="float32"))  # PEFT has them in float32 alone
    model = wrapped({"r": 2, "lora_alpha": 5, "target_modules": QV, "init_lora_weights": init}, base)
    model.save_pretrained(tmp_path / "start")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter) * parameter.requires_grad
    model.save_pretrained(tmp_path / "raw")
    with pytest.raises(ValueError, match=rf"adapter_config\.json: init_lora_weights: got '{init}'"):
        ml.load_adapter(tmp_path / "raw", base.params)
    model.save_pretrained(tmp_path / "plain", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    adapter = ml.load_adapter(tmp_path / "plain", base.params)
    assert (adapter.config.r, adapter.scaling["layers.0.q_proj"]) == (4, 5 / 2)
    expected = theirs(model)
    assert np.abs(expected - ours(None, base)).max() > CHANGES
    np.testing.assert_allclose(ours(adapter, base), expected, rtol=0, atol=TOLERANCE["float32"])


BESIDES = {  # what minilora takes for a mistake where a config is written, and PEFT passes over
    "a whole path, another layer": {"target_modules": ["layers.0.q_proj", "v_proj"], "layers_to_transform": 1} | LAYERS,
    "another architecture's target": {"target_modules": ["q_proj", "gate_proj"]},
    "a layer that is not there": {"target_modules": ["q_proj"], "layers_to_transform": [1, 7]} | LAYERS,
    "several names for the layers": {"layers_to_transform": [1], "layers_pattern": ["h", "layers"]},
    "an exclusion of what is not there": {"exclude_modules": ["lm_head", "0.q_proj"]},
    "an exclusion of what was not targeted": {"exclude_modules": ["embed_positions", "k_proj"]},
    "an empty exclusion": {"exclude_modules": ""},
    "patterns for what is not adapted": {"rank_pattern": {"k_proj": 2}, "alpha_pattern": {"experts": 3, "v_proj": 3}},
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*did not match any targeted module:RuntimeWarning")  # PEFT's
@pytest.mark.parametrize("fields", BESIDES.values(), ids=BESIDES)
def test_what_peft_passes_over_is_passed_over_in_its_folders(tmp_path, fields):
    """It adapts paths that are listed whole whatever the layers, and lets pass what matches nothing."""
    model = trained_by_peft({"r": 2, "target_modules": QV} | fields)
    model.save_pretrained(tmp_path / "theirs")
    adapter = ml.load_adapter(tmp_path / "theirs", BASE.params)
    ml.save_adapter(adapter, tmp_path / "ours")
    check_same(model, adapter)
    check_same(in_peft(tmp_path / "ours"), adapter)


@pytest.mark.parametrize("fields", [one for one in BESIDES.values() if one.get("exclude_modules") != ""], ids=str)
def test_the_same_is_refused_where_a_config_is_written(fields):
    if "h" in fields.get("layers_pattern", ()):
        return  # a field that we lack
    with pytest.raises(ValueError, match=r"^(target_modules|layers_to_transform|exclude_modules|rank_pattern): "):
        ml.select_modules(BASE.params, as_ours({"r": 2, "target_modules": QV} | fields))


def test_an_adapted_embedding_is_refused(tmp_path):
    """Its factors are of another kind, and PEFT stores the embedding itself besides."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrapped({"target_modules": ["q_proj", "embed_tokens"]}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors: unexpected array '.*embed_tokens"):
        ml.load_adapter(tmp_path, BASE.params)


SINGLE = make_model(dataclasses.replace(CONFIG, dtype="float32"))  # some of PEFT's inits take no float64


def started_by_peft(init, fields=None):
    """(the base's arrays afterwards, PEFT's model), with data or gradients where the init takes some."""
    twin, tokens = Twin(SINGLE.config, SINGLE.params), torch.tensor(TOKENS)
    torch.manual_seed(0)
    config = peft.LoraConfig(**{"r": 2, "target_modules": QV, "init_lora_weights": init} | (fields or {}))
    if init == "corda":
        preprocess_corda(twin, config, lambda: [twin(tokens[i : i + 1]) for i in range(len(tokens))])
    if fields:
        preprocess_loraga(twin, config, lambda: twin(tokens).square().mean().backward())
    model = peft.get_peft_model(twin, config)
    if init == "eva":
        initialize_lora_eva_weights(
            model, [tokens] * 8, forward_fn=lambda module, x: module(x), prepare_model_inputs_fn=None,
            prepare_layer_inputs_fn=lambda x, *_: x[0].flatten(0, -2), show_progress_bar=False,
        )  # fmt: skip
    state = {name.replace("base_layer.", ""): one for name, one in model.get_base_model().state_dict().items()}
    return {path: state[path].numpy() for path in leaves(SINGLE.params)}, model


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("init", ["Gaussian", "MiCA", *PLAIN_INITS])
def test_an_init_that_leaves_the_base_alone_is_read_as_plain_lora(tmp_path, init):
    base, model = started_by_peft(init)
    assert all(np.array_equal(base[path], array) for path, array in leaves(SINGLE.params).items())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter += 0.3 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["init_lora_weights"] == init
    check_same(model, ml.load_adapter(tmp_path, SINGLE.params), SINGLE)


CHANGING = [("pissa", None), ("pissa_niter_4", None), ("olora", None), ("OLoRA", None), ("corda", None),
            ("lora_ga", {"lora_ga_config": peft.tuners.lora.config.LoraGAConfig()})]  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("init", "fields"), CHANGING, ids=str)
def test_an_init_that_changes_the_base_is_refused_with_the_reason(tmp_path, init, fields):
    base, model = started_by_peft(init, fields)
    changed = [path for path, array in leaves(SINGLE.params).items() if not np.allclose(base[path], array, atol=1e-5)]
    assert changed == [f"layers.{i}.{name}.weight" for i in range(3) for name in QV]
    model.save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"adapter_config\.json: init_lora_weights: got .*right on that changed base alone"
    ):
        ml.load_adapter(tmp_path, SINGLE.params)


def test_every_init_that_changes_the_base_is_run():
    """LoftQ needs bitsandbytes; that its weights are replaced by quantised ones is read in PEFT's source."""
    assert {init for init in CHANGING_INITS if not any(one.startswith(init) for one, _ in CHANGING)} == {"loftq"}


def test_peft_saves_others_than_the_default_one_level_down(tmp_path):
    """Where the default is not saved, the folder itself has no adapter."""
    model = trained_by_peft({"r": 2, "target_modules": QV})
    model.add_adapter("other", peft.LoraConfig(r=3, target_modules=QV, init_lora_weights=False))
    model.save_pretrained(tmp_path / "both")
    assert ml.load_adapter(tmp_path / "both", BASE.params).config.r == 2
    assert ml.load_adapter(tmp_path / "both" / "other", BASE.params).config.r == 3
    model.save_pretrained(tmp_path / "one", selected_adapters=["other"])
    with pytest.raises(FileNotFoundError, match=r"adapter_config\.json: no such file; there are adapters in .* other$"):
        ml.load_adapter(tmp_path / "one", BASE.params)


# --- fields that minilora does not have ---

# PEFT applies these to the twin and writes the folder.
APPLIED = [
    ("use_dora", {"use_dora": True}),
    ("lora_bias", {"lora_bias": True}),
    ("modules_to_save", {"modules_to_save": ["norm"]}),
    ("trainable_token_indices", {"trainable_token_indices": {"embed_tokens": [1, 2]}}),
    ("target_parameters", {"target_parameters": ["layers.0.k_proj.weight"]}),
    ("alora_invocation_tokens", {"alora_invocation_tokens": [1, 2]}),
    ("velora_config", {"velora_config": {"num_groups": 2}}),
    ("kasa_config", {"kasa_config": {}}),
    ("monteclora_config", {"monteclora_config": {}}),
    ("use_bdlora", {"use_bdlora": {"target_modules_bd_b": QV, "nblocks": 2}}),
    ("init_lora_weights", {"init_lora_weights": "pissa"}),
    ("init_lora_weights", {"init_lora_weights": "pissa_niter_4"}),
    ("init_lora_weights", {"init_lora_weights": "olora"}),
]
# These need what the twin does not have (data, a quantised base, Megatron, other modules): PEFT writes
# the config alone.
STATED = [
    ("fan_in_fan_out", {"fan_in_fan_out": True}),
    ("use_qalora", {"use_qalora": True}),
    ("layer_replication", {"layer_replication": [[0, 2], [1, 3]]}),
    ("layers_pattern", {"layers_to_transform": [0], "layers_pattern": "blocks"}),
    ("megatron_config", {"megatron_config": {"hidden_size": 12}}),
    ("init_lora_weights", {"init_lora_weights": "loftq", "loftq_config": {"loftq_bits": 4, "loftq_iter": 1}}),
    ("init_lora_weights", {"init_lora_weights": "corda"}),
    ("init_lora_weights", {"init_lora_weights": "lora_ga", "lora_ga_config": {}}),
    ("arrow_config", {"arrow_config": {}}),
]
PEFT_FIELDS = [field.name for field in dataclasses.fields(peft.LoraConfig)]


def write(folder, fields, applied):
    """A folder of PEFT's with these fields; its warnings about them are not what is tested."""
    base = make_model(dataclasses.replace(CONFIG, dtype="float32"))  # some of its inits take no float64
    fields = {"r": 2, "target_modules": QV} | fields
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if applied:
            wrapped(fields, base).save_pretrained(folder)
        else:
            wrapped({"r": 2, "target_modules": QV}, base).save_pretrained(folder)
            peft.LoraConfig(**fields).save_pretrained(folder)
    return base.params


@pytest.mark.parametrize("applied", [True, False])
def test_a_folder_without_such_fields_is_taken(tmp_path, applied):
    """So that what the next test refuses is refused for its field."""
    params = write(tmp_path, {}, applied)
    assert list(ml.load_adapter(tmp_path, params).factors) == [f"layers.{i}.{name}" for i in range(3) for name in QV]


REFUSED = [(*one, True) for one in APPLIED] + [(*one, False) for one in STATED]


@pytest.mark.parametrize(("named", "fields", "applied"), REFUSED, ids=str)
def test_a_field_that_minilora_does_not_have_is_refused_by_name(tmp_path, named, fields, applied):
    params = write(tmp_path, fields, applied)
    with pytest.raises(ValueError, match=rf"adapter_config\.json: {named}: got .*takes"):
        ml.load_adapter(tmp_path, params)
    with pytest.raises(ValueError, match=rf"adapter_config\.json: {named}: got .*takes"):
        ml.load_adapter(tmp_path)


def test_every_field_of_peft_is_ours_or_refused_or_describes():
    """Fails when PEFT adds a field: then say in checkpoint.py what it is, and here how it is refused."""
    unknown = [name for name in PEFT_FIELDS if name not in (*OURS, *NEUTRAL, *DESCRIPTIVE)]
    assert not unknown, f"PEFT {peft.__version__} has {', '.join(unknown)}: put each into NEUTRAL or DESCRIPTIVE"
    refused = {named for named, _ in APPLIED + STATED}
    untested = [name for name in PEFT_FIELDS if name in NEUTRAL and name not in refused]
    assert not untested, f"not refused in any test here: {', '.join(untested)}"
    groups = [*OURS, *NEUTRAL, *DESCRIPTIVE]
    assert len(groups) == len(set(groups))


@pytest.mark.parametrize("name", PEFT_FIELDS)
def test_peft_s_own_defaults_are_taken(name):
    """A default that is refused would refuse every folder; one of ours has to be the same default here."""
    default = peft.LoraConfig().to_dict().get(name)
    if name in NEUTRAL:
        assert default in NEUTRAL[name]
    if name in OURS and name != "target_modules":  # PEFT takes it from the architecture
        assert default == getattr(ml.LoraConfig(), name)


def test_every_init_that_peft_lists_is_read_or_refused_with_the_reason():
    hint = typing.get_type_hints(peft.LoraConfig)["init_lora_weights"]
    listed = {name for one in typing.get_args(hint) for name in typing.get_args(one)}
    known = {*PEFT_INITS, *PLAIN_INITS}
    assert {"gaussian", "pissa", "olora", "loftq", "eva", "corda", "mica"} <= listed
    assert {one for one in PEFT_INITS if isinstance(one, str)} <= listed
    assert all(init in known or init.startswith(CHANGING_INITS) for init in listed)


OTHER_DESCRIPTIONS = {
    "auto_mapping": {"base_model_class": "GPT", "parent_library": "elsewhere"}, "base_model_name_or_path": "elsewhere",
    "inference_mode": False, "megatron_core": "elsewhere.core", "peft_version": "0.7.0", "qalora_group_size": 4,
    "revision": "main", "runtime_config": {"ephemeral_gpu_offload": True}, "task_type": "CAUSAL_LM",
    "ensure_weight_tying": True, "eva_config": {"rho": 2.0}, "corda_config": {"verbose": True},
    "loftq_config": {"loftq_bits": 4, "loftq_iter": 1}, "lora_ga_config": {"scale": "unit"},
}  # fmt: skip


def test_descriptions_change_nothing(tmp_path):
    assert OTHER_DESCRIPTIONS.keys() == set(DESCRIPTIVE) - {"peft_type"}  # which has to be "LORA"
    trained_by_peft({"r": 4, "target_modules": QV}).save_pretrained(tmp_path)
    expected = ours(ml.load_adapter(tmp_path, BASE.params))
    assert np.abs(expected - ours()).max() > CHANGES
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | OTHER_DESCRIPTIONS))
    assert np.array_equal(ours(ml.load_adapter(tmp_path, BASE.params)), expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "fields",
    [{"ensure_weight_tying": True}, {"eva_config": {"rho": 2.0}}, {"corda_config": {"verbose": True}},
     {"loftq_config": {"loftq_bits": 4, "loftq_iter": 1}}, {"lora_ga_config": {"scale": "unit"}}],
)  # fmt: skip
def test_settings_of_what_is_not_there_change_nothing_in_peft_either(tmp_path, fields):
    """Nothing is tied, and each of these inits is another than the one that is used."""
    model = trained_by_peft({"r": 4, "target_modules": QV} | fields)
    plain = trained_by_peft({"r": 4, "target_modules": QV})
    assert np.array_equal(theirs(model), theirs(plain))
    model.save_pretrained(tmp_path)
    check_same(model, ml.load_adapter(tmp_path, BASE.params))


def test_arrays_of_other_methods_are_refused_whatever_the_config_says(tmp_path):
    """DoRA's magnitudes, a whole module, trained tokens: named by their array where a config was cleaned."""
    for named in ("use_dora", "modules_to_save", "trainable_token_indices", "lora_bias"):
        params = write(tmp_path, dict(APPLIED)[named], True)
        file = tmp_path / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {named: NEUTRAL[named][0]}))
        assert len(safetensors.numpy.load_file(tmp_path / "adapter_model.safetensors")) > 4 * 3
        with pytest.raises(ValueError, match=r"adapter_model\.safetensors: .*(norm|magnitude|tokens|lora_B)"):
            ml.load_adapter(tmp_path, params)
