"""The transformer: OPT's architecture (Zhang et al. 2022, arXiv 2205.01068) under Llama's module names.

Pre-LN blocks, biases everywhere, ReLU, learned positions, a final layer norm and a head tied to the token embedding.
Parameters are nested dicts whose tree mirrors the code: params["layers"][0]["q_proj"]["weight"] is (out, in).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from minilora import ops
from minilora.checks import check_integer, check_one_of

Params = dict[str, Any]

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("up_proj", "down_proj")
LINEAR = ATTENTION + MLP
LAYER_NORM_EPS = 1e-5


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a model; everything else about it is in its arrays.

    >>> ModelConfig(d_model=30, n_heads=4)
    Traceback (most recent call last):
    ValueError: n_heads: got 4, takes a divisor of d_model = 30
    """

    vocab_size: int = 27  # the letters a-z, and 0: the boundary that begins and ends a name
    context_length: int = 16  # tokens; how many rows the position table has
    d_model: int = 32  # features a token
    n_heads: int = 4  # each owns d_model / n_heads features
    n_layers: int = 2
    d_ff: int = 128  # hidden features of the MLP
    dtype: str = "float32"  # "float32" to train, "float64" to check

    def __post_init__(self):
        for name in ("vocab_size", "context_length", "d_model", "n_heads", "n_layers", "d_ff"):
            check_integer(name, getattr(self, name), at_least=1)
        check_one_of("dtype", self.dtype, ("float32", "float64"))
        if self.d_model % self.n_heads:
            raise ValueError(f"n_heads: got {self.n_heads}, takes a divisor of d_model = {self.d_model}")


@dataclass(frozen=True)
class Model:
    """A config and the parameters that fit it."""

    config: ModelConfig
    params: Params


def linear_shapes(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """(out, in) of each linear module of a block."""
    d, d_ff = config.d_model, config.d_ff
    return {name: (d, d) for name in ATTENTION} | {"up_proj": (d_ff, d), "down_proj": (d, d_ff)}


def init_params(config: ModelConfig, rng: np.random.Generator) -> Params:
    """Fresh parameters: weights normal with deviation 1 / sqrt(in), biases zero, layer norms the identity.

    What writes to the residual stream (o_proj, down_proj) starts smaller by sqrt(2 n_layers), so that the sum over
    blocks keeps its scale (GPT-2, Radford et al. 2019, section 2.3).

    >>> params = init_params(ModelConfig(), np.random.default_rng(0))
    >>> params["layers"][0]["up_proj"]["weight"].shape
    (128, 32)
    """
    dtype = np.dtype(config.dtype)

    def normal(deviation, shape):
        return (deviation * rng.standard_normal(shape)).astype(dtype)

    def norm():
        return {"weight": np.ones(config.d_model, dtype), "bias": np.zeros(config.d_model, dtype)}

    def linear(name, n_out, n_in):
        onto_residual = (2 * config.n_layers) ** -0.5 if name in ("o_proj", "down_proj") else 1.0
        return {
            "weight": normal(onto_residual * n_in**-0.5, (n_out, n_in)),
            "bias": np.zeros(n_out, dtype),
        }

    def layer():
        modules = {name: linear(name, *shape) for name, shape in linear_shapes(config).items()}
        return {"input_layernorm": norm(), **modules, "post_attention_layernorm": norm()}

    return {
        "embed_tokens": {"weight": normal(0.1, (config.vocab_size, config.d_model))},
        "embed_positions": {"weight": normal(0.1, (config.context_length, config.d_model))},
        "layers": [layer() for _ in range(config.n_layers)],
        "norm": norm(),
    }


def forward(params: Params, tokens, config: ModelConfig, *, adapter=None, rng=None):
    """Logits (..., T, V) for tokens (..., T); those at t depend on tokens 0 ... t alone.

    `adapter` (see `minilora.lora`) is added on the fly and the parameters are not changed. With `rng` the adapter's
    dropout is on, drawn from it; without, the model is in evaluation mode and deterministic.
    Raises ValueError for tokens outside the vocabulary or longer than the context.
    """
    tokens = check_tokens(tokens, config)
    x = ops.embed(tokens, params["embed_tokens"]["weight"], params["embed_positions"]["weight"])
    for i, layer in enumerate(params["layers"]):
        path = f"layers.{i}"
        x = x + _attention(layer, _norm(layer, "input_layernorm", path, x, adapter), config, path, adapter, rng)
        x = x + _mlp(layer, _norm(layer, "post_attention_layernorm", path, x, adapter), path, adapter, rng)
    x = _norm(params, "norm", "", x, adapter)
    return ops.linear(x, params["embed_tokens"]["weight"], None)  # the tied head: (..., T, d) -> (..., T, V)


def _attention(layer, x, config, path, adapter, rng):
    q, k, v = (_project(layer, name, path, x, adapter, rng) for name in ("q_proj", "k_proj", "v_proj"))
    return _project(layer, "o_proj", path, ops.causal_attention(q, k, v, config.n_heads), adapter, rng)


def _mlp(layer, x, path, adapter, rng):
    return _project(layer, "down_proj", path, ops.relu(_project(layer, "up_proj", path, x, adapter, rng)), adapter, rng)


def _bias(module, path, adapter):
    return module["bias"] if adapter is None else adapter.biases.get(path, module["bias"])


def _norm(tree, name, path, x, adapter):
    bias = _bias(tree[name], f"{path}.{name}" if path else name, adapter)
    return ops.layer_norm(x, tree[name]["weight"], bias, LAYER_NORM_EPS)


def _project(layer, name, path, x, adapter, rng):
    """One linear module, with its LoRA factors where the adapter has them."""
    module, path = layer[name], f"{path}.{name}"
    bias = _bias(module, path, adapter)
    if adapter is None or path not in adapter.factors:
        return ops.linear(x, module["weight"], bias)
    factors, p = adapter.factors[path], adapter.config.lora_dropout
    mask = ops.dropout_mask(x.shape, p, rng, module["weight"].dtype) if rng is not None and p > 0 else None
    scaling = adapter.scaling[path]
    return ops.lora_linear(x, module["weight"], bias, factors["lora_A"], factors["lora_B"], scaling, mask)


def check_tokens(tokens, config: ModelConfig) -> np.ndarray:
    """Tokens as an integer array, or ValueError."""
    tokens = np.asarray(tokens)
    if tokens.dtype.kind not in "iu" or tokens.ndim == 0:
        raise ValueError(f"tokens: got {tokens.dtype} of shape {tokens.shape}, takes an integer array (..., tokens)")
    if tokens.shape[-1] > config.context_length:
        raise ValueError(
            f"tokens: got {tokens.shape[-1]} in a row, takes at most context_length = {config.context_length}"
        )
    if tokens.size and not (tokens.min() >= 0 and tokens.max() < config.vocab_size):
        bad = tokens[(tokens < 0) | (tokens >= config.vocab_size)][0]
        raise ValueError(f"tokens: got {bad}, takes 0 ... {config.vocab_size - 1} (vocab_size = {config.vocab_size})")
    return tokens
