"""How the factors start: exactly at the base, elsewhere, and at which scale of A (I1-I3)."""

import functools

import numpy as np

from minilora.data.base import load_base
from minilora.data.names import names_task
from minilora.experiments.evidence.runs import BEST, Run, Runs, steps_to
from minilora.experiments.evidence.settings import grid
from minilora.experiments.evidence.study import Contrast, Study
from minilora.experiments.pages import plots
from minilora.lora import LoraConfig, init_adapter
from minilora.lora_config import STARTS_AT_BASE
from minilora.model import forward
from minilora.train import Trainable

INITS = ("True", "gaussian", "he", "xavier", "zero_A", "orthogonal", "False")
TARGET = 2.10  # nats per letter on held-out names, to be reached
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
SHARED = 3e-3
FIXED = {"n_train": 1000, "batch_size": 16, "steps": 200, "evaluate_every": 10, "r": 8, "lora_alpha": 16.0}
CELLS = grid(FIXED, init_lora_weights=INITS, learning_rate=RATES)
QUICK = grid(FIXED | {"steps": 100}, init_lora_weights=["True", "he", "xavier", "False"], learning_rate=[1e-2])
STEPS = steps_to(TARGET)


@functools.cache
def start_deviation(seed: int) -> float:
    """0 where every init with B or A zero starts at the base to the bit and the other factor alone has a gradient."""
    base = load_base()
    data = names_task("female", 32, seed)[0]
    expected, off = forward(base.params, data.inputs, base.config), 0.0
    for init in STARTS_AT_BASE:
        adapter = init_adapter(base.params, LoraConfig(r=8, init_lora_weights=init), np.random.default_rng(seed))
        off = max(off, float(np.abs(forward(base.params, data.inputs, base.config, adapter=adapter) - expected).max()))
        trainable = Trainable(base, adapter)
        gradients = trainable.arrays(trainable.loss_and_gradient(trainable.vector, data, None)[1])
        zero, moving = ("lora_B", "lora_A") if init == "zero_A" else ("lora_A", "lora_B")
        off = max(off, *(float(np.abs(g).max()) for name, g in gradients.items() if name.endswith(zero)))
        off += sum(not g.any() for name, g in gradients.items() if name.endswith(moving))
    return off


def _faster(runs: Runs, init: str, tuned: bool) -> np.ndarray:
    """How many times fewer steps to the target than the default takes, as doublings."""
    at = runs if tuned else runs.where(learning_rate=SHARED)
    default, other = (at.tuned(STEPS, STEPS, init_lora_weights=one) for one in ("True", init))
    with np.errstate(invalid="ignore"):  # where neither got there
        return np.log2(default) - np.log2(other)


def _start(run: Run) -> float:
    return run.validation_loss[0]


def _harm(runs: Runs, metric) -> np.ndarray:
    elsewhere, default = (runs.tuned(metric, init_lora_weights=init) for init in ("False", "True"))
    return elsewhere - default


REGIME = "1,000 female first names, r=8, alpha = 16, all six linear modules"
CONTRASTS = [
    Contrast(
        claim="I1",
        prediction="with A or B zero, logits are those of the base to the bit, and only the zero factor has a gradient",
        plain="logits and gradients deviate by {effect}",
        smallest_effect=0.0,
        unit="deviation",
        measure=lambda runs: np.array([start_deviation(seed) for seed in runs.values("seed")]),
        exact=True,
        regime="any model; checked for every init that has a zero factor",
    ),
    Contrast(
        claim="I2",
        prediction="with both factors random, the loss before the first step is above the base's",
        plain="with both random, the first loss is {effect} nats {above/below} the base's",
        smallest_effect=0.1,
        unit="nats per letter",
        measure=lambda runs: _harm(runs, _start),
        regime=REGIME,
    ),
    Contrast(
        claim="I2",
        prediction="with both factors random, the best validation loss stays above that of the default",
        plain="after training it is {effect} nats {above/below} the default's best",
        smallest_effect=0.01,
        unit="nats per letter",
        measure=lambda runs: _harm(runs, BEST),
        regime=REGIME + ", rates tuned",
    ),
    *(
        Contrast(
            claim="I3",
            prediction=f"{name} init takes fewer steps to {TARGET:g} nats than the default, each at its fastest rate",
            plain=f"{name} takes {{effect}} doublings {{fewer/more}} steps to {TARGET:g} nats than the default",
            smallest_effect=0.1,
            unit="doublings of the number of steps",
            measure=functools.partial(_faster, init=init, tuned=True),
            variants={f"one rate, {SHARED:g}": functools.partial(_faster, init=init, tuned=False)},
            regime=REGIME + "; the default is PEFT's: A uniform in +-1/sqrt(in)",
        )
        for name, init in (("He's", "he"), ("Xavier's", "xavier"))
    ),
]


def draw(runs: Runs, samples):
    """The figure of the study."""
    made, axes = plots.figure(1, 2, 4.4, "All starts at the base end alike; a start elsewhere has to come back first")
    rate = SHARED if SHARED in runs.values("learning_rate") else runs.values("learning_rate")[0]
    ax, shared = axes[0, 0], runs.where(learning_rate=rate)
    for init, color, style in (("False", plots.OTHER, "-"), ("True", plots.VALIDATION, "-"), ("he", plots.TRAIN, ":")):
        label = {"False": "both random", "True": "default\n(True)"}.get(init, init)
        plots.curve(ax, shared.where(init_lora_weights=init), "validation_loss", label, color, style=style)
    plots.steps_axis(ax, shared, "loss")
    ax.plot([0, shared[0].settings.steps], [TARGET] * 2, color=plots.PREDICTION, zorder=0)
    ax.set_title(f"Validation loss, rate {rate:g}")
    steps = {name: runs.tuned(STEPS, STEPS, init_lora_weights=name) for name in runs.values("init_lora_weights")}
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
    tuned=[{"init_lora_weights": init} for init in INITS],
)
