"""The few differentiable operations of the model, each with its hand-derived backward pass beside it.

An operation is a function that returns its answer and a function `backward`. Given `g`, the gradient of the loss
with respect to the answer, `backward(g)` returns one thunk (a function without arguments) per argument. Only
the thunks of arguments that train are ever called, so a frozen weight costs nothing in the backward pass.
`@operation` (in `autodiff.py`) hands the pair to `autograd`, which keeps the tape and applies the chain rule.

Shapes: B batch, T tokens, d features, H heads, V vocabulary, r rank. `...` stands for any leading axes.
"""

import functools

import numpy as np

from minilora.autodiff import Array, operation


def rows(x: Array) -> Array:
    """All leading axes as one: (..., d) -> (N, d). One large matrix product beats many small ones."""
    return x.reshape(-1, x.shape[-1])


def sum_last(x: Array) -> Array:
    """Sum over the last axis, which stays: (..., d) -> (..., 1). On short axes einsum is four times faster than sum."""
    return np.einsum("...i->...", x)[..., None]


def max_last(x: Array) -> Array:
    """Maximum over the last axis, which stays. On short axes a copy with that axis first is six times faster."""
    return np.ascontiguousarray(np.moveaxis(x, -1, 0)).max(0)[..., None]


def dot_last(x: Array, y: Array) -> Array:
    """Inner products over the last axis, which stays: (..., d), (..., d) -> (..., 1)."""
    return np.einsum("...i,...i->...", x, y)[..., None]


@operation
def linear(x: Array, weight: Array, bias: Array | None):
    """y = x W^T + b, for x (..., in), weight (out, in), bias (out,) or None; y is (..., out).

    Backward: dx = g W, dW = g^T x, db = sum of g over all but the last axis.
    """
    y = rows(x) @ weight.T  # (N, in) -> (N, out)
    if bias is not None:
        y += bias

    def backward(g):
        return (
            lambda: g @ weight,
            lambda: rows(g).T @ rows(x),
            lambda: rows(g).sum(0),
        )

    return y.reshape(*x.shape[:-1], -1), backward


@operation
def lora_linear(x, weight, bias, lora_A, lora_B, scaling: float, mask: Array | None):
    """y = x W^T + b + s ((m * x) A^T) B^T: LoRA (Hu et al. 2021, arXiv 2106.09685, eq. 3), not merged.

    x (..., in), weight (out, in), bias (out,), lora_A (r, in), lora_B (out, r), scaling s = alpha / r,
    mask m like x, already divided by 1 - p (see `dropout_mask`), or None for no dropout. y is (..., out).

    Backward, with u = (m * x) A^T and h = s g B, the gradient of u:
    dA = h^T (m * x), dB = s g^T u, dx = g W + m * (h A).
    So at B = 0 the gradient of A is zero and that of B is not: B moves first.
    """
    dropped = rows(x) if mask is None else rows(x * mask)
    u = dropped @ lora_A.T  # (N, in) -> (N, r)
    y = rows(x) @ weight.T
    if bias is not None:
        y += bias
    y += (scaling * u) @ lora_B.T  # (N, r) -> (N, out)

    def backward(g):
        g = rows(g)
        h = scaling * (g @ lora_B)  # (N, out) -> (N, r)

        def grad_x():
            through_adapter = h @ lora_A
            if mask is not None:
                through_adapter *= rows(mask)
            through_adapter += g @ weight
            return through_adapter.reshape(x.shape)

        return (
            grad_x,
            lambda: g.T @ rows(x),
            lambda: g.sum(0),
            lambda: h.T @ dropped,
            lambda: g.T @ (scaling * u),
        )

    return y.reshape(*x.shape[:-1], -1), backward


def dropout_mask(shape: tuple[int, ...], p: float, rng: np.random.Generator, dtype) -> Array:
    """Inverted dropout: each element is 0 with probability p, else 1 / (1 - p), so that the mean is 1.

    Drawn in float32 whatever `dtype` is, so that one seed drops the same elements in both precisions.

    >>> dropout_mask((2, 4), 0.5, np.random.default_rng(0), "float64")
    array([[2., 2., 2., 0.],
           [0., 0., 0., 0.]])
    """
    if rng is None:
        raise ValueError("dropout needs a numpy.random.Generator: pass rng=np.random.default_rng(seed)")
    keep = rng.random(shape, dtype=np.float32) >= p
    return np.multiply(keep, 1 / (1 - p), dtype=dtype)


@operation
def layer_norm(x, gain, bias, eps: float):
    """y = gain * n + bias, n = (x - mean) / sqrt(variance + eps) over the last axis (Ba et al. 2016, arXiv 1607.06450).

    x (..., d), gain and bias (d,). Backward, with h = g * gain and v = 1 / sqrt(variance + eps):
    dx = v (h - mean(h) - n mean(h n)), dgain = sum of g n, dbias = sum of g over all but the last axis.
    """
    d = x.shape[-1]
    centered = x - sum_last(x) / d
    variance = dot_last(centered, centered) / d
    inverse_deviation = 1 / np.sqrt(variance + eps)
    n = centered * inverse_deviation

    def backward(g):
        def grad_x():
            h = g * gain
            return inverse_deviation * (h - sum_last(h) / d - n * (dot_last(h, n) / d))

        return (
            grad_x,
            lambda: rows(g * n).sum(0),
            lambda: rows(g).sum(0),
        )

    return n * gain + bias, backward


