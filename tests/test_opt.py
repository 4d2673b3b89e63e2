"""OPT checkpoints: what transformers computes from a folder, we compute from it too; all else is refused by name.

`opt_logits` is OPT written out under OPT's own names. That it is what transformers computes, and that transformers and
PEFT write such folders, is checked in tests/peers.
"""

import dataclasses
import json
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

import minilora as ml
from minilora.model import LINEAR
from minilora.trees import cast, leaves, nested

# No two sizes are equal, so that no transposed or misplaced array fits.
CONFIG = ml.ModelConfig(vocab_size=13, context_length=7, d_model=10, n_heads=2, n_layers=3, d_ff=11, dtype="float64")
OPT_CONFIG = {
    "model_type": "opt", "vocab_size": 13, "max_position_embeddings": 7, "hidden_size": 10, "num_attention_heads": 2,
    "num_hidden_layers": 3, "ffn_dim": 11, "do_layer_norm_before": True, "word_embed_proj_dim": 10,
    "activation_function": "relu", "enable_bias": True, "layer_norm_elementwise_affine": True,
    "tie_word_embeddings": True, "_remove_final_layer_norm": False, "dropout": 0.1, "layerdrop": 0.0,
    "architectures": ["OPTForCausalLM"], "pad_token_id": 1, "torch_dtype": "float16", "prefix": "</s>",
}  # fmt: skip
TOKENS = np.random.default_rng(0).integers(0, 13, (5, 7))
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DECODER = "model.decoder."
OPT_OF = {
    "q_proj": "self_attn.q_proj", "k_proj": "self_attn.k_proj", "v_proj": "self_attn.v_proj",
    "o_proj": "self_attn.out_proj", "up_proj": "fc1", "down_proj": "fc2",
    "input_layernorm": "self_attn_layer_norm", "post_attention_layernorm": "final_layer_norm",
}  # fmt: skip


def make_model(config=CONFIG, seed=0):
    """A model whose every array is random, so that two swapped ones would show."""
    rng = np.random.default_rng(seed)
    start = leaves(ml.init_params(config, rng))
    random = {path: array + 0.5 * rng.standard_normal(array.shape) for path, array in start.items()}
    return ml.Model(config, cast(nested(random), config.dtype))


def opt_arrays(params, decoder=DECODER):
    """Our parameters under OPT's names. The two rows that OPT does not read are large: reading them would show."""
    positions = params["embed_positions"]["weight"]
    unread = np.full((2, positions.shape[1]), 100, positions.dtype)
    arrays = {
        decoder + "embed_tokens.weight": params["embed_tokens"]["weight"],
        decoder + "embed_positions.weight": np.concatenate([unread, positions]),
        decoder + "final_layer_norm.weight": params["norm"]["weight"],
        decoder + "final_layer_norm.bias": params["norm"]["bias"],
    }
    for i, layer in enumerate(params["layers"]):
        for ours, theirs in OPT_OF.items():
            for kind in ("weight", "bias"):
                arrays[f"{decoder}layers.{i}.{theirs}.{kind}"] = layer[ours][kind]
    return arrays


def opt_config(config):
    """What an OPT config says of these sizes, and no more than it must."""
    return {
        "model_type": "opt", "vocab_size": config.vocab_size, "max_position_embeddings": config.context_length,
        "hidden_size": config.d_model, "num_attention_heads": config.n_heads, "num_hidden_layers": config.n_layers,
        "ffn_dim": config.d_ff,
    }  # fmt: skip


def write_folder(folder, arrays, config=OPT_CONFIG):
    """A checkpoint in one file."""
    folder = Path(folder)
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.numpy.save_file(arrays, folder / WHOLE)
    return folder


def write_shards(folder, arrays, placed, config=OPT_CONFIG):
    """A checkpoint in shards: `placed` says in which each array is."""
    folder = Path(folder)
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": placed}))
    for shard in set(placed.values()):
        safetensors.numpy.save_file({name: arrays[name] for name in arrays if placed[name] == shard}, folder / shard)
    return folder


def opt_logits(arrays, tokens, n_heads, decoder=DECODER):
    """OPT as its paper and transformers have it, for one row of tokens, by OPT's names."""

    def array(name):
        return arrays[decoder + name].astype("float64")

    def linear(name, x):
        return x @ array(f"{name}.weight").T + array(f"{name}.bias")

    def layer_norm(name, x):
        centred = x - x.mean(-1, keepdims=True)
        normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return normed * array(f"{name}.weight") + array(f"{name}.bias")

    def attention(path, h):
        q, k, v = (np.split(linear(f"{path}.{one}_proj", h), n_heads, axis=-1) for one in "qkv")
        heads = []
        for i in range(n_heads):
            scores = q[i] @ k[i].T / np.sqrt(q[i].shape[1])
            scores[np.triu_indices(len(tokens), 1)] = -np.inf
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            heads.append(weights / weights.sum(-1, keepdims=True) @ v[i])
        return linear(f"{path}.out_proj", np.concatenate(heads, -1))

    x = array("embed_tokens.weight")[tokens] + array("embed_positions.weight")[np.arange(len(tokens)) + 2]
    for i in range(sum(name.endswith(".fc1.bias") for name in arrays)):
        path = f"layers.{i}"
        x = x + attention(f"{path}.self_attn", layer_norm(f"{path}.self_attn_layer_norm", x))
        hidden = np.maximum(linear(f"{path}.fc1", layer_norm(f"{path}.final_layer_norm", x)), 0)
        x = x + linear(f"{path}.fc2", hidden)
    return layer_norm("final_layer_norm", x) @ array("embed_tokens.weight").T


