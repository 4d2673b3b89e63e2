"""What a study is: the runs it needs, the claims it tests with the rule written beforehand, and its figure."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from minilora.checks import check_fields, check_integer, check_number, check_one_of
from minilora.experiments.evidence.claims import ARTICLE
from minilora.experiments.evidence.measures import Measure
from minilora.experiments.evidence.runs import Runs
from minilora.experiments.evidence.settings import Settings
from minilora.experiments.evidence.stats import N_SEEDS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TAKEN = ("all", "recipe", "overview")  # a study's name is an argument of the command, and that of its files


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
    unit: str = "nats per letter"
    measure: Measure
    regime: str  # where it was measured
    variants: Mapping[str, Measure] = field(default_factory=dict)  # measured otherwise
    exact: bool = False
    scale: float = 1.0  # an effect of this size is drawn as 1 where `smallest_effect` is 0

    def __post_init__(self):
        if self.claim not in ARTICLE:
            raise ValueError(f"claim: got {self.claim!r}, takes one of {', '.join(ARTICLE)}")
        where = f", for claim {self.claim}"
        for name in ("prediction", "plain", "unit", "regime"):
            check_text(name, getattr(self, name), where)
        check_number("smallest_effect", self.smallest_effect, f"a number of at least 0{where}", lambda x: x >= 0)
        check_number("scale", self.scale, f"a number above 0{where}", lambda x: x > 0)
        check_one_of("exact", self.exact, (False, True))
        if not isinstance(self.variants, Mapping):
            raise TypeError(f"variants: got {self.variants!r}, takes {{label: function}}{where}")
        for name, one in {"measure": self.measure, **self.variants}.items():
            check_function(name, one, where)


def allowance(allowed: float, measure: Measure, variants: Mapping[str, Measure] | None = None, **more) -> Contrast:
    """A contrast that holds where a choice, measured by what it gives up, leaves some of the nats that it may."""

    def left(given_up: Measure) -> Measure:
        return lambda runs: allowed - given_up(runs)

    return Contrast(
        smallest_effect=0.0,
        scale=allowed,
        unit=f"nats per letter left of the {allowed:g} allowed",
        measure=left(measure),
        variants={label: left(one) for label, one in (variants or {}).items()},
        **more,
    )


@dataclass(frozen=True, kw_only=True)
class Study:
    """One family of claims. `cells` and `quick_cells` are settings without a seed; each runs with every seed."""

    name: str
    question: str
    cells: Sequence[Mapping[str, Any]]
    quick_cells: Sequence[Mapping[str, Any]]
    contrasts: Sequence[Contrast]
    draw: Callable[[Runs, Mapping[str, list[str]]], "Figure"]
    tuned: Sequence[Mapping[str, Any]] = ()  # groups of cells whose learning rate is tuned, to report its place
    samples: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # label -> the run to show names of
    headline: bool = False  # among those that run when none is asked for
    n_seeds: int = N_SEEDS  # paired seeds
    packages: Sequence[str] = ()  # whose versions decide its numbers too, beside what every run is computed with

    def __post_init__(self):
        if not (isinstance(self.name, str) and re.fullmatch(r"\w+", self.name, re.ASCII)) or self.name in TAKEN:
            raise ValueError(f"name: got {self.name!r}, takes letters, digits and _, and none of {', '.join(TAKEN)}")
        where = f", for study {self.name}"
        check_text("question", self.question, where)
        check_function("draw", self.draw, where)
        check_one_of("headline", self.headline, (False, True))
        for name in ("cells", "quick_cells"):
            _check_cells(f"study {self.name}", name, getattr(self, name))
        for group in (*self.tuned, *self.samples.values()):
            check_fields(Settings, group, f"study {self.name}")
        for one in self.contrasts:
            if not isinstance(one, Contrast):
                raise TypeError(f"contrasts: got {one!r}, takes Contrasts{where}")
        if check_integer("n_seeds", self.n_seeds, at_least=1) < N_SEEDS:
            raise ValueError(f"n_seeds: got {self.n_seeds}, takes at least {N_SEEDS}: fewer decide nothing")

    def runs(self, seeds: Iterable[int], quick: bool = False) -> list[Settings]:
        """All runs, each once, seed by seed: an interrupted study has whole seeds."""
        cells = self.quick_cells if quick else self.cells
        return list(dict.fromkeys(Settings(**cell, seed=seed) for seed in seeds for cell in cells))


def check_text(name: str, value: Any, where: str) -> None:
    """A text that says something."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name}: got {value!r}, takes a text{where}")


def check_function(name: str, value: Any, where: str) -> None:
    """Something to call."""
    if not callable(value):
        raise TypeError(f"{name}: got {value!r}, takes a function{where}")


def _check_cells(study: str, name: str, cells: Any) -> None:
    """At least one, each of which makes settings."""
    if not isinstance(cells, Sequence) or not cells:
        raise ValueError(f"{study}: {name}: got {cells!r}, takes a list of settings, at least one")
    for cell in cells:
        check_fields(Settings, cell, study)
        try:
            Settings(**cell)
        except ValueError as error:
            raise ValueError(f"{study}: {name}: {error}") from None


class StudyError(ValueError):
    """A study that cannot be used: its file, a contrast, its figure."""
