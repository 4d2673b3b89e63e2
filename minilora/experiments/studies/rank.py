"""Rank on real names: too small a rank underfits ample data, too large a rank overfits scarce data (R1-R4)."""

import numpy as np

from minilora.experiments.evidence.exact import count_deviation
from minilora.experiments.evidence.measures import difference, one_rate
from minilora.experiments.evidence.runs import BEST, FINAL, FINAL_TRAIN, OVERFIT, Runs
from minilora.experiments.evidence.settings import FULL, alpha_2r, grid
from minilora.experiments.evidence.stats import slope
from minilora.experiments.evidence.study import Contrast, Study
from minilora.experiments.pages import plots

RANKS = (1, 2, 4, 8, 16, 32)
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
SCARCE_RATES = {r: RATES[0:4] if r >= 16 else RATES[1:5] for r in RANKS}  # around each rank's own best
AMPLE_RATES = {r: RATES[2:6] if r <= 2 else RATES[2:5] if r <= 16 else RATES[1:5] for r in RANKS}
SHARED = 3e-3  # the learning rate at which all ranks are compared without tuning
SCARCE, AMPLE = 200, 2775  # names
ON_SCARCE = {"n_train": SCARCE, "batch_size": 16, "steps": 300, "evaluate_every": 30}
ON_AMPLE = ON_SCARCE | {"n_train": AMPLE, "evaluate_every": 75}
CELLS = [
    *grid(ON_SCARCE, r=RANKS, learning_rate=lambda of: SCARCE_RATES[of["r"]], lora_alpha=alpha_2r),
    *grid(ON_AMPLE, r=RANKS, learning_rate=lambda of: AMPLE_RATES[of["r"]], lora_alpha=alpha_2r),
    *grid(ON_SCARCE | FULL, learning_rate=RATES[0:4]),
    *grid(ON_AMPLE | FULL, learning_rate=RATES[1:5]),
]
QUICK = [
    *grid(ON_SCARCE | {"steps": 150}, r=[1, 4, 16], learning_rate=[SHARED], lora_alpha=alpha_2r),
    *grid(ON_AMPLE | {"steps": 150}, r=[1, 8], learning_rate=[SHARED], lora_alpha=alpha_2r),
    *grid(ON_SCARCE | {"steps": 150} | FULL, learning_rate=[1e-3]),
    *grid(ON_AMPLE | {"steps": 150} | FULL, learning_rate=[3e-3]),
]


def _slope(runs: Runs, metric=OVERFIT, by=BEST) -> np.ndarray:
    """How the metric on scarce data grows with log r."""
    scarce = runs.where(method="lora", n_train=SCARCE)
    return slope(np.log2(scarce.values("r")), scarce.over("r", metric, by=by))


def _returns(runs: Runs) -> np.ndarray:
    r4, r8, r32 = runs.where(method="lora", n_train=AMPLE).over("r", BEST, (4, 8, 32))
    return (r4 - r8) - (r8 - r32) / 2


UNDERFIT = difference(FINAL_TRAIN, {"r": 1}, {"r": 8}, method="lora", n_train=AMPLE)
REGIME = "female first names on a 27,000-parameter base, all six linear modules, alpha = 2r"
CONTRASTS = [
    Contrast(
        claim="R1",
        prediction="exactly r (in + out) parameters a module, each used in one multiply-add a token",
        plain="counts are {effect} parameters off r (in + out)",
        smallest_effect=0.0,
        unit="parameters off",
        measure=lambda runs: count_deviation(runs, RANKS),
        exact=True,
        regime="any model: it follows from the shapes of A and B; the measured time of a step is in tests/bench",
    ),
    Contrast(
        claim="R2",
        prediction="ample data: the final training loss at r=1 is above that at r=8",
        plain="with 2,775 names, r=1 ends {effect} nats {above/below} r=8 in training loss, each at its best rate",
        smallest_effect=0.02,
        measure=UNDERFIT,
        variants=one_rate(SHARED, UNDERFIT),
        regime=REGIME + ", 2,775 names",
    ),
    Contrast(
        claim="R3",
        prediction="scarce data: final minus best validation loss grows with log r (least-squares slope)",
        plain="with 200 names, each doubling of r adds {effect} nats {more/less} overfit, each rank at its best rate",
        smallest_effect=0.02,
        unit="nats per doubling of r",
        measure=_slope,
        variants=one_rate(SHARED, _slope)
        | {
            "rate tuned on the final loss (added after the run)": lambda runs: _slope(runs, by=FINAL),
            "final loss, rate tuned on it (added after the run)": lambda runs: _slope(runs, FINAL, by=FINAL),
            "best validation loss (added after the run)": lambda runs: _slope(runs, BEST),
        },
        regime=REGIME + ", 200 names",
    ),
    Contrast(
        claim="R4",
        prediction="ample data: doubling r from 4 to 8 gains more validation loss than a doubling from 8 to 32 does",
        plain="doubling r from 4 to 8 gains {effect} nats {more/less} than a doubling from 8 to 32",
        smallest_effect=0.005,
        unit="nats per doubling of r",
        measure=_returns,
        variants=one_rate(SHARED, _returns),
        regime=REGIME + ", 2,775 names",
    ),
]


def _panel(ax, runs: Runs, title: str) -> None:
    ranks = plots.losses(ax, runs.where(method="lora", learning_rate=SHARED), "r")
    plots.references(ax, runs)
    plots.powers_of_two(ax, ranks, f"rank r (learning rate {SHARED:g} for all)")
    ax.set_title(title)


def _curves(ax, lora: Runs) -> None:
    for r, style in ((min(lora.values("r")), ":"), (max(lora.values("r")), "-")):
        plots.curve(ax, lora.where(r=r), "validation_loss", f"validation, r={r}", plots.VALIDATION, style=style)
        plots.curve(ax, lora.where(r=r), "train_loss", f"training, r={r}", plots.TRAIN, style=style)
    plots.steps_axis(ax, lora, "loss")
    ax.set_title("200 names: what happens on the way")


def draw(runs: Runs, samples):
    """The figure of the study."""
    title = "A small rank cannot learn all of ample data; a large rank learns scarce data by heart"
    made, axes = plots.figure(2, 2, 7.8, title)
    _panel(axes[0, 0], runs.where(n_train=SCARCE), "200 names: overfitting grows with r")
    _panel(axes[0, 1], runs.where(n_train=AMPLE), "2,775 names: underfitting shrinks with r")
    _curves(axes[1, 0], runs.where(method="lora", n_train=SCARCE, learning_rate=SHARED))
    plots.names_table(axes[1, 1], samples, "What the models write")
    return made


STUDY = Study(
    name="rank",
    question="How does the rank r move a model between underfitting and overfitting on real names?",
    cells=CELLS,
    quick_cells=QUICK,
    contrasts=CONTRASTS,
    draw=draw,
    headline=True,
    tuned=grid({"method": "lora"}, n_train=[SCARCE, AMPLE], r=RANKS)
    + grid({"method": "full"}, n_train=[SCARCE, AMPLE]),
    samples={
        "r=8,\n2,775 names": {"n_train": AMPLE, "r": 8, "learning_rate": SHARED},
        "r=16,\n200 names": {"n_train": SCARCE, "r": 16, "learning_rate": SHARED},
        "full,\n2,775 names": {"n_train": AMPLE, "method": "full", "learning_rate": 3e-3},
    },
)