BASE = make_model()
ARRAYS = opt_arrays(BASE.params)
Q0, FC2 = DECODER + "layers.0.self_attn.q_proj.weight", DECODER + "layers.2.fc2.bias"


def logits(model, tokens=TOKENS):
    return ml.forward(model.params, tokens, model.config)


def same_bits(a, b):
    """The same names with the same shapes, dtypes and bytes."""
    described = [{name: (x.shape, x.dtype, x.tobytes()) for name, x in leaves(tree).items()} for tree in (a, b)]
    return described[0] == described[1]


def names_the(*parts):
    """For `match=`: the message has these in it, in this order."""
    return "(?s)" + ".*".join(re.escape(str(part)) for part in parts)


# --- what is stored is what is computed ---


@st.composite
def model_configs(draw):
    """Any shape of a few features, heads and layers."""
    n_heads = draw(st.integers(1, 3))
    size = lambda: draw(st.integers(1, 5))  # noqa: E731
    return ml.ModelConfig(
        vocab_size=size(), context_length=size(), d_model=n_heads * size(), n_heads=n_heads,
        n_layers=draw(st.integers(1, 3)), d_ff=size(), dtype=draw(st.sampled_from(["float32", "float64"])),
    )  # fmt: skip


@given(config=model_configs(), decoder=st.sampled_from(["model.decoder.", "decoder."]), has_head=st.booleans())
@settings(max_examples=60)
def test_a_checkpoint_is_read_as_it_is(config, decoder, has_head):
    """With and without OPTForCausalLM's prefix, and with and without its copy of the embedding."""
    model = make_model(config)
    arrays = opt_arrays(model.params, decoder)
    if has_head:
        arrays["lm_head.weight"] = arrays[decoder + "embed_tokens.weight"].copy()
    with tempfile.TemporaryDirectory() as folder:
        loaded = ml.load_opt(write_folder(folder, arrays, opt_config(config)))
    assert loaded.config == config
    assert same_bits(loaded.params, model.params)
    assert list(leaves(loaded.params)) == list(leaves(model.params))


@given(config=model_configs(), seed=st.integers(0, 99))
@settings(max_examples=40)
def test_logits_are_those_of_opt_written_out(config, seed):
    """Also at the last position of the table, and with fewer tokens than it has."""
    arrays = opt_arrays(make_model(dataclasses.replace(config, dtype="float64"), seed).params)
    with tempfile.TemporaryDirectory() as folder:
        loaded = ml.load_opt(write_folder(folder, arrays, opt_config(config)))
    for length in {1, config.context_length}:
        tokens = np.random.default_rng(seed).integers(0, config.vocab_size, length)
        expected = opt_logits(arrays, tokens, config.n_heads)
        np.testing.assert_allclose(logits(loaded, tokens[None])[0], expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("decoder", ["model.decoder.", "decoder."])
def test_an_array_in_another_s_place_would_show(tmp_path, decoder):
    """The example by which the bugs of a mapping were planted: every array is read, and each is at its place."""
    arrays = opt_arrays(BASE.params, decoder)
    expected = [opt_logits(arrays, row, 2, decoder) for row in TOKENS]
    loaded = ml.load_opt(write_folder(tmp_path, arrays))
    np.testing.assert_allclose(logits(loaded), expected, rtol=0, atol=1e-11)
    for name in arrays:
        changed = arrays | {name: np.roll(arrays[name], 1, axis=0)}
        after = ml.load_opt(write_folder(tmp_path, changed))
        expected = [opt_logits(changed, row, 2, decoder) for row in TOKENS]
        np.testing.assert_allclose(logits(after), expected, rtol=0, atol=1e-11)
        assert not np.allclose(logits(after), logits(loaded)) or name.endswith("k_proj.bias")  # the softmax cancels it


@given(places=st.lists(st.integers(0, 3), min_size=len(ARRAYS), max_size=len(ARRAYS)), data=st.data())
@settings(max_examples=30)
def test_a_checkpoint_in_shards_is_the_same_as_in_one_file(places, data):
    """Whatever is in which shard, and in whatever order the index has it."""
    order = data.draw(st.permutations(list(ARRAYS)))
    placed = {name: f"model-{place + 1:05}-of-00004.safetensors" for name, place in zip(order, places, strict=True)}
    with tempfile.TemporaryDirectory() as folder:
        loaded = ml.load_opt(write_shards(folder, ARRAYS, placed))
    assert loaded.config == BASE.config
    assert same_bits(loaded.params, BASE.params)
    assert np.array_equal(logits(loaded), logits(BASE))


def test_where_there_are_both_the_whole_file_is_read(tmp_path):
    """As transformers does; the index and its shards may be older."""
    write_shards(tmp_path, opt_arrays(make_model(seed=1).params), dict.fromkeys(ARRAYS, "old.safetensors"))
    assert same_bits(ml.load_opt(write_folder(tmp_path, ARRAYS)).params, BASE.params)


def test_layers_from_ten_on_keep_their_place(tmp_path):
    """As text, layer 10 comes before layer 2."""
    model = make_model(dataclasses.replace(CONFIG, n_layers=12))
    folder = write_folder(tmp_path, opt_arrays(model.params), opt_config(model.config))
    assert np.array_equal(logits(ml.load_opt(folder)), logits(model))


def test_what_is_loaded_can_be_trained_on_and_is_its_own(tmp_path):
    folder = write_folder(tmp_path, ARRAYS)
    for array in leaves(ml.load_opt(folder).params).values():
        assert array.flags.c_contiguous
        array += 1
    assert same_bits(ml.load_opt(folder).params, BASE.params)


def test_a_loaded_model_is_saved_and_adapted_like_any_other(tmp_path):
    loaded = ml.load_opt(write_folder(tmp_path / "opt", ARRAYS))
    ml.save_model(loaded, tmp_path / "ours")
    assert same_bits(ml.load_model(tmp_path / "ours").params, loaded.params)
    adapter = ml.init_adapter(loaded.params, ml.LoraConfig(r=2), np.random.default_rng(0))
    assert ml.merge(loaded.params, adapter)


# --- dtypes ---


@pytest.mark.parametrize("dtype", [None, "float32", "float64"])
@pytest.mark.parametrize("stored", ["float16", "float32", "float64"])
def test_dtypes(tmp_path, stored, dtype):
    """The stored one or the one asked for; float16 is widened, which changes no number."""
    arrays = {name: array.astype(stored) for name, array in ARRAYS.items()}
    loaded = ml.load_opt(write_folder(tmp_path, arrays), dtype=dtype)
    expected = dtype or {"float16": "float32"}.get(stored, stored)
    assert loaded.config.dtype == expected
    assert same_bits(loaded.params, cast(cast(BASE.params, stored), expected))


def test_of_mixed_dtypes_the_widest_is_kept(tmp_path):
    """Layer norms are often stored wider than what is around them."""
    halves = {name: array.astype("float16") for name, array in ARRAYS.items()}
    for wide, expected in (("float32", "float32"), ("float64", "float64")):
        mixed = halves | {Q0: ARRAYS[Q0].astype(wide)}
        loaded = ml.load_opt(write_folder(tmp_path, mixed))
        assert {array.dtype.name for array in leaves(loaded.params).values()} == {expected}
        assert np.array_equal(loaded.params["layers"][0]["q_proj"]["weight"], mixed[Q0])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "f4", np.float32, 32])
