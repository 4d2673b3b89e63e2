"""AdamW and learning-rate schedules, by hand."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from minilora.checks import check_kind, check_number, check_one_of, normalize

SCHEDULES = ("constant", "linear", "cosine")


class AdamWState(NamedTuple):
    """What AdamW remembers between steps."""

    step: int  # updates done
    first: np.ndarray  # m: running mean of the gradient
    second: np.ndarray  # v: running mean of its square


@dataclass(frozen=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2017, arXiv 1711.05101, algorithm 2).

        m <- b1 m + (1 - b1) g            v <- b2 v + (1 - b2) g^2
        p <- (1 - lr wd) p - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

    As in PyTorch, decay is multiplied by the learning rate. On LoRA factors it pulls A and B towards zero, so the
    adapted model towards its base.

    >>> adamw = AdamW(learning_rate=0.1)
    >>> parameters = np.array([1.0, -2.0])
    >>> moved, state = adamw.update(parameters, np.array([3.0, -0.5]), adamw.init(parameters))
    >>> moved.round(4), state.step  # the first step is the learning rate, against the gradient's sign
    (array([ 0.899, -1.898]), 1)
    """

    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01

    def __post_init__(self):
        for name in ("learning_rate", "eps", "weight_decay"):
            checked = check_number(name, getattr(self, name), "a finite number of at least 0", lambda x: x >= 0)
            normalize(self, **{name: checked})
        if not isinstance(self.betas, tuple | list) or len(self.betas) != 2:
            raise ValueError(f"betas: got {self.betas!r}, takes two numbers in [0, 1)")
        betas = tuple(check_number("betas", beta, "two numbers in [0, 1)", lambda x: 0 <= x < 1) for beta in self.betas)
        normalize(self, betas=betas)

    def init(self, parameters: np.ndarray) -> AdamWState:
        """The state before the first step. TypeError for what is no array."""
        check_kind("parameters", parameters, np.ndarray, "a NumPy array")
        return AdamWState(0, np.zeros_like(parameters), np.zeros_like(parameters))

    def update(
        self,
        parameters: np.ndarray,
        gradient: np.ndarray,
        state: AdamWState,
        learning_rate: float | np.ndarray | None = None,
    ) -> tuple[np.ndarray, AdamWState]:
        """New parameters and state; nothing is written to.

        A schedule passes its own `learning_rate`: a number, or for stacked runs one a row, (S, 1) beside (S, P).
        ValueError where gradient and state are not of the parameters' shape, and for a rate below 0 or NaN.
        """
        check_kind("state", state, AdamWState, "an AdamWState, as init and update give")
        shapes = [np.shape(one) for one in (gradient, state.first, state.second)]
        if any(shape != np.shape(parameters) for shape in shapes):
            raise ValueError(f"gradient, state: got shapes {shapes}, takes that of the parameters, {parameters.shape}")
        lr = np.asarray(self.learning_rate if learning_rate is None else learning_rate)
        if not (lr >= 0).all():
            raise ValueError(f"learning_rate: got {lr.min()}, takes numbers of at least 0")
        copies = AdamWState(state.step, state.first.copy(), state.second.copy())
        parameters = parameters.copy()
        return parameters, self.update_in_place(parameters, gradient, copies, lr)

    def update_in_place(self, parameters: np.ndarray, gradient, state: AdamWState, learning_rate) -> AdamWState:
        """As `update`, unchecked, and written into the parameters and the state, which nobody else may hold."""
        lr = np.asarray(learning_rate)
        b1, b2 = self.betas
        step, first, second = state.step + 1, state.first, state.second
        first *= b1  # m <- b1 m + (1 - b1) g
        first += (1 - b1) * gradient
        second *= b2  # v <- b2 v + (1 - b2) g^2
        scratch = (1 - b2) * gradient
        scratch *= gradient
        second += scratch
        deviation = np.sqrt(second, out=scratch)  # sqrt(v / (1 - b2^t)) + eps
        deviation /= math.sqrt(1 - b2**step)
        deviation += self.eps
        if self.eps == 0:
            deviation[deviation == 0] = 1  # where no gradient ever came: 0 / 0 counts as 0
        kept, size = (x.astype(parameters.dtype) for x in (1 - lr * self.weight_decay, lr / (1 - b1**step)))
        parameters *= kept  # p <- (1 - lr wd) p - lr (m / (1 - b1^t)) / deviation
        direction = np.divide(first, deviation, out=scratch)
        direction *= size
        parameters -= direction
        return AdamWState(step, first, second)


def scheduled(schedule: str, peak: float, step: int, n_steps: int, warmup_steps: int = 0) -> float:
    """The learning rate of update number `step` (from 0) of `n_steps`.

    Rises linearly over the warm-up to `peak`; then stays ("constant") or falls towards 0 at `n_steps`,
    linearly or as half a cosine.

    >>> [scheduled("linear", 1.0, step, 4) for step in range(4)]
    [1.0, 0.75, 0.5, 0.25]
    >>> [scheduled("constant", 1.0, step, 4, warmup_steps=2) for step in range(4)]
    [0.5, 1.0, 1.0, 1.0]
    """
    check_one_of("schedule", schedule, SCHEDULES)
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(n_steps - warmup_steps, 1)
    if schedule == "linear":
        return peak * (1 - progress)
    if schedule == "cosine":
        return peak * (1 + math.cos(math.pi * progress)) / 2
    return peak
