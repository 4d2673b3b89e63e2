"""Models and adapters on disk: what is saved is loaded, PEFT's folders are read, and damage is refused by name."""

import dataclasses
import json
import os
import re
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

import minilora as ml
from minilora.lora import check_base
from minilora.lora_config import BIAS_MODES, INITS
from minilora.model import LINEAR
from minilora.stack import stack_adapters
from minilora.trees import cast, fingerprint, leaves, nested

CONFIG = ml.ModelConfig(vocab_size=11, context_length=7, d_model=6, n_heads=2, n_layers=3, d_ff=5, dtype="float64")
PREFIX = "base_model.model."
TOKENS = np.random.default_rng(0).integers(0, 11, (3, 7))


def make_model(config=CONFIG, seed=0):
    """A model whose every array is random, so that two swapped ones would show."""
    rng = np.random.default_rng(seed)
    start = leaves(ml.init_params(config, rng))
    random = {path: array + 0.3 * rng.standard_normal(array.shape) for path, array in start.items()}
    return ml.Model(config, cast(nested(random), config.dtype))


BASE = make_model()


def make_adapter(base=BASE, seed=1, **fields):
    """An adapter that is not at its start: with B = 0 a wrong scaling or a lost factor would not show."""
    rng = np.random.default_rng(seed)
    fresh = ml.init_adapter(base.params, ml.LoraConfig(**{"r": 4} | fields), rng)
    return fresh.with_arrays(
        {name: rng.standard_normal(array.shape).astype(array.dtype) for name, array in fresh.arrays().items()}
    )


def logits(adapter=None, base=BASE):
    return ml.forward(base.params, TOKENS, base.config, adapter=adapter)


def same_bits(a, b):
    """The same names with the same shapes, dtypes and bytes."""
    described = [{name: (x.shape, x.dtype, x.tobytes()) for name, x in arrays.items()} for arrays in (a, b)]
    return described[0] == described[1]


def same_adapter(a, b):
    return (a.config, a.scaling, a.base) == (b.config, b.scaling, b.base) and same_bits(a.arrays(), b.arrays())


def names_the(file):
    """For `match=`: the message has that path in it."""
    return re.escape(str(file))


# --- what is saved is loaded ---


@st.composite
def lora_configs(draw):
    """Any LoraConfig that fits BASE; every field takes part."""
    some = lambda of: st.lists(st.sampled_from(of), min_size=1, unique=True)  # noqa: E731
    targets = draw(some(LINEAR))
    forms = [targets, [f"layers.{i}.{name}" for i in range(3) for name in targets], rf".*\.({'|'.join(targets)})"]
    spare = [name for name in LINEAR if name not in targets]
    if spare:
        forms.append("all-linear")
    form = draw(st.sampled_from(forms))
    layers = draw(st.one_of(st.none(), st.integers(-3, 2), some(range(-3, 3))))
    if form == forms[1]:  # whole paths go with all layers
        layers = None
    init = draw(st.sampled_from(INITS))
    ranks = st.sampled_from([2, 4]) if init == "orthogonal" else st.integers(1, 4)
    alphas = st.one_of(st.integers(1, 64), st.floats(1e-3, 1e3))
    patterns = st.sampled_from(targets).flatmap(lambda name: st.sampled_from([name, rf"layers\.\d+\.{name}"]))
    return ml.LoraConfig(
        r=draw(ranks),
        lora_alpha=draw(alphas),
        lora_dropout=draw(st.floats(0, 0.99)),
        target_modules=form,
        layers_to_transform=layers,
        exclude_modules=spare if form == "all-linear" else None,
        rank_pattern=draw(st.dictionaries(patterns, ranks, max_size=1)),
        alpha_pattern=draw(st.dictionaries(patterns, alphas, max_size=1)),
        bias=draw(st.sampled_from(BIAS_MODES)),
        init_lora_weights=init,
        use_rslora=draw(st.booleans()),
    )


@given(config=lora_configs(), dtype=st.sampled_from(["float32", "float64"]))
@settings(max_examples=60)
def test_an_adapter_comes_back_as_it_was(config, dtype):
    base = make_model(dataclasses.replace(CONFIG, dtype=dtype))
    adapter = make_adapter(base, **vars(config))
    assert not np.array_equal(logits(adapter, base), logits(None, base))
    with tempfile.TemporaryDirectory() as folder:
        ml.save_adapter(adapter, folder)
        for loaded in (ml.load_adapter(folder), ml.load_adapter(folder, base.params)):
            assert same_adapter(loaded, adapter)
            assert np.array_equal(logits(loaded, base), logits(adapter, base))
            check_base(base.params, loaded)


def test_the_strategy_reaches_every_field():
    """So that a field added to LoraConfig is not left out of the round trip."""
    seen = {field.name: set() for field in dataclasses.fields(ml.LoraConfig)}

    @given(config=lora_configs())
    def collect(config):
        for name, value in vars(config).items():
            seen[name].add(repr(value))

    collect()
    assert all(len(values) >= 2 for values in seen.values()), seen


def test_the_default_config_comes_back_equal(tmp_path):
    """JSON has no tuples; a config that went through it still has to be the same config."""
    base = make_model(ml.ModelConfig(n_layers=3))  # wide enough for the default r
    for lora in (ml.LoraConfig(), ml.LoraConfig(target_modules=("k_proj",), layers_to_transform=(0, 2))):
        ml.save_adapter(ml.init_adapter(base.params, lora, np.random.default_rng(0)), tmp_path)
        assert ml.load_adapter(tmp_path).config == lora


def test_numpy_numbers_in_a_config_are_saved(tmp_path):
    """LoraConfig takes them, as ranks out of np.arange are usual in a sweep."""
    adapter = make_adapter(r=np.int64(3), lora_alpha=np.float32(6), target_modules=["q_proj"])
    ml.save_adapter(adapter, tmp_path)
    assert same_adapter(ml.load_adapter(tmp_path, BASE.params), adapter)


def test_saving_again_replaces_what_was_there(tmp_path):
    ml.save_adapter(make_adapter(r=4, bias="all", target_modules=["q_proj"]), tmp_path)
    adapter = make_adapter(r=2, target_modules=["up_proj"])
    ml.save_adapter(adapter, tmp_path / ".")
    assert same_adapter(ml.load_adapter(tmp_path, BASE.params), adapter)
    assert sorted(os.listdir(tmp_path)) == ["adapter_config.json", "adapter_model.safetensors"]


@given(
    vocab_size=st.integers(1, 5), context_length=st.integers(1, 5), n_heads=st.integers(1, 3),
    d_head=st.integers(1, 3), n_layers=st.integers(1, 3), d_ff=st.integers(1, 5),
    dtype=st.sampled_from(["float32", "float64"]),
)  # fmt: skip
@settings(max_examples=30)
def test_a_model_comes_back_as_it_was(d_head, n_heads, **fields):
    model = make_model(ml.ModelConfig(d_model=d_head * n_heads, n_heads=n_heads, **fields))
    with tempfile.TemporaryDirectory() as folder:
        ml.save_model(model, folder, {"validation_loss": 2.5})
        loaded = ml.load_model(folder)
        stated = json.loads((Path(folder) / "config.json").read_text())
    assert loaded.config == model.config
    assert same_bits(leaves(loaded.params), leaves(model.params))
    assert list(leaves(loaded.params)) == list(leaves(model.params))
    assert stated == vars(model.config) | {"fingerprint": fingerprint(model.params), "validation_loss": 2.5}


def test_layers_from_ten_on_keep_their_place(tmp_path):
    """As text, layer 10 comes before layer 2."""
    base = make_model(dataclasses.replace(CONFIG, n_layers=12))
    ml.save_model(base, tmp_path / "model")
    loaded = ml.load_model(tmp_path / "model")
    assert np.array_equal(logits(None, loaded), logits(None, base))
    adapter = make_adapter(base, target_modules=["k_proj"], layers_to_transform=[2, 10, 11])
    ml.save_adapter(adapter, tmp_path / "adapter")
    again = ml.load_adapter(tmp_path / "adapter", base.params)
    assert list(again.factors) == list(adapter.factors)
    assert np.array_equal(logits(again, base), logits(adapter, base))