def test_another_dtype_is_refused(tmp_path, dtype):
    with pytest.raises(ValueError, match=r"dtype: got .*, takes one of 'float32', 'float64'"):
        ml.load_opt(write_folder(tmp_path, ARRAYS), dtype=dtype)


def test_numbers_that_do_not_fit_the_dtype_are_refused(tmp_path):
    """They would become infinite on the way."""
    folder = write_folder(tmp_path, ARRAYS | {FC2: np.full(10, 1e300)})
    assert ml.load_opt(folder).params["layers"][2]["down_proj"]["bias"][0] == 1e300
    with pytest.raises(ValueError, match=names_the(folder / WHOLE, FC2, "too large for float32")):
        ml.load_opt(folder, dtype="float32")


def with_dtype(code, bytes_each):
    """A safetensors file of that dtype, whose bytes are zero."""
    header, end = {}, 0
    for name, array in ARRAYS.items():
        size = array.size * bytes_each
        header[name] = {"dtype": code, "shape": list(array.shape), "data_offsets": [end, end := end + size]}
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + b"\0" * end


@pytest.mark.parametrize(("code", "bytes_each"), [("BF16", 2), ("F8_E4M3", 1), ("I8", 1), ("I64", 8), ("BOOL", 1)])
def test_dtypes_that_are_not_floats_of_numpy_s_are_refused(tmp_path, code, bytes_each):
    folder = write_folder(tmp_path, ARRAYS)
    (folder / WHOLE).write_bytes(with_dtype(code, bytes_each))
    with pytest.raises(ValueError, match=names_the(folder / WHOLE)):
        ml.load_opt(folder)


def test_bfloat16_is_refused_in_plain_words(tmp_path):
    """On one line, with what it takes: many checkpoints are in bfloat16."""
    folder = write_folder(tmp_path, ARRAYS)
    (folder / WHOLE).write_bytes(with_dtype("BF16", 2))
    takes = r"takes float16 or float32 or float64"
    with pytest.raises(ValueError, match=rf"^{re.escape(str(folder / WHOLE))}: .*{takes}.*bfloat16.*$"):
        ml.load_opt(folder)


# --- what is refused in config.json ---

OTHERS = [
    ("model_type", "llama"), ("model_type", None), ("model_type", ["opt"]),
    ("do_layer_norm_before", False), ("do_layer_norm_before", None), ("do_layer_norm_before", 1),
    ("word_embed_proj_dim", 5), ("word_embed_proj_dim", "10"), ("word_embed_proj_dim", True),
    ("activation_function", "gelu"), ("activation_function", None),
    ("enable_bias", False), ("layer_norm_elementwise_affine", False), ("tie_word_embeddings", False),
    ("_remove_final_layer_norm", True), ("_remove_final_layer_norm", "false"),
    ("quantization_config", {"quant_method": "awq", "bits": 4}), ("quantization_config", {}),
    ("vocab_size", 0), ("vocab_size", "13"), ("vocab_size", None), ("max_position_embeddings", -7),
    ("hidden_size", 10.0), ("hidden_size", True), ("num_attention_heads", 3), ("num_attention_heads", 0),
    ("num_hidden_layers", 0), ("num_hidden_layers", [3]), ("ffn_dim", None), ("ffn_dim", {}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), OTHERS, ids=str)
