"""The transformer: OPT's architecture (Zhang et al. 2022, arXiv 2205.01068) under Llama's module names.

Pre-LN blocks, biases everywhere, ReLU, learned positions, a final layer norm and a head tied to the token embedding.
Parameters are nested dicts whose tree mirrors the code: params["layers"][0]["q_proj"]["weight"] is (out, in).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from minilora import ops
from minilora.adapter import Adapter
from minilora.checks import check_integer, check_kind, check_one_of, check_rng, check_shapes, normalize
from minilora.trees import leaves, nested

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
            normalize(self, **{name: check_integer(name, getattr(self, name), at_least=1)})
        check_one_of("dtype", self.dtype, ("float32", "float64"))
        if self.d_model % self.n_heads:
            raise ValueError(f"n_heads: got {self.n_heads}, takes a divisor of d_model = {self.d_model}")


@dataclass(frozen=True)
class Model:
    """A config and the parameters that fit it."""

    config: ModelConfig
    params: Params


def param_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter by its dotted path; linear weights are (out, in)."""
    d, d_ff = config.d_model, config.d_ff
    linear = {name: (d, d) for name in ATTENTION} | {"up_proj": (d_ff, d), "down_proj": (d, d_ff)}
    shapes: dict[str, tuple[int, ...]] = {
        "embed_tokens.weight": (config.vocab_size, d),
        "embed_positions.weight": (config.context_length, d),
    }
    for i in range(config.n_layers):
        shapes |= {f"layers.{i}.input_layernorm.weight": (d,), f"layers.{i}.input_layernorm.bias": (d,)}
        for name, shape in linear.items():
            shapes |= {f"layers.{i}.{name}.weight": shape, f"layers.{i}.{name}.bias": shape[:1]}
        shapes |= {f"layers.{i}.post_attention_layernorm.{one}": (d,) for one in ("weight", "bias")}
    return shapes | {"norm.weight": (d,), "norm.bias": (d,)}


def check_config(name: str, config: Any) -> None:
    """TypeError unless it is a ModelConfig."""
    check_kind(name, config, ModelConfig, "a ModelConfig")


def check_params(name: str, params: Any) -> None:
    """TypeError unless these are parameters, ValueError if they are of something else than a model."""
    check_kind(name, params, dict, "the nested dict of a Model's parameters, model.params")
    if not isinstance(params.get("layers"), list):
        raise ValueError(f"{name}: got a dict without a list of 'layers', takes the parameters of a Model")


def check_model(name: str, model: Any) -> None:
    """TypeError unless it is a Model, ValueError unless its parameters have the names and shapes that its config says.

    Of arrays that are traced in training no more is known; what may be in a file is checked where one is written.
    """
    check_kind(name, model, Model, "a Model")
    check_config(f"{name}.config", model.config)
    check_params(f"{name}.params", model.params)
    check_shapes(f"{name}.params", leaves(model.params), param_shapes(model.config))


def init_params(config: ModelConfig, rng: np.random.Generator) -> Params:
    """Fresh parameters: weights normal with deviation 1 / sqrt(in), biases zero, layer norms the identity.

    What writes to the residual stream (o_proj, down_proj) starts smaller by sqrt(2 n_layers), so that the sum over
    blocks keeps its scale (GPT-2, Radford et al. 2019, section 2.3). Embeddings have deviation 0.1.

    >>> params = init_params(ModelConfig(), np.random.default_rng(0))
    >>> params["layers"][0]["up_proj"]["weight"].shape
    (128, 32)
    """
    check_config("config", config)
    check_rng("rng", rng)

    def start(path, shape):
        module, name = path.split(".")[-2:]
        if name == "bias":
            return np.zeros(shape)
        if module.startswith("embed"):
            return 0.1 * rng.standard_normal(shape)
        if module.endswith("norm"):
            return np.ones(shape)
        onto_residual = (2 * config.n_layers) ** -0.5 if module in ("o_proj", "down_proj") else 1.0
        return onto_residual * shape[1] ** -0.5 * rng.standard_normal(shape)

    return nested({path: start(path, shape).astype(config.dtype) for path, shape in param_shapes(config).items()})


def linear_paths(params: Params) -> list[str]:
    """Every module that LoRA can adapt; the tied head is not one, as it would change the embedding too."""
    return [f"layers.{i}.{name}" for i in range(len(params["layers"])) for name in LINEAR]


