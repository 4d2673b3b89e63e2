"""The map of alpha against the learning rate: where the ridge of low loss runs, and how it moves with r (A2, A4)."""

import numpy as np

from minilora.experiments.evidence.runs import BEST, Runs, log10_best_rate
from minilora.experiments.evidence.settings import grid
from minilora.experiments.evidence.stats import slope
from minilora.experiments.evidence.study import Contrast, Study
from minilora.experiments.pages import plots

R = 8
ALPHAS = (2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)  # at alpha = 128 the best is near 3e-4 for some seeds
RANKS = (2, 8, 32)
RULES = {  # what stays fixed, and the alpha at each r that keeps it; all are 16 at r = 8
    "alpha / r": {r: 2.0 * r for r in RANKS},
    "alpha": {r: 16.0 for r in RANKS},
    "alpha / sqrt(r)": {r: 16.0 * (r / R) ** 0.5 for r in RANKS},
}
FIXED = {"n_train": 1000, "batch_size": 16, "steps": 200, "evaluate_every": 40}
AT_R = [{"r": R, "lora_alpha": alpha} for alpha in ALPHAS]
AT_OTHER_R = [{"r": r, "lora_alpha": alphas[r]} for alphas in RULES.values() for r in (2, 32)]
CELLS = [cell for one in AT_R + AT_OTHER_R for cell in grid(FIXED | one, learning_rate=RATES)]
QUICK = grid(FIXED | {"steps": 60}, r=[R], lora_alpha=ALPHAS[::3], learning_rate=RATES[2:5])


def _ridge(runs: Runs) -> np.ndarray:
    """log10 of the best rate at each alpha: (alphas, seeds)."""
    at_r = runs.where(r=R)
    return np.array([log10_best_rate(at_r.where(lora_alpha=alpha)) for alpha in at_r.values("lora_alpha")])


def _fall(runs: Runs) -> np.ndarray:
    return -slope(np.log10(runs.where(r=R).values("lora_alpha")), _ridge(runs))


def _best(runs: Runs, rule: str, r: int) -> np.ndarray:
    return log10_best_rate(runs.where(r=r, lora_alpha=RULES[rule][r]))


def _moves(runs: Runs, rule: str) -> np.ndarray:
    """How far the best rate moves from r = 2 to r = 32, in half decades."""
    return np.abs(2 * (_best(runs, rule, 32) - _best(runs, rule, 2)))


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
        measure=lambda runs: _moves(runs, "alpha / sqrt(r)") - _moves(runs, "alpha / r"),
        regime=REGIME,
    ),
]


def _map(made, ax, runs: Runs) -> None:
    at_r = runs.where(r=R)
    alphas, rates = at_r.values("lora_alpha"), at_r.values("learning_rate")
    loss = np.array([[at_r.per_seed(BEST, lora_alpha=a, learning_rate=rate).mean() for a in alphas] for rate in rates])
    shown = ax.imshow(loss, origin="lower", cmap="viridis_r", vmin=loss.min(), vmax=loss.min() + 0.15, aspect="auto")
    for (i, j), value in np.ndenumerate(loss):
        color = "black" if value < loss.min() + 0.07 else "white"
        ax.annotate(f"{value:.2f}", (j + 0.2, i + 0.36), ha="center", va="center", fontsize=8, color=color)
    ridge = np.interp(_ridge(runs).mean(1), np.round(2 * np.log10(rates)) / 2, range(len(rates)))
    ax.plot(range(len(alphas)), ridge, "o-", color="black", mfc="white", lw=1)
    ax.set_xticks(range(len(alphas)), [f"{alpha:g}" for alpha in alphas])
    ax.set_yticks(range(len(rates)), [f"{rate:g}" for rate in rates])
    made.colorbar(shown, ax=ax, label="best validation loss (nats per letter)", extend="max")
    ax.set(title="At r = 8, the ridge (line) falls", xlabel="alpha", ylabel="learning rate")


def _rules(ax, runs: Runs) -> None:
    colors = (plots.OTHER, plots.BASE, plots.VALIDATION)
    for rule, color, style in zip(RULES, colors, "-:-", strict=True):
        best = [10 ** _best(runs, rule, r) for r in RANKS]
        plots.line(ax, RANKS, best, f"fixed\n{rule}", color, style=style)
    plots.powers_of_two(ax, RANKS, "rank r", room=2.0)
    ax.set(title="How the best rate moves with r", ylabel="best learning rate", yscale="log")
    ax.set_yticks([1e-3, 2e-3, 3e-3, 5e-3], ["0.001", "0.002", "0.003", "0.005"])
    ax.set_yticks([], minor=True)


def draw(runs: Runs, samples):
    """The figure of the study."""
    full_size = bool(runs.where(r=2))
    made, axes = plots.figure(1, 1 + full_size, 4.4, "A larger alpha wants a lower learning rate")
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
    tuned=AT_R + AT_OTHER_R,
)
