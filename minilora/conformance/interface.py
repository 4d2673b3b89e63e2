"""What an implementation of LoRA has to show to be checked: one small class, mostly a line a method."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Arrays = Mapping[str, np.ndarray]


class NotOffered(NotImplementedError):
    """The implementation has no such thing; its checks are reported as not offered, not as passed."""


@dataclass(frozen=True)
class Problem:
    """What to build: the shape of a model, its arrays, and where LoRA goes.

    `base` is keyed by dotted path, "layers.0.q_proj.weight" (out, in), and `factors` by "layers.0.q_proj.lora_A"
    (r, in), "layers.0.q_proj.lora_B" (out, r) and "layers.0.q_proj.bias" (out,) where biases train; None: start afresh
    from the seed. `config` has PEFT's fields. `modules` are those it selects, for those who leave that to their user;
    None where the selection itself is what is checked. The model is that of `minilora.model`, in PyTorch: `twin.py`.
    """

    model: Mapping[str, Any]  # fields of ModelConfig
    base: Arrays
    config: Mapping[str, Any]  # fields of LoraConfig
    factors: Arrays | None = None
    modules: Sequence[str] | None = None
    seed: int = 0


@dataclass(frozen=True)
class Optimizer:
    """AdamW, with a learning rate of their own for A, B and biases."""

    steps: int
    lr_A: float
    lr_B: float
    weight_decay: float = 0.0
    eps: float = 1e-8
    betas: tuple[float, float] = (0.9, 0.999)


class Implementation:
    """Subclass it and write what you have; what you leave out is reported as not offered.

    `made` is whatever your `build` returns. All arrays are NumPy's, in the dtype of the base.
    """

    name = "an implementation"
    version = ""

    def build(self, problem: Problem) -> Any:
        """The model with the adapter, not merged, in evaluation mode. Raise ValueError for a config that is wrong."""
        raise NotOffered

    def forward(self, made: Any, tokens: np.ndarray, training: bool = False) -> np.ndarray:
        """Logits (B, T, V) for tokens (B, T); with `training`, dropout is on, drawn anew at each call."""
        raise NotOffered

    def factors(self, made: Any) -> Arrays:
        """What trains, keyed as in `Problem.factors`."""
        raise NotOffered

    def weights(self, made: Any) -> Arrays:
        """The arrays that the model now computes with, keyed as in `Problem.base`: with the change where merged."""
        raise NotOffered

    def merge(self, made: Any) -> None:
        """Add the change into the weights, in place."""
        raise NotOffered

    def unmerge(self, made: Any) -> None:
        """Take it out again."""
        raise NotOffered

    def is_merged(self, made: Any) -> bool:
        """Whether the change is in the weights now."""
        raise NotOffered

    def trainable(self, made: Any) -> Sequence[str]:
        """Names of what trains, keyed as in `Problem.factors`; whatever else trains, under any name."""
        raise NotOffered

    def gradients(self, made: Any, tokens: np.ndarray, targets: np.ndarray) -> Arrays:
        """Gradient of the mean cross-entropy over the targets that are not -1, keyed as in `Problem.factors`."""
        raise NotOffered

    def train(self, made: Any, tokens: np.ndarray, targets: np.ndarray, optimizer: Optimizer) -> None:
        """Steps of AdamW with decoupled decay on that loss, in place, without dropout."""
        raise NotOffered

    def decay(self, made: Any, optimizer: Optimizer) -> None:
        """The same steps where every gradient is zero."""
        raise NotOffered

    def disable(self, made: Any) -> None:
        """Switch the adapter off."""
        raise NotOffered

    def save(self, made: Any, folder: Path) -> None:
        """Write the adapter, without the base."""
        raise NotOffered

    def load(self, problem: Problem, folder: Path) -> Any:
        """What `build` gives, with the adapter from that folder in place of `problem.factors`."""
        raise NotOffered

    def combine(self, problem: Problem, adapters: Sequence[Arrays], weights: Sequence[float]) -> Any:
        """The model with a weighted sum of adapters, whose changes (alpha / r) B A add up."""
        raise NotOffered

    def transposed(self, problem: Problem) -> Any:
        """As `build`, where the linear weights in `problem.base` are stored (in, out), as in GPT-2's Conv1D."""
        raise NotOffered