def forward(params: Params, tokens, config: ModelConfig, *, adapter: Adapter | None = None, rng=None):
    """Logits (..., T, V) for tokens (..., T); those at t depend on tokens 0 ... t alone.

    `adapter` is added on the fly and the parameters are not changed. With `rng` the adapter's
    dropout is on, drawn from it; without, the model is in evaluation mode and deterministic.
    Raises ValueError for tokens outside the vocabulary or longer than the context, TypeError for arguments of another
    kind. Whether the adapter was made for these parameters costs a hash to know, so it is checked by `merge`,
    `evaluate` and `sample_names`, not here.
    """
    _check_forward(params, config, adapter, rng)
    tokens = check_tokens(tokens, config)
    if adapter is not None and not adapter.factors.keys() <= set(linear_paths(params)):
        unknown = sorted(adapter.factors.keys() - set(linear_paths(params)))
        raise ValueError(f"adapter: made for another model, has factors for {', '.join(unknown)}")
    table = params["embed_tokens"]["weight"]
    x = ops.embed(tokens, table, params["embed_positions"]["weight"])  # (..., B, T) -> (..., N, d), N = B T
    for i, layer in enumerate(params["layers"]):
        path = f"layers.{i}"
        x = _attention(layer, x, tokens.shape[-1], config.n_heads, path, adapter, rng)
        x = _mlp(layer, x, path, adapter, rng)
    x = _norm(params, "norm", "", x, adapter)
    logits = ops.linear(x, table, None)  # the tied head: (..., N, d) -> (..., N, V)
    return ops.reshape(logits, *logits.shape[:-2], *tokens.shape[-2:], -1)  # -> (..., B, T, V)


def _check_forward(params, config, adapter, rng) -> None:
    """What costs nothing to know: it is asked at every step."""
    check_params("params", params)
    check_config("config", config)
    if adapter is not None:
        check_kind("adapter", adapter, Adapter, "an Adapter, or None")
    if rng is not None:
        check_rng("rng", rng) if adapter is None else adapter.check_rng(rng)


def _attention(layer, x, n_tokens, n_heads, path, adapter, rng):
    """x plus what each token attends to."""
    h = _norm(layer, "input_layernorm", path, x, adapter)
    q, k, v = (_project(layer, name, path, h, adapter, rng) for name in ("q_proj", "k_proj", "v_proj"))
    attended = ops.causal_attention(q, k, v, n_tokens, n_heads)
    return _project(layer, "o_proj", path, attended, adapter, rng, onto=x)


def _mlp(layer, x, path, adapter, rng):
    """x plus what the MLP makes of each token."""
    h = _norm(layer, "post_attention_layernorm", path, x, adapter)
    hidden = ops.relu(_project(layer, "up_proj", path, h, adapter, rng))
    return _project(layer, "down_proj", path, hidden, adapter, rng, onto=x)


def _bias(module, path, adapter):
    return module["bias"] if adapter is None else adapter.biases.get(path, module["bias"])


def _norm(tree, name, path, x, adapter):
    bias = _bias(tree[name], f"{path}.{name}" if path else name, adapter)
    return ops.layer_norm(x, tree[name]["weight"], bias, LAYER_NORM_EPS)


def _project(layer, name, path, x, adapter, rng, onto=None):
    """One linear module, with its LoRA factors where the adapter has them."""
    module, path = layer[name], f"{path}.{name}"
    bias = _bias(module, path, adapter)
    if adapter is None or path not in adapter.factors:
        return ops.linear(x, module["weight"], bias, onto)
    factors, scaling, mask = adapter.factors[path], adapter.scaling[path], adapter.dropout_mask(x, rng)
    return ops.lora_linear(x, module["weight"], bias, factors["lora_A"], factors["lora_B"], scaling, mask, onto)


def check_tokens(tokens, config: ModelConfig, name: str = "tokens") -> np.ndarray:
    """Tokens as an integer array, or ValueError."""
    try:
        tokens = np.asarray(tokens)
    except ValueError:
        raise ValueError(f"{name}: got rows of different lengths, takes an integer array (..., tokens)") from None
    if tokens.dtype.kind not in "iu" or tokens.ndim == 0 or tokens.size == 0:
        takes = "an integer array (..., tokens) that is not empty"
        raise ValueError(f"{name}: got {tokens.dtype} of shape {tokens.shape}, takes {takes}")
    if tokens.shape[-1] > config.context_length:
        at_most = f"context_length = {config.context_length}"
        raise ValueError(f"{name}: got {tokens.shape[-1]} in a row, takes at most {at_most}")
    if tokens.min() < 0 or tokens.max() >= config.vocab_size:
        bad = tokens[(tokens < 0) | (tokens >= config.vocab_size)][0]
        takes = f"0 ... {config.vocab_size - 1} (vocab_size = {config.vocab_size})"
        raise ValueError(f"{name}: got {bad}, takes {takes}")
    return tokens
