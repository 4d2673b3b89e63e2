"""What a study is: the runs it needs, the claims it tests with the rule written beforehand, and its figure."""

import dataclasses
import importlib
import itertools
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from minilora.checks import check_fields, check_integer
from minilora.experiments.claims import ARTICLE, ORDER

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from minilora.experiments.runs import Runs

N_SEEDS = 8  # pairs below which the verdict rule decides nothing


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


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """A claim of the article as a number that can fail to be what was predicted, with its rule written before the run.

    `measure(runs)` gives one number a seed, positive in the predicted direction. `exact` marks a contrast that holds
    to the bit or not at all: the number then is its largest deviation, which has to be 0.
    """

    claim: str  # id in claims.ARTICLE
    prediction: str
    plain: str  # the result in words; "{effect}" becomes the size, "{above/below}" the word for its sign, and
    #             "{given_up}" what is left of `scale`, which may be lost
    smallest_effect: float  # in `unit`; an effect below it is not worth having
    unit: str
    measure: Callable[["Runs"], np.ndarray]
    regime: str  # where it was measured
    variants: Mapping[str, Callable[["Runs"], np.ndarray]] = field(default_factory=dict)  # measured otherwise
    exact: bool = False
    scale: float = 1.0  # an effect of this size is drawn as 1 where `smallest_effect` is 0

    def __post_init__(self):
        if self.claim not in ARTICLE:
            raise ValueError(f"claim: got {self.claim!r}, takes one of {', '.join(ARTICLE)}")
        for name in ("prediction", "plain", "unit", "regime"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name).strip():
                raise ValueError(f"{name}: got {getattr(self, name)!r}, takes a text, for claim {self.claim}")
        if not self.smallest_effect >= 0:
            raise ValueError(f"smallest_effect: got {self.smallest_effect!r}, takes a number of at least 0")


@dataclass(frozen=True, kw_only=True)
class Study:
    """One family of claims. `cells` and `quick_cells` are settings without a seed; each runs with every seed."""

    name: str
    question: str
    cells: Sequence[Mapping[str, Any]]
    quick_cells: Sequence[Mapping[str, Any]]
    contrasts: Sequence[Contrast]
    draw: Callable[["Runs", Mapping[str, list[str]]], "Figure"]
    tuned: Sequence[Mapping[str, Any]] = ()  # groups of cells whose learning rate is tuned, to report its place
    samples: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # label -> the run to show names of
    headline: bool = False  # among those that run when none is asked for
    n_seeds: int = N_SEEDS  # paired seeds

    def __post_init__(self):
        for cell in itertools.chain(self.cells, self.quick_cells):
            check_fields(Settings, cell, f"study {self.name}")
        if check_integer("n_seeds", self.n_seeds, at_least=1) < N_SEEDS:
            raise ValueError(f"n_seeds: got {self.n_seeds}, takes at least {N_SEEDS}: fewer decide nothing")

    def runs(self, seeds: Iterable[int], quick: bool = False) -> list[Settings]:
        """All runs, each once, seed by seed: an interrupted study has whole seeds."""
        cells = self.quick_cells if quick else self.cells
        return list(dict.fromkeys(Settings(**cell, seed=seed) for seed in seeds for cell in cells))


class StudyError(ValueError):
    """A study's file that cannot be used."""


def load_studies() -> dict[str, Study]:
    """{name: study}, one for each module of `studies/`, which defines STUDY; in the order of the article."""
    from minilora.experiments import studies

    found = [_load(f"{studies.__name__}.{module.name}") for module in pkgutil.iter_modules(studies.__path__)]
    return {study.name: study for study in sorted(found, key=lambda study: ORDER.index(study.contrasts[0].claim))}


def _load(module: str) -> Study:
    """STUDY of a module; StudyError, naming the field, if it is not what a study has to be."""
    try:
        study = importlib.import_module(module).STUDY
        if not isinstance(study, Study):
            raise TypeError(f"STUDY: got {type(study).__name__}, takes a Study")
        if not study.contrasts:
            raise ValueError("contrasts: got none, takes at least one")
        return study
    except (TypeError, ValueError, AttributeError) as error:
        raise StudyError(f"{module.rpartition('.')[2]}.py: {error}") from error
