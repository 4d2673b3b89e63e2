"""What a study is: the runs it needs, the claims it tests with the rule written beforehand, and its figure."""

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from minilora.checks import check_fields, check_integer
from minilora.experiments.evidence.claims import ARTICLE
from minilora.experiments.evidence.measures import Measure
from minilora.experiments.evidence.runs import Runs
from minilora.experiments.evidence.settings import Settings
from minilora.experiments.evidence.stats import N_SEEDS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
        for name in ("prediction", "plain", "unit", "regime"):
            if not isinstance(getattr(self, name), str) or not getattr(self, name).strip():
                raise ValueError(f"{name}: got {getattr(self, name)!r}, takes a text, for claim {self.claim}")
        if not self.smallest_effect >= 0:
            raise ValueError(f"smallest_effect: got {self.smallest_effect!r}, takes a number of at least 0")


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
