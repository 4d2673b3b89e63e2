"""Planted rank: the true rank of the change is known, so that too small and too large have a meaning (R2, R3)."""

from functools import partial

import numpy as np

from minilora.experiments.evidence.measures import difference, one_rate
from minilora.experiments.evidence.runs import BEST, FINAL, FINAL_TRAIN, Runs
from minilora.experiments.evidence.settings import FULL, alpha_2r, grid
from minilora.experiments.evidence.study import Contrast, Study
from minilora.experiments.pages import plots

TRUE_RANK = 2
RANKS = (1, 2, 4, 8, 16)
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
AMPLE_RATES = {
    1: RATES[3:7],
    2: RATES[3:6],
    4: RATES[3:6],
    8: RATES[2:5],
    16: RATES[2:5],
}  # around each rank's own best
SCARCE_RATES = {1: RATES[2:5], 2: RATES[1:5], 4: RATES[1:5], 8: RATES[1:4], 16: RATES[0:4]}
AMPLE, SCARCE = 2000, 200  # names
SHARED = {AMPLE: 3e-2, SCARCE: 1e-2}  # learning rates at which all ranks are compared without tuning
PLANTED = {"task": "planted", "planted_rank": TRUE_RANK, "target_modules": "q_proj+v_proj", "schedule": "linear"}
ON_AMPLE = PLANTED | {"n_train": AMPLE, "batch_size": 32, "steps": 400, "evaluate_every": 100}
ON_SCARCE = PLANTED | {"n_train": SCARCE, "batch_size": 16, "steps": 300, "evaluate_every": 30}
CELLS = [
    *grid(ON_AMPLE, r=RANKS, learning_rate=lambda of: AMPLE_RATES[of["r"]], lora_alpha=alpha_2r),
    *grid(ON_SCARCE, r=RANKS, learning_rate=lambda of: SCARCE_RATES[of["r"]], lora_alpha=alpha_2r),
    *grid(ON_AMPLE | FULL, learning_rate=RATES[0:3]),
    *grid(ON_SCARCE | FULL, learning_rate=RATES[0:3]),
]
QUICK = [
    *grid(ON_AMPLE | {"steps": 250}, r=[1, 2, 8], learning_rate=[SHARED[AMPLE]], lora_alpha=alpha_2r),
    *grid(ON_SCARCE | {"steps": 200}, r=[1, 2, 8], learning_rate=[SHARED[SCARCE]], lora_alpha=alpha_2r),
]


def _too_large(runs: Runs, n_train: int, by=BEST) -> np.ndarray:
    lora = runs.where(method="lora", n_train=n_train)
    right, large = lora.over("r", FINAL, (TRUE_RANK, max(lora.values("r"))), by)
    return large - right


TOO_SMALL = difference(FINAL, {"r": 1}, {"r": TRUE_RANK}, method="lora", n_train=AMPLE)
TOO_LARGE = {n_train: partial(_too_large, n_train=n_train) for n_train in (SCARCE, AMPLE)}
REGIME = f"a change of rank {TRUE_RANK} planted in q and v of both layers, factors on q and v, alpha = 2r"
CONTRASTS = [
    Contrast(
        claim="R2",
        prediction="2,000 names: r=1, below the planted rank 2, ends with more excess loss than r=2",
        plain="with 2,000 names, r=1 ends {effect} nats {above/below} r=2, the planted rank",
        smallest_effect=0.02,
        measure=TOO_SMALL,
        variants=one_rate(SHARED[AMPLE], TOO_SMALL),
        regime=REGIME + ", 2,000 names",
    ),
    Contrast(
        claim="R3",
        prediction="200 names: the largest r ends with more excess loss than r=2, the planted rank",
        plain="with 200 names, r=16 ends {effect} nats {above/below} r=2, the planted rank, each at its best rate",
        smallest_effect=0.02,
        measure=TOO_LARGE[SCARCE],
        variants=one_rate(SHARED[SCARCE], TOO_LARGE[SCARCE])
        | {"rate tuned on the final loss (added after the run)": partial(_too_large, n_train=SCARCE, by=FINAL)},
        regime=REGIME + ", 200 names",
    ),
    Contrast(
        claim="R3",
        prediction="2,000 names: the largest r ends with more excess loss than r=2, the planted rank",
        plain="with 2,000 names, r=16 ends {effect} nats {above/below} r=2, the planted rank, each at its best rate",
        smallest_effect=0.005,
        measure=TOO_LARGE[AMPLE],
        variants=one_rate(SHARED[AMPLE], TOO_LARGE[AMPLE]),
        regime=REGIME + ", 2,000 names",
    ),
]


def _panel(ax, runs: Runs, n_train: int, title: str) -> None:
    """Solid: where the panel's point is (ample: rates tuned; scarce: one rate). Dotted: the other way."""
    of = runs.where(n_train=n_train)
    tuned = of.where(method="lora")
    shared = tuned.where(learning_rate=SHARED[n_train])
    main, other, label = (tuned, shared, "one rate") if n_train == AMPLE else (shared, tuned, "tuned rates")
    lines = [("validation", FINAL, plots.VALIDATION, "-"), ("training", FINAL_TRAIN, plots.TRAIN, "-")]
    ranks = plots.losses(ax, main, "r", lines)
    if len(tuned) > len(shared):
        plots.losses(ax, other, "r", [(f"validation,\n{label}", FINAL, plots.VALIDATION, ":")])
    plots.references(ax, of, far=False)
    plots.level(ax, np.zeros(1), "the teacher\nitself", plots.BASE)
    ax.axvline(TRUE_RANK, color=plots.PREDICTION, lw=6, alpha=0.5, zorder=0)
    for place, text in ((1, "too small"), (TRUE_RANK, "right"), (max(ranks) / 2, "too large")):
        ax.annotate(text, (place, 0.02), xycoords=ax.get_xaxis_transform(), ha="center", fontsize=9, color=plots.BASE)
    plots.powers_of_two(ax, ranks, "rank r of the adapter (the planted change has rank 2)", room=1.7)
    ax.margins(y=0.12)
    ax.set(title=title, ylabel="loss above the teacher's own\n(nats per letter)")


def draw(runs: Runs, samples):
    """The figure of the study."""
    title = "A rank below the true one cannot fit; a rank above it fits noise when names are few"
    made, axes = plots.figure(1, 2, 4.3, title)
    _panel(axes[0, 0], runs, AMPLE, "2,000 names: r=1 cannot fit")
    _panel(axes[0, 1], runs, SCARCE, "200 names, one rate: noise is learned")
    return made


STUDY = Study(
    name="planted_rank",
    question="When the true rank is known, what do ranks below and above it do?",
    cells=CELLS,
    quick_cells=QUICK,
    contrasts=CONTRASTS,
    draw=draw,
    headline=True,
    tuned=grid({"method": "lora"}, n_train=[AMPLE, SCARCE], r=RANKS)
    + grid({"method": "full"}, n_train=[AMPLE, SCARCE]),
    samples={
        "r=2, 2,000 names": {"n_train": AMPLE, "r": 2, "learning_rate": SHARED[AMPLE]},
        "r=8, 200 names": {"n_train": SCARCE, "r": 8, "learning_rate": SHARED[SCARCE]},
    },
)
