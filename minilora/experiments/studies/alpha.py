"""alpha: what alpha / r does at a fixed r, and what holding it fixed does when r changes (A1-A3)."""

import numpy as np

from minilora.experiments.evidence.measures import given_up_by, one_rate
from minilora.experiments.evidence.runs import BEST, FINAL_TRAIN, NORM, Runs
from minilora.experiments.evidence.settings import FULL, alpha_2r, grid
from minilora.experiments.evidence.stats import optimum, slope
from minilora.experiments.evidence.study import Contrast, Study, allowance
from minilora.experiments.pages import plots

R, SHARED = 8, 3e-3
ALPHAS = (2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)  # at R: alpha / r from 1/4 to 16
RULES = {"alpha = 2r": lambda r: 2.0 * r, "alpha = 16": lambda r: 16.0}  # from r = 2 to 32; both are 16 at R
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2)  # half decades
RATES_AT = {  # (r, alpha): the rates around its own best
    (8, 2.0): RATES[2:5], (8, 4.0): RATES[1:5], (8, 8.0): RATES[1:4], (8, 16.0): RATES[1:4],
    (8, 32.0): RATES[0:4], (8, 64.0): RATES[0:3], (8, 128.0): RATES[0:3],
    (2, 4.0): RATES[1:5], (32, 64.0): RATES[0:4], (2, 16.0): RATES[0:4], (32, 16.0): RATES[1:4],
}  # fmt: skip
ALLOWED = 0.01  # nats per letter that a good setting may give up against the best one
TRAINED, ONE_STEP = {"evaluate_every": 40}, {"evaluate_every": 1}
FIXED = {"n_train": 1000, "batch_size": 16}
DATA, ONE = FIXED | TRAINED | {"steps": 200}, FIXED | ONE_STEP | {"steps": 1}
OWN_RATES = {"learning_rate": lambda of: RATES_AT[of["r"], of["lora_alpha"]]}
CELLS = [
    *grid(DATA, r=[R], lora_alpha=ALPHAS, **OWN_RATES),
    *grid(ONE, r=[R], lora_alpha=ALPHAS, learning_rate=[SHARED]),
    *grid(DATA, r=[2, 32], lora_alpha=alpha_2r, **OWN_RATES),
    *grid(DATA, r=[2, 32], lora_alpha=[16.0], **OWN_RATES),
    *grid(DATA | FULL, learning_rate=RATES[0:3]),
]
QUICK = grid(DATA | {"steps": 100}, r=[R], lora_alpha=ALPHAS[::3], learning_rate=[SHARED])
QUICK += grid(ONE, r=[R], lora_alpha=ALPHAS[::3], learning_rate=[SHARED])


def _norms(runs: Runs, when: dict) -> tuple[np.ndarray, np.ndarray]:
    """alpha / r, and the norm of the change that it makes: (ratios,), (ratios, seeds)."""
    at_r = runs.where(r=R, learning_rate=SHARED, **when)
    return np.array(at_r.values("lora_alpha")) / R, at_r.over("lora_alpha", NORM)


def _best_rate(runs: Runs, rule: str, r: int) -> np.ndarray:
    """Each seed's best learning rate, as a place on the half-decade grid."""
    cell = runs.where(r=r, lora_alpha=RULES[rule](r), **TRAINED)
    places = [RATES.index(rate) for rate in cell.values("learning_rate")]
    return optimum(np.array(places, float), cell.over("learning_rate", BEST))


def _moves(runs: Runs, rule: str) -> np.ndarray:
    return np.abs(_best_rate(runs, rule, 2) - _best_rate(runs, rule, 32))


