"""Target modules at an equal budget of parameters: which are worth adapting (T1-T4)."""

from itertools import combinations

import numpy as np

from minilora.experiments.evidence.runs import BEST, FINAL_TRAIN, Runs, given_up
from minilora.experiments.evidence.settings import alpha_2r, grid
from minilora.experiments.evidence.stats import estimate
from minilora.experiments.evidence.study import Contrast, Study
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
CELLS = [
    cell
    for one in (*EQUAL.values(), *SAME_R.values(), *({**single, "task": "male"} for single in SINGLE.values()))
    for cell in grid(FIXED | one, learning_rate=RATES, lora_alpha=alpha_2r)
]
QUICK = [
    cell
    for one in (*SINGLE.values(), PAIR["q v"], PAIR["up down"], ATTENTION)
    for cell in grid(FIXED | one | {"steps": 80}, learning_rate=[1e-2], lora_alpha=alpha_2r)
]


def _loss(runs: Runs, one: dict, metric=BEST, task: str = "names") -> np.ndarray:
    return runs.tuned(metric, **one, task=task)


def _default_margin(runs: Runs) -> np.ndarray:
    rivals = [_loss(runs, one) for name, one in (SINGLE | PAIR).items() if name != "q v"]
    return ALLOWED - given_up(_loss(runs, PAIR["q v"]), np.array(rivals))


def _more_fit(runs: Runs, metric) -> np.ndarray:
    """What each of the two steps from q, v to all modules gains at an equal r; the one whose interval reaches lower."""
    qv, qkvo, every = (_loss(runs, SAME_R[name], metric) for name in ("qv", "qkvo", "all"))
    return min(qv - qkvo, qkvo - every, key=lambda step: estimate(step).low)


def _profiles(runs: Runs) -> dict[str, np.ndarray]:
    """Each task's loss by module, less the mean over modules: (modules, seeds)."""
    by_task = {task: np.array([_loss(runs, one, task=task) for one in SINGLE.values()]) for task in ("names", "male")}
    return {task: losses - losses.mean(0) for task, losses in by_task.items()}


def profile_difference(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """How far two profiles (modules, seeds) differ, in the direction in which the *other* seeds say they do: (seeds,).

    Zero on average where the profiles are the same, as the noise of a seed has no direction that other seeds know.
    """
    difference = one - other
    directions = difference.sum(1, keepdims=True) - difference  # from the other seeds
    if difference.shape[1] == 1:
        directions = difference  # there are none
    return (difference * directions).sum(0) / np.linalg.norm(directions, axis=0)


REGIME = f"600 female first names, {BUDGET} parameters a layer, alpha = 2r, rates tuned for each set of modules"
CONTRASTS = [
    Contrast(
        claim="T1",
        prediction=f"q and v are within {ALLOWED:g} nats of every single module and pair, at an equal budget",
        plain="q and v give up {given_up} nats against their hardest rival (0.01 allowed)",
        smallest_effect=0.0,
        scale=ALLOWED,
        unit=f"nats per letter left of the {ALLOWED:g} allowed",
        measure=_default_margin,
        regime=REGIME,
    ),
    Contrast(
        claim="T2",
        prediction="at an equal r, training loss falls from q, v to q, k, v, o and on to all six (the smaller step)",
        plain="at r=10 the smaller step of qv, qkvo, all {lowers/raises} training loss by {effect} nats",
        smallest_effect=0.005,
        unit="nats per letter",
        measure=lambda runs: _more_fit(runs, FINAL_TRAIN),
        variants={"by the best validation loss": lambda runs: _more_fit(runs, BEST)},
        regime="600 female first names, r=10 on each module (1,280, 2,560, 5,760 parameters a layer), rates tuned",
    ),
    Contrast(
        claim="T2",
        prediction="at an equal budget too, all six modules reach a lower validation loss than q and v",
        plain="at an equal budget all six end {effect} nats {below/above} q and v",
        smallest_effect=0.005,
        unit="nats per letter",
        measure=lambda runs: _loss(runs, PAIR["q v"]) - _loss(runs, ALL),
        regime=REGIME,
    ),
    Contrast(
        claim="T3",
        prediction="attention alone (q, k, v, o) reaches a lower validation loss than the MLP at an equal budget",
        plain="at an equal budget attention alone ends {effect} nats {below/above} the MLP alone",
        smallest_effect=0.005,
        unit="nats per letter",
        measure=lambda runs: _loss(runs, PAIR["up down"]) - _loss(runs, ATTENTION),
        regime=REGIME,
    ),
    Contrast(
        claim="T4",
        prediction="which single modules gain most differs between female and male names",
        plain="profiles of modules on female and male names differ by {effect} nats, {alike/unlike} on each seed",
        smallest_effect=0.01,
        unit="nats per letter",
        measure=lambda runs: profile_difference(*_profiles(runs).values()),
        regime="600 names each, single modules with 1,280 parameters a layer; two tasks that are much alike",
    ),
]  # fmt: skip


def _profile_panel(ax, runs: Runs) -> None:
    for (task, profile), color, style in zip(
        _profiles(runs).items(), (plots.VALIDATION, plots.OTHER), "-:", strict=True
    ):
        plots.line(ax, range(len(SINGLE)), list(profile), {"names": "female"}.get(task, task), color, style=style)
    ax.set_xticks(range(len(SINGLE)), list(SINGLE))
    ax.set(
        title="Single modules, on two tasks",
        ylabel="best validation loss,\nless the mean over modules",
        xlim=(-0.3, 6.4),
    )


def draw(runs: Runs, samples):
    """The figure of the study."""
    full_size = len(runs.where(task="male")) > 0
    made, axes = plots.figure(1, 2 if full_size else 1, 6.0, "At an equal number of parameters, where they go matters")
    there = {name: one for name, one in EQUAL.items() if len(runs.where(**one))}
    losses = {name: _loss(runs, one) for name, one in there.items()}
    plots.ranking(axes[0, 0], losses, "q v", "best validation loss, less that of q and v (nats per letter)")
    axes[0, 0].set_title(f"{BUDGET:,} parameters a layer (bold: the default)")
    if full_size:
        _profile_panel(axes[0, 1], runs)
    return made


STUDY = Study(
    name="modules",
    question="Which modules are worth adapting, at an equal number of parameters?",
    cells=CELLS,
    quick_cells=QUICK,
    contrasts=CONTRASTS,
    draw=draw,
    tuned=[{**one, "task": "names"} for one in (EQUAL | SAME_R).values()]
    + [{**one, "task": "male"} for one in SINGLE.values()],
)
