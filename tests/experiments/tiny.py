"""Studies so small that a run takes a twentieth of a second, and runs that were never done at all."""

import functools
import math

import numpy as np

from minilora.experiments import plots
from minilora.experiments.runner import base, lora_config
from minilora.experiments.runs import Run, Runs
from minilora.experiments.study import Claim, Settings, Study, grid
from minilora.lora import count_parameters

FIXED = {
    "n_train": 40,
    "batch_size": 8,
    "steps": 4,
    "evaluate_every": 2,
    "evaluation_size": 20,
    "target_modules": "q_proj",
}
# Full fine-tuning at this rate is not finite any more from step 1 on.
DIVERGES = FIXED | {"method": "full", "r": 0, "lora_alpha": 0.0, "learning_rate": 1e30}
FAILS = FIXED | {"target_modules": "no_such_module"}


def settings(**changes) -> Settings:
    """The settings of a run that takes no time."""
    return Settings(**(FIXED | changes))


def _cells(**axes):
    return grid(FIXED, **axes, lora_alpha=lambda cell: 2.0 * cell["r"])


def _norm(run: Run) -> float:
    return run.final_norm


def _difference(runs: Runs) -> np.ndarray:
    return runs.per_seed(lambda run: run.final_train, r=1) - runs.per_seed(lambda run: run.final_train, r=2)


def _parameters_off(runs: Runs) -> np.ndarray:
    return runs.per_seed(lambda run: abs(run.trainable - _trainable(run.settings)), r=1)


def _draw(runs: Runs, samples):
    made, axes = plots.figure(1, 1, 3, "A figure")
    plots.line(axes[0, 0], *_curve(runs), "final", plots.TRAIN)
    plots.level(axes[0, 0], plots.start_of(runs), "base", plots.BASE)
    return made


def _curve(runs: Runs):
    ranks = runs.values("r")
    return ranks, plots.by(runs, "r", ranks, lambda run: run.final_train)


def study(name: str, cells, claims=(), **more) -> Study:
    """A study of these cells, drawn in the simplest way."""
    return Study(name, f"What does {name} do?", cells, cells[:1], claims, _draw, **more)


DIFFERENCE = Claim(
    "R2", "Small r underfits", "r=1 ends above r=2", 0.01, "nats", _difference, "tiny", {"otherwise": _difference}
)
EXACT = Claim("R1", "Parameters grow with r", "r (in + out)", 0.0, "off", _parameters_off, "any", exact=True)
NORM = Claim("A1", "It moves", "its norm is above 0", 0.0, "norm", lambda runs: runs.per_seed(_norm), "tiny")
# The quick version of `tiny` has no runs for DIFFERENCE.
TINY = study("tiny", _cells(r=[1, 2]), [EXACT, DIFFERENCE], tuned=[{"r": 1}], samples={"r=1": {"r": 1}})
OTHER = study("other", _cells(r=[3]), [NORM])
BAD = study("bad", [*_cells(r=[4]), FAILS])
TOO_FAST = _cells(r=[2], learning_rate=[1e36], target_modules=["all-linear"])  # LoRA's way of not being finite
DIVERGING = study("diverging", [*_cells(r=[1]), *TOO_FAST], [DIFFERENCE])
SLOW = study("slow", _cells(r=[1, 2, 4, 8], steps=[80]))
STUDIES = {one.name: one for one in (TINY, OTHER, BAD, DIVERGING, SLOW)}


@functools.cache
def _count(method: str, r: int, target_modules: str) -> int:
    config = lora_config(Settings(method=method, r=r, target_modules=target_modules))
    return count_parameters(base().params, config).trainable


def _trainable(of: Settings) -> int:
    return _count(of.method, of.r, of.target_modules)


def fabricate(of: Settings, diverged: bool = False) -> Run:
    """A run that might have been: losses that fall, then rise, with noise that the settings decide."""
    steps = (*range(0, of.steps, of.evaluate_every), of.steps)
    if diverged:
        steps = steps[: 1 + of.seed % len(steps)]
    noise = np.random.default_rng([of.seed, of.r, of.n_train, round(1e5 * of.learning_rate)]).normal(
        0, 0.01, len(steps)
    )
    done = np.array(steps) / of.steps
    far = abs(math.log10(of.learning_rate) + 2.5)
    return Run(
        of,
        steps,
        tuple(map(float, 2.4 - 0.5 * done / (1 + far) + noise)),
        tuple(map(float, 2.5 - 0.5 * done / (1 + far) + 0.3 * done**2 + noise)),
        tuple(map(float, done * (1 + of.lora_alpha))),
        floor=0.5 * (of.task == "planted"),
        train_floor=0.4 * (of.task == "planted"),
        trainable=_trainable(of),
        diverged_at=steps[-1] + 1 if diverged else -1,
    )


def fabricated(of: Study, n_seeds: int = 8, quick: bool = False, diverged=lambda settings: False) -> Runs:
    """The table of a study whose runs were never done."""
    return Runs([fabricate(one, diverged(one)) for one in of.runs(range(n_seeds), quick)])
