"""The model written a second time, without any of the package's formulas: the plain composition of every operation.

autograd differentiates what is here by itself. Nothing is fused, reshaped or cached, and attention loops over heads and
tokens, so that a mistake in the package is unlikely to be made here in the same way. Below it, builders of small random
models and adapters.
"""

import contextlib
import dataclasses

import autograd.numpy as anp
import numpy as np

from minilora import lora, model
from minilora.trees import leaves, nested

# Distinct primes wherever the architecture allows it, so that a transpose cannot pass; d_model is 2 heads of 5.
SMALL = model.ModelConfig(vocab_size=17, context_length=7, d_model=10, n_heads=2, n_layers=3, d_ff=13, dtype="float64")


def linear(x, weight, bias, onto=0.0):
    """W x + b, added to what is there."""
    y = anp.einsum("...i,oi->...o", x, weight)
    return onto + (y if bias is None else y + bias)


def lora_linear(x, weight, bias, lora_A, lora_B, scaling, mask, onto=0.0):
    """W x + b + s B A (m x), added to what is there."""
    dropped = x if mask is None else mask * x
    return linear(x, weight, bias, onto) + scaling * linear(linear(dropped, lora_A, None), lora_B, None)


def layer_norm(x, gain, bias, eps):
    """Mean 0 and variance 1, then gain and bias."""
    centered = x - anp.mean(x, axis=-1, keepdims=True)
    variance = anp.mean(centered**2, axis=-1, keepdims=True)
    return gain * centered / anp.sqrt(variance + eps) + bias


def relu(x):
    """x where it is positive."""
    return anp.where(x > 0, x, 0.0)


