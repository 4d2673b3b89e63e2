"""The few differentiable operations of the model, each with its hand-derived backward pass beside it.

An operation is a function that returns its answer and, for each argument, a function of `g`, the gradient of the loss
with respect to the answer, that returns the gradient with respect to that argument. Only those of arguments that train
are ever called, so a frozen weight costs nothing in the backward pass. `@operation` (in `autodiff.py`) hands them to
`autograd`, which keeps the tape and applies the chain rule.

Shapes: B batch, T tokens, N = B T rows (one large matrix product beats many small ones), d features, H heads,
V vocabulary, r rank. `...` stands for any axes before these, which broadcast as in NumPy. One may be for several
adapters on one base, each with its own factors: each has its own products, so that its numbers are the same, to the
bit, whatever it is stacked with.
"""

import functools

import numpy as np

from minilora.autodiff import Array, once, operation
from minilora.checks import check_rng


def mean_last(x: Array, y: Array | None = None) -> Array:
    """Mean of x, or of x y, over the last axis, which stays: (..., d) -> (..., 1). Faster than `mean` on short axes."""
    d = x.shape[-1]
    return (x @ shares(d, x.dtype) if y is None else np.vecdot(x, y) / d)[..., None]


@functools.cache
def shares(d: int, dtype) -> Array:
    """What each of d features counts for in their mean."""
    return np.full(d, 1 / d, dtype)


def plus(y: Array, other: Array) -> Array:
    """y + other, written into y where it has room: stacked runs may share y and have each their own other."""
    return np.add(y, other, out=y) if y.ndim >= other.ndim else y + other


@operation
def reshape(x, *shape: int):
    """The same numbers in another shape."""
    before = x.shape
    return x.reshape(shape), (lambda g: g.reshape(before),)


@operation
def linear(x: Array, weight: Array, bias: Array | None, onto: Array | None = None):
    """y = x W^T + b, for x (..., N, in), weight (out, in), bias (..., out) or None; y is (..., N, out).

    `onto`, like y, is what the answer is added to: the residual stream, where the module writes onto it.
    """
    y = x @ weight.T  # (..., N, in) -> (..., N, out)
    if bias is not None:
        y = plus(y, bias[..., None, :])
    if onto is not None:
        y = plus(y, onto)
    return y, (
        lambda g: g @ weight,  # dx
        lambda g: g.mT @ x,  # dW
        lambda g: g.sum(-2),  # db
        lambda g: g,  # donto
    )


@operation
def lora_linear(x, weight, bias, lora_A, lora_B, scaling, mask: Array | None, onto: Array | None = None):
    """y = x W^T + b + s ((m * x) A^T) B^T: LoRA (Hu et al. 2021, arXiv 2106.09685, eq. 3), not merged.

    x (..., N, in), weight (out, in), bias (..., out) or None, lora_A (..., r, in), lora_B (..., out, r), scaling
    s = alpha / r as a number or (..., 1, 1), mask m like x, already divided by 1 - p (see `dropout_mask`), or None
    for no dropout. y is (..., N, out), added to `onto` as in `linear`.

    Backward, with u = (m * x) A^T and h = s g B, the gradient of u:
    dA = h^T (m * x), dB = s g^T u, dx = g W + m * (h A).
    So at B = 0 the gradient of A is zero and that of B is not: B moves first.
    """
    dropped = x if mask is None else x * mask
    u = dropped @ np.ascontiguousarray(lora_A.mT)  # (..., N, in) -> (..., N, r)
    y = product(scaling * u, np.ascontiguousarray(lora_B.mT))  # (..., N, r) -> (..., N, out)
    y += x @ weight.T
    if bias is not None:
        y += bias[..., None, :]
    if onto is not None:
        y += onto

    h = once(lambda g: scaling * (g @ lora_B))  # (..., N, out) -> (..., N, r)

    def grad_x(g):
        through_adapter = product(h(g), lora_A)
        if mask is not None:
            through_adapter *= mask
        through_adapter += g @ weight
        return through_adapter

    return y, (
        grad_x,
        lambda g: g.mT @ x,  # dW
        lambda g: g.sum(-2),  # db
        lambda g: h(g).mT @ dropped,  # dA
        lambda g: g.mT @ (scaling * u),  # dB
        None,
        None,
        lambda g: g,  # donto
    )


def product(x: Array, y: Array) -> Array:
    """x y; by `*` where the inner axis is 1, as at rank 1, for which NumPy's matmul has a slow loop and no BLAS."""
    return x * y if x.shape[-1] == 1 else x @ y


