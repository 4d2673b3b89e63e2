"""alpha: what alpha / r does at a fixed r, and what holding it fixed does when r changes (A1-A3)."""

import numpy as np

from minilora.experiments.evidence.runs import Runs, given_up
from minilora.experiments.evidence.settings import FULL, grid
from minilora.experiments.evidence.stats import optimum, slope
from minilora.experiments.evidence.study import Contrast, Study
from minilora.experiments.pages import plots

R = 8
RATIOS = (0.25, 0.5, 1, 2, 4, 8, 16)  # alpha / r
SHARED = 3e-3
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)  # half decades; each cell takes those around its own best
RATES_AT_R = {
    0.25: RATES[2:5],
    0.5: RATES[1:5],
    1: RATES[1:4],
    2: RATES[1:4],
    4: RATES[0:4],
    8: RATES[0:3],
    16: RATES[0:3],
}
RATES_AT_OTHER_R = {(2, 2): RATES[1:5], (32, 2): RATES[0:4], (2, 8): RATES[0:4], (32, 0.5): RATES[1:4]}  # (r, alpha/r)
ALLOWED = 0.01  # nats per letter that a good setting may give up against the best one
DATA = {"n_train": 1000, "batch_size": 16, "steps": 200, "evaluate_every": 40}


def _cells(data, r: int, ratio: float, rates) -> list[dict]:
    return grid(data, r=[r], learning_rate=rates, lora_alpha=[float(ratio * r)])


ONE_STEP = DATA | {"steps": 1, "evaluate_every": 1}
CELLS = [
    *(cell for ratio, rates in RATES_AT_R.items() for cell in _cells(DATA, R, ratio, rates)),
    *(cell for ratio in RATIOS for cell in _cells(ONE_STEP, R, ratio, [SHARED])),
    *(cell for (r, ratio), rates in RATES_AT_OTHER_R.items() for cell in _cells(DATA, r, ratio, rates)),
    *grid(DATA | FULL, learning_rate=RATES[0:3]),
]
QUICK = [
    *(cell for ratio in (0.25, 2, 16) for cell in _cells(DATA | {"steps": 100}, R, ratio, [SHARED])),
    *(cell for ratio in (0.25, 2, 16) for cell in _cells(ONE_STEP, R, ratio, [SHARED])),
]


def _trained(runs: Runs) -> Runs:
    return runs.where(method="lora", steps=max(runs.values("steps")))


def _ratios(runs: Runs) -> list[float]:
    return [alpha / R for alpha in runs.where(r=R).values("lora_alpha")]


def _norms(runs: Runs) -> list[np.ndarray]:
    return plots.by(runs.where(r=R, learning_rate=SHARED), "lora_alpha", runs.where(r=R).values("lora_alpha"),
                    lambda run: run.final_norm)  # fmt: skip


def _norm_slope(runs: Runs) -> np.ndarray:
    return slope(np.log2(_ratios(runs)), np.log2(_norms(runs)))


def _best_rate(runs: Runs, r: int, ratio: float) -> np.ndarray:
    """Each seed's best learning rate, as a place on the half-decade grid."""
    cell = _trained(runs).where(r=r, lora_alpha=float(ratio * r))
    rates = cell.values("learning_rate")
    losses = np.array(plots.by(cell, "learning_rate", rates, lambda run: run.best))
    return optimum(np.array([RATES.index(rate) for rate in rates], float), losses)


def _steadier(runs: Runs) -> np.ndarray:
    fixed_alpha = _best_rate(runs, 2, 8) - _best_rate(runs, 32, 0.5)
    fixed_ratio = _best_rate(runs, 2, 2) - _best_rate(runs, 32, 2)
    return np.abs(fixed_alpha) - np.abs(fixed_ratio)


def _margin(runs: Runs, tuned: bool) -> np.ndarray:
    """How far alpha = 2r stays within what it may give up against any other ratio."""
    at = _trained(runs).where(r=R) if tuned else _trained(runs).where(r=R, learning_rate=SHARED)
    losses = np.array(plots.by(at, "lora_alpha", [ratio * R for ratio in RATIOS], lambda run: run.best, tuned=tuned))
    choice = RATIOS.index(2)
    return ALLOWED - given_up(losses[choice], np.delete(losses, choice, axis=0))


REGIME = "1,000 female first names, all six linear modules"
CONTRASTS = [
    Contrast(
        claim="A1",
        prediction="after one step at a fixed r and rate, the norm of the change grows with alpha",
        plain="after one step the change grows as alpha to the power {effect}",
        smallest_effect=0.5,
        unit="slope of log norm against log alpha",
        measure=lambda runs: _norm_slope(runs.where(method="lora", steps=1)),
        regime="one step of AdamW moves B by the learning rate, so the change is proportional to alpha",
    ),
    Contrast(
        claim="A1",
        prediction="after training at a fixed r and rate, the norm of the change still grows with alpha",
        plain="after training the change grows as alpha to the power {effect}",
        smallest_effect=0.1,
        unit="slope of log norm against log alpha",
        measure=lambda runs: _norm_slope(_trained(runs)),
        regime=REGIME + f", rate {SHARED:g}",
    ),
    Contrast(
        claim="A2",
        prediction="from r=2 to r=32 the best learning rate moves less at alpha = 2r than at alpha = 16",
        plain="from r=2 to r=32 the best rate moves {effect} half decades {less/more} at alpha = 2r than at alpha = 16",
        smallest_effect=0.5,
        unit="half decades of learning rate",
        measure=_steadier,
        regime=REGIME
        + "; with alpha/r as the scale, LoRA Without Regret (2025) finds the best rate steady at a fixed alpha",
    ),
    Contrast(
        claim="A3",
        prediction=f"its best validation loss is within {ALLOWED:g} nats of that of every other alpha/r in 1/4 ... 16",
        plain="tuned, alpha = 2r gives up {given_up} nats against its hardest rival (0.01 allowed)",
        smallest_effect=0.0,
        scale=ALLOWED,
        unit=f"nats per letter left of the {ALLOWED:g} allowed",
        measure=lambda runs: _margin(runs, tuned=True),
        variants={f"one rate, {SHARED:g}": lambda runs: _margin(runs, tuned=False)},
        regime=REGIME + f", at r={R}, so that alpha = 2r and alpha = 16 are one",
    ),
]


