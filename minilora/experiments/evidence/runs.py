"""What runs measured: a table to select from, and its CSV."""

import csv
import dataclasses
import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import attrgetter
from typing import Any

import numpy as np

from minilora.checks import check_fields, check_number
from minilora.experiments.evidence.settings import KINDS, Settings, as_setting
from minilora.experiments.evidence.stats import estimate, optimum

MEASURED = ("step", "train_loss", "validation_loss", "change_norm")  # one value an evaluation
CONSTANT = ("floor", "train_floor", "trainable", "diverged_at")  # one value a run


@dataclass(frozen=True)
class Run:
    """One run: its settings and what was measured at each evaluation, in nats per letter."""

    settings: Settings
    step: tuple[int, ...]
    train_loss: tuple[float, ...]  # in evaluation mode: without dropout
    validation_loss: tuple[float, ...]
    change_norm: tuple[float, ...]  # Frobenius norm of the change of all linear weights together
    floor: float  # the lowest validation loss there is, where it is known (the teacher's own); else 0
    train_floor: float  # the teacher's own training loss; else 0
    trainable: int  # parameters
    diverged_at: int  # step at which the loss stopped being finite; -1: never

    @property
    def diverged(self) -> bool:
        return self.diverged_at >= 0

    @property
    def start(self) -> float:
        """Validation loss above the floor before the first step."""
        return self.validation_loss[0] - self.floor

    @property
    def best(self) -> float:
        """Lowest validation loss above the floor; infinite where the run diverged."""
        return math.inf if self.diverged else min(self.validation_loss) - self.floor

    @property
    def final(self) -> float:
        """Last validation loss above the floor; infinite where the run diverged."""
        return math.inf if self.diverged else self.validation_loss[-1] - self.floor

    @property
    def final_train(self) -> float:
        """Last training loss above the teacher's own, if there is one; infinite where the run diverged."""
        return math.inf if self.diverged else self.train_loss[-1] - self.train_floor

    @property
    def overfit(self) -> float:
        """Final minus best validation loss; infinite where the run diverged."""
        return math.inf if self.diverged else self.final - self.best

    @property
    def final_norm(self) -> float:
        """Norm of the change at the end."""
        return math.nan if self.diverged else self.change_norm[-1]


def evaluated(settings: Settings) -> tuple[int, ...]:
    """The steps at which a run is evaluated: its start, every so often, and its end.

    >>> evaluated(Settings(steps=5, evaluate_every=2))
    (0, 2, 4, 5)
    """
    return (*range(0, settings.steps, settings.evaluate_every), settings.steps)


def check_run(run: Run) -> None:
    """ValueError or TypeError, naming the field, unless this can be what was measured in a run with its settings."""
    lengths = {name: len(getattr(run, name)) for name in MEASURED}
    if len(set(lengths.values())) != 1 or not run.step:
        raise ValueError(f"got {lengths} measurements, takes as many of each, at least 1")
    for name in (*MEASURED, *CONSTANT):
        values = getattr(run, name) if name in MEASURED else (getattr(run, name),)
        whole = name in ("step", "trainable", "diverged_at")
        for value in values:
            if type(value) is not int and (whole or not isinstance(value, float) or not math.isfinite(value)):
                raise TypeError(f"{name}: got {value!r}, takes {'an integer' if whole else 'a finite number'}")
    if run.trainable < 1:
        raise ValueError(f"trainable: got {run.trainable}, takes an integer of at least 1")
    if not -1 <= run.diverged_at <= run.settings.steps:
        raise ValueError(f"diverged_at: got {run.diverged_at}, takes a step of the run, or -1")
    due = evaluated(run.settings)
    if run.diverged:  # where the loss of an evaluation is not finite, that one is not there
        due, until = (tuple(s for s in due if s < run.diverged_at), tuple(s for s in due if s <= run.diverged_at))
        due = until if run.step == until else due
    if run.step != due:
        raise ValueError(f"step: got {run.step}, takes {due}, for {run.settings.label()}")


Metric = Callable[[Run], float]
START, BEST, FINAL, FINAL_TRAIN = map(attrgetter, ("start", "best", "final", "final_train"))
OVERFIT, NORM = map(attrgetter, ("overfit", "final_norm"))