def dropout_mask(shape: tuple[int, ...], p: float, rng: np.random.Generator, dtype) -> Array:
    """Inverted dropout: each element is 0 with probability p, else 1 / (1 - p), so that the mean is 1.

    Drawn in float32 whatever `dtype` is, so that one seed drops the same elements in both precisions.

    >>> dropout_mask((2, 4), 0.5, np.random.default_rng(0), "float64")
    array([[2., 2., 2., 0.],
           [0., 0., 0., 0.]])
    """
    check_rng("rng", rng)
    keep = rng.random(shape, dtype=np.float32) >= p
    return np.multiply(keep, 1 / (1 - p), dtype=dtype)


@operation
def layer_norm(x, gain, bias, eps: float):
    """y = gain * n + bias, n = (x - mean) / sqrt(variance + eps) over the last axis (Ba et al. 2016, arXiv 1607.06450).

    x (..., N, d), gain and bias (..., d). Backward, with h = g * gain and v = 1 / sqrt(variance + eps):
    dx = v (h - mean(h) - n mean(h n)), dgain = sum of g n, dbias = sum of g over the rows.
    """
    n = x - mean_last(x)  # in place from here on
    inverse_deviation = 1 / np.sqrt(mean_last(n, n) + eps)
    n *= inverse_deviation

    def grad_x(g):
        h = g * gain
        along_n = mean_last(h, n)
        h -= mean_last(h)
        h -= n * along_n
        h *= inverse_deviation
        return h

    return plus(n * gain, bias[..., None, :]), (
        grad_x,
        lambda g: (g * n).sum(-2),  # dgain
        lambda g: g.sum(-2),  # dbias
    )


@operation
def relu(x):
    """y = max(x, 0); dx = g where x > 0, else 0 (also at 0, as PyTorch has it)."""
    positive = x > 0
    return np.clip(x, 0, np.inf), (lambda g: g * positive,)  # NumPy's maximum takes three times as long


@functools.lru_cache(maxsize=64)
def future(n_tokens: int, shape: tuple[int, ...]) -> Array:
    """-inf where a query (last axis) would look at a later key (first axis), else 0: (T, *shape), shape ending in T.

    Written out, as adding it is then one long loop in place of many short ones, six times faster.
    """
    mask = np.where(np.tri(n_tokens, k=-1), np.float32(-np.inf), np.float32(0))
    return np.ascontiguousarray(
        np.broadcast_to(mask.reshape(n_tokens, *[1] * (len(shape) - 1), -1), (n_tokens, *shape))
    )


