"""The map of alpha against the learning rate: where the ridge of low loss runs, and how it moves with r (A2, A4)."""

import numpy as np

from minilora.experiments.evidence.runs import BEST, Runs, log10_best_rate
from minilora.experiments.evidence.settings import grid
from minilora.experiments.evidence.stats import slope
from minilora.experiments.evidence.study import Contrast, Study
from minilora.experiments.pages import plots

R, RATIO = 8, 2
ALPHAS = (2, 4, 8, 16, 32, 64, 128)
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)  # at alpha = 128 the best is near 3e-4 for some seeds
RANKS = (2, 8, 32)
RULES = {  # how alpha follows r; all are 16 at r = 8
    "alpha / r": lambda r: RATIO * r,
    "alpha": lambda r: RATIO * R,
    "alpha / sqrt(r)": lambda r: RATIO * R * (r / R) ** 0.5,
}


def _following(rule):
    """lora_alpha by a rule, to be derived in a `grid`."""
    return lambda cell: float(rule(cell["r"]))


FIXED = {"n_train": 1000, "batch_size": 16, "steps": 200, "evaluate_every": 40}
CELLS = [
    *grid(FIXED, r=[R], lora_alpha=ALPHAS, learning_rate=RATES),
    *(
        cell
        for rule in RULES.values()
        for cell in grid(FIXED, r=[2, 32], learning_rate=RATES, lora_alpha=_following(rule))
    ),
]
QUICK = grid(FIXED | {"steps": 60}, r=[R], lora_alpha=[2, 16, 128], learning_rate=RATES[2:5])


def _ridge(runs: Runs) -> np.ndarray:
    """log10 of the best rate at each alpha: (alphas, seeds)."""
    at_r = runs.where(r=R)
    return np.array([log10_best_rate(at_r.where(lora_alpha=float(alpha))) for alpha in at_r.values("lora_alpha")])


def _fall(runs: Runs) -> np.ndarray:
    return -slope(np.log10(runs.where(r=R).values("lora_alpha")), _ridge(runs))


def _shift(runs: Runs, rule: str) -> np.ndarray:
    """How far the best rate moves from r = 2 to r = 32, in half decades, up or down."""
    small, large = (log10_best_rate(runs.where(r=r, lora_alpha=float(RULES[rule](r)))) for r in (2, 32))
    return 2 * (large - small)


REGIME = "1,000 female first names, all six linear modules"
CONTRASTS = [
    Contrast(
        claim="A4",
        prediction="at r=8, the logarithm of the best learning rate falls with that of alpha",
        plain="the best rate {falls/rises} as alpha to the power {effect}",
        smallest_effect=0.1,
        unit="slope of log rate against log alpha, downwards",
        measure=_fall,
        regime=REGIME + ", r=8",
    ),
    Contrast(
        claim="A2",
        prediction="from r=2 to r=32 the best learning rate moves less at fixed alpha/r than at fixed alpha/sqrt(r)",
        plain="from r=2 to r=32 the best rate moves {effect} half decades {less/more} at alpha/r than at alpha/sqrt(r)",
        smallest_effect=0.5,
        unit="half decades of learning rate",
        measure=lambda runs: np.abs(_shift(runs, "alpha / sqrt(r)")) - np.abs(_shift(runs, "alpha / r")),
        regime=REGIME,
    ),
]


def _map(made, ax, runs: Runs) -> None:
    at_r = runs.where(r=R)
    alphas, rates = at_r.values("lora_alpha"), at_r.values("learning_rate")
    loss = np.array([[at_r.per_seed(BEST, lora_alpha=a, learning_rate=rate).mean() for a in alphas] for rate in rates])
    shown = ax.imshow(loss, origin="lower", cmap="viridis_r", vmin=loss.min(), vmax=loss.min() + 0.15, aspect="auto")
    for (i, j), value in np.ndenumerate(loss):
        ax.annotate(
            f"{value:.2f}",
            (j + 0.2, i + 0.36),
            ha="center",
            va="center",
            fontsize=8,
            color="black" if value < loss.min() + 0.07 else "white",
        )
    ridge = np.interp(_ridge(runs).mean(1), np.round(2 * np.log10(rates)) / 2, range(len(rates)))
    ax.plot(range(len(alphas)), ridge, "o-", color="black", mfc="white", lw=1)
    ax.set_xticks(range(len(alphas)), [f"{alpha:g}" for alpha in alphas])
    ax.set_yticks(range(len(rates)), [f"{rate:g}" for rate in rates])
    made.colorbar(shown, ax=ax, label="best validation loss (nats per letter)", extend="max")
    ax.set(title="At r = 8, the ridge (line) falls", xlabel="alpha", ylabel="learning rate")


def _rules(ax, runs: Runs) -> None:
    for (rule, alpha), color, style in zip(
        RULES.items(), (plots.OTHER, plots.BASE, plots.VALIDATION), "-:-", strict=True
    ):
        best = [10 ** log10_best_rate(runs.where(r=r, lora_alpha=float(alpha(r)))) for r in RANKS]
        plots.line(ax, RANKS, best, f"fixed\n{rule}", color, style=style)
    ax.set_yscale("log")
    plots.powers_of_two(ax, RANKS, "rank r", room=2.0)
    ax.set(title="How the best rate moves with r", ylabel="best learning rate")
    ax.set_yticks([1e-3, 2e-3, 3e-3, 5e-3], ["0.001", "0.002", "0.003", "0.005"])
    ax.set_yticks([], minor=True)


def draw(runs: Runs, samples):
    """The figure of the study."""
    full_size = len(runs.where(r=2)) > 0
    made, axes = plots.figure(1, 2 if full_size else 1, 4.4, "A larger alpha wants a lower learning rate")
    _map(made, axes[0, 0], runs)
    if full_size:
        _rules(axes[0, 1], runs)
    return made


STUDY = Study(
    name="alpha_map",
    question="Where does the ridge of low loss run in the map of alpha and learning rate?",
    cells=CELLS,
    quick_cells=QUICK,
    contrasts=CONTRASTS,
    draw=draw,
    tuned=[
        *({"r": R, "lora_alpha": float(alpha)} for alpha in ALPHAS),
        *({"r": r, "lora_alpha": float(rule(r))} for rule in RULES.values() for r in RANKS if r != R),
    ],
)
