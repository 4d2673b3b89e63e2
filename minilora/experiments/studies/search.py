"""Searching settings, and the article's recipe beside what a search finds, on three tasks (G1, G2).

Every setting of a small space is run once; a search then looks its results up, so that many can be tried for nothing.
"""

import functools
import itertools
import math

import numpy as np

from minilora.experiments.evidence.runs import MissingRunsError, Runs, best_on_others, given_up
from minilora.experiments.evidence.settings import Settings
from minilora.experiments.evidence.study import Contrast, Study
from minilora.experiments.pages import plots

SPACE = {
    "r": (4, 8, 16),
    "ratio": (0.5, 2, 8),
    "learning_rate": (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2),  # the best at alpha/r = 8 is 3e-4, so it begins below
    "lora_dropout": (0.0, 0.1, 0.3),
}
GRID = {"r": (4, 16), "ratio": (2,), "learning_rate": SPACE["learning_rate"], "lora_dropout": (0.0, 0.3)}
N_TRIALS = math.prod(map(len, GRID.values()))  # runs that each search may do
N_REPEATS = 50  # searches a seed
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
OPPOSITE = {  # to see whether the recipe's choices matter: everything the other way round
    "200 female names": {"r": 16, "ratio": 0.5, "lora_dropout": 0.0},
    "600 male names": {"r": 16, "ratio": 0.5, "lora_dropout": 0.3},
    "1,000 planted names": {"r": 16, "ratio": 0.5, "lora_dropout": 0.3},
}
SEARCHED = "200 female names"
ALLOWED = 0.02  # nats per letter that the recipe may give up against the best of the space
WORST_SHOWN = 0.35  # nats per letter above the best: where the picture ends
FIXED = {"batch_size": 16, "steps": 150, "evaluate_every": 50}
POINTS = list(itertools.product(*SPACE.values()))


def _cell(task: str, point) -> dict:
    r, ratio, rate, dropout = point
    return (
        FIXED | TASKS[task] | {"r": r, "lora_alpha": float(ratio * r), "learning_rate": rate, "lora_dropout": dropout}
    )


CELLS = [_cell(task, point) for task in TASKS for point in POINTS]
QUICK = [_cell(SEARCHED, point) | {"steps": 40} for point in POINTS]


def table(runs: Runs, task: str) -> np.ndarray:
    """The final validation loss at every point of the space: (points, seeds)."""
    of = runs.where(**TASKS[task])
    if not of:
        raise MissingRunsError(f"no run of {task}")
    found = {(*_place(run.settings), run.settings.seed): run.final for run in of}
    places = [(r, float(ratio * r), rate, dropout) for r, ratio, rate, dropout in POINTS]
    return np.array([[found[*place, seed] for seed in of.values("seed")] for place in places])


def _place(one: Settings) -> tuple:
    return one.r, one.lora_alpha, one.learning_rate, one.lora_dropout


def found_by_grid(losses: np.ndarray, seed: int) -> list[float]:
    """Lowest loss after each trial of the grid, tried in random order."""
    places = [i for i, point in enumerate(POINTS) if all(x in GRID[name] for x, name in zip(point, GRID, strict=True))]
    return list(np.minimum.accumulate(losses[np.random.default_rng(seed).permutation(places)]))


def found_by_chance(losses: np.ndarray, seed: int) -> list[float]:
    """Lowest loss after each trial of random points of the space, none twice."""
    return list(np.minimum.accumulate(losses[np.random.default_rng(seed).permutation(len(losses))[:N_TRIALS]]))


