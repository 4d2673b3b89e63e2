"""Planted rank: the true rank of the change is known, so that too small and too large have a meaning (R2, R3)."""

import numpy as np

from minilora.experiments.evidence.runs import Runs
from minilora.experiments.evidence.settings import FULL, alpha_2r, grid
from minilora.experiments.evidence.study import Contrast, Study
from minilora.experiments.pages import plots

TRUE_RANK = 2
RANKS = (1, 2, 4, 8, 16)
SHARED = {"ample": 3e-2, "scarce": 1e-2}  # learning rates at which all ranks are compared without tuning
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
AMPLE_RATES = {
    1: RATES[3:7],
    2: RATES[3:6],
    4: RATES[3:6],
    8: RATES[2:5],
    16: RATES[2:5],
}  # around each rank's own best
SCARCE_RATES = {1: RATES[2:5], 2: RATES[1:5], 4: RATES[1:5], 8: RATES[1:4], 16: RATES[0:4]}
PLANTED = {"task": "planted", "planted_rank": TRUE_RANK, "target_modules": "q_proj+v_proj", "schedule": "linear"}
AMPLE = PLANTED | {"n_train": 2000, "batch_size": 32, "steps": 400, "evaluate_every": 100}
SCARCE = PLANTED | {"n_train": 200, "batch_size": 16, "steps": 300, "evaluate_every": 30}


CELLS = [
    cell
    for data, rates in ((AMPLE, AMPLE_RATES), (SCARCE, SCARCE_RATES))
    for r in RANKS
    for cell in grid(data, r=[r], learning_rate=rates[r], lora_alpha=alpha_2r)
] + [cell for data in (AMPLE, SCARCE) for cell in grid(data | FULL, learning_rate=RATES[0:3])]
QUICK = [
    *grid(AMPLE | {"steps": 250}, r=[1, 2, 8], learning_rate=[SHARED["ample"]], lora_alpha=alpha_2r),
    *grid(SCARCE | {"steps": 200}, r=[1, 2, 8], learning_rate=[SHARED["scarce"]], lora_alpha=alpha_2r),
]


def _at(runs: Runs, amount: str, tuned: bool) -> Runs:
    data = {"ample": AMPLE, "scarce": SCARCE}[amount]
    chosen = runs.where(method="lora", n_train=data["n_train"])
    return chosen if tuned else chosen.where(learning_rate=SHARED[amount])


SHARED_RATE = {amount: f"one rate, {rate:g}" for amount, rate in SHARED.items()}


def _too_small(runs: Runs, tuned: bool) -> np.ndarray:
    at = _at(runs, "ample", tuned)
    small, right = plots.by(at, "r", (1, TRUE_RANK), lambda run: run.final, tuned=tuned)
    return small - right


def _too_large(runs: Runs, amount: str, tuned: bool, by=None) -> np.ndarray:
    at = _at(runs, amount, tuned)
    ranks = (TRUE_RANK, max(at.values("r")))
    right, large = plots.by(at, "r", ranks, lambda run: run.final, tuned=tuned, chosen_by=by)
    return large - right