RIVALS = grid({}, lora_alpha=[alpha for alpha in ALPHAS if alpha != 2 * R])
GIVEN_UP = given_up_by(BEST, {"lora_alpha": 2.0 * R}, RIVALS, r=R, **TRAINED)
REGIME = "1,000 female first names, all six linear modules"
CONTRASTS = [
    Contrast(
        claim="A1",
        prediction="after one step at a fixed r and rate, the norm of the change grows with alpha",
        plain="after one step the change grows as alpha to the power {effect}",
        smallest_effect=0.5,
        unit="slope of log norm against log alpha",
        measure=lambda runs: slope(*map(np.log2, _norms(runs, ONE_STEP))),
        regime="one step of AdamW moves B by the learning rate, so the change is proportional to alpha",
    ),
    Contrast(
        claim="A1",
        prediction="after training at a fixed r and rate, the norm of the change still grows with alpha",
        plain="after training the change grows as alpha to the power {effect}",
        smallest_effect=0.1,
        unit="slope of log norm against log alpha",
        measure=lambda runs: slope(*map(np.log2, _norms(runs, TRAINED))),
        regime=REGIME + f", rate {SHARED:g}",
    ),
    Contrast(
        claim="A2",
        prediction="from r=2 to r=32 the best learning rate moves less at alpha = 2r than at alpha = 16",
        plain="from r=2 to r=32 the best rate moves {effect} half decades {less/more} at alpha = 2r than at alpha = 16",
        smallest_effect=0.5,
        unit="half decades of learning rate",
        measure=lambda runs: _moves(runs, "alpha = 16") - _moves(runs, "alpha = 2r"),
        regime=REGIME
        + "; with alpha/r as the scale, LoRA Without Regret (2025) finds the best rate steady at a fixed alpha",
    ),
    allowance(
        ALLOWED,
        claim="A3",
        prediction=f"its best validation loss is within {ALLOWED:g} nats of that of every other alpha/r in 1/4 ... 16",
        plain="tuned, alpha = 2r gives up {given_up} nats against its hardest rival (0.01 allowed)",
        measure=GIVEN_UP,
        variants=one_rate(SHARED, GIVEN_UP),
        regime=REGIME + f", at r={R}, so that alpha = 2r and alpha = 16 are one",
    ),
]


def _draw_norms(ax, runs: Runs) -> None:
    for when, label, style in ((TRAINED, "after training", "-"), (ONE_STEP, "after 1 step", ":")):
        ratios, norms = _norms(runs, when)
        plots.line(ax, ratios, norms, label, plots.OTHER, style=style)
        ax.plot(ratios, norms[0].mean() * ratios / ratios[0], color=plots.PREDICTION, lw=1, zorder=0)
    plots.powers_of_two(ax, ratios, "alpha / r, at r = 8", room=2.6)
    ax.set(title="A larger alpha goes further", yscale="log")
    ax.set_ylabel("norm of the change\n(grey: in proportion to alpha)")


def _lines(rate: str, style: str) -> list[tuple]:
    validation, training = (f"{what},\n{rate}" for what in ("validation", "training"))
    return [(validation, BEST, plots.VALIDATION, style), (training, FINAL_TRAIN, plots.TRAIN, style)]


def _draw_losses(ax, runs: Runs) -> None:
    trained = runs.where(r=R, **TRAINED)
    shared = trained.where(learning_rate=SHARED)
    places = {alpha: alpha / R for alpha in trained.values("lora_alpha")}
    ratios = plots.losses(ax, shared, "lora_alpha", _lines("one rate", "-"), places)
    if tuned := len(trained) > len(shared):
        plots.losses(ax, trained, "lora_alpha", _lines("tuned rate", ":"), places)
    plots.references(ax, runs, "full fine-\ntuning")
    plots.powers_of_two(ax, ratios, "alpha / r, at r = 8", room=2.6)
    ax.set_title("Loss at one rate" + ", and tuned" * tuned)


def _draw_rates(ax, runs: Runs) -> None:
    for rule, color, style in zip(RULES, (plots.OTHER, plots.BASE), "-:", strict=True):
        best = [RATES[0] * 10 ** (_best_rate(runs, rule, r) / 2) for r in (2, 8, 32)]
        plots.line(ax, (2, 8, 32), best, rule, color, style=style)
    plots.powers_of_two(ax, (2, 8, 32), "rank r", room=2.2)
    ax.set(title="alpha = 16 keeps its rate", ylabel="best learning rate", yscale="log")


def draw(runs: Runs, samples):
    """The figure of the study."""
    full_size = bool(runs.where(r=2))
    title = "A larger alpha moves the model further" + ", and wants a lower learning rate" * full_size
    made, axes = plots.figure(1, 2 + full_size, 4.4, title)
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
    tuned=[{"method": "lora", "steps": 200, "r": r, "lora_alpha": alpha} for r, alpha in RATES_AT]
    + [{"method": "full", "steps": 200}],
    samples={
        "alpha = r/4": {"lora_alpha": R / 4, "learning_rate": SHARED, "r": R, "evaluate_every": 40},
        "alpha = 16 r": {"lora_alpha": 16.0 * R, "learning_rate": SHARED, "r": R, "evaluate_every": 40},
    },
)