def test_a_config_that_is_not_covered_is_refused_by_its_field(tmp_path, name, value):
    folder = write_folder(tmp_path, ARRAYS, OPT_CONFIG | {name: value})
    got = rf": got {re.escape(repr(value))}, takes "
    with pytest.raises(ValueError, match=rf"^{re.escape(str(folder / 'config.json'))}: {name}{got}"):
        ml.load_opt(folder)


SIZES = ["vocab_size", "max_position_embeddings", "hidden_size", "num_attention_heads", "num_hidden_layers", "ffn_dim"]


@pytest.mark.parametrize("name", ["model_type", *SIZES])
def test_a_config_that_lacks_a_field_is_refused(tmp_path, name):
    config = {key: value for key, value in OPT_CONFIG.items() if key != name}
    with pytest.raises(ValueError, match=rf"config\.json: lacks {name}$"):
        ml.load_opt(write_folder(tmp_path, ARRAYS, config))


@pytest.mark.parametrize("absent", [{}, {"word_embed_proj_dim": None, "quantization_config": None}])
def test_what_old_configs_lack_is_at_its_default(tmp_path, absent):
    """OPT's first configs have neither enable_bias nor tie_word_embeddings; null is transformers' word for none."""
    loaded = ml.load_opt(write_folder(tmp_path, ARRAYS, opt_config(CONFIG) | absent))
    assert same_bits(loaded.params, BASE.params)


@pytest.mark.parametrize("name", [name for name in SIZES if name != "num_attention_heads"])  # no array has that axis
@pytest.mark.parametrize("change", [lambda n: n + 2, lambda n: 10**12 * n, lambda n: 10**400 * n])
def test_sizes_that_are_not_those_of_the_arrays_are_refused(tmp_path, name, change):
    """And at once: nothing of the size that is claimed is made."""
    config = OPT_CONFIG | {name: change(OPT_CONFIG[name])} | {"word_embed_proj_dim": None}
    folder = write_folder(tmp_path, ARRAYS, config)
    with pytest.raises(ValueError, match=names_the(folder / WHOLE)):
        ml.load_opt(folder)


BAD_JSON = {
    "empty": b"", "a list": b"[]", "null": b"null", "cut off": b'{"model_type": "opt"', "not UTF-8": b'{"a": "\xff"}',
    "deep": b"[" * 100_000, "5,000 digits": b'{"vocab_size": ' + b"1" * 5000 + b"}", "NaN": b'{"vocab_size": NaN}',
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD_JSON)
@pytest.mark.parametrize("file", ["config.json", INDEX])
def test_bad_json_is_refused_and_the_file_named(tmp_path, bad, file):
    folder = write_shards(tmp_path, ARRAYS, dict.fromkeys(ARRAYS, "a.safetensors"))
    (folder / file).write_bytes(BAD_JSON[bad])
    with pytest.raises(ValueError, match=names_the(folder / file)):
        ml.load_opt(folder)


# --- what is refused in the arrays ---


def without(*names):
    return {name: array for name, array in ARRAYS.items() if name not in names}


def replaced(name, **indices):
    array = ARRAYS[name].copy()
    array.flat[0] = indices["first"]
    return ARRAYS | {name: array}


POSITIONS, TABLE = DECODER + "embed_positions.weight", DECODER + "embed_tokens.weight"
BROKEN = {
    "no arrays": ({}, "layers"),
    "a missing weight": (without(Q0), f"lacks {Q0}"),
    "a missing bias": (without(FC2), f"lacks {FC2}"),
    "no final layer norm": (without(DECODER + "final_layer_norm.bias"), f"lacks {DECODER}final_layer_norm.bias"),
    "only the head": (without(TABLE) | {"lm_head.weight": ARRAYS[TABLE]}, f"lacks {TABLE}"),
    "an array too many": (ARRAYS | {DECODER + "project_in.weight": np.zeros((10, 5))}, "project_in.weight"),
    "a layer too many": (ARRAYS | {DECODER + "layers.3.fc1.bias": np.zeros(11)}, "layers.3.fc1.bias"),
    "one under both names": (
        ARRAYS | {FC2.removeprefix("model."): ARRAYS[FC2]},
        "unexpected decoder.layers.2.fc2.bias",
    ),
    "our names": ({f"x.{path}": array for path, array in leaves(BASE.params).items()}, "lacks decoder."),
    "no offset": (ARRAYS | {POSITIONS: ARRAYS[POSITIONS][2:]}, f"{POSITIONS}: got shape (7, 10), takes (9, 10)"),
    "transposed": (ARRAYS | {TABLE: ARRAYS[TABLE].T.copy()}, f"{TABLE}: got shape (10, 13), takes (13, 10)"),
    "one axis": (ARRAYS | {Q0: ARRAYS[Q0].ravel()}, f"{Q0}: got shape (100,)"),
    "a head of its own": (ARRAYS | {"lm_head.weight": ARRAYS[TABLE] + 1e-9}, f"lm_head.weight: differs from {TABLE}"),
    "a head of another shape": (ARRAYS | {"lm_head.weight": np.zeros((13, 5))}, "lm_head.weight: got shape (13, 5)"),
    "NaN": (replaced(Q0, first=np.nan), f"{Q0}: holds NaN"),
    "infinity": (replaced(FC2, first=np.inf), f"{FC2}: holds NaN or infinite"),
    "NaN where it is not read": (replaced(POSITIONS, first=-np.inf), f"{POSITIONS}: holds NaN or infinite"),
}


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("sharded", [False, True])
def test_arrays_that_are_not_opt_s_are_refused_by_name(tmp_path, broken, sharded):
    arrays, named = BROKEN[broken]
    if not sharded:
        write_folder(tmp_path, arrays)
    elif arrays:
        write_shards(tmp_path, arrays, {name: f"{i % 2}.safetensors" for i, name in enumerate(arrays)})
    else:
        return  # an index of nothing has a test of its own
    with pytest.raises(ValueError, match=names_the(tmp_path, named)):
        ml.load_opt(tmp_path)