def test_what_is_loaded_can_be_trained_on_and_is_its_own(tmp_path):
    """Not a view of the file: writing to it neither fails nor changes what the next one loads."""
    adapter = make_adapter(target_modules=["q_proj"])
    ml.save_adapter(adapter, tmp_path)
    for array in ml.load_adapter(tmp_path).arrays().values():
        array += 1
    assert same_adapter(ml.load_adapter(tmp_path), adapter)


# --- PEFT's folder format ---


def test_the_names_in_the_file_are_those_of_peft(tmp_path):
    """Those that PEFT 0.21.2 writes for a module tree like ours; an adapted module's own bias is in `base_layer`."""
    one = PREFIX + "layers.1."
    factors = {f"{one}{name}_proj.lora_{f}.weight" for name in "qv" for f in "AB"}
    adapted = {f"{one}{name}_proj.base_layer.bias" for name in "qv"}
    other = {f"{PREFIX}layers.1.{name}_proj.bias" for name in ("k", "o", "up", "down")}
    other |= {f"{PREFIX}layers.{i}.{name}_proj.bias" for i in (0, 2) for name in ("q", "k", "v", "o", "up", "down")}
    other |= {f"{PREFIX}layers.{i}.{n}_layernorm.bias" for i in range(3) for n in ("input", "post_attention")}
    expected = {
        "none": factors,
        "lora_only": factors | adapted,
        "all": factors | adapted | other | {PREFIX + "norm.bias"},
    }
    for bias, names in expected.items():
        ml.save_adapter(make_adapter(r=4, bias=bias, layers_to_transform=[1]), tmp_path)
        arrays = safetensors.numpy.load_file(tmp_path / "adapter_model.safetensors")
        assert set(arrays) == names
        assert arrays[one + "q_proj.lora_A.weight"].shape == (4, 6)
        assert arrays[one + "q_proj.lora_B.weight"].shape == (6, 4)


def test_the_fields_in_the_config_are_those_of_peft(tmp_path):
    adapter = make_adapter(
        r=2, lora_alpha=3, lora_dropout=0.25, target_modules=("q_proj", "up_proj"),
        rank_pattern={"up_proj": 3}, alpha_pattern={"q_proj": 5}, bias="lora_only", init_lora_weights="gaussian",
        use_rslora=True,
    )  # fmt: skip
    ml.save_adapter(adapter, tmp_path)
    stated = json.loads((tmp_path / "adapter_config.json").read_text())
    assert stated.keys() <= PEFT_CONFIG.keys()
    expected = {
        "peft_type": "LORA", "task_type": None, "base_model_name_or_path": None, "inference_mode": True,
        "r": 2, "lora_alpha": 3, "lora_dropout": 0.25, "target_modules": ["q_proj", "up_proj"],
        "layers_to_transform": None, "exclude_modules": None, "rank_pattern": {"up_proj": 3},
        "alpha_pattern": {"q_proj": 5}, "bias": "lora_only", "init_lora_weights": "gaussian", "use_rslora": True,
    }  # fmt: skip
    assert {name: stated[name] for name in expected} == expected


@pytest.mark.parametrize("init", ["he", "xavier", "zero_A"])
def test_an_init_that_peft_does_not_know_is_kept_out_of_its_config(tmp_path, init):
    adapter = make_adapter(init_lora_weights=init)
    ml.save_adapter(adapter, tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["init_lora_weights"] is True
    assert ml.load_adapter(tmp_path).config.init_lora_weights == init


def peft_adapts(stated, path):
    """Whether PEFT 0.21.2 adapts the linear module of that name (`check_target_module_exists` and LoraConfig)."""
    targets, excluded, layers = (stated[name] for name in ("target_modules", "exclude_modules", "layers_to_transform"))

    def listed(names):
        return path in names or any(path.endswith(f".{name}") for name in names)

    if excluded and (re.fullmatch(excluded, path) if isinstance(excluded, str) else listed(excluded)):
        return False
    if isinstance(targets, str):
        assert layers is None, "PEFT: `layers_to_transform` cannot be used when `target_modules` is a str"
        return targets == "all-linear" or bool(re.fullmatch(targets, path))
    if layers in (None, []) or path in targets or not listed(targets):
        return listed(targets)
    pattern = stated.get("layers_pattern")
    match = re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\." if pattern else r".*?\.[^.]*\.(\d+)\.", path)
    return bool(match) and int(match[1]) in (layers if isinstance(layers, list) else [layers])


PLACES = [
    {"target_modules": ["q_proj", "v_proj"]}, {"target_modules": "all-linear"}, {"target_modules": r".*\.0\.[qk]_proj"},
    {"target_modules": ["0.q_proj", "layers.2.up_proj"]},
    {"target_modules": "all-linear", "exclude_modules": ["up_proj", "layers.1.q_proj"]},
    {"target_modules": ["q_proj"], "exclude_modules": r".*\.1\..*"},
    {"target_modules": ["q_proj"], "layers_to_transform": 1}, {"target_modules": ["q_proj"], "layers_to_transform": -1},
    {"target_modules": ["k_proj", "up_proj"], "layers_to_transform": [0, -1]},
    {"target_modules": ".*_proj", "layers_to_transform": [2]},
    {"target_modules": "all-linear", "layers_to_transform": 0},
    {"target_modules": ["layers.0.q_proj", "1.q_proj"], "layers_to_transform": [0, 1]},
    {"target_modules": r"layers\.1\..*"}, {"target_modules": ".*", "exclude_modules": ["o_proj"]},
]  # fmt: skip


@pytest.mark.parametrize("fields", PLACES, ids=str)
def test_peft_finds_the_same_modules_by_the_saved_config(tmp_path, fields):
    """PEFT has no negative layers, and none with a string; without a pattern it finds none in `layers.0.q_proj`.

    And a pattern of its targets matches what is not linear too, which it refuses to adapt.
    """
    adapter = make_adapter(**fields)
    ml.save_adapter(adapter, tmp_path)
    stated = json.loads((tmp_path / "adapter_config.json").read_text())
    paths = [f"layers.{i}.{name}" for i in range(3) for name in LINEAR]
    if stated["target_modules"] != "all-linear":
        arrays = [path.rpartition(".")[0] for path in leaves(BASE.params)]
        paths += ["layers", "layers.0", "layers.1", "layers.2", *sorted({*arrays} - {*paths})]
    assert [path for path in paths if peft_adapts(stated, path)] == list(adapter.factors)


def safetensors_file(arrays, metadata=None, dtype=None):
    """The format written by hand: 8 bytes of length, a JSON header, the arrays' bytes, all in the order given."""
    header, end = {"__metadata__": metadata} if metadata else {}, 0
    for name, array in arrays.items():
        code = dtype or {"float32": "F32", "float64": "F64", "float16": "F16", "int64": "I64"}[array.dtype.name]
        header[name] = {"dtype": code, "shape": list(array.shape), "data_offsets": [end, end := end + array.nbytes]}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + b"".join(array.tobytes() for array in arrays.values())


def write_folder(folder, config, arrays, metadata=None):
    """A PEFT adapter folder, without any of minilora's code."""
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "adapter_model.safetensors").write_bytes(safetensors_file(arrays, metadata))
    return folder