@operation
def relu(x):
    """y = max(x, 0); dx = g where x > 0, else 0 (also at 0, as PyTorch has it)."""
    y = np.maximum(x, 0)
    return y, lambda g: (lambda: g * (y > 0),)


@functools.cache
def future(n_tokens: int) -> Array:
    """True where a query (row) would look at a later token (column): (T, T)."""
    return np.triu(np.ones((n_tokens, n_tokens), dtype=bool), k=1)


def split_heads(x: Array, n_heads: int) -> Array:
    """Head h owns the features h d/H ... (h+1) d/H - 1. A view."""
    *leading, n_tokens, d = x.shape
    return x.reshape(*leading, n_tokens, n_heads, d // n_heads).swapaxes(-2, -3)  # (..., T, d) -> (..., H, T, d/H)


def join_heads(x: Array) -> Array:
    """The inverse of `split_heads`."""
    *leading, n_heads, n_tokens, d_head = x.shape
    return x.swapaxes(-2, -3).reshape(*leading, n_tokens, n_heads * d_head)  # (..., H, T, d/H) -> (..., T, d)


@operation
def causal_attention(q, k, v, n_heads: int):
    """softmax(Q K^T / sqrt(d/H)) V per head; no token sees a later one (Vaswani et al. 2017, arXiv 1706.03762, eq. 1).

    q, k, v and the answer are (..., T, d). Backward per head, with P the probabilities and S the scores:
    dV = P^T g, dP = g V^T, dS = P * (dP - sum over keys of dP * P), dQ = dS K / sqrt(d/H), dK = dS^T Q / sqrt(d/H).
    """
    q, k, v = (split_heads(x, n_heads) for x in (q, k, v))
    scale = q.shape[-1] ** -0.5
    probabilities = (q * scale) @ k.swapaxes(-1, -2)  # (..., H, T, d/H) -> (..., H, T, T)
    np.copyto(probabilities, -np.inf, where=future(q.shape[-2]))
    probabilities -= max_last(probabilities)
    np.exp(probabilities, out=probabilities)
    probabilities /= sum_last(probabilities)

    def backward(g):
        g = split_heads(g, n_heads)

        @functools.cache
        def grad_scores():
            d_probabilities = g @ v.swapaxes(-1, -2)  # (..., H, T, d/H) -> (..., H, T, T)
            d_probabilities -= dot_last(d_probabilities, probabilities)
            d_probabilities *= probabilities
            d_probabilities *= scale
            return d_probabilities

        return (
            lambda: join_heads(grad_scores() @ k),
            lambda: join_heads(grad_scores().swapaxes(-1, -2) @ q),
            lambda: join_heads(probabilities.swapaxes(-1, -2) @ g),
        )

    return join_heads(probabilities @ v), backward


@operation
def embed(tokens: Array, token_table: Array, position_table: Array):
    """Row tokens[..., t] of the token table plus row t of the position table: (..., T) -> (..., T, d).

    Backward: each row of a table gets the sum of the gradients of the places that used it, written as a product
    with one-hot rows, which is no larger than the logits.
    """
    n_tokens = tokens.shape[-1]

    def backward(g):
        def grad_tokens():
            one_hot = tokens.reshape(-1) == np.arange(len(token_table))[:, None]  # (V, N)
            return one_hot.astype(g.dtype) @ rows(g)

        def grad_positions():
            grad = np.zeros_like(position_table)
            grad[:n_tokens] = g.reshape(-1, n_tokens, g.shape[-1]).sum(0)
            return grad

        return None, grad_tokens, grad_positions

    return token_table[tokens] + position_table[:n_tokens], backward


@operation
def cross_entropy(logits, targets: Array):
    """Mean of -log softmax(logits)[target], in nats per token.

    logits (..., T, V). targets is (..., T) integers, -1 where there is nothing to predict, or (..., T, V)
    probabilities, all zero there (then the answer is the cross-entropy to that distribution).
    Backward: (softmax(logits) - target) / number of tokens counted.
    """
    targets, counted = _target_rows(targets, logits)
    shifted = rows(logits) - max_last(rows(logits))  # (..., T, V) -> (N, V)
    exponentials = np.exp(shifted)
    totals = sum_last(exponentials)
    losses = (np.log(totals) - dot_last(shifted, targets))[:, 0]
    n_counted = np.maximum(counted.sum(), 1)
    loss = (losses * counted).sum() / n_counted

    def backward(g):
        def grad_logits():
            grad = exponentials / totals
            grad -= targets
            grad *= (counted * (g / n_counted))[:, None]
            return grad.reshape(logits.shape)

        return (grad_logits,)

    return loss, backward


def _target_rows(targets: Array, logits: Array) -> tuple[Array, Array]:
    """Targets as distributions (N, V), and 1 or 0 for each row that counts or not (N,)."""
    if targets.ndim == logits.ndim:
        targets = rows(targets).astype(logits.dtype, copy=False)
        return targets, targets.any(-1).astype(logits.dtype)
    targets = targets.reshape(-1, 1)
    one_hot = (targets == np.arange(logits.shape[-1])).astype(logits.dtype)
    return one_hot, (targets[:, 0] >= 0).astype(logits.dtype)