def test_a_truncated_file_is_refused_at_every_length(tmp_path):
    write_folder(tmp_path / "whole", ARRAYS)
    write_shards(tmp_path / "sharded", ARRAYS, {name: f"{i % 2}.safetensors" for i, name in enumerate(ARRAYS)})
    for file in (tmp_path / "whole" / WHOLE, tmp_path / "sharded" / "1.safetensors"):
        content = file.read_bytes()
        for length in sorted({*range(0, 32), *range(32, len(content), len(content) // 80), len(content) - 1}):
            file.write_bytes(content[:length])
            with pytest.raises(ValueError, match=names_the(file)):
                ml.load_opt(file.parent)


@given(changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(1, 255)), min_size=1, max_size=4),
       in_header=st.booleans())  # fmt: skip
@settings(max_examples=200)
def test_a_damaged_file_is_refused_or_finite(tmp_path_factory, changes, in_header):
    """A checkpoint has no checksum, so a changed number may pass; nothing else may, and no other exception."""
    folder = write_folder(tmp_path_factory.getbasetemp() / "damaged-opt", ARRAYS)
    content = bytearray((folder / WHOLE).read_bytes())
    end = 8 + int.from_bytes(content[:8], "little") if in_header else len(content)
    for place, change in changes:
        content[int(place * end)] ^= change
    (folder / WHOLE).write_bytes(content)
    try:
        loaded = ml.load_opt(folder, dtype="float64")
    except ValueError as error:
        assert str(folder / WHOLE) in str(error)  # noqa: PT017 (both ways are right)
    else:
        shapes = [{path: array.shape for path, array in leaves(model.params).items()} for model in (loaded, BASE)]
        assert shapes[0] == shapes[1]
        assert all(np.isfinite(array).all() for array in leaves(loaded.params).values())


# --- what is refused in the index ---

OUTSIDE = [
    "../a.safetensors", "/tmp/a.safetensors", "sub/a.safetensors", "..", ".", "", "..\\a.safetensors",
    "C:a.safetensors", "C:\\a.safetensors", "\\\\host\\a.safetensors", "a\0.safetensors", "~/a.safetensors",
    "a.safetensors/", "a.safetensors\n", " a.safetensors", "a" * 5000 + ".safetensors", "file:a.safetensors",
    "%2e%2e%2fa.safetensors", "ä.safetensors", "config.json", "a", None, 1, True, ["a.safetensors"], {},
]  # fmt: skip


@pytest.mark.parametrize("shard", OUTSIDE, ids=lambda x: repr(x)[:24])
def test_a_shard_is_a_plain_file_name(tmp_path, shard):
    """The good file is at the places that such names would lead to; it must not be read from there."""
    folder = write_shards(tmp_path / "opt", ARRAYS, dict.fromkeys(ARRAYS, "a.safetensors"))
    (folder / "sub").mkdir()
    for other in (tmp_path, folder / "sub"):
        (other / "a.safetensors").write_bytes((folder / "a.safetensors").read_bytes())
    ml.load_opt(folder)
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(ARRAYS, "a.safetensors") | {FC2: shard}}))
    with pytest.raises(
        ValueError, match=names_the(f"{folder / INDEX}: weight_map: {FC2}: got", "takes the plain name")
    ):
        ml.load_opt(folder)


def test_an_absolute_path_is_refused_even_into_the_folder(tmp_path):
    folder = write_shards(tmp_path, ARRAYS, dict.fromkeys(ARRAYS, "a.safetensors"))
    placed = dict.fromkeys(ARRAYS, str(folder / "a.safetensors"))
    (folder / INDEX).write_text(json.dumps({"weight_map": placed}))
    with pytest.raises(ValueError, match="takes the plain name"):
        ml.load_opt(folder)


@pytest.mark.parametrize(
    "stated", [{}, {"weight_map": {}}, {"weight_map": None}, {"weight_map": [["a", "b"]]}], ids=str
)
def test_an_index_without_a_map_is_refused(tmp_path, stated):
    folder = write_shards(tmp_path, ARRAYS, dict.fromkeys(ARRAYS, "a.safetensors"))
    (folder / INDEX).write_text(json.dumps(stated))
    with pytest.raises(ValueError, match=names_the(f"{folder / INDEX}: weight_map: got")):
        ml.load_opt(folder)


HALVES = {name: "ab"[i % 2] + ".safetensors" for i, name in enumerate(ARRAYS)}


