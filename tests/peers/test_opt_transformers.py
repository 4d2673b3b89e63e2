"""OPT checkpoints and adapters that transformers and PEFT wrote: our logits are theirs.

Models are small and random, with weights and biases far from zero, so that whatever is lost, swapped or transposed
shows. No two sizes of a model are equal.
"""

import json

import numpy as np
import pytest

import minilora as ml
from minilora.opt import COVERED

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT's

# vocabulary, positions, features a head, heads, layers, hidden features of the MLP
SHAPES = [(31, 13, 17, 1, 1, 23), (37, 11, 7, 2, 2, 29), (41, 17, 5, 3, 3, 43), (19, 7, 2, 5, 2, 3)]
TOLERANCE = {"float32": 1e-5, "float64": 1e-10}


def opt_config(shape, **fields):
    vocab_size, positions, d_head, n_heads, n_layers, ffn_dim = shape
    return transformers.OPTConfig(
        vocab_size=vocab_size, max_position_embeddings=positions, hidden_size=d_head * n_heads,
        num_attention_heads=n_heads, num_hidden_layers=n_layers, ffn_dim=ffn_dim, **fields,
    )  # fmt: skip


def random_opt(shape, dtype="float64", seed=0, **fields):
    """OPT in evaluation mode, every parameter random and some ten times as large as OPT starts it (init_std = 0.02).

    Not larger still: where attention is sharp, rounding in float32 grows, in theirs as in ours, beyond the tolerance.
    """
    model = transformers.OPTForCausalLM(opt_config(shape, **fields)).to(getattr(torch, dtype)).eval()
    randomize(model.parameters(), seed)
    return model


def randomize(parameters, seed):
    """Gains around 1, biases around 0, weights with deviation 1 / sqrt(in)."""
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for parameter in parameters:
            scale = parameter.shape[-1] ** -0.5 if parameter.ndim == 2 else 0.5
            kept = parameter if parameter.ndim == 1 else 0 * parameter
            parameter.copy_(kept + scale * torch.tensor(rng.standard_normal(parameter.shape)))


def some_tokens(shape, seed=0):
    """Rows as long as the table of positions; the padding token is among them and is a token like any other."""
    tokens = np.random.default_rng(seed).integers(0, shape[0], (5, shape[1]))
    tokens[0, :2] = 1
    return tokens


def their_logits(model, tokens):
    with torch.no_grad():
        return model(torch.tensor(tokens)).logits.numpy()


def largest_difference(loaded, model, tokens, adapter=None):
    """Over all rows, at their full length and at one and two tokens."""
    differences = []
    for length in (1, 2, tokens.shape[1]):
        ours = ml.forward(loaded.params, tokens[:, :length], loaded.config, adapter=adapter)
        theirs = their_logits(model, tokens[:, :length])
        assert ours.dtype == theirs.dtype
        assert np.abs(theirs).max() > 1
        differences.append(np.abs(ours - theirs).max())
    return max(differences)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("max_shard_size", ["1GB", "3KB"])
def test_logits_are_those_of_transformers(tmp_path, shape, dtype, max_shard_size):
    model = random_opt(shape, dtype)
    model.save_pretrained(tmp_path, max_shard_size=max_shard_size)
    shards = list(tmp_path.glob("*.safetensors"))
    assert (len(shards) > 1) == (tmp_path / "model.safetensors.index.json").exists() == (max_shard_size == "3KB")
    loaded = ml.load_opt(tmp_path)
    assert loaded.config.dtype == dtype
    assert largest_difference(loaded, model, some_tokens(shape)) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_stored_checkpoint_is_converted_as_transformers_converts_it(tmp_path, dtype):
    """From half precision, as OPT was published, to either."""
    random_opt(SHAPES[1], "float16").save_pretrained(tmp_path)
    loaded = ml.load_opt(tmp_path, dtype=dtype)
    model = transformers.OPTForCausalLM.from_pretrained(tmp_path, dtype=getattr(torch, dtype)).eval()
    assert largest_difference(loaded, model, some_tokens(SHAPES[1])) < TOLERANCE[dtype]


