"""Sampling names, to see what a model has learned."""

import numpy as np

from minilora.adapter import Adapter
from minilora.checks import check_integer, check_number, check_rng
from minilora.conditions import one_blas_thread
from minilora.data.names import BOUNDARY, check_letters, decode
from minilora.lora import check_base
from minilora.model import Model, check_model, forward


def sample_names(
    model: Model, n: int, rng: np.random.Generator, adapter: Adapter | None = None, temperature: float = 1.0
) -> list[str]:
    """`n` names, letter by letter from softmax(logits / temperature); temperature 0 takes the likeliest letter.

    A name ends at the boundary token or where the context is full. The same generator state gives the same names.
    ValueError for a model of something else than letters and an adapter of another base, TypeError for arguments of
    another kind.

    >>> import minilora as ml
    >>> sample_names(ml.load_base("surnames"), 2, np.random.default_rng(0), temperature=0)
    ['stander', 'stander']
    """
    check_integer("n", n, at_least=0)
    check_number("temperature", temperature, "a finite number of at least 0", lambda value: value >= 0)
    check_rng("rng", rng)
    check_model("model", model)
    check_letters("model", model)
    if adapter is not None:
        check_base(model.params, adapter)
    if n == 0:
        return []
    return decode(sample_tokens(model, n, rng, adapter, temperature))


def sample_tokens(
    model: Model, n: int, rng: np.random.Generator, adapter: Adapter | None, temperature: float
) -> np.ndarray:
    """Rows of `context_length` tokens after the opening boundary, 0 from the end of the name on: (n, context)."""
    tokens = np.full((n, 1), BOUNDARY)
    with one_blas_thread():
        for _ in range(model.config.context_length):
            logits = forward(model.params, tokens, model.config, adapter=adapter)[:, -1].astype("float64")  # (n, V)
            letters = _choose(logits, rng.random(n), temperature)
            ended = (tokens[:, 1:] == BOUNDARY).any(-1)
            tokens = np.column_stack([tokens, np.where(ended, BOUNDARY, letters)])
    return tokens[:, 1:]


def _choose(logits: np.ndarray, uniform: np.ndarray, temperature: float) -> np.ndarray:
    """One letter a row: the first whose cumulative probability passes a uniform number."""
    if temperature == 0:
        return logits.argmax(-1)
    with np.errstate(over="ignore"):  # towards temperature 0 all but the likeliest go to exp(-inf) = 0
        weights = np.exp((logits - logits.max(-1, keepdims=True)) / temperature).cumsum(-1)
    return (weights < uniform[:, None] * weights[:, -1:]).sum(-1)
