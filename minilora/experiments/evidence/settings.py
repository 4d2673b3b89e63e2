"""What determines a run, and grids of such settings."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minilora.checks import check_integer, check_number, check_one_of, normalize


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
        normalize(self, **{name: as_setting(name, value) for name, value in vars(self).items()})
        if self.method == "lora" and self.r == 0:
            raise ValueError("r: got 0, takes an integer of at least 1; 0 is for method='full', which has no adapter")

    def label(self) -> str:
        """What is running, in a few words."""
        what = f"r={self.r} alpha={self.lora_alpha:g} dropout={self.lora_dropout:g}"
        what = what if self.method == "lora" else "full fine-tuning"
        less_common = ("target_modules", "layers", "bias", "init_lora_weights", "weight_decay", "batch_size")
        for name in less_common:
            if getattr(self, name) != getattr(Settings, name):
                what += f" {name}={getattr(self, name)}"
        return f"{self.task} n={self.n_train} {what} lr={self.learning_rate:g} seed={self.seed}"


KINDS = {one.name: one.type for one in dataclasses.fields(Settings)}
CHOICES = {"method": ("lora", "full")}
ABOVE_ZERO = ("n_train", "batch_size", "steps", "evaluate_every", "evaluation_size")
RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
    "lora_alpha": ("a finite number of at least 0", lambda x: x >= 0),
    "lora_dropout": ("a number of at least 0 and below 1", lambda x: 0 <= x < 1),
    "learning_rate": ("a finite number above 0", lambda x: x > 0),
    "weight_decay": ("a finite number of at least 0", lambda x: x >= 0),
}


def as_setting(name: str, value: Any) -> Any:
    """The value as a run's settings hold it: 16 and 16.0 are the same alpha, True and "True" the same init.

    >>> as_setting("lora_alpha", 16)
    16.0
    >>> as_setting("r", 8.5)
    Traceback (most recent call last):
    ValueError: r: got 8.5, takes an integer of at least 0
    """
    if KINDS[name] is float:
        return float(check_number(name, value, *RANGES[name]))
    if KINDS[name] is int:
        whole = int(value) if isinstance(value, float | np.floating) and float(value).is_integer() else value
        return check_integer(name, whole, at_least=int(name in ABOVE_ZERO))
    text = str(value) if name == "init_lora_weights" and isinstance(value, bool) else value
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{name}: got {value!r}, takes a text")
    if name in CHOICES:
        check_one_of(name, text, CHOICES[name])
    return text


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
        cells = [cell | {name: value} for cell in cells for value in _values(name, axis, cell)]
    return cells


def _values(name: str, axis: Sequence[Any] | Callable[[dict], Any], cell: dict) -> Sequence[Any]:
    if not callable(axis):
        return _axis(name, axis)
    found = axis(cell)
    return found if isinstance(found, tuple) else (found,)


def _axis(name: str, values: Any) -> list[Any]:
    """The values of an axis; a text would be taken letter by letter."""
    if not isinstance(values, Sequence | np.ndarray) or isinstance(values, str) or not len(values):
        raise ValueError(f"{name}: got {values!r}, takes a list of values, or a function of the other settings")
    return list(values)


FULL = {"method": "full", "r": 0, "lora_alpha": 0.0}  # settings of full fine-tuning, which has no adapter


def alpha_2r(cell: Mapping[str, Any]) -> float:
    """lora_alpha = 2r, to be derived in a `grid`."""
    return 2.0 * cell["r"]
