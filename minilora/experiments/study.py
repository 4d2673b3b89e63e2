"""What a study is: the runs it needs, the claims it tests with the rule written beforehand, and its figure."""

import dataclasses
import importlib
import itertools
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from minilora.checks import check_fields

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from minilora.experiments.runs import Runs

N_SEEDS = 8  # pairs below which the verdict rule decides nothing
HEADLINE = ("rank", "planted_rank", "alpha", "dropout")


@dataclass(frozen=True)
class Settings:
    """Everything that determines a run; each field is a column of the study's CSV."""

    task: str = "names"  # "names": female first names; "planted": labels of a teacher with a planted change
    planted_rank: int = 0  # rank k of the planted change
    n_train: int = 200  # names to train on
    method: str = "lora"  # "lora", or "full": every parameter trains
    r: int = 8
    lora_alpha: float = 16.0
    lora_dropout: float = 0.0
    target_modules: str = "all-linear"  # or names joined by "+"
    learning_rate: float = 1e-2
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
        return f"{self.task} n={self.n_train} {what} lr={self.learning_rate:g} seed={self.seed}"


def grid(base: Mapping[str, Any], **axes: Sequence[Any] | Callable[[dict], Any]) -> list[dict[str, Any]]:
    """Every combination of the axes on top of `base`. A function is called with the others to give its value.

    >>> grid({"steps": 100}, r=[1, 2], lora_alpha=lambda s: 2 * s["r"])
    [{'steps': 100, 'r': 1, 'lora_alpha': 2}, {'steps': 100, 'r': 2, 'lora_alpha': 4}]
    """
    varied = {name: values for name, values in axes.items() if not callable(values)}
    derived = {name: value for name, value in axes.items() if callable(value)}
    cells = [dict(base) | dict(zip(varied, values, strict=True)) for values in itertools.product(*varied.values())]
    return [cell | {name: value(cell) for name, value in derived.items()} for cell in cells]


FULL = {"method": "full", "r": 0, "lora_alpha": 0.0}  # settings of full fine-tuning, which has no adapter


def alpha_2r(cell: Mapping[str, Any]) -> float:
    """lora_alpha = 2r, to be derived in a `grid`."""
    return 2.0 * cell["r"]


@dataclass(frozen=True)
class Claim:
    """A statement of the article as a contrast that can fail, with its rule written before the run.

    `contrast(runs)` gives one number a seed, positive in the predicted direction. `exact` marks a claim that holds
    to the bit or not at all: the contrast then is its largest deviation, which has to be 0.
    """

    id: str
    statement: str
    prediction: str
    smallest_effect: float  # in `unit`; an effect below it is not worth having
    unit: str
    contrast: Callable[["Runs"], np.ndarray]
    regime: str  # where the claim comes from, and where it was measured here
    variants: Mapping[str, Callable[["Runs"], np.ndarray]] = field(default_factory=dict)  # measured otherwise
    exact: bool = False


@dataclass(frozen=True)
class Study:
    """One family of claims. `cells` and `quick_cells` are settings without a seed; each runs with every seed."""

    name: str
    question: str
    cells: Sequence[Mapping[str, Any]]
    quick_cells: Sequence[Mapping[str, Any]]
    claims: Sequence[Claim]
    draw: Callable[["Runs", Mapping[str, list[str]]], "Figure"]
    tuned: Sequence[Mapping[str, Any]] = ()  # groups of cells whose learning rate is tuned, to report its place
    samples: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # label -> the run to show names of

    def __post_init__(self):
        for cell in itertools.chain(self.cells, self.quick_cells):
            check_fields(Settings, cell, f"study {self.name}")

    def runs(self, seeds: Iterable[int], quick: bool = False) -> list[Settings]:
        """All runs, each once, seed by seed: an interrupted study has whole seeds."""
        cells = self.quick_cells if quick else self.cells
        return list(dict.fromkeys(Settings(**cell, seed=seed) for seed in seeds for cell in cells))


def load_studies() -> dict[str, Study]:
    """{name: study}, one for each module of `studies/`, which defines STUDY; the headline ones first."""
    from minilora.experiments import studies

    modules = [importlib.import_module(f"{studies.__name__}.{m.name}") for m in pkgutil.iter_modules(studies.__path__)]
    found = {module.STUDY.name: module.STUDY for module in modules}
    order = [*HEADLINE, *sorted(found.keys() - set(HEADLINE))]
    return {name: found[name] for name in order}