def test_an_array_in_two_shards_is_refused(tmp_path):
    """Which of the two would count is up to the order; here both hold other numbers."""
    folder = write_shards(tmp_path, ARRAYS, HALVES)
    (other,) = {"a.safetensors", "b.safetensors"} - {HALVES[Q0]}
    here = safetensors.numpy.load_file(folder / other)
    safetensors.numpy.save_file(here | {Q0: ARRAYS[Q0] + 1}, folder / other)
    with pytest.raises(ValueError, match=names_the(folder / other, INDEX, f"has unexpected {Q0}")):
        ml.load_opt(folder)


def test_an_array_that_is_not_where_the_index_says_is_refused(tmp_path):
    folder = write_shards(tmp_path, ARRAYS, HALVES)
    here = safetensors.numpy.load_file(folder / HALVES[Q0])
    safetensors.numpy.save_file({name: here[name] for name in here if name != Q0}, folder / HALVES[Q0])
    with pytest.raises(ValueError, match=names_the(folder / HALVES[Q0], f"lacks {Q0}")):
        ml.load_opt(folder)


def test_an_array_that_the_index_lacks_is_refused(tmp_path):
    """Whether it is in a shard or not."""
    placed = {name: shard for name, shard in HALVES.items() if name != FC2}
    folder = write_shards(tmp_path, without(FC2), placed)
    with pytest.raises(ValueError, match=names_the(folder / INDEX, f"lacks {FC2}")):
        ml.load_opt(folder)
    here = safetensors.numpy.load_file(folder / "a.safetensors")
    safetensors.numpy.save_file(here | {FC2: ARRAYS[FC2]}, folder / "a.safetensors")
    with pytest.raises(ValueError, match=names_the(folder / "a.safetensors", f"has unexpected {FC2}")):
        ml.load_opt(folder)


# --- missing files, and pickles ---


@pytest.mark.parametrize("file", ["config.json", WHOLE])
def test_a_missing_file_is_named(tmp_path, file):
    write_folder(tmp_path, ARRAYS)
    (tmp_path / file).unlink()
    with pytest.raises(FileNotFoundError, match=names_the(tmp_path / file)):
        ml.load_opt(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        ml.load_opt(tmp_path / "nowhere")


def test_a_missing_shard_is_named(tmp_path):
    folder = write_shards(tmp_path, ARRAYS, HALVES)
    (folder / "b.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=names_the(folder / "b.safetensors")):
        ml.load_opt(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt", "model.pth"])
def test_pickled_weights_are_refused(tmp_path, name):
    """Reading one runs whatever code is in it."""
    folder = write_folder(tmp_path, ARRAYS)
    (folder / name).write_bytes(b"\x80\x04")
    ml.load_opt(folder)  # beside safetensors it is not looked at
    (folder / WHOLE).unlink()
    with pytest.raises(ValueError, match=names_the(f"{folder / name}: pickle is not read; convert to safetensors")):
        ml.load_opt(folder)


def test_pickled_shards_are_refused(tmp_path):
    folder = write_shards(tmp_path, ARRAYS, HALVES)
    (folder / INDEX).write_text(json.dumps({"weight_map": HALVES | {Q0: "pytorch_model-00001-of-00002.bin"}}))
    with pytest.raises(ValueError, match=names_the(f"{folder / INDEX}: weight_map: {Q0}", "pickle is not read")):
        ml.load_opt(folder)


# --- PEFT's adapters for OPT ---

PEFT = "base_model.model."


def opt_name(path, decoder=DECODER):
    """'layers.0.o_proj' -> 'model.decoder.layers.0.self_attn.out_proj'."""
    if path == "norm":
        return decoder + "final_layer_norm"
    layer, _, module = path.rpartition(".")
    return f"{decoder}{layer}.{OPT_OF[module]}"


def write_adapter(folder, config, adapter, decoder=DECODER, change=lambda arrays: arrays):
    """An adapter of ours as the folder that PEFT would write for it on OPT, without any of minilora's code."""
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "task_type": "CAUSAL_LM"} | config))
    arrays = {
        f"{PEFT}{opt_name(path, decoder)}.{factor}.weight": array
        for path, pair in adapter.factors.items()
        for factor, array in pair.items()
    }
    for path, array in adapter.biases.items():
        inner = ".base_layer" if path in adapter.factors else ""
        arrays[f"{PEFT}{opt_name(path, decoder)}{inner}.bias"] = array
    safetensors.numpy.save_file(change(arrays), folder / "adapter_model.safetensors")
    return folder


def make_adapter(**fields):
    """An adapter that is not at its start: with B = 0 a wrong scaling or a lost factor would not show."""
    rng = np.random.default_rng(1)
    fresh = ml.init_adapter(BASE.params, ml.LoraConfig(**fields), rng)
    return fresh.with_arrays({name: rng.standard_normal(array.shape) for name, array in fresh.arrays().items()})