def steps_to(target: float) -> Metric:
    """The step at which the validation loss first falls to a target, between evaluations in a straight line."""
    check_number("target", target, "a finite number", lambda x: True)

    def metric(run: Run) -> float:
        if run.validation_loss[0] <= target:
            return run.step[0]
        for (before, above), (after, below) in pairwise(zip(run.step, run.validation_loss, strict=True)):
            if below <= target:
                return before + (after - before) * (above - target) / (above - below)
        return math.inf

    return metric


class Runs(Sequence[Run]):
    """Runs to select from by their settings."""

    def __init__(self, runs: Iterable[Run]):
        self._runs = list(runs)
        for one in self._runs:
            if not isinstance(one, Run):
                raise TypeError(f"runs: got {one!r}, takes Runs of a study")

    def __len__(self) -> int:
        return len(self._runs)

    def __getitem__(self, index):
        return self._runs[index]

    def where(self, **settings: Any) -> "Runs":
        """The runs with exactly these settings; ValueError for a column that does not exist or cannot be that."""
        check_fields(Settings, settings, "column")
        settings = {name: as_setting(name, value) for name, value in settings.items()}
        return Runs([run for run in self if all(getattr(run.settings, k) == v for k, v in settings.items())])

    def values(self, name: str) -> list[Any]:
        """The different values that a setting takes, sorted."""
        check_fields(Settings, [name], "column")
        return sorted({getattr(run.settings, name) for run in self})

    def per_seed(self, metric: Metric, **settings: Any) -> np.ndarray:
        """The metric of the one run of each seed, in the order of the seeds: (seeds,)."""
        if not callable(metric):
            raise TypeError(f"metric: got {metric!r}, takes a function of a run, such as BEST")
        chosen = sorted(self.where(**settings), key=lambda run: run.settings.seed)
        seeds = [run.settings.seed for run in chosen]
        if len(set(seeds)) != len(seeds):
            raise ValueError(f"{settings} names several runs a seed; narrow it down")
        if seeds != self.values("seed"):
            raise MissingRunsError(f"no run with {settings}")
        return np.array([metric(run) for run in chosen])

    def tuned(self, metric: Metric, by: Metric = BEST, **settings: Any) -> np.ndarray:
        """As `per_seed`, each seed at the learning rate that is best on average over the *other* seeds.

        Choosing on the other seeds keeps the choice from flattering the result. Best is the lowest of `by`, which
        is the best validation loss (that of early stopping) unless another metric is given. Runs at one rate, as
        `where(learning_rate=...)` leaves them, have nothing to choose: this is their metric.
        """
        cell = self.where(**settings)
        rates = cell.values("learning_rate")
        if not rates:
            raise MissingRunsError(f"no run with {settings}")
        by_rate = [self.per_seed(metric, **settings | {"learning_rate": rate}) for rate in rates]
        chosen = tuned_rates(cell, by)
        return np.array([by_rate[rates.index(rate)][i] for i, rate in enumerate(chosen)])

    def over(self, name: str, metric: Metric, values: Sequence | None = None, by: Metric = BEST) -> np.ndarray:
        """`tuned` at each value of a setting, all there are or these: (values, seeds)."""
        values = self.values(name) if values is None else values
        if not len(values):
            raise MissingRunsError(f"no run to take {name} of")
        return np.array([self.tuned(metric, by, **{name: value}) for value in values])


class MissingRunsError(LookupError):
    """The runs that a contrast needs are not in the table (the quick version leaves some out)."""


def tuned_rates(cell: Runs, by: Metric = BEST) -> list[float]:
    """For each seed, the learning rate with the lowest mean of `by` (the best loss) over the other seeds."""
    rates = cell.values("learning_rate")
    losses = np.array([cell.per_seed(by, learning_rate=rate) for rate in rates])
    return [rates[i] for i in best_on_others(losses)]


def best_on_others(losses: np.ndarray) -> np.ndarray:
    """For each seed, which row has the lowest sum over the other seeds: (choices, seeds) -> (seeds,).

    A single seed has no others and decides for itself. Sums are made anew, as `sum - own` is NaN for infinite losses.

    >>> best_on_others(np.array([[1.0, 9.0, 1.0], [2.0, 2.0, 2.0]]))
    array([1, 0, 1])
    """
    if losses.shape[1] == 1:
        return losses.argmin(0)
    others = [np.delete(losses, i, axis=1).sum(1).argmin() for i in range(losses.shape[1])]
    return np.array(others)