# What PEFT 0.21.2 writes for LoraConfig(r=2, target_modules=["q_proj"]), to the letter.
PEFT_CONFIG = json.loads("""{
  "alora_invocation_tokens": null, "alpha_pattern": {}, "arrow_config": null,
  "auto_mapping": {"base_model_class": "M", "parent_library": "__main__"}, "base_model_name_or_path": null,
  "bias": "none", "corda_config": null, "ensure_weight_tying": false, "eva_config": null, "exclude_modules": null,
  "fan_in_fan_out": false, "inference_mode": true, "init_lora_weights": true, "kasa_config": null,
  "layer_replication": null, "layers_pattern": null, "layers_to_transform": null, "loftq_config": {},
  "lora_alpha": 8, "lora_bias": false, "lora_dropout": 0.0, "lora_ga_config": null, "megatron_config": null,
  "megatron_core": "megatron.core", "modules_to_save": null, "monteclora_config": null, "peft_type": "LORA",
  "peft_version": "0.21.2", "qalora_group_size": 16, "r": 2, "rank_pattern": {}, "revision": null,
  "target_modules": ["q_proj"], "target_parameters": null, "task_type": null, "trainable_token_indices": null,
  "use_bdlora": null, "use_dora": false, "use_qalora": false, "use_rslora": false, "velora_config": null
}""")
# A folder needs no more than this; the tests below add what they are about.
SMALL_CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "target_modules": ["q_proj"]}


def random_factors(ranks, seed=2):
    """{"layers.0.q_proj": r} -> the arrays of a PEFT file, in shuffled order."""
    rng = np.random.default_rng(seed)
    flat = leaves(BASE.params)
    arrays = {}
    for path, r in ranks.items():
        n_out, n_in = flat[f"{path}.weight"].shape
        arrays[f"{PREFIX}{path}.lora_A.weight"] = rng.standard_normal((r, n_in))
        arrays[f"{PREFIX}{path}.lora_B.weight"] = rng.standard_normal((n_out, r))
    return {name: arrays[name] for name in rng.permutation(list(arrays))}


def changed_base(arrays, scaling):
    """BASE with W + s B A written into its weights."""
    flat = dict(leaves(BASE.params))
    for path, s in scaling.items():
        lora_A, lora_B = (arrays[f"{PREFIX}{path}.{factor}.weight"] for factor in ("lora_A", "lora_B"))
        flat[f"{path}.weight"] = flat[f"{path}.weight"] + s * lora_B @ lora_A
    return ml.Model(CONFIG, nested(flat))


def check_folder(folder, arrays, scaling):
    """The folder loads, with and without the base, and does what the formula says."""
    expected = logits(None, changed_base(arrays, scaling))
    assert np.abs(expected - logits()).max() > 0.1
    loaded = ml.load_adapter(folder, BASE.params)
    np.testing.assert_allclose(logits(loaded), expected, rtol=0, atol=1e-11)
    np.testing.assert_allclose(logits(ml.load_adapter(folder)), expected, rtol=0, atol=1e-11)
    np.testing.assert_allclose(logits(None, ml.Model(CONFIG, ml.merge(BASE.params, loaded))), expected, atol=1e-11)
    return loaded


Q = [f"layers.{i}.q_proj" for i in range(3)]


@pytest.mark.parametrize("empty", [None, []])
@pytest.mark.parametrize("name", ["layers_to_transform", "exclude_modules"])
def test_a_folder_of_peft_s_is_read_and_an_empty_list_means_no_filter(tmp_path, name, empty):
    arrays = random_factors(dict.fromkeys(Q, 2))
    folder = write_folder(tmp_path, SMALL_CONFIG | {name: empty}, arrays)
    check_folder(folder, arrays, dict.fromkeys(Q, 8 / 2))


@pytest.mark.parametrize("pattern", [None, [], "layers", ["layers"]])
def test_where_layers_are_is_read_in_every_form_that_peft_writes(tmp_path, pattern):
    arrays = random_factors({"layers.1.q_proj": 2})
    folder = write_folder(tmp_path, SMALL_CONFIG | {"layers_to_transform": [1], "layers_pattern": pattern}, arrays)
    check_folder(folder, arrays, {"layers.1.q_proj": 8 / 2})


def test_every_field_that_peft_writes_is_known(tmp_path):
    arrays = random_factors(dict.fromkeys(Q, 2))
    check_folder(write_folder(tmp_path, PEFT_CONFIG, arrays), arrays, dict.fromkeys(Q, 8 / 2))


@pytest.mark.parametrize("use_rslora", [False, True])
def test_mixed_ranks_and_alphas_scale_module_by_module(tmp_path, use_rslora):
    """alpha differs from every r, patterns override some, and the arrays are in any order."""
    ranks = {"layers.0.q_proj": 3, "layers.0.up_proj": 2, "layers.1.q_proj": 5, "layers.1.up_proj": 2,
             "layers.2.q_proj": 3, "layers.2.up_proj": 4}  # fmt: skip
    alphas = dict.fromkeys(ranks, 7) | {"layers.0.up_proj": 11, "layers.1.up_proj": 11, "layers.2.up_proj": 11}
    config = SMALL_CONFIG | {
        "r": 3, "lora_alpha": 7, "target_modules": ["up_proj", "q_proj"], "use_rslora": use_rslora,
        "rank_pattern": {"layers.1.q_proj": 5, r"layers\.[01]\.up_proj": 2, "2.up_proj": 4},
        "alpha_pattern": {"up_proj": 11},
    }  # fmt: skip
    arrays = random_factors(ranks)
    folder = write_folder(tmp_path, config, arrays)
    scaling = {path: alphas[path] / (r**0.5 if use_rslora else r) for path, r in ranks.items()}
    assert check_folder(folder, arrays, scaling).scaling == pytest.approx(scaling, rel=1e-15)


@pytest.mark.parametrize("bias", ["lora_only", "all"])
def test_biases_are_read_from_both_of_peft_s_names(tmp_path, bias):
    arrays = random_factors({"layers.1.q_proj": 2})
    biases = {"layers.1.q_proj": PREFIX + "layers.1.q_proj.base_layer.bias"}
    if bias == "all":
        table = {path.removesuffix(".bias") for path in leaves(BASE.params) if path.endswith(".bias")}
        biases = {path: f"{PREFIX}{path}.bias" for path in table} | biases
    rng = np.random.default_rng(3)
    flat = leaves(BASE.params)
    values = {path: rng.standard_normal(flat[f"{path}.bias"].shape) for path in biases}
    config = SMALL_CONFIG | {"bias": bias, "layers_to_transform": [1]}
    folder = write_folder(tmp_path, config, arrays | {biases[path]: value for path, value in values.items()})
    loaded = ml.load_adapter(folder, BASE.params)
    changed = leaves(changed_base(arrays, {"layers.1.q_proj": 4}).params)
    changed = changed | {f"{path}.bias": value for path, value in values.items()}
    np.testing.assert_allclose(logits(loaded), logits(None, ml.Model(CONFIG, nested(changed))), rtol=0, atol=1e-11)


# --- the base that an adapter belongs to ---


def test_an_adapter_for_another_base_is_refused(tmp_path):
    ml.save_adapter(make_adapter(), tmp_path)
    other = make_model(seed=1)
    with pytest.raises(ValueError, match=r"fingerprint.*another base"):
        ml.load_adapter(tmp_path, other.params)
    loaded = ml.load_adapter(tmp_path)
    for use in (ml.merge, check_base):
        with pytest.raises(ValueError, match=r"fingerprint.*another base"):
            use(other.params, loaded)
    with pytest.raises(ValueError, match=r"fingerprint.*merged into it already"):
        ml.load_adapter(tmp_path, ml.merge(BASE.params, loaded))


def test_an_adapter_of_peft_s_belongs_to_the_base_it_is_loaded_onto(tmp_path):
    folder = write_folder(tmp_path, SMALL_CONFIG, random_factors(dict.fromkeys(Q, 2)))
    assert ml.load_adapter(folder, BASE.params).base == fingerprint(BASE.params)


def test_an_adapter_of_peft_s_loaded_without_a_base_says_what_to_do(tmp_path):
    """It has no fingerprint, so it cannot be merged; the message must not speak of an empty one."""
    folder = write_folder(tmp_path, SMALL_CONFIG, random_factors(dict.fromkeys(Q, 2)))
    with pytest.raises(ValueError, match="params"):
        ml.merge(BASE.params, ml.load_adapter(folder))


