"""Searches of a small space of settings, all of them run, and where in it the article's recipe is (G1, G2)."""

from functools import partial

import numpy as np

from minilora.experiments.evidence.runs import MissingRunsError, Runs, best_on_others, given_up
from minilora.experiments.evidence.searches import bayesian_search, grid_search, random_search, regrets
from minilora.experiments.evidence.settings import grid
from minilora.experiments.evidence.stats import estimate
from minilora.experiments.evidence.study import Contrast, Study, allowance
from minilora.experiments.pages import plots

SPACE = {
    "r": (4, 8, 16),
    "ratio": (0.5, 2, 8),  # alpha / r
    "learning_rate": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2),  # the best at alpha/r = 8 is 3e-4, so it begins below
    "lora_dropout": (0.0, 0.1, 0.3),
}
POINTS = grid({}, **SPACE)
TASKS = {
    "200 female names": {"task": "names", "n_train": 200},
    "600 male names": {"task": "male", "n_train": 600},
    "1,000 planted names": {"task": "planted", "planted_rank": 2, "n_train": 1000},
}
RECIPE = {  # small r for the easy task; more dropout and lower r for little data; alpha = 2r
    "200 female names": {"r": 4, "ratio": 2, "lora_dropout": 0.3},
    "600 male names": {"r": 8, "ratio": 2, "lora_dropout": 0.1},
    "1,000 planted names": {"r": 4, "ratio": 2, "lora_dropout": 0.0},
}
# To see whether the recipe's choices matter: everything the other way round
OPPOSITE = {task: {"r": 16, "ratio": 0.5, "lora_dropout": p} for task, p in zip(TASKS, (0.0, 0.3, 0.3), strict=True)}
FIXED = {"batch_size": 16, "steps": 150, "evaluate_every": 50}
SEARCHED = "200 female names"
ALLOWED = 0.02  # nats per letter that the recipe may give up against the best of the space
WORST = 0.35  # nats per letter above the best: where the picture ends


def _settings(point: dict) -> dict:
    return {name: point[name] for name in point if name != "ratio"} | {"lora_alpha": float(point["ratio"] * point["r"])}


CELLS = [FIXED | task | _settings(point) for task in TASKS.values() for point in POINTS]
QUICK = [FIXED | TASKS[SEARCHED] | _settings(point) | {"steps": 40} for point in POINTS]


def table(runs: Runs, task: str) -> np.ndarray:
    """The final validation loss at every point of the space: (points, seeds)."""
    of = runs.where(**TASKS[task])
    if not of:
        raise MissingRunsError(f"no run of {task}")
    wanted = [_settings(point) for point in POINTS]
    found = {(*(getattr(run.settings, name) for name in wanted[0]), run.settings.seed): run.final for run in of}
    return np.array([[found[*settings.values(), seed] for seed in of.values("seed")] for settings in wanted])


def rows_of(like: dict) -> list[int]:
    """Where in POINTS these settings stand, once for each value of the settings left open, the lowest first."""
    return [i for i, point in enumerate(POINTS) if like.items() <= point.items()]


GRID = [i for r in (4, 16) for p in (0.0, 0.3) for i in rows_of({"r": r, "ratio": 2, "lora_dropout": p})]
N_TRIALS = len(GRID)  # runs that each search may do
N_REPEATS = 50  # searches a seed
SEARCHES = {
    "grid": partial(grid_search, points=sorted(GRID)),
    "random": partial(random_search, n=N_TRIALS),
    "Bayesian": partial(bayesian_search, n=N_TRIALS, sizes={name: len(values) for name, values in SPACE.items()}),
}


def _regrets(runs: Runs, search: str) -> np.ndarray:
    return regrets(SEARCHES[search], table(runs, SEARCHED), N_REPEATS)


def _ahead(runs: Runs, other: str) -> np.ndarray:
    return _regrets(runs, other)[-1] - _regrets(runs, "Bayesian")[-1]