def split_heads(x: Array, n_tokens: int, n_heads: int) -> Array:
    """Head h owns the features h d/H ... (h+1) d/H - 1. A view."""
    *leading, n_rows, d = x.shape
    heads = x.reshape(*leading, n_rows // n_tokens, n_tokens, n_heads, d // n_heads)
    return heads.swapaxes(-2, -3)  # (..., N, d) -> (..., B, H, T, d/H)


def product_of_heads(x: Array, y: Array) -> Array:
    """x y for each head, joined: (..., B, H, T, T), (..., B, H, T, d/H) -> (..., N, d).

    The products are written where they belong, which undoes `split_heads` at no cost.
    """
    *leading, n_batch, n_heads, n_tokens, _ = max(x.shape, y.shape, key=len)
    d_head = y.shape[-1]
    joined = np.empty((*leading, n_batch, n_tokens, n_heads, d_head), y.dtype)
    np.matmul(x, y, out=joined.swapaxes(-2, -3))
    return joined.reshape(*leading, n_batch * n_tokens, n_heads * d_head)


def keys_first(x: Array, y: Array) -> Array:
    """x y^T for each head, with the axis of keys in front: (..., H, T, d/H) twice -> (T, ..., H, T).

    What softmax does along the keys is then a few long loops in place of many short ones, three times faster.
    """
    leading = max(x.shape[:-2], y.shape[:-2], key=len)
    products = np.empty((y.shape[-2], *leading, x.shape[-2]), x.dtype)
    transposed = np.ascontiguousarray(x.mT) if x.shape[-1] <= 16 else x.mT  # for narrow heads BLAS is so much faster
    np.matmul(y, transposed, out=keys_last(products).mT)
    return products


def keys_last(x: Array) -> Array:
    """A view of what is keyed first as matrices: (T, ..., H, T) -> (..., H, T, T)."""
    return x.transpose(*range(1, x.ndim), 0)


@operation
def causal_attention(q, k, v, n_tokens: int, n_heads: int):
    """softmax(Q K^T / sqrt(d/H)) V per head; no token sees a later one (Vaswani et al. 2017, arXiv 1706.03762, eq. 1).

    q, k, v and the answer are (..., N, d), for sequences of T = `n_tokens` rows each. Backward per head, with P the
    probabilities and S the scores:
    dV = P^T g, dP = g V^T, dS = P * (dP - sum over keys of dP * P), dQ = dS K / sqrt(d/H), dK = dS^T Q / sqrt(d/H).
    """
    q, k, v = (split_heads(x, n_tokens, n_heads) for x in (q, k, v))
    scale = q.shape[-1] ** -0.5
    p = keys_first(q * scale, k)  # scores, made into probabilities in place
    p += future(n_tokens, p.shape[-3:]).reshape(-1, *[1] * (p.ndim - 4), *p.shape[-3:])
    p -= p.max(0)
    np.exp(p, out=p)
    p /= p.sum(0)

    heads_of = functools.partial(split_heads, n_tokens=n_tokens, n_heads=n_heads)

    @once
    def grad_scores(g):
        d_p = keys_first(heads_of(g), v)
        d_p -= (d_p * p).sum(0)
        d_p *= p
        d_p *= scale
        return keys_last(d_p)

    return product_of_heads(keys_last(p), v), (
        lambda g: product_of_heads(grad_scores(g), k),  # dQ
        lambda g: product_of_heads(grad_scores(g).mT, q),  # dK
        lambda g: product_of_heads(keys_last(p).mT, heads_of(g)),  # dV
    )


@operation
def embed(tokens: Array, token_table: Array, position_table: Array):
    """Row tokens[..., t] of the token table plus row t of the position table: (..., B, T) -> (..., N, d).

    Backward: each row of a table gets the sum of the gradients of the places that used it, written as a product
    with one-hot rows, which is no larger than the logits.
    """
    *leading, n_tokens = tokens.shape
    answer = token_table[tokens] + position_table[:n_tokens]  # (..., B, T, d)

    def grad_tokens(g):
        one_hot = tokens.reshape(-1) == np.arange(len(token_table))[:, None]  # (V, all tokens)
        return one_hot.astype(g.dtype) @ g.reshape(-1, g.shape[-1])

    def grad_positions(g):
        grad = np.zeros_like(position_table)
        grad[:n_tokens] = g.reshape(-1, n_tokens, g.shape[-1]).sum(0)
        return grad

    return answer.reshape(*leading[:-1], -1, answer.shape[-1]), (None, grad_tokens, grad_positions)


@operation
def cross_entropy(logits, targets: Array):
    """Mean over batch and tokens of -log softmax(logits)[target], in nats per token: (..., B, T, V) -> (...).

    targets is (..., B, T) integers, -1 where there is nothing to predict, or (..., B, T, V) probabilities, all zero
    there (then the answer is the cross-entropy to that distribution).
    Backward: (softmax(logits) - target) / number of tokens counted.
    """
    targets, counted = _target_columns(targets, logits)
    shifted = columns(logits)  # (..., B, T, V) -> (V, ..., N)
    shifted = shifted - shifted.max(0)
    exponentials = np.exp(shifted)
    totals = exponentials.sum(0)
    losses = np.log(totals) - (shifted * targets).sum(0)  # (..., N)
    share = counted / np.maximum(counted.sum(-1, keepdims=True), 1)
    shape = logits.shape

    def grad_logits(g):
        grad = exponentials / totals
        grad -= targets
        grad *= share * g[..., None]
        return np.moveaxis(grad, 0, -1).reshape(shape)  # (V, ..., N) -> (..., B, T, V)

    return (losses * share).sum(-1), (grad_logits,)


def columns(x: Array) -> Array:
    """Classes first, which makes softmax over them faster: (..., B, T, V) -> (V, ..., N)."""
    return np.ascontiguousarray(np.moveaxis(x.reshape(*x.shape[:-3], -1, x.shape[-1]), -1, 0))


def _target_columns(targets: Array, logits: Array) -> tuple[Array, Array]:
    """Targets as distributions (V, ..., N), and 1 or 0 for each token that counts or not (..., N)."""
    are_tokens = targets.dtype.kind != "f"
    axes_of_runs = [1] * (logits.ndim - targets.ndim - are_tokens)  # which share these targets
    targets = targets.reshape(*axes_of_runs, *targets.shape)
    if not are_tokens:
        targets = columns(targets).astype(logits.dtype, copy=False)
        return targets, targets.any(0).astype(logits.dtype)
    targets = targets.reshape(*targets.shape[:-2], -1)  # (..., B, T) -> (..., N)
    one_hot = targets == np.arange(logits.shape[-1]).reshape(-1, *[1] * targets.ndim)
    return one_hot.astype(logits.dtype), (targets >= 0).astype(logits.dtype)