def test_the_bare_decoder_is_read_too(tmp_path):
    """OPTModel has names without `model.`; transformers reads it into OPTForCausalLM as we do."""
    random_opt(SHAPES[2]).model.save_pretrained(tmp_path)
    model = transformers.OPTForCausalLM.from_pretrained(tmp_path, dtype=torch.float64).eval()
    assert largest_difference(ml.load_opt(tmp_path), model, some_tokens(SHAPES[2])) < TOLERANCE["float64"]


def test_a_checkpoint_with_a_copy_of_the_embedding_is_read(tmp_path):
    """Older tools wrote the tied head as an array of its own."""
    from safetensors.torch import save_file

    model = random_opt(SHAPES[1])
    model.config.save_pretrained(tmp_path)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert "lm_head.weight" in state
    save_file(state, tmp_path / "model.safetensors")
    assert largest_difference(ml.load_opt(tmp_path), model, some_tokens(SHAPES[1])) < TOLERANCE["float64"]


def test_bfloat16_is_refused_in_plain_words(tmp_path):
    random_opt(SHAPES[0], "bfloat16").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"model\.safetensors: .*bfloat16"):
        ml.load_opt(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [("do_layer_norm_before", False), ("word_embed_proj_dim", 5), ("activation_function", "gelu"),
     ("enable_bias", False), ("layer_norm_elementwise_affine", False), ("tie_word_embeddings", False),
     ("_remove_final_layer_norm", True)],
)  # fmt: skip
def test_another_architecture_is_refused_as_transformers_saves_it(tmp_path, name, value):
    random_opt(SHAPES[1], **{name: value}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"config\.json: {name}: got {value!r}, takes "):
        ml.load_opt(tmp_path)


def test_what_a_config_lacks_is_at_the_default_of_transformers():
    default = transformers.OPTConfig()
    assert {name: getattr(default, name, None) for name in COVERED} == COVERED
    assert transformers.OPTConfig(hidden_size=24, word_embed_proj_dim=None).word_embed_proj_dim == 24


def test_every_field_of_the_config_is_one_we_looked_at():
    """So that a field that transformers adds to OPT, and that changes what it computes, does not pass unseen."""
    sizes = {
        "vocab_size", "hidden_size", "num_hidden_layers", "ffn_dim", "max_position_embeddings", "num_attention_heads"
    }  # fmt: skip
    refused = {
        "do_layer_norm_before", "_remove_final_layer_norm", "word_embed_proj_dim", "activation_function", "enable_bias",
        "layer_norm_elementwise_affine", "tie_word_embeddings", "model_type",
    }  # fmt: skip
    elsewhere = {
        "dropout", "attention_dropout", "layerdrop", "init_std", "use_cache", "pad_token_id", "bos_token_id",
        "eos_token_id",
    }  # fmt: skip
    own = set(transformers.OPTConfig().to_dict()) - set(transformers.PreTrainedConfig().to_dict())
    assert own <= sizes | refused | elsewhere


# --- adapters ---

ADAPTERS = [
    {},
    {"r": 3, "lora_alpha": 7, "use_rslora": True},
    {"target_modules": ["out_proj", "fc1", "fc2"], "r": 2},
    {"target_modules": "all-linear", "exclude_modules": ["k_proj"]},
    {"target_modules": r".*\.[02]\.(self_attn\.q_proj|fc2)"},
    {"target_modules": ["k_proj", "fc1"], "layers_to_transform": [1]},
    {"target_modules": ["q_proj", "fc2"], "rank_pattern": {"fc2": 4, r"layers\.1\.self_attn\.q_proj": 1},
     "alpha_pattern": {"self_attn.q_proj": 5}},
    {"bias": "lora_only"},
    {"bias": "all", "target_modules": ["v_proj"]},
    # what an ordinary folder names besides
    {"exclude_modules": ["lm_head"]},
    {"target_modules": ["q_proj", "query_key_value", "gate_proj", "fc2"]},
    {"layers_to_transform": [0, 5]},
    {"layers_to_transform": [1], "layers_pattern": ["h", "layers"]},
    {"layers_to_transform": [1], "target_modules": ["model.decoder.layers.0.self_attn.q_proj", "fc1"]},
]  # fmt: skip
SHAPE = SHAPES[2]