def _given_up(runs: Runs, task: str, recipes=RECIPE) -> np.ndarray:
    """What the recipe, at the rate chosen on the other seeds, gives up against its hardest rival: (seeds,)."""
    losses, rows = table(runs, task), rows_of(recipes[task])
    tuned = losses[rows][best_on_others(losses[rows]), np.arange(losses.shape[1])]
    return given_up(tuned, np.delete(losses, rows, axis=0))


REGIME = f"{len(POINTS)} settings of r, alpha/r, rate and dropout, all six modules, final loss after 150 steps of 16"
THE_OPPOSITE = "the opposite recipe (added after the run): r={r}, dropout {lora_dropout:g}, alpha = r/2"
CONTRASTS = [
    *(
        Contrast(
            claim="G1",
            prediction=f"after {N_TRIALS} runs, Bayesian search is nearer to the best of the space than {name} search",
            plain=f"after {N_TRIALS} runs Bayesian search ends {{effect}} nats {{below/above}} {name} search",
            smallest_effect=0.005,
            measure=partial(_ahead, other=name),
            regime=f"{SEARCHED}, {REGIME}; {N_REPEATS} searches a seed",
        )
        for name in ("random", "grid")
    ),
    *(
        allowance(
            ALLOWED,
            claim="G2",
            prediction=f"{task}: the recipe (r={one['r']}, dropout {one['lora_dropout']:g}, alpha = 2r) is within "
            f"{ALLOWED:g} nats of every other setting",
            plain=f"{task}: the recipe gives up {{given_up}} nats against its hardest rival ({ALLOWED:g} allowed)",
            measure=partial(_given_up, task=task),
            variants={THE_OPPOSITE.format(**OPPOSITE[task]): partial(_given_up, task=task, recipes=OPPOSITE)},
            regime=REGIME + ", rates tuned",
        )
        for task, one in RECIPE.items()
    ),
]


def _search_panel(ax, runs: Runs) -> None:
    styles = {"grid": (plots.BASE, ":"), "random": (plots.OTHER, "--"), "Bayesian": (plots.VALIDATION, "-")}
    for name, (color, style) in styles.items():
        plots.line(ax, range(1, N_TRIALS + 1), _regrets(runs, name), name, color, style=style, marker="")
    ax.set(title=f"Searches of {N_TRIALS} runs ({SEARCHED})", xlabel="runs done", ylabel="loss above the best (nats)")
    ax.set(xlim=(1, N_TRIALS * 1.3), xticks=(1, *range(4, N_TRIALS + 1, 4)))


def _recipe_panel(ax, runs: Runs) -> None:
    for y, task in enumerate(TASKS):
        means = table(runs, task).mean(1)
        losses = means - means.min()
        ax.plot(losses, np.full(len(losses), y), "|", color=plots.PREDICTION, ms=12)
        if beyond := int(np.sum(losses > WORST)):
            ax.text(WORST, y + 0.12, f"{beyond} further right", color=plots.BASE, ha="right", va="top", fontsize=9)
        mean, low, high, _ = estimate(_given_up(runs, task))
        ax.plot([low, high], [y, y], color=plots.VALIDATION)
        ax.plot([mean], [y], "o", color=plots.VALIDATION)
    ax.axvspan(0, ALLOWED, color=plots.PREDICTION, alpha=0.35, lw=0)
    ax.set_yticks(range(len(TASKS)), [name.replace(" ", "\n", 1) for name in TASKS])
    ax.set(xlim=(-0.01, WORST), ylim=(len(TASKS) - 0.5, -0.5))
    ax.set(title="The recipe (dot) among all settings (strokes)", xlabel="loss above the best (nats; grey: allowed)")


def draw(runs: Runs, samples):
    """The figure of the study."""
    full_size = len(runs.values("task")) > 1
    title = f"A search of {N_TRIALS} runs comes close to the best" + ", and so does the recipe" * full_size
    made, axes = plots.figure(1, 1 + full_size, 4.2, title)
    _search_panel(axes[0, 0], runs)
    if full_size:
        _recipe_panel(axes[0, 1], runs)
    return made


STUDY = Study(
    name="search",
    question="Does a search find good settings, and is the article's recipe one?",
    cells=CELLS,
    quick_cells=QUICK,
    contrasts=CONTRASTS,
    draw=draw,
    packages=["optuna"],
)