def broken_arrays(arrays):
    """Ways in which arrays do not fit the config, each with what the error must name."""
    one = PREFIX + "layers.1.q_proj."
    without = lambda *names: {name: array for name, array in arrays.items() if name not in names}  # noqa: E731
    wide = np.zeros((2, 7))
    return {
        "a module is missing": (without(one + "lora_A.weight", one + "lora_B.weight"), "layers.1.q_proj"),
        "a factor is missing": (without(one + "lora_B.weight"), "layers.1.q_proj"),
        "nothing is there": ({}, "lacks"),
        "a module too many": (arrays | random_factors({"layers.0.k_proj": 2}), "layers.0.k_proj"),
        "a bias too many": (arrays | {PREFIX + "norm.bias": np.zeros(6)}, "norm.bias"),
        "another input size": (arrays | {one + "lora_A.weight": wide}, "layers.1.q_proj"),
        "another rank": (arrays | {one + "lora_A.weight": np.zeros((3, 6))}, "layers.1.q_proj"),
        "one axis": (arrays | {one + "lora_A.weight": np.zeros(12)}, "layers.1.q_proj"),
    }


USES = {
    "loaded with params": lambda folder: ml.load_adapter(folder, BASE.params),
    "merged": lambda folder: ml.merge(BASE.params, ml.load_adapter(folder)),
    "evaluated": lambda folder: ml.evaluate(BASE, ml.Dataset(TOKENS, TOKENS), ml.load_adapter(folder)),
}


@pytest.mark.parametrize("broken", broken_arrays({}))
@pytest.mark.parametrize("when", USES)
def test_arrays_that_do_not_fit_the_config_are_refused(tmp_path, broken, when):
    """At the latest when the adapter is used: half an adapter gives a model that is quietly another one."""
    arrays = random_factors(dict.fromkeys(Q, 2))
    metadata = {"minilora.base": fingerprint(BASE.params)}
    USES[when](write_folder(tmp_path / "good", SMALL_CONFIG, arrays, metadata))
    changed, named = broken_arrays(arrays)[broken]
    folder = write_folder(tmp_path / "bad", SMALL_CONFIG, changed, metadata)
    with pytest.raises(ValueError, match=re.escape(named)):
        USES[when](folder)


# --- what a folder names besides, and where PEFT's rules are not those of who writes a config ---

V0, V1 = "layers.0.v_proj", "layers.1.v_proj"
NAMED_BESIDES = {
    "an exclusion of the head": ({"exclude_modules": ["lm_head"]}, Q),
    "an exclusion by a pattern that matches nothing": ({"exclude_modules": ".*vision_tower.*"}, Q),
    "an empty pattern of exclusions": ({"exclude_modules": ""}, Q),
    "targets of several architectures": ({"target_modules": ["q_proj", "query_key_value", "c_attn", "Wqkv"]}, Q),
    "a layer that is not there": ({"layers_to_transform": [0, 5]}, Q[:1]),
    "a layer without a target": ({"target_modules": ["layers.0.q_proj"], "layers_to_transform": [0, 1]}, Q[:1]),
    "a whole path outside the layers": (
        {"target_modules": ["layers.0.q_proj", "v_proj"], "layers_to_transform": [1]}, [Q[0], V1]),
    "a rank for what is not adapted": ({"rank_pattern": {"o_proj": 4, "layers.7.q_proj": 3}}, Q),
    "an alpha for what is not adapted": ({"alpha_pattern": {"experts.*": 4}}, Q),
    "where layers may be": ({"layers_to_transform": [1], "layers_pattern": ["h", "layers"]}, Q[1:2]),
    "no pattern for layers": ({"layers_to_transform": [1], "layers_pattern": ""}, Q[1:2]),
    "tied weights, with nothing tied": ({"ensure_weight_tying": True}, Q),
    "fields of 2023": ({"enable_lora": None, "merge_weights": False, "fan_in_fan_out": None}, Q),
    "null for what is off": (dict.fromkeys(["use_dora", "lora_bias", "use_bdlora", "modules_to_save"]), Q),
    "how factors started": ({"init_lora_weights": "eva", "eva_config": {"rho": 2.0, "tau": 0.99}}, Q),
    "MiCA": ({"init_lora_weights": "mica"}, Q),
    "MiCA, as it calls itself": ({"init_lora_weights": "MiCA"}, Q),
    "LoRA-GA without gradients": ({"init_lora_weights": "lora_ga"}, Q),
    "Gaussian": ({"init_lora_weights": "Gaussian"}, Q),
    "settings of an init that is not used": ({"loftq_config": {"bits": 4}, "corda_config": {"verbose": True}}, Q),
}  # fmt: skip


@pytest.mark.parametrize("case", NAMED_BESIDES)
def test_what_a_folder_names_besides_is_passed_over(tmp_path, case):
    """The arrays are those of the modules that the config adapts; saved again, it is the same adapter."""
    fields, paths = NAMED_BESIDES[case]
    arrays = random_factors(dict.fromkeys(paths, 2))
    folder = write_folder(tmp_path / "theirs", SMALL_CONFIG | fields, arrays)
    loaded = check_folder(folder, arrays, dict.fromkeys(paths, 8 / 2))
    assert loaded.config.target_modules == tuple(sorted(paths))
    assert (loaded.config.layers_to_transform, loaded.config.exclude_modules) == (None, None)
    assert (loaded.config.rank_pattern, loaded.config.alpha_pattern) == ({}, {})
    assert ml.select_modules(BASE.params, loaded.config) == list(loaded.factors)
    ml.save_adapter(loaded, tmp_path / "ours")
    assert same_adapter(ml.load_adapter(tmp_path / "ours", BASE.params), loaded)
    ml.save_adapter(ml.load_adapter(folder), tmp_path / "again")  # without the base, as the folder has it
    assert same_adapter(ml.load_adapter(tmp_path / "again", BASE.params), loaded)


def test_patterns_come_back_as_a_number_for_each_path(tmp_path):
    config = SMALL_CONFIG | {"rank_pattern": {r".*\.[12]\..*": 3, "q_proj": 2}, "alpha_pattern": {"1.q_proj": 5}}
    arrays = random_factors(dict(zip(Q, (2, 3, 3), strict=True)))
    loaded = check_folder(write_folder(tmp_path, config, arrays), arrays, dict(zip(Q, (4, 5 / 3, 8 / 3), strict=True)))
    assert (loaded.config.rank_pattern, loaded.config.alpha_pattern) == ({Q[1]: 3, Q[2]: 3}, {Q[1]: 5})


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        (
            {"target_modules": ["o_proj"]},
            r"adapter_model\.safetensors: lacks layers\.0\.o_proj.*unexpected layers\.0\.q_proj",
        ),
        ({"target_modules": ["query"]}, r"adapter_config\.json: target_modules: \('query',\) with .* leaves no module"),
        ({"exclude_modules": ["q_proj"]}, r"adapter_config\.json: target_modules: .*exclude_modules=\('q_proj',\)"),
        ({"layers_to_transform": [3]}, r"adapter_config\.json: target_modules: .*layers_to_transform=\(3,\) leaves no"),
        (
            {"layers_to_transform": [0, 1]},
            r"adapter_model\.safetensors: lacks nothing; has unexpected layers\.2\.q_proj",
        ),
        ({"rank_pattern": {"[": 2}}, r"adapter_config\.json: rank_pattern: got '\['"),
        (
            {"rank_pattern": {"0.q_proj": 3}},
            r"adapter_model\.safetensors: layers\.0\.q_proj\.lora_A: got shape \(2, 6\)",
        ),
        ({"bias": "all"}, r"adapter_model\.safetensors: lacks .*bias"),
        ({"bias": "lora_only"}, r"adapter_model\.safetensors: lacks layers\.0\.q_proj\.bias, layers\.1\.q_proj\.bias"),
    ],
    ids=str,
)
def test_the_file_and_the_field_at_fault_are_named(tmp_path, fields, says):
    """A config that adapts other modules than those whose arrays there are, or none."""
    folder = write_folder(tmp_path, SMALL_CONFIG | fields, random_factors(dict.fromkeys(Q, 2)))
    with pytest.raises(ValueError, match=f"^{names_the(tmp_path)}/{says}"):
        ml.load_adapter(folder, BASE.params)


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_16", "PiSSA", "olora", "OLoRA", "corda", "loftq", "lora_ga"])
def test_an_init_that_changed_the_base_is_refused_with_the_reason(tmp_path, init):
    arrays = random_factors(dict.fromkeys(Q, 2))
    started = {"init_lora_weights": init, "lora_ga_config": {"scale": "stable"} if init == "lora_ga" else None}
    folder = write_folder(tmp_path, SMALL_CONFIG | started, arrays)
    reason = "changes the base's weights .* so that the file is right on that changed base alone"
    for params in (None, BASE.params):
        with pytest.raises(
            ValueError, match=rf"adapter_config\.json: init_lora_weights: got '{init}', takes .*{reason}"
        ):
            ml.load_adapter(folder, params)


