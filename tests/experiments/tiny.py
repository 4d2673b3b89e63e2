"""Studies so small that a run takes a twentieth of a second, and runs that were never done at all."""

import dataclasses
import functools

import numpy as np

from minilora.experiments.engine.runner import base, lora_config
from minilora.experiments.evidence.measures import difference
from minilora.experiments.evidence.rehearsal import made_up
from minilora.experiments.evidence.runs import FINAL_TRAIN, Run, Runs
from minilora.experiments.evidence.settings import Settings, grid
from minilora.experiments.evidence.study import Contrast, Study
from minilora.experiments.pages import plots
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


_difference = difference(FINAL_TRAIN, {"r": 1}, {"r": 2})


def _parameters_off(runs: Runs) -> np.ndarray:
    return runs.per_seed(lambda run: abs(run.trainable - _trainable(run.settings)), r=1)


def _draw(runs: Runs, samples):
    made, axes = plots.figure(1, 1, 3, "A figure")
    plots.line(axes[0, 0], runs.values("r"), runs.over("r", FINAL_TRAIN), "final", plots.TRAIN)
    plots.base_level(axes[0, 0], runs)
    return made


def study(name: str, cells, contrasts=(), **more) -> Study:
    """A study of these cells, drawn in the simplest way."""
    return Study(
        name=name,
        question=f"What does {name} do?",
        cells=cells,
        quick_cells=cells[:1],
        contrasts=contrasts,
        draw=_draw,
        **more,
    )


def contrast(claim: str, measure, **more) -> Contrast:
    """A contrast of anything."""
    given = {
        "prediction": f"{claim} holds",
        "plain": "{effect} {up/down}",
        "smallest_effect": 0.0,
        "unit": "nats",
        "regime": "tiny",
    }
    return Contrast(claim=claim, measure=measure, **(given | more))


DIFFERENCE = contrast(
    "R2", _difference, smallest_effect=0.01, prediction="r=1 ends above r=2", variants={"otherwise": _difference}
)
EXACT = contrast("R1", _parameters_off, prediction="r (in + out)", unit="off", exact=True)
NORM = contrast("A1", lambda runs: runs.per_seed(lambda run: run.final_norm), unit="norm")
# The quick version of `tiny` has no runs for DIFFERENCE.
TINY = study("tiny", _cells(r=[1, 2]), [EXACT, DIFFERENCE], tuned=[{"r": 1}], samples={"r=1": {"r": 1}})
OTHER = study("other", _cells(r=[3]), [NORM])
BAD = study("bad", [*_cells(r=[4]), FAILS])
TOO_FAST = _cells(r=[2], learning_rate=[1e36], target_modules=["all-linear"])  # LoRA's way of not being finite
DIVERGING = study("diverging", [*_cells(r=[1]), *TOO_FAST], [DIFFERENCE])
SLOW = study("slow", _cells(r=[1, 2, 4, 8], steps=[80]))
STUDIES = {one.name: one for one in (TINY, OTHER, BAD, DIVERGING, SLOW)}


@functools.cache
def _count(**what) -> int:
    of = Settings(**what)
    return count_parameters(base(of.base).params, lora_config(of)).trainable


def _trainable(of: Settings) -> int:
    names = ("base", "method", "r", "target_modules", "layers", "bias")
    return _count(**{name: getattr(of, name) for name in names})


def fabricate(of: Settings, diverged: bool = False) -> Run:
    """A made-up run with the right number of parameters."""
    return dataclasses.replace(made_up(of, diverged), trainable=_trainable(of))


def fabricated(of: Study, n_seeds: int = 8, quick: bool = False, diverged=lambda settings: False) -> Runs:
    """The table of a study whose runs were never done."""
    return Runs([fabricate(one, diverged(one)) for one in of.runs(range(n_seeds), quick)])