def given_up(loss: np.ndarray, rivals: np.ndarray) -> np.ndarray:
    """How far a choice's loss (seeds,) lies above that of its hardest rival, of (rivals, seeds): (seeds,).

    The hardest is the one whose interval reaches furthest: where it gives up little against that one, it does so
    against every rival. (Berger 1982, intersection-union test; the best on the mean would flatter the choice.)
    """
    differences = loss - rivals
    return differences[int(np.argmax([estimate(one).high for one in differences]))]


def log10_best_rate(cell: Runs, metric: Metric = BEST) -> np.ndarray:
    """log10 of each seed's learning rate with the lowest metric, by a parabola on a half-decade grid: (seeds,).

    As grids are written (1e-3, 3e-3, 1e-2), their logarithms are rounded to halves.
    """
    rates = cell.values("learning_rate")
    if not rates:
        raise MissingRunsError("no run to find a learning rate of")
    losses = np.array([cell.per_seed(metric, learning_rate=rate) for rate in rates])
    return optimum(np.round(2 * np.log10(rates)) / 2, losses)


SETTINGS = [one.name for one in dataclasses.fields(Settings)]
COLUMNS = [*SETTINGS, *MEASURED, *CONSTANT]


def to_csv(runs: Runs) -> str:
    """Tidy: one row a run and evaluation, all settings as columns; numbers with all their digits.

    ValueError or TypeError for runs that `from_csv` would not give back.
    """
    check_runs(runs)
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for run in runs:
        shared = dataclasses.asdict(run.settings) | {name: getattr(run, name) for name in CONSTANT}
        for values in zip(*(getattr(run, name) for name in MEASURED), strict=True):
            writer.writerow(shared | dict(zip(MEASURED, values, strict=True)))
    return text.getvalue()


def check_runs(runs: Sequence[Run]) -> None:
    """What a table holds: each run once, with measurements that can be its own."""
    seen = set()
    for run in runs:
        check_run(run)
        if run.settings in seen:
            raise ValueError(f"got a run twice: {run.settings.label()}")
        seen.add(run.settings)


def from_csv(text: str) -> Runs:
    """The runs of a CSV that `to_csv` wrote, whatever its line ends; ValueError if it is anything else."""
    reader = csv.DictReader(io.StringIO(text.removeprefix("\ufeff")))
    if reader.fieldnames != COLUMNS:
        raise ValueError(f"columns: got {reader.fieldnames}, takes {COLUMNS}")
    rows: dict[tuple[str, ...], list[dict[str, str]]] = {}  # by settings
    for number, row in enumerate(reader, start=2):
        if None in row or None in row.values():
            raise ValueError(f"line {number}: got another number of values, takes {len(COLUMNS)}")
        rows.setdefault(tuple(row[name] for name in SETTINGS), []).append(row)
    runs = Runs([_run(of_run) for of_run in rows.values()])
    try:
        check_runs(runs)
    except TypeError as error:  # an infinite number
        raise ValueError(str(error)) from None
    return runs


def _run(rows: list[dict[str, str]]) -> Run:
    """The run of these rows, which differ in what was measured alone."""
    first = rows[0]
    for name in CONSTANT:
        if any(row[name] != first[name] for row in rows):
            raise ValueError(f"{name}: got several values in one run, of seed {first['seed']}")
    settings = Settings(**{name: KINDS[name](first[name]) for name in SETTINGS})  # type: ignore[operator]
    return Run(
        settings,
        step=tuple(int(row["step"]) for row in rows),
        train_loss=tuple(float(row["train_loss"]) for row in rows),
        validation_loss=tuple(float(row["validation_loss"]) for row in rows),
        change_norm=tuple(float(row["change_norm"]) for row in rows),
        floor=float(first["floor"]),
        train_floor=float(first["train_floor"]),
        trainable=int(first["trainable"]),
        diverged_at=int(first["diverged_at"]),
    )