EMBEDDING = PREFIX + "embed_tokens.weight"


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_an_embedding_that_is_stored_with_the_adapter_has_to_be_the_base_s(tmp_path, dtype):
    """PEFT's save_embedding_layers=True. A table that was trained, or has other words, is not ours to leave out."""
    base = ml.Model(CONFIG, nested(dict(leaves(BASE.params))))
    base.params["embed_tokens"]["weight"] = base.params["embed_tokens"]["weight"].astype(dtype).astype("float64")
    table = base.params["embed_tokens"]["weight"].astype(dtype)
    arrays = random_factors(dict.fromkeys(Q, 2))
    loaded = ml.load_adapter(write_folder(tmp_path, SMALL_CONFIG, arrays | {EMBEDDING: table}), base.params)
    plain = ml.load_adapter(write_folder(tmp_path / "plain", SMALL_CONFIG, arrays), base.params)
    assert same_adapter(loaded, plain)
    for other in (table + table.dtype.type(1), table[:-1], table.T.copy()):
        folder = write_folder(tmp_path, SMALL_CONFIG, arrays | {EMBEDDING: other})
        with pytest.raises(ValueError, match=r"adapter_model\.safetensors: .*embed_tokens\.weight: is not the base's"):
            ml.load_adapter(folder, base.params)
    with pytest.raises(
        ValueError, match=r"adapter_model\.safetensors: has .*embed_tokens\.weight: load it with the base"
    ):
        ml.load_adapter(folder)


def test_a_bias_under_both_of_peft_s_names_is_refused(tmp_path):
    """Which of the two would count is up to the order."""
    biases = {f"{PREFIX}{path}.{inner}bias": np.zeros(6) for path in Q for inner in ("", "base_layer.")}
    folder = write_folder(tmp_path, SMALL_CONFIG | {"bias": "lora_only"}, random_factors(dict.fromkeys(Q, 2)) | biases)
    for params in (None, BASE.params):
        with pytest.raises(ValueError, match=r"layers\.0\.q_proj\.bias is there under another name too"):
            ml.load_adapter(folder, params)


def test_a_file_without_factors_is_refused(tmp_path):
    """With the base or without; biases alone are no adapter either."""
    norm = {PREFIX + "norm.bias": np.zeros(6)}
    for arrays, bias in (({}, "none"), (norm, "all")):
        folder = write_folder(tmp_path, SMALL_CONFIG | {"bias": bias}, arrays)
        for params in (None, BASE.params):
            with pytest.raises(ValueError, match=r"adapter_model\.safetensors: lacks .*lora_A"):
                ml.load_adapter(folder, params)


@pytest.mark.parametrize("order", [["v_proj", "q_proj"], ["v_proj", "q_proj", "v_proj"]])
def test_names_in_another_order_are_the_same_config(tmp_path, order):
    """In the JSON, and in the metadata of folders from before names were sorted."""
    adapter = make_adapter(target_modules=["q_proj", "v_proj"], exclude_modules=["0.q_proj", "1.v_proj"])
    ml.save_adapter(adapter, tmp_path)
    file, arrays = tmp_path / "adapter_config.json", tmp_path / "adapter_model.safetensors"
    changed = {"target_modules": order, "exclude_modules": ["1.v_proj", "0.q_proj"]}
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    assert same_adapter(ml.load_adapter(tmp_path, BASE.params), adapter)
    with safetensors.safe_open(arrays, framework="np") as opened:
        metadata = opened.metadata()
    metadata["minilora.config"] = json.dumps(json.loads(metadata["minilora.config"]) | changed)
    safetensors.numpy.save_file(safetensors.numpy.load_file(arrays), arrays, metadata)
    for loaded in (ml.load_adapter(tmp_path, BASE.params), ml.load_adapter(tmp_path)):
        assert same_adapter(loaded, adapter)


# --- what is refused when it is saved, as it would be when it is loaded ---


def changed_arrays(adapter, name, change):
    return adapter.with_arrays({key: change(one) if name in key else one for key, one in adapter.arrays().items()})


def replaced(adapter, **fields):
    return dataclasses.replace(adapter, **fields)


def put(array, value):
    changed = array.copy()
    changed.flat[-1] = value
    return changed


