"""Which layers get an adapter, at an equal budget, on a base of four layers (Y1)."""

from typing import Any

import numpy as np

from minilora.experiments.evidence.measures import difference
from minilora.experiments.evidence.runs import BEST, FINAL_TRAIN, Runs, best_on_others
from minilora.experiments.evidence.settings import alpha_2r, grid
from minilora.experiments.evidence.study import Contrast, Study
from minilora.experiments.pages import plots

SINGLE: dict[str, dict[str, Any]] = {f"layer {i + 1}": {"layers": str(i), "r": 16} for i in range(4)}
CHOICES: dict[str, dict[str, Any]] = {  # r x layers = 16 everywhere
    **SINGLE,
    "first two": {"layers": "0+1", "r": 8},
    "last two": {"layers": "2+3", "r": 8},
    "all four": {"layers": "all", "r": 4},
}
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
FIXED = {"base": "surnames_4_layers", "n_train": 1000, "batch_size": 16, "steps": 200, "evaluate_every": 40}
CELLS = [cell for one in CHOICES.values() for cell in grid(FIXED | one, learning_rate=RATES, lora_alpha=alpha_2r)]
QUICK = [
    cell
    for one in CHOICES.values()
    for cell in grid(FIXED | one | {"steps": 60}, learning_rate=[1e-2], lora_alpha=alpha_2r)
]


def _losses(runs: Runs, names, metric=BEST) -> np.ndarray:
    return np.array([runs.tuned(metric, **CHOICES[name]) for name in names])


def spread_of(losses: np.ndarray) -> np.ndarray:
    """Loss of the worst choice less that of the best, both chosen on the other seeds: (choices, seeds) -> (seeds,)."""
    seeds = np.arange(losses.shape[1])
    return losses[best_on_others(-losses), seeds] - losses[best_on_others(losses), seeds]


REGIME = "1,000 female first names on a base of four layers, all six modules of the layers chosen, r x layers = 16"
CONTRASTS = [
    Contrast(
        claim="Y1",
        prediction="it matters which single layer is adapted: the worst ends above the best in validation loss",
        plain="the worst single layer ends {effect} nats {above/below} the best",
        smallest_effect=0.01,
        measure=lambda runs: spread_of(_losses(runs, SINGLE)),
        regime=REGIME,
    ),
    Contrast(
        claim="Y1",
        prediction="at an equal budget, adapting all layers reaches a lower validation loss than the last alone",
        plain="all layers end {effect} nats {below/above} the last layer alone",
        smallest_effect=0.01,
        measure=difference(BEST, CHOICES["layer 4"], CHOICES["all four"]),
        regime=REGIME,
    ),
]


def draw(runs: Runs, samples):
    """The figure of the study."""
    made, axes = plots.figure(1, 2, 3.6, "Where in the depth the adapter sits decides what it can reach")
    for ax, metric, what, color in zip(axes[0], (BEST, FINAL_TRAIN), ("best validation", "final training"),
                                       (plots.VALIDATION, plots.TRAIN), strict=True):  # fmt: skip
        losses = dict(zip(CHOICES, _losses(runs, CHOICES, metric), strict=True))
        plots.ranking(ax, losses, "all four", f"{what} loss, less that of all four (nats)", color)
        ax.set_title(f"{what.capitalize()} loss")
    return made


STUDY = Study(
    name="layers",
    question="Does it matter which layers are adapted, at an equal number of parameters?",
    cells=CELLS,
    quick_cells=QUICK,
    contrasts=CONTRASTS,
    draw=draw,
    tuned=list(CHOICES.values()),
)