def causal_attention(q, k, v, n_tokens, n_heads):
    """`attention` of each sequence of `n_tokens` rows."""
    *leading, n_rows, d = q.shape
    apart = (anp.reshape(x, (*leading, n_rows // n_tokens, n_tokens, d)) for x in (q, k, v))
    return anp.reshape(attention(*apart, n_heads), (*leading, n_rows, d))


def attention(q, k, v, n_heads):
    """Each head and each query by itself, over the keys up to its own token."""
    d_head = q.shape[-1] // n_heads
    heads = []
    for h in range(n_heads):
        own = slice(h * d_head, (h + 1) * d_head)
        answers = []
        for t in range(q.shape[-2]):
            scores = anp.einsum("...d,...sd->...s", q[..., t, own], k[..., : t + 1, own]) / anp.sqrt(d_head)
            weights = anp.exp(scores) / anp.sum(anp.exp(scores), axis=-1, keepdims=True)
            answers.append(anp.einsum("...s,...sd->...d", weights, v[..., : t + 1, own]))
        heads.append(anp.stack(answers, axis=-2))
    return anp.concatenate(heads, axis=-1)


def embed(tokens, token_table, position_table):
    """What the token is plus where it is, batch and tokens as one axis of rows."""
    *leading, n_tokens = tokens.shape
    embedded = token_table[tokens] + position_table[anp.arange(n_tokens)]
    return anp.reshape(embedded, (*leading[:-1], -1, embedded.shape[-1]))


def cross_entropy(logits, targets):
    """The mean over what a batch has to predict of -sum over letters of target log softmax(logits)."""
    log_softmax = logits - anp.log(anp.sum(anp.exp(logits), axis=-1, keepdims=True))
    if targets.ndim < logits.ndim:
        counted = targets >= 0
        targets = np.eye(logits.shape[-1])[targets] * counted[..., None]
    else:
        counted = (targets > 0).any(-1)
    batch_and_tokens = tuple(range(max(counted.ndim - 2, 0), counted.ndim))
    return -anp.sum(anp.sum(targets * log_softmax, -1), batch_and_tokens) / counted.sum(batch_and_tokens)


def forward(arrays, tokens, config, scaling=None, masks=None):
    """Logits. `arrays` by dotted path: the base's, updated with an adapter's; `scaling` and `masks` by module."""
    scaling, masks = scaling or {}, masks or {}

    def norm(path, x):
        return layer_norm(x, arrays[f"{path}.weight"], arrays[f"{path}.bias"], 1e-5)

    def project(path, x):
        weight, bias = arrays[f"{path}.weight"], arrays[f"{path}.bias"]
        if path not in scaling:
            return linear(x, weight, bias)
        lora_A, lora_B = arrays[f"{path}.lora_A"], arrays[f"{path}.lora_B"]
        return lora_linear(x, weight, bias, lora_A, lora_B, scaling[path], masks.get(path))

    x = arrays["embed_tokens.weight"][tokens] + arrays["embed_positions.weight"][: tokens.shape[-1]]
    for i in range(config.n_layers):
        layer = f"layers.{i}"
        h = norm(f"{layer}.input_layernorm", x)
        q, k, v = (project(f"{layer}.{name}_proj", h) for name in "qkv")
        x = x + project(f"{layer}.o_proj", attention(q, k, v, config.n_heads))
        h = norm(f"{layer}.post_attention_layernorm", x)
        x = x + project(f"{layer}.down_proj", relu(project(f"{layer}.up_proj", h)))
    return linear(norm("norm", x), arrays["embed_tokens.weight"], None)


def random_model(seed=0, **changes):
    """A model of SMALL's shape, or changed, in which no array is all zeros or all ones."""
    config = dataclasses.replace(SMALL, **changes)
    rng = np.random.default_rng(seed)
    params = leaves(model.init_params(config, rng))
    for path, array in params.items():
        if array.ndim == 1:
            params[path] = (array + 0.3 * rng.standard_normal(array.shape)).astype(array.dtype)
    return model.Model(config, nested(params))


def random_adapter(params, config, seed=1):
    """An adapter away from its start: each change (alpha / r) B A of about the size of a weight, each bias moved."""
    rng = np.random.default_rng(seed)
    adapter = lora.init_adapter(params, config, rng)
    arrays = {}
    for name, array in adapter.arrays().items():
        path, _, kind = name.rpartition(".")
        if kind == "lora_A":  # (r, in)
            moved = rng.standard_normal(array.shape) / np.sqrt(array.shape[1])
        elif kind == "lora_B":  # (out, r)
            moved = rng.standard_normal(array.shape) / (adapter.scaling[path] * np.sqrt(array.shape[1]))
        else:
            moved = array + 0.3 * rng.standard_normal(array.shape)
        arrays[name] = moved.astype(array.dtype)
    return adapter.with_arrays(arrays)


def random_tokens(config, leading=(3,), n_tokens=5, seed=2):
    """Tokens (..., n_tokens)."""
    return np.random.default_rng(seed).integers(0, config.vocab_size, (*leading, n_tokens))


def random_targets(config, leading=(3,), n_tokens=5, seed=3):
    """Tokens to predict (..., n_tokens), about a fifth of them padding."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, config.vocab_size, (*leading, n_tokens))
    return np.where(rng.random(targets.shape) < 0.2, -1, targets)


def difference(actual, expected):
    """The largest difference, as a part of the largest expected number."""
    return float(np.abs(np.asarray(actual) - np.asarray(expected)).max() / np.abs(expected).max())


def assert_close(actual, expected, tolerance, what=""):
    """The same shape, and equal to within `tolerance` of the largest expected number.

    Gradients that are zero (a key's bias shifts all scores alike, which softmax does not see) are so up to rounding.
    """
    assert np.shape(actual) == np.shape(expected), what
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * np.abs(expected).max() + 1e-16, err_msg=what)


@contextlib.contextmanager
def recorded(module, name, record):
    """Within it, `record(arguments, answer)` sees every call of that function."""
    function = getattr(module, name)

    def recorder(*arguments):
        answer = function(*arguments)
        record(arguments, answer)
        return answer

    setattr(module, name, recorder)
    try:
        yield
    finally:
        setattr(module, name, function)