SMALL = {"r": 2, "lora_alpha": 7, "target_modules": ["q_proj", "v_proj"]}
# PEFT's fields about OPT's names, and the same about ours.
PLACES = [
    ({}, {}),
    ({"target_modules": ["out_proj", "fc1", "fc2"]}, {"target_modules": ["o_proj", "up_proj", "down_proj"]}),
    ({"target_modules": ["self_attn.q_proj", "model.decoder.layers.1.fc2"]},
     {"target_modules": ["q_proj", "layers.1.down_proj"]}),
    ({"target_modules": r".*\.[02]\.self_attn\.(q|out)_proj"}, {"target_modules": r".*\.[02]\.(q|o)_proj"}),
    ({"target_modules": r"model\.decoder\..*fc1"}, {"target_modules": ".*up_proj"}),
    ({"target_modules": "all-linear", "exclude_modules": ["fc1", "0.self_attn.k_proj"]},
     {"target_modules": "all-linear", "exclude_modules": ["up_proj", "0.k_proj"]}),
    ({"exclude_modules": r".*\.1\.self_attn.*"}, {"exclude_modules": r".*\.1\..*"}),
    ({"layers_to_transform": [0, 2], "layers_pattern": "layers"}, {"layers_to_transform": [0, 2]}),
    ({"layers_to_transform": 1, "target_modules": ["fc2"]},
     {"layers_to_transform": 1, "target_modules": ["down_proj"]}),
    ({"target_modules": ["q_proj", "fc1"], "rank_pattern": {"fc1": 3, r"layers\.0\.self_attn\.q_proj": 1},
      "alpha_pattern": {r".*\.2\.fc1": 5, "self_attn.q_proj": 11}, "use_rslora": True},
     {"target_modules": ["q_proj", "up_proj"], "rank_pattern": {"up_proj": 3, r"layers\.0\.q_proj": 1},
      "alpha_pattern": {r".*\.2\.up_proj": 5, "q_proj": 11}, "use_rslora": True}),
    ({"layers_to_transform": [1], "rank_pattern": {r"model.decoder.layers.\d.self_attn.v_proj": 3, "fc1": 5}},
     {"layers_to_transform": [1], "rank_pattern": {"v_proj": 3}}),
    ({"bias": "lora_only", "target_modules": ["out_proj"]}, {"bias": "lora_only", "target_modules": ["o_proj"]}),
    ({"bias": "all", "layers_to_transform": [0]}, {"bias": "all", "layers_to_transform": [0]}),
    # what an ordinary folder names besides
    ({"exclude_modules": ["lm_head"], "ensure_weight_tying": True}, {}),
    ({"target_modules": ["q_proj", "query_key_value", "c_attn"]}, {"target_modules": ["q_proj"]}),
    ({"layers_to_transform": [0, 5], "layers_pattern": ["h", "layers"]}, {"layers_to_transform": [0]}),
    ({"target_modules": ["model.decoder.layers.0.self_attn.q_proj", "fc1"], "layers_to_transform": [1]},
     {"target_modules": ["layers.0.q_proj", "layers.1.up_proj"]}),
]  # fmt: skip


@pytest.mark.parametrize(("theirs", "ours"), PLACES, ids=lambda x: str(x)[:40])
@pytest.mark.parametrize("decoder", ["model.decoder.", "decoder."])
def test_an_adapter_made_on_opt_is_read_as_one_of_ours(tmp_path, theirs, ours, decoder):
    adapter = make_adapter(**SMALL | ours)
    theirs = json.loads(json.dumps(theirs).replace("model.decoder", decoder.removesuffix("."))
                        .replace(r"model\\.decoder", decoder.removesuffix(".").replace(".", r"\\.")))  # fmt: skip
    folder = write_adapter(tmp_path, SMALL | theirs, adapter, decoder)
    loaded = ml.load_opt_adapter(folder, BASE.params)
    assert loaded.base == adapter.base
    assert loaded.scaling == pytest.approx(adapter.scaling, rel=1e-15)
    assert same_bits(loaded.factors, adapter.factors)
    assert same_bits(loaded.biases, adapter.biases)
    expected = ml.forward(BASE.params, TOKENS, CONFIG, adapter=adapter)
    assert np.abs(expected - logits(BASE)).max() > 0.1
    np.testing.assert_allclose(ml.forward(BASE.params, TOKENS, CONFIG, adapter=loaded), expected, rtol=0, atol=1e-12)


def test_an_adapter_made_on_opt_is_saved_and_merged_as_one_of_ours(tmp_path):
    patterns = {"rank_pattern": {r".*\.0\.q_proj": 3}, "alpha_pattern": {"v_proj": 2}}
    adapter = make_adapter(**SMALL | patterns)
    theirs = {"rank_pattern": {r".*\.0\.self_attn\.q_proj": 3}, "alpha_pattern": {"v_proj": 2}}
    loaded = ml.load_opt_adapter(write_adapter(tmp_path / "opt", SMALL | theirs, adapter), BASE.params)
    ml.save_adapter(loaded, tmp_path / "ours")
    again = ml.load_adapter(tmp_path / "ours", BASE.params)
    assert (again.config, again.scaling) == (loaded.config, loaded.scaling)
    assert same_bits(ml.merge(BASE.params, again), ml.merge(BASE.params, adapter))


def edited(remove=(), **arrays):
    return lambda all_: {name: array for name, array in all_.items() if name not in remove} | arrays