REGIME = f"a change of rank {TRUE_RANK} planted in q and v of both layers, factors on q and v, alpha = 2r"
CONTRASTS = [
    Contrast(
        claim="R2",
        prediction="2,000 names: r=1, below the planted rank 2, ends with more excess loss than r=2",
        plain="with 2,000 names, r=1 ends {effect} nats {above/below} r=2, the planted rank",
        smallest_effect=0.02,
        unit="nats per letter",
        measure=lambda runs: _too_small(runs, tuned=True),
        variants={SHARED_RATE["ample"]: lambda runs: _too_small(runs, tuned=False)},
        regime=REGIME + ", 2,000 names",
    ),
    Contrast(
        claim="R3",
        prediction="200 names: the largest r ends with more excess loss than r=2, the planted rank",
        plain="with 200 names, r=16 ends {effect} nats {above/below} r=2, the planted rank, each at its best rate",
        smallest_effect=0.02,
        unit="nats per letter",
        measure=lambda runs: _too_large(runs, "scarce", tuned=True),
        variants={
            SHARED_RATE["scarce"]: lambda runs: _too_large(runs, "scarce", tuned=False),
            "rate tuned on the final loss (added after the run)": lambda runs: _too_large(
                runs, "scarce", tuned=True, by=lambda run: run.final
            ),
        },
        regime=REGIME + ", 200 names",
    ),
    Contrast(
        claim="R3",
        prediction="2,000 names: the largest r ends with more excess loss than r=2, the planted rank",
        plain="with 2,000 names, r=16 ends {effect} nats {above/below} r=2, the planted rank, each at its best rate",
        smallest_effect=0.005,
        unit="nats per letter",
        measure=lambda runs: _too_large(runs, "ample", tuned=True),
        variants={SHARED_RATE["ample"]: lambda runs: _too_large(runs, "ample", tuned=False)},
        regime=REGIME + ", 2,000 names",
    ),
]


def _panel(ax, runs: Runs, amount: str, title: str) -> None:
    """Solid: where the panel's point is (ample: rates tuned; scarce: one rate). Dotted: the other way."""
    main = amount == "ample"
    lines = [(main, "validation", plots.VALIDATION, "-", lambda run: run.final)]
    lines += [(main, "training", plots.TRAIN, "-", lambda run: run.final_train)]
    if len(_at(runs, amount, True)) > len(_at(runs, amount, False)):
        other = "validation,\n" + ("one rate" if main else "tuned rates")
        lines += [(not main, other, plots.VALIDATION, ":", lambda run: run.final)]
    for tuned, label, color, style, metric in lines:
        at = _at(runs, amount, tuned)
        ranks = at.values("r")
        plots.line(ax, ranks, plots.by(at, "r", ranks, metric, tuned=tuned), label, color, style=style)
    plots.level(ax, plots.start_of(at), "base,\nnot adapted", plots.BASE, far=False)
    full = runs.where(method="full", n_train=at[0].settings.n_train)
    if full:
        plots.level(ax, full.tuned(lambda run: run.best), "full fine-tuning,\nat its best", plots.FULL)
    plots.level(ax, np.zeros(1), "the teacher\nitself", plots.BASE)
    ax.axvline(TRUE_RANK, color=plots.PREDICTION, lw=6, alpha=0.5, zorder=0)
    for place, text in ((1, "too small"), (TRUE_RANK, "right"), (max(ranks) / 2, "too large")):
        ax.annotate(text, (place, 0.02), xycoords=ax.get_xaxis_transform(), ha="center", fontsize=9, color=plots.BASE)
    plots.powers_of_two(ax, ranks, "rank r of the adapter (the planted change has rank 2)", room=1.7)
    ax.margins(y=0.12)
    ax.set_title(title)
    ax.set_ylabel("loss above the teacher's own\n(nats per letter)")


def draw(runs: Runs, samples):
    """The figure of the study."""
    made, axes = plots.figure(
        1, 2, 4.3, "A rank below the true one cannot fit; a rank above it fits noise when names are few"
    )
    _panel(axes[0, 0], runs, "ample", "2,000 names: r=1 cannot fit")
    _panel(axes[0, 1], runs, "scarce", "200 names, one rate: noise is learned")
    return made


STUDY = Study(
    name="planted_rank",
    question="When the true rank is known, what do ranks below and above it do?",
    cells=CELLS,
    quick_cells=QUICK,
    contrasts=CONTRASTS,
    draw=draw,
    headline=True,
    tuned=[
        *({"method": "lora", "n_train": data["n_train"], "r": r} for data in (AMPLE, SCARCE) for r in RANKS),
        *({"method": "full", "n_train": data["n_train"]} for data in (AMPLE, SCARCE)),
    ],
    samples={
        "r=2, 2,000 names": {"n_train": 2000, "r": 2, "learning_rate": SHARED["ample"]},
        "r=8, 200 names": {"n_train": 200, "r": 8, "learning_rate": SHARED["scarce"]},
    },
)
