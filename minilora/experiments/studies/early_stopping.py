"""How soon LoRA is at its best beside full fine-tuning, and what stopping there saves (E1)."""

from functools import partial

import numpy as np

from minilora.experiments.evidence.runs import FINAL, Run, Runs, tuned_rates
from minilora.experiments.evidence.settings import FULL, grid
from minilora.experiments.evidence.study import Contrast, Study
from minilora.experiments.pages import plots

PATIENCE = 3  # evaluations without a better validation loss
SHARED = 3e-3
FIXED = {"n_train": 200, "batch_size": 16, "steps": 300, "evaluate_every": 10}
LORA_RATES, FULL_RATES = (3e-4, 1e-3, 3e-3, 1e-2), (1e-4, 3e-4, 1e-3, 3e-3)
CELLS = [
    *grid(FIXED, r=[8], lora_alpha=[16.0], learning_rate=LORA_RATES),
    *grid(FIXED | FULL, learning_rate=FULL_RATES),
]
QUICK = [*grid(FIXED | {"steps": 150}, r=[8], lora_alpha=[16.0], learning_rate=[SHARED]),
         *grid(FIXED | {"steps": 150} | FULL, learning_rate=[1e-3])]  # fmt: skip


def stopped_at(run: Run) -> int:
    """Which evaluation `fit` with this patience would have ended at."""
    best = 0
    for i, loss in enumerate(run.validation_loss):
        if loss < run.validation_loss[best]:
            best = i
        elif i - best >= PATIENCE:
            return i
    return len(run.step) - 1


def stopped_loss(run: Run) -> float:
    """The lowest validation loss until then, which is that of the adapter that early stopping keeps."""
    return min(run.validation_loss[: stopped_at(run) + 1]) if not run.diverged else np.inf


def _saved(run: Run) -> float:
    return run.final - stopped_loss(run)


def best_step(run: Run) -> float:
    """The step of the lowest validation loss, at least the first after the start."""
    return max(run.step[int(np.argmin(run.validation_loss))], run.step[1])


def _sooner(runs: Runs, **lora) -> np.ndarray:
    """How many halvings of full fine-tuning's best step LoRA's is, at its best rate or at one for all seeds."""
    return np.log2(runs.tuned(best_step, method="full") / runs.tuned(best_step, method="lora", **lora))


REGIME = "200 female first names, r=8, alpha = 16, all six linear modules"
CONTRASTS = [
    Contrast(
        claim="E1",
        prediction="each at its best rate, LoRA is at its best after fewer steps than full fine-tuning",
        plain="LoRA is at its best {effect} halvings of the steps {before/after} full fine-tuning",
        smallest_effect=0.1,
        unit="halvings of the number of steps",
        measure=_sooner,
        variants={
            f"LoRA at {rate:g} (added after the run: 0.001 and 0.003 are equally good)": partial(
                _sooner, learning_rate=rate
            )
            for rate in (1e-3, SHARED)
        },
        regime=REGIME + ", rates tuned",
    ),
    Contrast(
        claim="E1",
        prediction=f"at rate {SHARED:g}, stopping after {PATIENCE} evaluations without gain lowers the validation loss",
        plain="stopping early {lowers/raises} the validation loss by {effect} nats",
        smallest_effect=0.05,
        measure=lambda runs: runs.per_seed(_saved, method="lora", learning_rate=SHARED),
        variants={
            "rate tuned": lambda runs: runs.tuned(_saved, method="lora"),
            "rate tuned on the final loss": lambda runs: runs.tuned(_saved, FINAL, method="lora"),
        },
        regime=REGIME + "; evaluated every 10 steps, 300 steps in all",
    ),
]


def _nearest(cell: Runs) -> float:
    return min(cell.values("learning_rate"), key=lambda rate: abs(rate - SHARED))


def _most_chosen(cell: Runs) -> float:
    return max(set(tuned_rates(cell)), key=tuned_rates(cell).count)


def _curves(ax, runs: Runs, rate_of, title: str) -> None:
    for method, color, label in (("lora", plots.VALIDATION, "LoRA"), ("full", plots.FULL, "full\nfine-tuning")):
        rate = rate_of(runs.where(method=method))
        chosen = runs.where(method=method, learning_rate=rate)
        means = plots.curve(ax, chosen, "validation_loss", f"{label}\n({rate:g})", color)
        if means:
            lowest = int(np.argmin(means))
            ax.plot([chosen[0].step[lowest]], [means[lowest]], "o", color=color, ms=8, mfc="white", mew=2)
    plots.steps_axis(ax, runs, "validation loss")
    ax.set_title(title)


def draw(runs: Runs, samples):
    """The figure of the study."""
    tuned = len(runs.values("learning_rate")) > 2  # the quick version has one rate each
    title = "On scarce data the best step comes early (circle), and training on costs"
    made, axes = plots.figure(1, 1 + tuned, 4.4, title)
    _curves(axes[0, 0], runs, _nearest, "At about the same rate")
    if tuned:
        _curves(axes[0, 1], runs, _most_chosen, "Each at its best rate")
    return made


STUDY = Study(
    name="early_stopping",
    question="How soon is LoRA at its best, and what does stopping there save?",
    cells=CELLS,
    quick_cells=QUICK,
    contrasts=CONTRASTS,
    draw=draw,
    tuned=grid({}, method=["lora", "full"]),
)