@pytest.mark.filterwarnings("ignore:.*but no modules were excluded")  # PEFT's, as the bare decoder has no head
@pytest.mark.parametrize("fields", ADAPTERS, ids=lambda x: str(x)[:60])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("bare", [False, True])
def test_a_model_with_an_adapter_of_peft_s_is_ours_with_the_same(tmp_path, fields, dtype, bare):
    peft = pytest.importorskip("peft")
    model = random_opt(SHAPE, dtype)
    model.save_pretrained(tmp_path / "base")
    loaded = ml.load_opt(tmp_path / "base")
    tokens = some_tokens(SHAPE)
    before = their_logits(model, tokens)
    config = peft.LoraConfig(**{"r": 5, "lora_alpha": 3, "target_modules": ["q_proj", "v_proj"]} | fields)
    wrapped = peft.get_peft_model(model.model if bare else model, config).to(getattr(torch, dtype)).eval()
    trainable = [(name, one) for name, one in wrapped.named_parameters() if one.requires_grad]
    assert any("lora_B" in name for name, _ in trainable)
    randomize([one for _, one in trainable], seed=3)
    wrapped.save_pretrained(tmp_path / "adapter")
    adapter = ml.load_opt_adapter(tmp_path / "adapter", loaded.params)
    assert len(adapter.arrays()) == len(trainable)
    assert np.abs(their_logits(model, tokens) - before).max() > 0.1
    assert largest_difference(loaded, model, tokens, adapter) < TOLERANCE[dtype]
    merged = ml.Model(loaded.config, ml.merge(loaded.params, adapter))
    assert largest_difference(merged, model, tokens) < TOLERANCE[dtype]


@pytest.mark.filterwarnings("ignore:You have requested `ensure_weight_tying`")
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("bare", [False, True])
def test_embeddings_that_peft_stores_with_an_adapter_are_compared_with_the_base_s(tmp_path, dtype, bare):
    """save_embedding_layers=True; and ensure_weight_tying=True, where nothing is tied to what is adapted."""
    peft = pytest.importorskip("peft")
    model = random_opt(SHAPE, dtype)
    model.save_pretrained(tmp_path / "base")
    loaded = ml.load_opt(tmp_path / "base")
    config = peft.LoraConfig(r=3, target_modules=["q_proj", "v_proj"], ensure_weight_tying=True)
    wrapped = peft.get_peft_model(model.model if bare else model, config)
    randomize([one for one in wrapped.parameters() if one.requires_grad], seed=3)
    wrapped.save_pretrained(tmp_path / "plain")
    wrapped.save_pretrained(tmp_path / "whole", save_embedding_layers=True)
    plain, whole = (ml.load_opt_adapter(tmp_path / name, loaded.params) for name in ("plain", "whole"))
    assert plain.arrays().keys() == whole.arrays().keys()
    assert all(np.array_equal(array, whole.arrays()[name]) for name, array in plain.arrays().items())
    with torch.no_grad():
        model.get_input_embeddings().weight[3] += 1
    wrapped.save_pretrained(tmp_path / "other", save_embedding_layers=True)
    with pytest.raises(
        ValueError, match=r"adapter_model\.safetensors: .*(embed_tokens|lm_head)\.weight: is not the base's"
    ):
        ml.load_opt_adapter(tmp_path / "other", loaded.params)


def test_where_there_are_both_transformers_reads_the_whole_file_too(tmp_path):
    random_opt(SHAPES[1], seed=1).save_pretrained(tmp_path, max_shard_size="3KB")
    model = random_opt(SHAPES[1], seed=2)
    model.save_pretrained(tmp_path / "whole")
    (tmp_path / "whole" / "model.safetensors").rename(tmp_path / "model.safetensors")
    theirs = transformers.OPTForCausalLM.from_pretrained(tmp_path, dtype=torch.float64).eval()
    expected = their_logits(model, some_tokens(SHAPES[1]))
    np.testing.assert_allclose(their_logits(theirs, some_tokens(SHAPES[1])), expected, rtol=0, atol=1e-12)
    assert largest_difference(ml.load_opt(tmp_path), theirs, some_tokens(SHAPES[1])) < TOLERANCE["float64"]


def test_the_config_that_peft_writes_has_opt_s_names(tmp_path):
    """What the adapters above are read by: had PEFT written ours, nothing would have been translated."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["out_proj", "fc1"])
    peft.get_peft_model(random_opt(SHAPE), config).save_pretrained(tmp_path)
    assert set(json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]) == {"out_proj", "fc1"}
