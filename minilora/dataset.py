"""Sequences to learn from, what is checked of them, and the batches they are shown in."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from minilora.checks import check_kind
from minilora.model import ModelConfig, check_tokens

EVALUATION_BATCH = 128  # sequences; what fits the cache is faster than one large pass


class Dataset(NamedTuple):
    """Sequences to learn from: at each token of `inputs`, predict the one of `targets`."""

    inputs: np.ndarray  # (N, T) integers
    targets: np.ndarray  # (N, T) integers, -1: nothing to predict; or (N, T, V) probabilities, all zero there

    def take(self, index) -> "Dataset":
        """Some of the sequences, cut to the longest of them."""
        inputs, targets = self.inputs[index], self.targets[index]
        longest = int(np.flatnonzero(counted(targets).any(0)).max(initial=0)) + 1
        return Dataset(inputs[:, :longest], targets[:, :longest])


def counted(targets: np.ndarray) -> np.ndarray:
    """True where there is something to predict: (N, T)."""
    return np.asarray(targets >= 0 if targets.dtype.kind in "iu" else targets.any(-1))


def batches(dataset: Dataset, batch_size: int, n_steps: int, rng: np.random.Generator) -> Iterator[Dataset]:
    """`n_steps` batches, in a fresh order each epoch."""
    n = len(dataset.inputs)
    for step in range(n_steps):
        place = step % math.ceil(n / batch_size)
        if place == 0:
            order = rng.permutation(n)
        yield dataset.take(order[place * batch_size : (place + 1) * batch_size])


def evaluation_batches(dataset: Dataset, size: int | None = None) -> list[Dataset]:
    """The first `size` sequences, sorted by length so that little is padding."""
    dataset = Dataset(dataset.inputs[:size], dataset.targets[:size])
    order = np.argsort(counted(dataset.targets).sum(-1), kind="stable")
    return [dataset.take(order[i : i + EVALUATION_BATCH]) for i in range(0, len(order), EVALUATION_BATCH)]


def check_dataset(name: str, dataset: Any, config: ModelConfig) -> None:
    """TypeError unless it is a Dataset of arrays, ValueError unless its sequences fit the model."""
    check_kind(name, dataset, Dataset, "a Dataset(inputs, targets)")
    for part in ("inputs", "targets"):
        check_kind(f"{name}.{part}", getattr(dataset, part), np.ndarray, "a NumPy array, np.array(...)")
    inputs, targets = dataset
    if len(inputs.shape) != 2:
        raise ValueError(f"{name}: got inputs of shape {inputs.shape}, takes (sequences, tokens)")
    if len(inputs) == 0:
        raise ValueError(f"{name}: got no sequences, takes at least one")
    check_tokens(inputs, config, f"{name}: tokens")
    if targets.shape == (*inputs.shape, config.vocab_size) and targets.dtype.kind == "f":
        totals = targets.sum(-1)
        good = (targets >= 0).all() and (np.isclose(totals, 1, atol=1e-3) | (totals == 0)).all()
        takes = "probabilities that sum to 1, or to 0 where there is nothing to predict"
    elif targets.shape == inputs.shape and targets.dtype.kind in "iu":
        good = targets.min() >= -1 and targets.max() < config.vocab_size
        takes = f"-1 ... {config.vocab_size - 1}"
    else:
        shapes = f"integers {inputs.shape} or probabilities {(*inputs.shape, config.vocab_size)}"
        raise ValueError(f"{name}: got targets of shape {targets.shape} and dtype {targets.dtype}, takes {shapes}")
    if not good:
        raise ValueError(f"{name}: got targets outside their range, takes {takes}")
    if not counted(targets).any():
        raise ValueError(f"{name}: got nothing to predict, takes at least one target")


def check_each_counts(name: str, dataset: Dataset) -> None:
    """ValueError unless every sequence has something to predict."""
    silent = np.flatnonzero(~counted(dataset.targets).any(-1))
    if len(silent):
        got = f"{len(silent)} sequences with nothing to predict, the first at index {silent[0]}"
        raise ValueError(f"{name}: got {got}, takes at least one target in each sequence to train on")
