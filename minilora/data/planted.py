"""The planted-rank task: a teacher that differs from the base by a change of known rank.

The true rank k and the loss floor are known, so that "too small" and "too large" an r have a meaning.
"""

from typing import NamedTuple

import numpy as np

from minilora.checks import check_integer
from minilora.conditions import one_blas_thread
from minilora.data.names import check_letters, names_task
from minilora.dataset import Dataset
from minilora.evaluation import evaluate
from minilora.lora import matching_paths
from minilora.lora_config import check_names
from minilora.model import Model, check_model, forward, linear_paths
from minilora.trees import leaves, nested

STRENGTH = 2.0  # the change's singular values, in units of the weight's largest


class PlantedTask(NamedTuple):
    """Data whose labels the teacher drew; `floor` is the validation loss of the teacher itself, its entropy."""

    train: Dataset  # targets: one letter drawn from the teacher at each token of real names
    validation: Dataset  # targets: the teacher's whole distribution, so that loss - floor is KL(teacher || student)
    teacher: Model
    floor: float


def planted_task(base: Model, k: int, n_train: int, seed: int, targets=("q_proj", "v_proj")) -> PlantedTask:
    """Plant a change of rank k in the target modules of every layer of the base.

    The change in a weight W is 2 |W| U V^T, with U (out, k) and V (in, k) of orthonormal columns and |W| the largest
    singular value. ValueError for a rank that there is not, targets that match nothing, and a base of no letters.

    >>> import minilora as ml
    >>> task = planted_task(ml.load_base("surnames"), k=2, n_train=50, seed=0)
    >>> task.train.targets.shape, task.validation.targets.shape
    ((50, 16), (1500, 16, 27))
    """
    check_integer("seed", seed, at_least=0)
    check_model("base", base)
    check_letters("base", base)
    largest = min(base.config.d_model, base.config.d_ff)
    if check_integer("k", k, at_least=1) > largest:
        raise ValueError(f"k: got {k}, takes at most {largest}, the largest rank of a change in these modules")
    rng = np.random.default_rng(np.random.SeedSequence([seed, k]))
    teacher = Model(base.config, plant(base, k, rng, targets))
    train, validation = names_task("female", n_train, seed)
    train = Dataset(train.inputs, _draw(_teach(teacher, train), train.targets, rng))
    validation = Dataset(validation.inputs, _teach(teacher, validation))
    return PlantedTask(train, validation, teacher, evaluate(teacher, validation))


def plant(base: Model, k: int, rng: np.random.Generator, targets=("q_proj", "v_proj")):
    """Parameters of the teacher."""
    params = dict(leaves(base.params))
    paths = linear_paths(base.params)
    chosen = matching_paths(paths, "targets", check_names("targets", targets)).values()
    for path in [path for path in paths if any(path in matched for matched in chosen)]:
        weight = params[f"{path}.weight"]
        n_out, n_in = weight.shape
        left, _ = np.linalg.qr(rng.standard_normal((n_out, k)))
        right, _ = np.linalg.qr(rng.standard_normal((n_in, k)))
        change = STRENGTH * np.linalg.norm(weight, 2) * left @ right.T
        params[f"{path}.weight"] = (weight + change).astype(weight.dtype)
    return nested(params)


def _teach(teacher: Model, names: Dataset) -> np.ndarray:
    """The teacher's next-letter probabilities, zero where there is nothing to predict: (N, T, V)."""
    with one_blas_thread():
        logits = forward(teacher.params, names.inputs, teacher.config)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) * (names.targets >= 0)[..., None]


def _draw(probabilities: np.ndarray, targets: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One letter a token, drawn from its distribution; padding stays -1."""
    cumulative = probabilities.astype("float64").cumsum(-1)
    drawn = (cumulative < rng.random((*targets.shape, 1)) * cumulative[..., -1:]).sum(-1)
    return np.where(targets >= 0, drawn, -1)
