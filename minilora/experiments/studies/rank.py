"""Rank on real names: too small a rank underfits ample data, too large a rank overfits scarce data (R1-R4)."""

import numpy as np

from minilora.data.base import load_base
from minilora.experiments.evidence.runs import BEST, FINAL, OVERFIT, Runs
from minilora.experiments.evidence.settings import FULL, alpha_2r, grid
from minilora.experiments.evidence.stats import slope
from minilora.experiments.evidence.study import Contrast, Study
from minilora.experiments.pages import plots
from minilora.lora import LoraConfig, init_adapter
from minilora.model import param_shapes

RANKS = (1, 2, 4, 8, 16, 32)
SHARED = 3e-3  # the learning rate at which all ranks are compared without tuning
SHARED_RATE = f"one rate, {SHARED:g}"
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
SCARCE_RATES = {r: RATES[0:4] if r >= 16 else RATES[1:5] for r in RANKS}  # around each rank's own best
AMPLE_RATES = {r: RATES[2:6] if r <= 2 else RATES[2:5] if r <= 16 else RATES[1:5] for r in RANKS}
SCARCE = {"n_train": 200, "batch_size": 16, "steps": 300, "evaluate_every": 30}
AMPLE = {"n_train": 2775, "batch_size": 16, "steps": 300, "evaluate_every": 75}


CELLS = [
    cell
    for data, rates in ((SCARCE, SCARCE_RATES), (AMPLE, AMPLE_RATES))
    for r in RANKS
    for cell in grid(data, r=[r], learning_rate=rates[r], lora_alpha=alpha_2r)
] + [
    *grid(SCARCE | FULL, learning_rate=RATES[0:4]),
    *grid(AMPLE | FULL, learning_rate=RATES[1:5]),
]
BRIEF = {"steps": 150}
QUICK = [
    *grid(SCARCE | BRIEF, r=[1, 4, 16], learning_rate=[SHARED], lora_alpha=alpha_2r),
    *grid(AMPLE | BRIEF, r=[1, 8], learning_rate=[SHARED], lora_alpha=alpha_2r),
    *grid(SCARCE | BRIEF | FULL, learning_rate=[1e-3]),
    *grid(AMPLE | BRIEF | FULL, learning_rate=[3e-3]),
]


def _lora(data):
    return {"method": "lora", "n_train": data["n_train"]}


def _count_deviation(runs: Runs) -> np.ndarray:
    """Largest difference of the sizes of made factors, and of the counts of the runs, from r (in + out) summed.

    An element of A or B is used once a token, in x A^T or (x A^T) B^T, so this counts multiply-adds too.
    """
    base = load_base()
    in_plus_out = sum(sum(shape) for path, shape in param_shapes(base.config).items() if path.endswith("_proj.weight"))
    deviations = [abs(run.trainable - run.settings.r * in_plus_out) for run in runs.where(method="lora")]
    for r in RANKS:
        made = init_adapter(base.params, LoraConfig(r=r, target_modules="all-linear"), np.random.default_rng(0))
        deviations.append(abs(sum(array.size for array in made.arrays().values()) - r * in_plus_out))
    return np.array([float(max(deviations))] * len(runs.values("seed")))


def _underfit(runs: Runs, tuned: bool) -> np.ndarray:
    ample = runs.where(**_lora(AMPLE)) if tuned else runs.where(**_lora(AMPLE), learning_rate=SHARED)
    small, large = plots.by(ample, "r", (1, 8), lambda run: run.final_train, tuned=tuned)
    return small - large


def _overfit_slope(runs: Runs, tuned: bool, metric=OVERFIT, by=None) -> np.ndarray:
    """How the metric on scarce data grows with log r."""
    scarce = runs.where(**_lora(SCARCE)) if tuned else runs.where(**_lora(SCARCE), learning_rate=SHARED)
    ranks = scarce.values("r")
    return slope(np.log2(ranks), np.array(plots.by(scarce, "r", ranks, metric, tuned=tuned, chosen_by=by)))


def _returns(runs: Runs, tuned: bool) -> np.ndarray:
    ample = runs.where(**_lora(AMPLE)) if tuned else runs.where(**_lora(AMPLE), learning_rate=SHARED)
    loss = dict(zip((4, 8, 32), plots.by(ample, "r", (4, 8, 32), lambda run: run.best, tuned=tuned), strict=True))
    return (loss[4] - loss[8]) - (loss[8] - loss[32]) / 2