ONE = f"{PEFT}{DECODER}layers.1.self_attn.q_proj."
BAD_ADAPTERS = {
    "a factor is missing": ({}, edited([ONE + "lora_A.weight"]), "adapter_model.safetensors: lacks layers.1.q_proj.lo"),
    "a module is missing": ({}, edited([ONE + "lora_A.weight", ONE + "lora_B.weight"]), "lacks layers.1.q_proj"),
    "a bias too many": ({}, edited(**{f"{PEFT}{DECODER}final_layer_norm.bias": np.zeros(10)}), "norm.bias"),
    "another size": ({}, edited(**{ONE + "lora_A.weight": np.zeros((2, 11))}), "layers.1.q_proj"),
    "another rank": ({}, edited(**{ONE + "lora_A.weight": np.zeros((3, 10))}), "layers.1.q_proj"),
    "NaN": ({}, edited(**{ONE + "lora_A.weight": np.full((2, 10), np.nan)}), ONE + "lora_A.weight: holds NaN"),
    "of no module": ({}, edited(**{f"{PEFT}{DECODER}layers.3.fc1.lora_A.weight": np.zeros((2, 10))}), "layers.3.fc1"),
    "our names": ({}, lambda _: {PEFT + "layers.0.q_proj.lora_A.weight": np.zeros((2, 10))}, "unexpected array"),
    "no prefix": ({}, edited(**{DECODER + "layers.0.fc1.lora_A.weight": np.zeros((2, 10))}), "unexpected array"),
    "a weight": ({}, edited(**{ONE + "base_layer.weight": np.zeros((10, 10))}), "unexpected array"),
    "the head": ({}, edited(**{PEFT + "lm_head.lora_A.weight": np.zeros((2, 10))}), "unexpected array"),
    "another target": ({"target_modules": ["o_proj"]}, edited(), "adapter_config.json: target_modules: ('o_proj',)"),
    "another layer": ({"layers_to_transform": [3]}, edited(), "adapter_config.json: target_modules: ", "(3,) leaves n"),
    "no arrays": ({}, lambda _: {}, "adapter_model.safetensors: lacks layers.0.q_proj.lora_A"),
    "an embedding of its own": ({}, edited(**{f"{PEFT}{DECODER}embed_tokens.weight": np.zeros((13, 10))}),
                                f"adapter_model.safetensors: {PEFT}{DECODER}embed_tokens.weight: is not the base's"),
    "a head of its own": ({}, edited(**{f"{PEFT}lm_head.weight": np.zeros((13, 10))}),
                          f"adapter_model.safetensors: {PEFT}lm_head.weight: is not the base's"),
    "PiSSA": ({"init_lora_weights": "pissa"}, edited(), "adapter_config.json: init_lora_weights: got 'pissa'"),
    "more targets": ({"target_modules": ["q_proj", "v_proj", "fc1"]}, edited(), "lacks layers.0.up_proj"),
    "fewer targets": ({"target_modules": ["q_proj"]}, edited(), "unexpected layers.0.v_proj"),
    "DoRA": ({"use_dora": True}, edited(), "adapter_config.json: use_dora"),
    "another method": ({"peft_type": "IA3"}, edited(), "adapter_config.json: peft_type"),
}  # fmt: skip


@pytest.mark.parametrize("bad", BAD_ADAPTERS)
def test_an_adapter_that_does_not_fit_is_refused_by_name(tmp_path, bad):
    config, change, *named = BAD_ADAPTERS[bad]
    adapter = make_adapter(**SMALL)
    ml.load_opt_adapter(write_adapter(tmp_path, SMALL, adapter), BASE.params)
    folder = write_adapter(tmp_path, SMALL | config, adapter, change=change)
    with pytest.raises(ValueError, match=names_the(tmp_path, *named)):
        ml.load_opt_adapter(folder, BASE.params)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
def test_copies_of_the_base_s_embeddings_are_passed_over(tmp_path, dtype):
    """PEFT's save_embedding_layers=True stores the table and the head that is tied to it."""
    base = ml.Model(CONFIG, cast(cast(BASE.params, dtype), "float64"))
    table = base.params["embed_tokens"]["weight"].astype(dtype)
    copies = {f"{PEFT}{DECODER}embed_tokens.weight": table, f"{PEFT}lm_head.weight": table.copy()}
    adapter = make_adapter(**SMALL)
    plain = ml.load_opt_adapter(write_adapter(tmp_path / "plain", SMALL, adapter), base.params)
    folder = write_adapter(tmp_path / "with", SMALL, adapter, change=edited(**copies))
    assert same_bits(ml.load_opt_adapter(folder, base.params).factors, plain.factors)


def test_float16_adapters_are_widened_as_bases_are(tmp_path):
    adapter = make_adapter(**SMALL)
    halved = lambda arrays: {name: array.astype("float16") for name, array in arrays.items()}  # noqa: E731
    loaded = ml.load_opt_adapter(write_adapter(tmp_path, SMALL, adapter, change=halved), BASE.params)
    assert same_bits(loaded.factors, cast(cast(adapter.factors, "float16"), "float32"))


def test_a_pickled_adapter_is_refused(tmp_path):
    folder = write_adapter(tmp_path, SMALL, make_adapter(**SMALL))
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(ValueError, match=names_the(f"{folder / 'adapter_model.bin'}: pickle is not read; convert")):
        ml.load_opt_adapter(folder, BASE.params)


def test_trainers_leave_pickles_that_are_not_the_model(tmp_path):
    folder = write_folder(tmp_path, ARRAYS)
    (folder / "training_args.bin").write_bytes(b"\x80\x04")
    (folder / WHOLE).unlink()
    with pytest.raises(FileNotFoundError, match=names_the(folder / WHOLE)):
        ml.load_opt(folder)


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_file_of_an_adapter_is_named(tmp_path, file):
    folder = write_adapter(tmp_path, SMALL, make_adapter(**SMALL))
    (folder / file).unlink()
    with pytest.raises(FileNotFoundError, match=names_the(folder / file)):
        ml.load_opt_adapter(folder, BASE.params)


def test_every_linear_module_has_its_name():
    """A module added to the model would need one of OPT's."""
    assert set(LINEAR) < set(OPT_OF)
