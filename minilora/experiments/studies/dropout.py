"""Dropout on the input of A: what it does against overfitting, and what it costs when there is data enough (D1-D4)."""

import numpy as np

from minilora.experiments.evidence.exact import evaluation_deviation
from minilora.experiments.evidence.measures import difference, each_seed
from minilora.experiments.evidence.runs import FINAL, FINAL_TRAIN, OVERFIT, Runs
from minilora.experiments.evidence.settings import FULL, grid
from minilora.experiments.evidence.study import Contrast, Study
from minilora.experiments.pages import plots

R = 16
RATE = 3e-3
PROBABILITIES = (0.0, 0.1, 0.2, 0.3, 0.5)
SIZES = (100, 200, 500, 2775)
SCARCE, AMPLE = 200, 2775
FIXED = {
    "r": R, "lora_alpha": 2.0 * R, "learning_rate": RATE, "batch_size": 16, "steps": 300,
    "evaluate_every": 10,  # without dropout the best step on 200 names comes within 30, and passes quickly
}  # fmt: skip
CELLS = [
    *grid(FIXED, n_train=SIZES, lora_dropout=PROBABILITIES),
    *grid(FIXED | FULL, n_train=[SCARCE, AMPLE], learning_rate=[3e-4, 1e-3, 3e-3]),
]
QUICK = grid(FIXED | {"steps": 150}, n_train=[SCARCE, AMPLE], lora_dropout=[0.0, 0.2, 0.5])


def _best_p(runs: Runs, n_train: int) -> np.ndarray:
    """The dropout with the lowest final validation loss, for each seed."""
    lora = runs.where(method="lora", n_train=n_train)
    return np.array(lora.values("lora_dropout"))[lora.over("lora_dropout", FINAL).argmin(0)]


NONE, HALF = ({"method": "lora", "lora_dropout": p} for p in (0.0, 0.5))
REGIME = f"female first names, r={R}, all six linear modules, alpha = 2r, rate {RATE:g}"
CONTRASTS = [
    Contrast(
        claim="D1",
        prediction="scarce data: final minus best validation loss is smaller at p=0.5 than at p=0",
        plain="with 200 names, p=0.5 overfits {effect} nats {less/more} than p=0",
        smallest_effect=0.05,
        measure=difference(OVERFIT, NONE, HALF, n_train=SCARCE),
        regime=REGIME + ", 200 names",
    ),
    Contrast(
        claim="D2",
        prediction="ample data: the final training loss is higher at p=0.5 than at p=0",
        plain="with 2,775 names, p=0.5 ends {effect} nats {above/below} p=0 in training loss",
        smallest_effect=0.02,
        measure=difference(FINAL_TRAIN, HALF, NONE, n_train=AMPLE),
        regime=REGIME + ", 2,775 names",
    ),
    Contrast(
        claim="D3",
        prediction="the p with the lowest final validation loss is higher with 100 names than with 2,775",
        plain="the best p is {effect} {higher/lower} with 100 names than with 2,775",
        smallest_effect=0.1,
        unit="dropout probability",
        measure=lambda runs: _best_p(runs, 100) - _best_p(runs, AMPLE),
        regime=REGIME,
    ),
    Contrast(
        claim="D4",
        prediction="evaluation is the same to the bit each time, is that of no dropout, and is the mean over all masks",
        plain="evaluation deviates by {effect}",
        smallest_effect=0.0,
        unit="deviation",
        measure=each_seed(evaluation_deviation),
        exact=True,
        regime="any model whose dropout rescales; the mean over masks is taken for one module, at p = 1/2",
    ),
]


def _panel(ax, runs: Runs, title: str) -> None:
    tried = plots.losses(ax, runs.where(method="lora"), "lora_dropout")
    plots.references(ax, runs)
    ax.set(title=title, xlabel="dropout probability p", xlim=(-0.03, 0.78), xticks=tried)


def _by_size(ax, lora: Runs) -> None:
    sizes, tried = lora.values("n_train"), lora.values("lora_dropout")
    for n_train, shade in zip(sizes, np.linspace(0.5, 1.0, len(sizes)), strict=True):
        losses = lora.where(n_train=n_train).over("lora_dropout", FINAL)
        plots.line(ax, tried, losses - losses[0], f"{n_train:,} names", plots.paler(plots.VALIDATION, shade))
    ax.axhline(0, color=plots.PREDICTION, lw=1, zorder=0)
    ax.set(title="Fewer names, more help", ylabel="final validation loss, against p = 0")
    ax.set(xlabel="dropout probability p", xlim=(-0.03, 0.78), xticks=tried)


def draw(runs: Runs, samples):
    """The figure of the study."""
    made, axes = plots.figure(1, 3, 4.4, "Dropout holds back overfitting on scarce data and learning on ample data")
    _panel(axes[0, 0], runs.where(n_train=SCARCE), "200 names")
    _panel(axes[0, 1], runs.where(n_train=AMPLE), "2,775 names")
    _by_size(axes[0, 2], runs.where(method="lora"))
    return made


STUDY = Study(
    name="dropout",
    question="How much dropout, for how much data?",
    cells=CELLS,
    quick_cells=QUICK,
    contrasts=CONTRASTS,
    draw=draw,
    headline=True,
    tuned=grid({"method": "full"}, n_train=[SCARCE, AMPLE]),
    samples={
        "p=0, 200 names": {"n_train": SCARCE, "lora_dropout": 0.0, "method": "lora"},
        "p=0.5, 200 names": {"n_train": SCARCE, "lora_dropout": 0.5},
    },
)
