"""How the factors start: exactly at the base, elsewhere, and at which scale of A (I1-I3)."""

from functools import partial

import numpy as np

from minilora.experiments.evidence.exact import start_deviation
from minilora.experiments.evidence.measures import difference, each_seed, one_rate
from minilora.experiments.evidence.runs import BEST, START, Runs, steps_to
from minilora.experiments.evidence.settings import grid
from minilora.experiments.evidence.study import Contrast, Study
from minilora.experiments.pages import plots

INITS = ("True", "gaussian", "he", "xavier", "zero_A", "orthogonal", "False")
TARGET = 2.10  # nats per letter on held-out names, to be reached
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
SHARED = 3e-3
FIXED = {"n_train": 1000, "batch_size": 16, "steps": 200, "evaluate_every": 10, "r": 8, "lora_alpha": 16.0}
CELLS = grid(FIXED, init_lora_weights=INITS, learning_rate=RATES)
QUICK = grid(FIXED | {"steps": 100}, init_lora_weights=["True", "he", "xavier", "False"], learning_rate=[1e-2])
STEPS = steps_to(TARGET)


def _faster(runs: Runs, init: str) -> np.ndarray:
    """How many times fewer steps to the target than the default takes, as doublings."""
    default, other = runs.over("init_lora_weights", STEPS, ("True", init), by=STEPS)
    return np.log2(default) - np.log2(other)


ELSEWHERE, DEFAULT = ({"init_lora_weights": init} for init in ("False", "True"))
REGIME = "1,000 female first names, r=8, alpha = 16, all six linear modules"
CONTRASTS = [
    Contrast(
        claim="I1",
        prediction="with A or B zero, logits are those of the base to the bit, and only the zero factor has a gradient",
        plain="logits and gradients deviate by {effect}",
        smallest_effect=0.0,
        unit="deviation",
        measure=each_seed(start_deviation),
        exact=True,
        regime="any model; checked for every init that has a zero factor",
    ),
    Contrast(
        claim="I2",
        prediction="with both factors random, the loss before the first step is above the base's",
        plain="with both random, the first loss is {effect} nats {above/below} the base's",
        smallest_effect=0.1,
        measure=difference(START, ELSEWHERE, DEFAULT),
        regime=REGIME,
    ),
    Contrast(
        claim="I2",
        prediction="with both factors random, the best validation loss stays above that of the default",
        plain="after training it is {effect} nats {above/below} the default's best",
        smallest_effect=0.01,
        measure=difference(BEST, ELSEWHERE, DEFAULT),
        regime=REGIME + ", rates tuned",
    ),
    *(
        Contrast(
            claim="I3",
            prediction=f"{name} init takes fewer steps to {TARGET:g} nats than the default, each at its fastest rate",
            plain=f"{name} takes {{effect}} doublings {{fewer/more}} steps to {TARGET:g} nats than the default",
            smallest_effect=0.1,
            unit="doublings of the number of steps",
            measure=partial(_faster, init=init),
            variants=one_rate(SHARED, partial(_faster, init=init)),
            regime=REGIME + "; the default is PEFT's: A uniform in +-1/sqrt(in)",
        )
        for name, init in (("He's", "he"), ("Xavier's", "xavier"))
    ),
]


def _curves(ax, runs: Runs) -> None:
    rate = SHARED if SHARED in runs.values("learning_rate") else runs.values("learning_rate")[0]
    shared = runs.where(learning_rate=rate)
    for init, label, color, style in (
        ("False", "both random", plots.OTHER, "-"),
        ("True", "default\n(True)", plots.VALIDATION, "-"),
        ("he", "he", plots.TRAIN, ":"),
    ):
        plots.curve(ax, shared.where(init_lora_weights=init), "validation_loss", label, color, style=style)
    plots.steps_axis(ax, shared, "loss")
    ax.plot([0, shared[0].settings.steps], [TARGET] * 2, color=plots.PREDICTION, zorder=0)
    ax.set_title(f"Validation loss, rate {rate:g}")


def draw(runs: Runs, samples):
    """The figure of the study."""
    made, axes = plots.figure(1, 2, 4.4, "All starts at the base end alike; a start elsewhere has to come back first")
    _curves(axes[0, 0], runs)
    steps = {init: runs.tuned(STEPS, STEPS, init_lora_weights=init) for init in runs.values("init_lora_weights")}
    plots.ranking(axes[0, 1], steps, "True", f"steps to {TARGET:g} nats, less the default's")
    axes[0, 1].set_title("Steps to a fixed loss, fastest rates")
    return made


STUDY = Study(
    name="init",
    question="Where do A and B start, and does the scale of A matter?",
    cells=CELLS,
    quick_cells=QUICK,
    contrasts=CONTRASTS,
    draw=draw,
    tuned=grid({}, init_lora_weights=INITS),
)