SOUND = make_adapter(r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"], bias="lora_only")
UNSAVED = {  # what is wrong -> (the adapter, what the message begins with)
    "NaN": (changed_arrays(SOUND, "1.q_proj.lora_B", lambda x: put(x, np.nan)),
            "adapter: layers.1.q_proj.lora_B: holds NaN or infinite numbers"),
    "infinity": (changed_arrays(SOUND, "1.q_proj.bias", lambda x: put(x, np.inf)), "adapter: layers.1.q_proj.bias: ho"),
    "float16": (changed_arrays(SOUND, "0.q_proj.lora_A", lambda x: x.astype("float16")),
                "adapter: layers.0.q_proj.lora_A: got float16, takes float32 or float64"),
    "integers": (changed_arrays(SOUND, "lora_A", lambda x: x.astype(int)), "adapter: layers.0.q_proj.lora_A: got int6"),
    "complex": (changed_arrays(SOUND, "lora_A", lambda x: 1j * x), "adapter: layers.0.q_proj.lora_A: got complex128"),
    "lists": (changed_arrays(SOUND, "lora_A", lambda x: x.tolist()), "adapter: layers.0.q_proj.lora_A: got a list, ta"),
    "objects": (changed_arrays(SOUND, "lora_A", lambda x: x.astype(object)), "adapter: layers.0.q_proj.lora_A: got ob"),
    "transposed A": (changed_arrays(SOUND, "0.up_proj.lora_A", np.transpose), "adapter: layers.0.up_proj: got {'lora_"),
    "transposed B": (changed_arrays(SOUND, "0.up_proj.lora_B", np.transpose), "adapter: layers.0.up_proj: got {'lora_"),
    "one axis": (changed_arrays(SOUND, "0.up_proj.lora_B", np.ravel), "adapter: layers.0.up_proj: got"),
    "a stack's axis": (changed_arrays(SOUND, "lora", lambda x: x[None]), "adapter: layers.0.q_proj: got"),
    "another rank": (replaced(SOUND, config=replaced(SOUND.config, r=2)), "adapter: layers.0.q_proj: got"),
    "no A": (replaced(SOUND, factors={p: {"lora_B": f["lora_B"]} for p, f in SOUND.factors.items()}),
             "adapter: layers.0.q_proj: got {'lora_B'"),
    "no factors": (replaced(SOUND, factors={}, biases={}, scaling={}), "adapter: lacks lora_A and lora_B"),
    "another module": (replaced(SOUND, config=replaced(SOUND.config, target_modules=["q_proj"])),
                       "adapter: layers.0.up_proj: has factors, which its config does not call for"),
    "another layer": (replaced(SOUND, config=replaced(SOUND.config, layers_to_transform=[0, 2])),
                      "adapter: layers.1.q_proj: has factors, which its config does not call for"),
    "another alpha": (replaced(SOUND, config=replaced(SOUND.config, lora_alpha=9)), "adapter: scaling of layers."),
    "another scaling": (replaced(SOUND, scaling=dict.fromkeys(SOUND.scaling, 3.0)), "adapter: scaling of layers."),
    "a scaling less": (replaced(SOUND, scaling={}), "adapter: scaling of layers."),
    "a bias less": (replaced(SOUND, biases={}), "adapter: of the biases that train with bias='lora_only', lacks layer"),
    "a bias more": (replaced(SOUND, biases=SOUND.biases | {"norm": np.zeros(6)}),
                    "adapter: of the biases that train with bias='lora_only', lacks nothing; has unexpected norm.bias"),
    "biases of none": (replaced(SOUND, config=replaced(SOUND.config, bias="none")), "adapter: of the biases that trai"),
    "a bias of another size": (changed_arrays(SOUND, "0.q_proj.bias", lambda x: x[1:]),
                               "adapter: layers.0.q_proj.bias: got shape (5,), takes (6,)"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", UNSAVED)
def test_an_adapter_that_could_not_be_loaded_is_not_saved(tmp_path, wrong):
    """And what was in the folder stays as it was."""
    adapter, says = UNSAVED[wrong]
    ml.save_adapter(SOUND, tmp_path / "a")
    before = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    for folder in ("a", "b"):
        with pytest.raises(ValueError, match=f"^{re.escape(says)}"):
            ml.save_adapter(adapter, tmp_path / folder)
    assert {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()} == before
    assert not (tmp_path / "b").exists()


def test_what_is_no_adapter_is_not_saved_as_one(tmp_path):
    """After full fine-tuning `history.best` is a Model."""
    two = stack_adapters([make_adapter(), make_adapter(seed=2)])
    for other, says in ((BASE, "a Model"), (two, "an AdapterStack"), (BASE.params, "a dict"), (None, "None")):
        with pytest.raises(TypeError, match=f"^adapter: got {says}, takes an Adapter .*save_model writes it"):
            ml.save_adapter(other, tmp_path / "a")
    assert not (tmp_path / "a").exists()
    ml.save_adapter(two.member(1), tmp_path / "a")


def with_leaf(path, change):
    """BASE with another array at that path."""
    return ml.Model(CONFIG, nested(dict(leaves(BASE.params)) | {path: change(leaves(BASE.params)[path])}))


WEIGHT = "layers.1.up_proj.weight"
UNSAVED_MODELS = {
    "NaN": (with_leaf(WEIGHT, lambda x: put(x, np.nan)), f"model.params: {WEIGHT}: holds NaN or infinite numbers"),
    "float32": (with_leaf(WEIGHT, lambda x: x.astype("float32")), f"model.params: {WEIGHT}: got float32, takes float6"),
    "integers": (with_leaf(WEIGHT, lambda x: x.astype(int)), f"model.params: {WEIGHT}: got int64, takes float64"),
    "a list": (with_leaf("norm.bias", lambda x: x.tolist()), "model.params: lacks norm.bias; has unexpected norm.bias"),
    "transposed": (with_leaf(WEIGHT, np.transpose), f"model.params: {WEIGHT}: got shape (6, 5), takes (5, 6)"),
    "a layer less": (ml.Model(CONFIG, BASE.params | {"layers": BASE.params["layers"][:2]}), "model.params: lacks laye"),
    "an array more": (ml.Model(CONFIG, BASE.params | {"lm_head": np.zeros(3)}), "model.params: lacks nothing; has une"),
    "another config": (ml.Model(dataclasses.replace(CONFIG, d_ff=7), BASE.params), "model.params: layers.0.up_proj.we"),
    "another dtype": (ml.Model(dataclasses.replace(CONFIG, dtype="float32"), BASE.params),
                      "model.params: embed_tokens.weight: got float64, takes float32"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", UNSAVED_MODELS)
def test_a_model_that_could_not_be_loaded_is_not_saved(tmp_path, wrong):
    model, says = UNSAVED_MODELS[wrong]
    with pytest.raises(ValueError, match=f"^{re.escape(says)}"):
        ml.save_model(model, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_what_is_no_model_is_not_saved_as_one(tmp_path):
    for other, says in ((SOUND, "an Adapter"), (BASE.params, "a dict"), (None, "None")):
        with pytest.raises(TypeError, match=f"^model: got {says}, takes a Model"):
            ml.save_model(other, tmp_path / "a")
    with pytest.raises(TypeError, match=r"^model\.config: got a dict, takes a ModelConfig"):
        ml.save_model(ml.Model(vars(CONFIG), BASE.params), tmp_path / "a")
    with pytest.raises(TypeError, match=r"^model\.params: got a Model, takes the nested dict"):
        ml.save_model(ml.Model(CONFIG, BASE), tmp_path / "a")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("notes", "says"),
    [
        ({"loss": np.nan}, "notes: got what JSON does not have"),
        ({"loss": np.float32(2)}, "notes: got what JSON does not have"),
        ({"d_model": 7}, "notes: got d_model, takes what is no field of the model"),
        ({"fingerprint": "x", "dtype": "y"}, "notes: got dtype, fingerprint, takes what is no field"),
        (["loss"], "notes: got a list, takes a dict, or None"),
    ],
    ids=str,
)
def test_notes_that_cannot_be_written_leave_what_was_there(tmp_path, notes, says):
    """Found before the first of two files is replaced."""
    ml.save_model(make_model(seed=1), tmp_path)
    with pytest.raises((TypeError, ValueError), match=f"^{says}"):
        ml.save_model(BASE, tmp_path, notes)
    assert same_bits(leaves(ml.load_model(tmp_path).params), leaves(make_model(seed=1).params))


# --- folders ---

FOLDER_USES = {
    "save_model": lambda folder: ml.save_model(BASE, folder),
    "save_adapter": lambda folder: ml.save_adapter(SOUND, folder),
    "load_model": ml.load_model,
    "load_adapter": ml.load_adapter,
    "load_adapter with params": lambda folder: ml.load_adapter(folder, BASE.params),
    "load_opt": ml.load_opt,
    "load_opt_adapter": lambda folder: ml.load_opt_adapter(folder, BASE.params),
}


@pytest.mark.parametrize("use", FOLDER_USES)
def test_a_file_in_the_place_of_a_folder_is_named(tmp_path, use):
    """The safetensors file itself, say."""
    file = tmp_path / "adapter_model.safetensors"
    file.write_bytes(b"")
    with pytest.raises(NotADirectoryError, match=f"^folder: got '{names_the(file)}', which is a file, takes a folder$"):
        FOLDER_USES[use](file)


@pytest.mark.parametrize("use", FOLDER_USES)
@pytest.mark.parametrize("folder", [None, 3, b"folder", ["folder"]])
def test_what_is_no_path_is_named(use, folder):
    with pytest.raises(TypeError, match=r"^folder: got .*, takes the path of a folder$"):
        FOLDER_USES[use](folder)


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path):
    load, file = prepare(tmp_path, "adapter", "safetensors")
    file.unlink()
    file.mkdir()
    with pytest.raises(IsADirectoryError, match=f"{names_the(file)}: a folder, takes a safetensors file"):
        load(tmp_path)


def test_adapters_in_folders_below_are_pointed_at(tmp_path):
    """PEFT saves every adapter but the one named "default" one level down."""
    for name in ("one", "two"):
        ml.save_adapter(SOUND, tmp_path / name)
    with pytest.raises(
        FileNotFoundError, match=r"adapter_config\.json: no such file; there are adapters in .* one, two$"
    ):
        ml.load_adapter(tmp_path)


def test_params_of_another_kind_are_named(tmp_path):
    ml.save_adapter(SOUND, tmp_path)
    for load in (ml.load_adapter, ml.load_opt_adapter):
        with pytest.raises(TypeError, match=r"^params: got a Model, takes the nested dict of a Model's parameters"):
            load(tmp_path, BASE)
    with pytest.raises(TypeError, match=r"^params: got None"):
        ml.load_opt_adapter(tmp_path, None)


# --- what is refused in adapter_config.json ---

BAD_FIELDS = [
    ("peft_type", "IA3"), ("peft_type", None),
    ("r", 0), ("r", 3), ("r", "2"), ("r", 2.0), ("r", None), ("r", True), ("r", [2]),
    ("lora_alpha", 0), ("lora_alpha", -1), ("lora_alpha", "8"), ("lora_alpha", None), ("lora_alpha", 10**400),
    ("lora_dropout", 1), ("lora_dropout", "0"), ("lora_dropout", None),
    ("target_modules", None), ("target_modules", []), ("target_modules", 5), ("target_modules", [5]),
    ("target_modules", {"q_proj": 1}), ("target_modules", "(q_proj"), ("target_modules", "a{4294967296}"),
    ("target_modules", "(" * 5000 + ")" * 5000),
    ("layers_to_transform", "0"), ("layers_to_transform", [0.5]), ("layers_to_transform", {}),
    ("layers_to_transform", True),
    ("exclude_modules", 5), ("exclude_modules", "["),
    ("rank_pattern", [3]), ("rank_pattern", {"q_proj": 0}), ("rank_pattern", {"(": 3}),
    ("rank_pattern", {"(?i)q_proj": 2}), ("alpha_pattern", {"q_proj": "8"}), ("alpha_pattern", "q_proj"),
    ("bias", "some"), ("bias", None), ("bias", ["none"]), ("bias", False),
    ("init_lora_weights", "pissa"), ("init_lora_weights", 1), ("init_lora_weights", None),
    ("use_rslora", 1), ("use_rslora", "false"), ("use_rslora", None),
    ("use_dora", True), ("fan_in_fan_out", True), ("lora_bias", True), ("modules_to_save", ["norm"]),
    ("layers_pattern", "blocks"), ("layer_replication", [[0, 2]]), ("trainable_token_indices", [1]),
    ("target_parameters", ["x"]), ("alora_invocation_tokens", [1]), ("use_qalora", True),
    ("use_bdlora", True), ("megatron_config", {}), ("layers_pattern", ["h"]),
    ("enable_lora", [True, False, True]), ("merge_weights", True), ("fan_in_fan_out", "false"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), BAD_FIELDS, ids=lambda x: str(x)[:30])
def test_a_bad_field_is_named_with_its_file(tmp_path, name, value):
    folder = write_folder(tmp_path, SMALL_CONFIG | {name: value}, random_factors(dict.fromkeys(Q, 2)))
    with pytest.raises(ValueError, match=rf"adapter_(config\.json|model\.safetensors): .*{name}"):
        ml.load_adapter(folder, BASE.params)


@pytest.mark.parametrize(("name", "nearest"), [("lora_alfa", "lora_alpha"), ("rs_lora", "use_rslora"), ("rank", "")])
def test_an_unknown_field_is_refused_with_the_nearest_name(tmp_path, name, nearest):
    folder = write_folder(tmp_path, SMALL_CONFIG | {name: 1}, random_factors(dict.fromkeys(Q, 2)))
    with pytest.raises(ValueError, match=f"adapter_config.json: unknown field '{name}'.*{nearest}"):
        ml.load_adapter(folder)


BAD_JSON = {
    "empty": b"", "a list": b"[]", "null": b"null", "a number": b"1", "cut off": b'{"peft_type": "LORA", "r"',
    "not UTF-8": b'{"peft_type": "\xff"}', "deep lists": b"[" * 100_000, "deep objects": b'{"a":' * 100_000,
    "a number of 5,000 digits": b'{"peft_type": "LORA", "r": ' + b"1" * 5000 + b"}",
    "NaN": b'{"peft_type": "LORA", "target_modules": ["q_proj"], "lora_alpha": NaN}', "NUL": b"\0" * 40,
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD_JSON)
@pytest.mark.parametrize("kind", ["adapter", "model"])
def test_bad_json_is_refused_and_the_file_named(tmp_path, bad, kind):
    load, file = prepare(tmp_path, kind, "json")
    file.write_bytes(BAD_JSON[bad])
    with pytest.raises(ValueError, match=names_the(file)):
        load(tmp_path)


def prepare(folder, kind, suffix):
    """Save an adapter or a model; what loads it, and its JSON or its safetensors file."""
    if kind == "adapter":
        ml.save_adapter(make_adapter(r=2, target_modules=["q_proj"]), folder)
        return ml.load_adapter, folder / {"json": "adapter_config.json"}.get(suffix, "adapter_model.safetensors")
    ml.save_model(BASE, folder)
    return ml.load_model, folder / {"json": "config.json"}.get(suffix, "model.safetensors")


BAD_MODEL_FIELDS = [
    ("d_model", 7), ("d_model", 0), ("d_model", "6"), ("d_model", 6.0), ("d_model", None), ("n_heads", 5),
    ("vocab_size", 12), ("vocab_size", 10**12), ("d_ff", 10**30), ("n_layers", 2), ("n_layers", 4), ("n_layers", -1),
    ("context_length", 8), ("dtype", "float32"), ("dtype", "float16"), ("dtype", None), ("fingerprint", "0" * 64),
    ("fingerprint", None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), BAD_MODEL_FIELDS)
def test_a_model_whose_config_does_not_fit_is_refused_and_the_folder_named(tmp_path, name, value):
    ml.save_model(BASE, tmp_path)
    stated = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(stated | {name: value}))
    with pytest.raises(ValueError, match=names_the(tmp_path)):
        ml.load_model(tmp_path)


@pytest.mark.parametrize("name", ["d_model", "dtype", "fingerprint"])
def test_a_model_config_that_lacks_a_field_is_refused(tmp_path, name):
    ml.save_model(BASE, tmp_path)
    stated = json.loads((tmp_path / "config.json").read_text())
    del stated[name]
    (tmp_path / "config.json").write_text(json.dumps(stated))
    with pytest.raises(ValueError, match=f"config.json: lacks {name}"):
        ml.load_model(tmp_path)


# --- what is refused in the safetensors file ---


@pytest.mark.parametrize("kind", ["adapter", "model"])
@pytest.mark.parametrize("suffix", ["json", "safetensors"])
def test_a_missing_file_is_named(tmp_path, kind, suffix):
    load, file = prepare(tmp_path, kind, suffix)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=names_the(file)):
        load(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize("kind", ["adapter", "model"])
@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth"])
def test_pickled_weights_are_refused(tmp_path, kind, suffix):
    """Reading one runs whatever code is in it. Beside safetensors it is not looked at."""
    load, file = prepare(tmp_path, kind, "safetensors")
    pickled = tmp_path / f"{'pytorch_' * (kind == 'model')}{file.stem}{suffix}"
    pickled.write_bytes(b"\x80\x04")
    load(tmp_path)
    file.unlink()
    with pytest.raises(ValueError, match=f"^{names_the(pickled)}: pickle is not read; convert to safetensors$"):
        load(tmp_path)


@pytest.mark.parametrize("kind", ["adapter", "model"])
def test_other_pickles_are_not_what_is_missing(tmp_path, kind):
    """Trainers leave their own state in the folder."""
    load, file = prepare(tmp_path, kind, "safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "training_args.bin", "rng_state.pth"):
        (tmp_path / name).write_bytes(b"\x80\x04")
    file.unlink()
    with pytest.raises(FileNotFoundError, match=names_the(file)):
        load(tmp_path)


@pytest.mark.parametrize("kind", ["adapter", "model"])
def test_a_truncated_file_is_refused_at_every_length(tmp_path, kind):
    load, file = prepare(tmp_path, kind, "safetensors")
    whole = file.read_bytes()
    lengths = {*range(0, 64), *range(64, len(whole), max(1, len(whole) // 150)), len(whole) - 1}
    for length in sorted(lengths):
        file.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=names_the(file)):
            load(tmp_path)
    file.write_bytes(whole + b"\0")
    with pytest.raises(ValueError, match=names_the(file)):
        load(tmp_path)


CORRUPTIONS = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4)


def corrupt(whole, changes, in_header):
    """Change some bytes; half of the time in the header, which is a small part of the file."""
    changed = bytearray(whole)
    end = 8 + struct.unpack("<Q", whole[:8])[0] if in_header else len(whole)
    for place, change in changes:
        changed[int(place * end)] ^= change
    return bytes(changed)


def attempt(load, *arguments):
    """(what is loaded, "") or (None, the ValueError's message); any other exception is a failure."""
    try:
        return load(*arguments), ""
    except ValueError as error:
        return None, str(error)


@given(changes=CORRUPTIONS, in_header=st.booleans())
@settings(max_examples=300)
def test_a_damaged_model_is_refused_or_unhurt(tmp_path_factory, changes, in_header):
    """Never another exception, and never a model with other arrays: the fingerprint sees every bit."""
    folder = tmp_path_factory.getbasetemp() / "damaged-model"
    load, file = prepare(folder, "model", "safetensors")
    file.write_bytes(corrupt(file.read_bytes(), changes, in_header))
    loaded, message = attempt(load, folder)
    if loaded is None:
        assert str(folder) in message
    else:
        assert same_bits(leaves(loaded.params), leaves(BASE.params))


@given(changes=CORRUPTIONS, in_header=st.booleans())
@settings(max_examples=300)
def test_a_damaged_adapter_is_refused_or_finite(tmp_path_factory, changes, in_header):
    """An adapter file has no checksum, so a changed number may pass; nothing else may, and no other exception."""
    folder = tmp_path_factory.getbasetemp() / "damaged-adapter"
    load, file = prepare(folder, "adapter", "safetensors")
    file.write_bytes(corrupt(file.read_bytes(), changes, in_header))
    loaded, message = attempt(load, folder, BASE.params)
    if loaded is None:
        assert str(file) in message or "fingerprint" in message
    else:
        assert loaded.arrays().keys() == make_adapter(r=2, target_modules=["q_proj"]).arrays().keys()
        assert all(np.isfinite(array).all() for array in loaded.arrays().values())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["adapter", "model"])
def test_numbers_that_are_not_finite_are_refused(tmp_path, kind, value):
    load, file = prepare(tmp_path, kind, "safetensors")
    arrays = safetensors.numpy.load_file(file)
    name = sorted(arrays)[-1]
    arrays[name].flat[0] = value
    file.write_bytes(safetensors_file(arrays))
    with pytest.raises(ValueError, match=f"{names_the(file)}: {name}: holds NaN or infinite"):
        load(tmp_path)


@pytest.mark.parametrize(("kind", "dtype"), [("adapter", "int64"), ("model", "int64"), ("model", "float16")])
def test_other_dtypes_are_refused(tmp_path, kind, dtype):
    load, file = prepare(tmp_path, kind, "safetensors")
    arrays = {name: array.astype(dtype) for name, array in safetensors.numpy.load_file(file).items()}
    file.write_bytes(safetensors_file(arrays))
    with pytest.raises(
        ValueError, match=rf"{names_the(file)}: .*: got {dtype}, takes (float16 or )?float32 or float64"
    ):
        load(tmp_path)


@pytest.mark.parametrize("with_base", [False, True])
def test_factors_in_float16_are_widened_as_bases_are(tmp_path, with_base):
    """Which changes no number; where dtypes are mixed, the widest is that of all."""
    arrays = {name: array.astype("float16") for name, array in random_factors(dict.fromkeys(Q, 2)).items()}
    for wide in (None, "float32", "float64"):
        one = PREFIX + "layers.1.q_proj.lora_B.weight"
        stored = arrays if wide is None else arrays | {one: arrays[one].astype(wide)}
        folder = write_folder(tmp_path, SMALL_CONFIG, stored)
        loaded = ml.load_adapter(folder, BASE.params) if with_base else ml.load_adapter(folder)
        assert {array.dtype.name for array in loaded.arrays().values()} == {wide or "float32"}
        for name, array in loaded.arrays().items():
            assert np.array_equal(array, stored[f"{PREFIX}{name}.weight"])


@pytest.mark.parametrize(("code", "bytes_each"), [("BF16", 2), ("F8_E4M3", 1), ("F8_E5M2", 1), ("BOOL", 1), ("U64", 8)])
def test_dtypes_that_numpy_lacks_are_refused_too(tmp_path, code, bytes_each):
    """Many PEFT adapters are stored in bfloat16."""
    folder = write_folder(tmp_path, SMALL_CONFIG, {})
    raw = {name: np.zeros(array.shape, f"S{bytes_each}") for name, array in random_factors(dict.fromkeys(Q, 2)).items()}
    (folder / "adapter_model.safetensors").write_bytes(safetensors_file(raw, dtype=code))
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors"):
        ml.load_adapter(folder)


BAD_NAMES = [
    "", "weight", "layers.0.q_proj.lora_A.weight", PREFIX, PREFIX + "lora_A.weight",
    PREFIX + "layers.0.q_proj.lora_C.weight",
    PREFIX + "layers.0.q_proj.lora_A.default.weight", PREFIX + "layers.0.q_proj.lora_magnitude_vector",
    PREFIX + "layers.0.q_proj.weight", PREFIX + "layers.0.embed_tokens.lora_embedding_A",
    PREFIX + "layers.².q_proj.lora_A.weight", PREFIX + "layers." + "1" * 5000 + ".q_proj.lora_A.weight",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES, ids=lambda name: name[-40:])
def test_an_array_of_an_unexpected_name_is_refused(tmp_path, name):
    arrays = random_factors(dict.fromkeys(Q, 2)) | {name: np.zeros((2, 6))}
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors: .*takes"):
        ml.load_adapter(write_folder(tmp_path, SMALL_CONFIG, arrays))


@pytest.mark.parametrize("shape", [(0, 2**40), (0, 2**62), (0, 2**64 - 1), ()])
def test_absurd_shapes_are_refused(tmp_path, shape):
    folder = write_folder(tmp_path, SMALL_CONFIG, {})
    length = 8 if shape == () else 0
    header = {PREFIX + "layers.0.q_proj.lora_A.weight": {"dtype": "F64", "shape": shape, "data_offsets": [0, length]}}
    text = json.dumps(header).encode()
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * length)
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors"):
        ml.load_adapter(folder)


@pytest.mark.parametrize(
    "text", ["he", '"pissa"', "5", "[]", "[" * 100_000, "1" * 5000, "", '{"r": 0}', '{"rank": 8}'], ids=lambda x: x[:10]
)
def test_bad_metadata_is_refused_and_the_file_named(tmp_path, text):
    arrays = random_factors(dict.fromkeys(Q, 2))
    folder = write_folder(tmp_path, SMALL_CONFIG, arrays, {"minilora.config": text})
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors.*minilora\.config"):
        ml.load_adapter(folder)


# --- interrupted writing ---


def interrupt_replace(monkeypatch, allowed):
    """os.replace works that many times, then the process is interrupted."""
    original, calls = os.replace, []

    def interrupted(*arguments, **options):
        calls.append(arguments)
        if len(calls) > allowed:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    monkeypatch.setattr(os, "replace", interrupted)


@pytest.mark.parametrize("kind", ["adapter", "model"])
@pytest.mark.parametrize("allowed", [0, 1])
def test_an_interrupted_save_leaves_the_old_whole_or_is_refused(tmp_path, monkeypatch, kind, allowed):
    """Two files cannot be replaced at once; between them, the new arrays must not pass with the old config."""
    if kind == "adapter":
        save, load = ml.save_adapter, ml.load_adapter
        old, new = make_adapter(r=2, lora_alpha=2), make_adapter(seed=5, r=2, lora_alpha=64)
    else:
        save, load, old, new = ml.save_model, ml.load_model, BASE, make_model(seed=6)
    save(old, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with monkeypatch.context() as patch:
        interrupt_replace(patch, allowed)
        with pytest.raises(KeyboardInterrupt):
            save(new, tmp_path)
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert after.keys() == before.keys()  # nothing strays
    assert sum(after[name] != before[name] for name in before) == allowed
    if allowed:
        with pytest.raises(ValueError, match=names_the(tmp_path)):
            load(tmp_path)
    save(new, tmp_path)  # and the next save goes through
    load(tmp_path)