def found_by_bayes(losses: np.ndarray, seed: int) -> list[float]:
    """Lowest loss after each run that Optuna's TPE sampler asks for (Bergstra et al. 2011), five random ones first.

    Where it asks again for what was run already it gets that loss, and no run is counted.
    """
    try:
        import optuna
    except ImportError:
        raise ImportError("the study 'search' needs Optuna: pip install 'minilora[search]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    search = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=5))
    tried: dict[int, float] = {}
    while len(tried) < N_TRIALS:
        trial = search.ask()
        places = tuple(trial.suggest_int(name, 0, len(values) - 1) for name, values in SPACE.items())
        point = int(np.ravel_multi_index(places, [len(values) for values in SPACE.values()]))
        tried[point] = losses[point]
        search.tell(trial, tried[point])
    return list(np.minimum.accumulate(list(tried.values())))


SEARCHES = {"grid": found_by_grid, "random": found_by_chance, "Bayesian": found_by_bayes}


def _regrets(runs: Runs) -> dict[str, np.ndarray]:
    """How far above the lowest loss of the space each search is after each trial, over its repeats: (trials, seeds)."""
    return _searched(table(runs, SEARCHED).tobytes(), len(runs.values("seed")))


@functools.lru_cache(maxsize=4)
def _searched(losses: bytes, n_seeds: int) -> dict[str, np.ndarray]:
    by_seed = np.frombuffer(losses).reshape(-1, n_seeds).T
    regrets = {}
    for name, search in SEARCHES.items():
        repeats = [[search(one, seed * N_REPEATS + i) for i in range(N_REPEATS)] for seed, one in enumerate(by_seed)]
        regrets[name] = (np.mean(repeats, axis=1) - by_seed.min(1, keepdims=True)).T
    return regrets


def _against(runs: Runs, other: str) -> np.ndarray:
    regrets = _regrets(runs)
    return regrets[other][-1] - regrets["Bayesian"][-1]


def rows_of(like: dict) -> list[int]:
    """Where in POINTS these settings stand, once for each learning rate, the lowest first."""
    return [i for i, point in enumerate(POINTS) if like.items() <= dict(zip(SPACE, point, strict=True)).items()]


def _recipe(runs: Runs, task: str, recipes=RECIPE) -> np.ndarray:
    """What the recipe, at the rate chosen on the other seeds, gives up against its hardest rival: (seeds,)."""
    losses = table(runs, task)
    rows = rows_of(recipes[task])
    tuned = losses[rows][best_on_others(losses[rows]), np.arange(losses.shape[1])]
    return given_up(tuned, np.delete(losses, rows, axis=0))


def _recipe_margin(runs: Runs, task: str, recipes=RECIPE) -> np.ndarray:
    return ALLOWED - _recipe(runs, task, recipes)


SPACE_TEXT = (
    f"{len(POINTS)} settings of r, alpha/r, rate and dropout, all six modules, final loss after 150 steps of 16"
)
CONTRASTS = [
    *(
        Contrast(
            claim="G1",
            prediction=f"after {N_TRIALS} runs, Bayesian search is nearer to the best of the space than {name} search",
            plain=f"after {N_TRIALS} runs Bayesian search ends {{effect}} nats {{below/above}} {name} search",
            smallest_effect=0.005,
            unit="nats per letter",
            measure=functools.partial(_against, other=name),
            regime=f"{SEARCHED}, {SPACE_TEXT}; {N_REPEATS} searches a seed",
        )
        for name in ("random", "grid")
    ),
    *(
        Contrast(
            claim="G2",
            prediction=f"{task}: the recipe (r={one['r']}, dropout {one['lora_dropout']:g}, alpha = 2r) is within "
            f"{ALLOWED:g} nats of every other setting",
            plain=f"{task}: the recipe gives up {{given_up}} nats against its hardest rival ({ALLOWED:g} allowed)",
            smallest_effect=0.0,
            scale=ALLOWED,
            unit=f"nats per letter left of the {ALLOWED:g} allowed",
            measure=functools.partial(_recipe_margin, task=task),
            variants={
                "the opposite recipe (added after the run): "
                f"r={OPPOSITE[task]['r']}, dropout {OPPOSITE[task]['lora_dropout']:g}, alpha = r/2": functools.partial(
                    _recipe_margin, task=task, recipes=OPPOSITE
                )
            },
            regime=f"{SPACE_TEXT}, rates tuned",
        )
        for task, one in RECIPE.items()
    ),
]


def _search_panel(ax, runs: Runs) -> None:
    styles = {"grid": (plots.BASE, ":"), "random": (plots.OTHER, "--"), "Bayesian": (plots.VALIDATION, "-")}
    for name, regrets in _regrets(runs).items():
        plots.line(ax, range(1, N_TRIALS + 1), list(regrets), name, styles[name][0], style=styles[name][1], marker="")
    ax.set(title=f"Searches of {N_TRIALS} runs ({SEARCHED})", xlabel="runs done", ylabel="loss above the best (nats)")
    ax.set(xlim=(1, N_TRIALS * 1.3), xticks=(1, *range(4, N_TRIALS + 1, 4)))


def _recipe_panel(ax, runs: Runs) -> None:
    for y, task in enumerate(TASKS):
        means = table(runs, task).mean(1)
        losses = means - means.min()
        ax.plot(losses, np.full(len(losses), y), "|", color=plots.PREDICTION, ms=12)
        if beyond := int(np.sum(losses > WORST_SHOWN)):
            text = f"{beyond} further right"
            ax.text(WORST_SHOWN, y + 0.12, text, color=plots.BASE, ha="right", va="top", fontsize=9)
        low, mean, high = (getattr(plots.estimate(_recipe(runs, task)), part) for part in ("low", "mean", "high"))
        ax.plot([low, high], [y, y], color=plots.VALIDATION)
        ax.plot([mean], [y], "o", color=plots.VALIDATION)
    ax.axvspan(0, ALLOWED, color=plots.PREDICTION, alpha=0.35, lw=0)
    ax.set_yticks(range(len(TASKS)), [name.replace(" ", "\n", 1) for name in TASKS])
    ax.set(title="The recipe (dot) among all settings (strokes)", xlabel="loss above the best (nats; grey: allowed)",
           xlim=(-0.01, WORST_SHOWN), ylim=(len(TASKS) - 0.5, -0.5))  # fmt: skip


def draw(runs: Runs, samples):
    """The figure of the study."""
    full_size = len(runs.where(**TASKS["600 male names"])) > 0
    title = f"A search of {N_TRIALS} runs comes close to the best" + ", and so does the recipe" * full_size
    made, axes = plots.figure(1, 2 if full_size else 1, 4.2, title)
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
)