def _draw_norms(ax, runs: Runs) -> None:
    for chosen, label, style in (
        (_trained(runs), "after training", "-"),
        (runs.where(method="lora", steps=1), "after 1 step", ":"),
    ):
        norms = _norms(chosen)
        ratios = _ratios(chosen)
        plots.line(ax, ratios, norms, label, plots.OTHER, style=style)
        first = norms[0].mean()
        ax.plot(ratios, [first * ratio / ratios[0] for ratio in ratios], color=plots.PREDICTION, lw=1, zorder=0)
    ax.set_yscale("log")
    plots.powers_of_two(ax, ratios, "alpha / r, at r = 8", room=2.6)
    ax.set(title="A larger alpha goes further", ylabel="norm of the change\n(grey: in proportion to alpha)")


def _draw_losses(ax, runs: Runs) -> None:
    trained = _trained(runs).where(r=R)
    alphas, ratios = trained.values("lora_alpha"), _ratios(trained)
    shared = trained.where(learning_rate=SHARED)
    plots.line(
        ax,
        ratios,
        plots.by(shared, "lora_alpha", alphas, lambda run: run.best),
        "validation,\none rate",
        plots.VALIDATION,
    )
    plots.line(
        ax,
        ratios,
        plots.by(shared, "lora_alpha", alphas, lambda run: run.final_train),
        "training,\none rate",
        plots.TRAIN,
    )
    if len(trained) > len(shared):
        for metric, what, color in (
            (lambda run: run.best, "validation", plots.VALIDATION),
            (lambda run: run.final_train, "training", plots.TRAIN),
        ):
            plots.line(
                ax,
                ratios,
                plots.by(trained, "lora_alpha", alphas, metric, tuned=True),
                f"{what},\ntuned rate",
                color,
                style=":",
            )
    plots.level(ax, plots.start_of(trained), "base,\nnot adapted", plots.BASE)
    full = runs.where(method="full")
    if full:
        plots.level(ax, full.tuned(lambda run: run.best), "full fine-\ntuning", plots.FULL)
    plots.powers_of_two(ax, ratios, "alpha / r, at r = 8", room=2.6)
    ax.set(
        title="Loss at one rate, and tuned" if len(trained) > len(shared) else "Loss at one rate",
        ylabel="loss (nats per letter)",
    )


def _draw_rates(ax, runs: Runs) -> None:
    ranks = [2, 8, 32]
    for label, ratio_at, color, style in (
        ("alpha = 2r", {2: 2, 8: 2, 32: 2}, plots.OTHER, "-"),
        ("alpha = 16", {2: 8, 8: 2, 32: 0.5}, plots.BASE, ":"),
    ):
        columns = [RATES[0] * 10 ** (_best_rate(runs, r, ratio_at[r]) / 2) for r in ranks]
        plots.line(ax, ranks, columns, label, color, style=style)
    ax.set_yscale("log")
    plots.powers_of_two(ax, ranks, "rank r", room=2.2)
    ax.set(title="alpha = 16 keeps its rate", ylabel="best learning rate")


def draw(runs: Runs, samples):
    """The figure of the study."""
    full_size = len(runs.where(method="lora", r=2)) > 0
    made, axes = plots.figure(
        1,
        3 if full_size else 2,
        4.4,
        "A larger alpha moves the model further" + (", and wants a lower learning rate" if full_size else ""),
    )
    _draw_norms(axes[0, 0], runs)
    _draw_losses(axes[0, 1], runs)
    if full_size:
        _draw_rates(axes[0, 2], runs)
    return made


STUDY = Study(
    name="alpha",
    question="What does alpha do, and does alpha / r carry over when r changes?",
    cells=CELLS,
    quick_cells=QUICK,
    contrasts=CONTRASTS,
    draw=draw,
    headline=True,
    tuned=[
        *({"method": "lora", "steps": DATA["steps"], "r": R, "lora_alpha": float(ratio * R)} for ratio in RATIOS),
        *(
            {"method": "lora", "steps": DATA["steps"], "r": r, "lora_alpha": float(ratio * r)}
            for r, ratio in RATES_AT_OTHER_R
        ),
        {"method": "full", "steps": DATA["steps"]},
    ],
    samples={
        "alpha = r/4": {"lora_alpha": R / 4, "learning_rate": SHARED, "r": R, "evaluate_every": 40},
        "alpha = 16 r": {"lora_alpha": 16.0 * R, "learning_rate": SHARED, "r": R, "evaluate_every": 40},
    },
)
