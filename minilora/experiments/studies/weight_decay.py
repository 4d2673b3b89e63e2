"""AdamW's weight decay on A and B: what it does against overfitting, and what it pulls towards (W1)."""

import numpy as np

from minilora.experiments.evidence.measures import Measure, difference
from minilora.experiments.evidence.runs import BEST, FINAL, NORM, OVERFIT, Runs
from minilora.experiments.evidence.settings import FULL, grid
from minilora.experiments.evidence.study import Contrast, Study
from minilora.experiments.pages import plots

DECAYS = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0)
MODERATE, STRONG = 1.0, 10.0
RATE, FULL_RATE = 3e-3, 1e-3
FIXED = {"n_train": 200, "batch_size": 16, "steps": 300, "evaluate_every": 30, "r": 16, "lora_alpha": 32.0}
CELLS = [
    *grid(FIXED, weight_decay=DECAYS, learning_rate=[3e-4, 1e-3, RATE, 1e-2]),
    *grid(FIXED | FULL, learning_rate=[FULL_RATE], weight_decay=[0.0, MODERATE, STRONG * RATE / FULL_RATE]),
]
QUICK = [
    *grid(FIXED | {"steps": 120}, weight_decay=[0.0, MODERATE, STRONG], learning_rate=[RATE]),
    *grid(FIXED | FULL | {"steps": 120}, learning_rate=[FULL_RATE], weight_decay=[STRONG * RATE / FULL_RATE]),
]


def _saved(metric, decay: float, **at) -> Measure:
    """How much lower the metric is with this decay than with none."""
    return difference(metric, {"weight_decay": 0.0}, {"weight_decay": decay}, method="lora", **at)


def _shrunk(runs: Runs) -> np.ndarray:
    without, decayed = runs.where(method="lora", learning_rate=RATE).over("weight_decay", NORM, (0.0, MODERATE))
    return np.log2(without / decayed)


LORA_DECAYED = {"method": "lora", "weight_decay": STRONG, "learning_rate": RATE}
FULL_DECAYED = {"method": "full", "weight_decay": STRONG * RATE / FULL_RATE}  # the same product of rate and decay
REGIME = f"200 female first names, r=16, alpha = 2r, all six linear modules, rate {RATE:g}"
CONTRASTS = [
    Contrast(
        claim="W1",
        prediction=f"with a decay of {MODERATE:g}, final minus best validation loss is smaller than with none",
        plain=f"a decay of {MODERATE:g} {{lowers/raises}} the overfit by {{effect}} nats",
        smallest_effect=0.05,
        measure=_saved(OVERFIT, MODERATE, learning_rate=RATE),
        variants={
            "a decay of 0.1": _saved(OVERFIT, 0.1, learning_rate=RATE),
            f"a decay of {STRONG:g}": _saved(OVERFIT, STRONG, learning_rate=RATE),
            "rates tuned": _saved(OVERFIT, MODERATE),
            "by the best validation loss": _saved(BEST, MODERATE, learning_rate=RATE),
        },
        regime=REGIME,
    ),
    Contrast(
        claim="W1",
        prediction=f"decay of {MODERATE:g} pulls towards the base: the change it leaves is smaller",
        plain=f"a decay of {MODERATE:g} makes the norm of the change {{effect}} halvings {{smaller/larger}}",
        smallest_effect=0.1,
        unit="halvings of the norm of the change",
        measure=_shrunk,
        regime=REGIME,
    ),
    Contrast(
        claim="W1",
        prediction="towards the base, not zero: the same strong decay leaves full fine-tuning with a higher loss",
        plain="under strong decay full fine-tuning ends {effect} nats {above/below} LoRA",
        smallest_effect=0.05,
        measure=difference(FINAL, FULL_DECAYED, LORA_DECAYED),
        regime=REGIME
        + f", decay {STRONG:g}; full fine-tuning at a rate of {FULL_RATE:g} with the same product of both",
    ),
]


def draw(runs: Runs, samples):
    """The figure of the study."""
    made, axes = plots.figure(1, 2, 4.4, "Decay on A and B pulls back to the base, and so limits overfitting")
    lora = runs.where(method="lora", learning_rate=RATE)
    decays = lora.values("weight_decay")
    places = plots.losses(axes[0, 0], lora, "weight_decay", places={decay: i for i, decay in enumerate(decays)})
    plots.base_level(axes[0, 0], lora)
    plots.line(axes[0, 1], places, lora.over("weight_decay", NORM), "LoRA", plots.OTHER)
    axes[0, 1].set_ylabel("norm of the change")
    for ax, title in zip(axes[0], ("Losses", "How far the weights moved"), strict=True):
        ax.set_xticks(places, [f"{decay:g}" for decay in decays])
        ax.set(title=title, xlabel=f"weight decay (rate {RATE:g})", xlim=(-0.3, len(decays) * 1.35))
    return made


STUDY = Study(
    name="weight_decay",
    question="What does weight decay on the factors do?",
    cells=CELLS,
    quick_cells=QUICK,
    contrasts=CONTRASTS,
    draw=draw,
    tuned=grid({"method": "lora"}, weight_decay=DECAYS),
)
