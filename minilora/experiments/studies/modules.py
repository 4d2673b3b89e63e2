"""Target modules at an equal budget of parameters: which are worth adapting (T1-T4)."""

from itertools import combinations

import numpy as np

from minilora.experiments.evidence.measures import difference, given_up_by
from minilora.experiments.evidence.runs import BEST, FINAL_TRAIN, Runs
from minilora.experiments.evidence.settings import alpha_2r, grid
from minilora.experiments.evidence.stats import estimate, profile_difference
from minilora.experiments.evidence.study import Contrast, Study, allowance
from minilora.experiments.pages import plots

BUDGET = 1280  # parameters a layer
SIZES = {"q": 64, "k": 64, "v": 64, "o": 64, "up": 160, "down": 160}  # in + out: parameters at r = 1
ALLOWED = 0.01  # nats per letter that a good default may give up against the best
RATES = (3e-4, 1e-3, 3e-3, 1e-2)
FIXED = {"n_train": 600, "batch_size": 16, "steps": 200, "evaluate_every": 40}


def targets(ranks: dict[str, int]) -> dict:
    """Settings for modules with these ranks."""
    return {"target_modules": "+".join(f"{name}_proj:{r}" for name, r in ranks.items()), "r": max(ranks.values())}


SINGLE = {name: targets({name: BUDGET // size}) for name, size in SIZES.items()}
PAIR = {
    f"{a} {b}": targets({a: BUDGET // 2 // SIZES[a], b: BUDGET // 2 // SIZES[b]}) for a, b in combinations(SIZES, 2)
}
ATTENTION = targets({name: 5 for name in "qkvo"})
ALL = targets({"q": 3, "k": 2, "v": 3, "o": 2, "up": 2, "down": 2})  # half of the budget on attention, half on the MLP
EQUAL = {**SINGLE, **PAIR, "q k v o": ATTENTION, "all six": ALL}  # all of BUDGET
SAME_R = {"qv": PAIR["q v"], "qkvo": targets(dict.fromkeys("qkvo", 10)), "all": targets(dict.fromkeys(SIZES, 10))}
FEMALE, MALE = {"task": "names"}, {"task": "male"}
TUNED = [one | FEMALE for one in (EQUAL | SAME_R).values()] + [one | MALE for one in SINGLE.values()]
CELLS = [cell for one in TUNED for cell in grid(FIXED | one, learning_rate=RATES, lora_alpha=alpha_2r)]
QUICK = [
    cell
    for one in (*SINGLE.values(), PAIR["q v"], PAIR["up down"], ATTENTION)
    for cell in grid(FIXED | one | {"steps": 80}, learning_rate=[1e-2], lora_alpha=alpha_2r)
]


def _more_fit(runs: Runs, metric) -> np.ndarray:
    """What each of the two steps from q, v to all modules gains at an equal r; the one whose interval reaches lower."""
    qv, qkvo, every = (runs.tuned(metric, **one | FEMALE) for one in SAME_R.values())
    return min(qv - qkvo, qkvo - every, key=lambda step: estimate(step).low)


def _profile(runs: Runs, task) -> np.ndarray:
    """The task's loss by module, less the mean over modules: (modules, seeds)."""
    losses = np.array([runs.tuned(BEST, **one | task) for one in SINGLE.values()])
    return losses - losses.mean(0)


RIVALS = [one for name, one in (SINGLE | PAIR).items() if name != "q v"]
REGIME = f"600 female first names, {BUDGET} parameters a layer, alpha = 2r, rates tuned for each set of modules"
CONTRASTS = [
    allowance(
        ALLOWED,
        claim="T1",
        prediction=f"q and v are within {ALLOWED:g} nats of every single module and pair, at an equal budget",
        plain="q and v give up {given_up} nats against their hardest rival (0.01 allowed)",
        measure=given_up_by(BEST, PAIR["q v"], RIVALS, task="names"),
        regime=REGIME,
    ),
    Contrast(
        claim="T2",
        prediction="at an equal r, training loss falls from q, v to q, k, v, o and on to all six (the smaller step)",
        plain="at r=10 the smaller step of qv, qkvo, all {lowers/raises} training loss by {effect} nats",
        smallest_effect=0.005,
        measure=lambda runs: _more_fit(runs, FINAL_TRAIN),
        variants={"by the best validation loss": lambda runs: _more_fit(runs, BEST)},
        regime="600 female first names, r=10 on each module (1,280, 2,560, 5,760 parameters a layer), rates tuned",
    ),
    Contrast(
        claim="T2",
        prediction="at an equal budget too, all six modules reach a lower validation loss than q and v",
        plain="at an equal budget all six end {effect} nats {below/above} q and v",
        smallest_effect=0.005,
        measure=difference(BEST, PAIR["q v"], ALL, task="names"),
        regime=REGIME,
    ),
    Contrast(
        claim="T3",
        prediction="attention alone (q, k, v, o) reaches a lower validation loss than the MLP at an equal budget",
        plain="at an equal budget attention alone ends {effect} nats {below/above} the MLP alone",
        smallest_effect=0.005,
        measure=difference(BEST, PAIR["up down"], ATTENTION, task="names"),
        regime=REGIME,
    ),
    Contrast(
        claim="T4",
        prediction="which single modules gain most differs between female and male names",
        plain="profiles of modules on female and male names differ by {effect} nats, {alike/unlike} on each seed",
        smallest_effect=0.01,
        measure=lambda runs: profile_difference(_profile(runs, FEMALE), _profile(runs, MALE)),
        regime="600 names each, single modules with 1,280 parameters a layer; two tasks that are much alike",
    ),
]  # fmt: skip


def _profiles(ax, runs: Runs) -> None:
    for task, label, color, style in ((FEMALE, "female", plots.VALIDATION, "-"), (MALE, "male", plots.OTHER, ":")):
        plots.line(ax, range(len(SINGLE)), _profile(runs, task), label, color, style=style)
    ax.set_xticks(range(len(SINGLE)), list(SINGLE))
    ax.set(title="Single modules, on two tasks", xlim=(-0.3, 6.4))
    ax.set_ylabel("best validation loss,\nless the mean over modules")


def draw(runs: Runs, samples):
    """The figure of the study."""
    full_size = bool(runs.where(**MALE))
    made, axes = plots.figure(1, 1 + full_size, 6.0, "At an equal number of parameters, where they go matters")
    losses = {name: runs.tuned(BEST, **one | FEMALE) for name, one in EQUAL.items() if runs.where(**one)}
    plots.ranking(axes[0, 0], losses, "q v", "best validation loss, less that of q and v (nats per letter)")
    axes[0, 0].set_title(f"{BUDGET:,} parameters a layer (bold: the default)")
    if full_size:
        _profiles(axes[0, 1], runs)
    return made


STUDY = Study(
    name="modules",
    question="Which modules are worth adapting, at an equal number of parameters?",
    cells=CELLS,
    quick_cells=QUICK,
    contrasts=CONTRASTS,
    draw=draw,
    tuned=TUNED,
)