REGIME = "female first names on a 27,000-parameter base, all six linear modules, alpha = 2r"
CONTRASTS = [
    Contrast(
        claim="R1",
        prediction="exactly r (in + out) parameters a module, each used in one multiply-add a token",
        plain="counts are {effect} parameters off r (in + out)",
        smallest_effect=0.0,
        unit="parameters off",
        measure=_count_deviation,
        exact=True,
        regime="any model: it follows from the shapes of A and B; the measured time of a step is in tests/bench",
    ),
    Contrast(
        claim="R2",
        prediction="ample data: the final training loss at r=1 is above that at r=8",
        plain="with 2,775 names, r=1 ends {effect} nats {above/below} r=8 in training loss, each at its best rate",
        smallest_effect=0.02,
        unit="nats per letter",
        measure=lambda runs: _underfit(runs, tuned=True),
        variants={SHARED_RATE: lambda runs: _underfit(runs, tuned=False)},
        regime=REGIME + ", 2,775 names",
    ),
    Contrast(
        claim="R3",
        prediction="scarce data: final minus best validation loss grows with log r (least-squares slope)",
        plain="with 200 names, each doubling of r adds {effect} nats {more/less} overfit, each rank at its best rate",
        smallest_effect=0.02,
        unit="nats per doubling of r",
        measure=lambda runs: _overfit_slope(runs, tuned=True),
        variants={
            SHARED_RATE: lambda runs: _overfit_slope(runs, tuned=False),
            "rate tuned on the final loss (added after the run)": lambda runs: _overfit_slope(runs, True, by=FINAL),
            "final loss, rate tuned on it (added after the run)": lambda runs: _overfit_slope(runs, True, FINAL, FINAL),
            "best validation loss (added after the run)": lambda runs: _overfit_slope(runs, True, BEST),
        },
        regime=REGIME + ", 200 names",
    ),
    Contrast(
        claim="R4",
        prediction="ample data: doubling r from 4 to 8 gains more validation loss than a doubling from 8 to 32 does",
        plain="doubling r from 4 to 8 gains {effect} nats {more/less} than a doubling from 8 to 32",
        smallest_effect=0.005,
        unit="nats per doubling of r",
        measure=lambda runs: _returns(runs, tuned=True),
        variants={SHARED_RATE: lambda runs: _returns(runs, tuned=False)},
        regime=REGIME + ", 2,775 names",
    ),
]


def _panel(ax, runs: Runs, data, title: str) -> None:
    of = runs.where(n_train=data["n_train"])
    lora = of.where(method="lora", learning_rate=SHARED)
    ranks = lora.values("r")
    plots.line(
        ax, ranks, plots.by(lora, "r", ranks, lambda run: run.final), "validation,\nat the end", plots.VALIDATION
    )
    best = plots.by(lora, "r", ranks, lambda run: run.best)
    plots.line(ax, ranks, best, "validation,\nat its best", plots.VALIDATION, style=":")
    final_train = plots.by(lora, "r", ranks, lambda run: run.final_train)
    plots.line(ax, ranks, final_train, "training,\nat the end", plots.TRAIN)
    plots.level(ax, plots.start_of(of), "base,\nnot adapted", plots.BASE)
    plots.level(ax, of.where(method="full").tuned(lambda run: run.best), "full fine-tuning,\nat its best", plots.FULL)
    plots.powers_of_two(ax, ranks, f"rank r (learning rate {SHARED:g} for all)")
    ax.set(title=title, ylabel="loss (nats per letter)")


def _curves(ax, runs: Runs) -> None:
    scarce = runs.where(method="lora", n_train=SCARCE["n_train"], learning_rate=SHARED)
    for r, style in ((min(scarce.values("r")), ":"), (max(scarce.values("r")), "-")):
        for name, what, color in (
            ("validation_loss", "validation", plots.VALIDATION),
            ("train_loss", "training", plots.TRAIN),
        ):
            plots.curve(ax, scarce.where(r=r), name, f"{what}, r={r}", color, style=style)
    plots.steps_axis(ax, scarce, "loss")
    ax.set_title("200 names: what happens on the way")


def draw(runs: Runs, samples):
    """The figure of the study."""
    made, axes = plots.figure(
        2, 2, 7.8, "A small rank cannot learn all of ample data; a large rank learns scarce data by heart"
    )
    _panel(axes[0, 0], runs, SCARCE, "200 names: overfitting grows with r")
    _panel(axes[0, 1], runs, AMPLE, "2,775 names: underfitting shrinks with r")
    _curves(axes[1, 0], runs)
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
    tuned=[
        *({**_lora(data), "r": r} for data in (SCARCE, AMPLE) for r in RANKS),
        *({"method": "full", "n_train": data["n_train"]} for data in (SCARCE, AMPLE)),
    ],
    samples={
        "r=8,\n2,775 names": {"n_train": 2775, "r": 8, "learning_rate": SHARED},
        "r=16,\n200 names": {"n_train": 200, "r": 16, "learning_rate": SHARED},
        "full,\n2,775 names": {"n_train": 2775, "method": "full", "learning_rate": 3e-3},
    },
)
