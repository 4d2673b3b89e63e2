"""What determines a run, and grids of such settings."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Settings:
    """Everything that determines a run; each field is a column of the study's CSV."""

    task: str = "names"  # "names": female first names; "male"; "planted": labels of a teacher with a planted change
    base: str = "surnames"  # what is adapted
    planted_rank: int = 0  # rank k of the planted change
    n_train: int = 200  # names to train on
    method: str = "lora"  # "lora", or "full": every parameter trains
    r: int = 8
    lora_alpha: float = 16.0
    lora_dropout: float = 0.0
    target_modules: str = "all-linear"  # or names joined by "+", with ranks of their own as in "q_proj:10+up_proj:4"
    layers: str = "all"  # or indices joined by "+"
    bias: str = "none"
    init_lora_weights: str = "True"
    learning_rate: float = 1e-2
    weight_decay: float = 0.0
    schedule: str = "constant"
    batch_size: int = 16
    steps: int = 400
    evaluate_every: int = 50
    evaluation_size: int = 400
    seed: int = 0

    def __post_init__(self):
        for one in dataclasses.fields(self):  # 16 and 16.0 are the same run
            object.__setattr__(self, one.name, one.type(getattr(self, one.name)))  # type: ignore[operator]

    def label(self) -> str:
        """What is running, in a few words."""
        what = f"r={self.r} alpha={self.lora_alpha:g} dropout={self.lora_dropout:g}"
        what = what if self.method == "lora" else "full fine-tuning"
        less_common = ("target_modules", "layers", "bias", "init_lora_weights", "weight_decay", "batch_size")
        for name in less_common:
            if getattr(self, name) != getattr(Settings, name):
                what += f" {name}={getattr(self, name)}"
        return f"{self.task} n={self.n_train} {what} lr={self.learning_rate:g} seed={self.seed}"


def grid(base: Mapping[str, Any], **axes: Sequence[Any] | Callable[[dict], Any]) -> list[dict[str, Any]]:
    """Every combination of the axes on top of `base`. A function is called with the others to give its value, or a
    tuple of its values.

    >>> grid({"steps": 100}, r=[1, 2], lora_alpha=lambda s: 2 * s["r"])
    [{'steps': 100, 'r': 1, 'lora_alpha': 2}, {'steps': 100, 'r': 2, 'lora_alpha': 4}]
    >>> grid({}, r=[1, 8], learning_rate=lambda s: (0.1, 0.2) if s["r"] == 1 else (0.1,))
    [{'r': 1, 'learning_rate': 0.1}, {'r': 1, 'learning_rate': 0.2}, {'r': 8, 'learning_rate': 0.1}]
    """
    cells = [dict(base)]
    for name, axis in sorted(axes.items(), key=lambda item: callable(item[1])):  # those that look at others last
        cells = [cell | {name: value} for cell in cells for value in _values(axis, cell)]
    return cells


def _values(axis: Sequence[Any] | Callable[[dict], Any], cell: dict) -> Sequence[Any]:
    if not callable(axis):
        return axis
    found = axis(cell)
    return found if isinstance(found, tuple) else (found,)


FULL = {"method": "full", "r": 0, "lora_alpha": 0.0}  # settings of full fine-tuning, which has no adapter


def alpha_2r(cell: Mapping[str, Any]) -> float:
    """lora_alpha = 2r, to be derived in a `grid`."""
    return 2.0 * cell["r"]
