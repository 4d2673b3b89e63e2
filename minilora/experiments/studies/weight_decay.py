"""AdamW's weight decay on A and B: what it does against overfitting, and what it pulls towards (W1)."""

import numpy as np

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


def _lora(runs: Runs, metric, decay: float) -> np.ndarray:
    return runs.per_seed(metric, method="lora", learning_rate=RATE, weight_decay=decay)


def _saved_tuned(runs: Runs, metric) -> np.ndarray:
    lora = runs.where(method="lora")
    return lora.tuned(metric, weight_decay=0.0) - lora.tuned(metric, weight_decay=MODERATE)


def _saved(runs: Runs, metric, decay: float) -> np.ndarray:
    return _lora(runs, metric, 0.0) - _lora(runs, metric, decay)


def _towards(runs: Runs) -> np.ndarray:
    full = runs.per_seed(FINAL, method="full", weight_decay=STRONG * RATE / FULL_RATE)
    return full - _lora(runs, FINAL, STRONG)


REGIME = f"200 female first names, r=16, alpha = 2r, all six linear modules, rate {RATE:g}"
CONTRASTS = [
    Contrast(
        claim="W1",
        prediction=f"with a decay of {MODERATE:g}, final minus best validation loss is smaller than with none",
        plain=f"a decay of {MODERATE:g} {{lowers/raises}} the overfit by {{effect}} nats",
        smallest_effect=0.05,
        unit="nats per letter",
        measure=lambda runs: _saved(runs, OVERFIT, MODERATE),
        variants={
            "a decay of 0.1": lambda runs: _saved(runs, OVERFIT, 0.1),
            f"a decay of {STRONG:g}": lambda runs: _saved(runs, OVERFIT, STRONG),
            "rates tuned": lambda runs: _saved_tuned(runs, OVERFIT),
            "by the best validation loss": lambda runs: _saved(runs, BEST, MODERATE),
        },
        regime=REGIME,
    ),
    Contrast(
        claim="W1",
        prediction=f"decay of {MODERATE:g} pulls towards the base: the change it leaves is smaller",
        plain=f"a decay of {MODERATE:g} makes the norm of the change {{effect}} halvings {{smaller/larger}}",
        smallest_effect=0.1,
        unit="halvings of the norm of the change",
        measure=lambda runs: np.log2(_lora(runs, NORM, 0.0) / _lora(runs, NORM, MODERATE)),
        regime=REGIME,
    ),
    Contrast(
        claim="W1",
        prediction="towards the base, not zero: the same strong decay leaves full fine-tuning with a higher loss",
        plain="under strong decay full fine-tuning ends {effect} nats {above/below} LoRA",
        smallest_effect=0.05,
        unit="nats per letter",
        measure=_towards,
        regime=REGIME
        + f", decay {STRONG:g}; full fine-tuning at a rate of {FULL_RATE:g} with the same product of both",
    ),
]


def draw(runs: Runs, samples):
    """The figure of the study."""
    made, axes = plots.figure(1, 2, 4.4, "Decay on A and B pulls back to the base, and so limits overfitting")
    lora = runs.where(method="lora", learning_rate=RATE)
    decays = lora.values("weight_decay")
    for label, metric, color, style in plots.LOSSES:
        plots.line(
            axes[0, 0], range(len(decays)), plots.by(lora, "weight_decay", decays, metric), label, color, style=style
        )
    plots.level(axes[0, 0], plots.start_of(lora), "base,\nnot adapted", plots.BASE)
    plots.line(axes[0, 1], range(len(decays)), plots.by(lora, "weight_decay", decays, NORM), "LoRA", plots.OTHER)
    titles = {"Losses": "loss (nats per letter)", "How far the weights moved": "norm of the change"}
    for ax, (title, what) in zip(axes[0], titles.items(),
                               strict=True):  # fmt: skip
        ax.set_xticks(range(len(decays)), [f"{decay:g}" for decay in decays])
        ax.set(title=title, xlabel=f"weight decay (rate {RATE:g})", ylabel=what, xlim=(-0.3, len(decays) * 1.35))
    return made


STUDY = Study(
    name="weight_decay",
    question="What does weight decay on the factors do?",
    cells=CELLS,
    quick_cells=QUICK,
    contrasts=CONTRASTS,
    draw=draw,
    tuned=[{"method": "lora", "weight_decay": decay} for decay in DECAYS],
)
