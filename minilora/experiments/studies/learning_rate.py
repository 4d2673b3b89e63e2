"""Learning rate: LoRA's best beside full fine-tuning's, and what rates above and below it do (L1, L2)."""

from functools import partial

import numpy as np

from minilora.experiments.evidence.measures import Measure, difference
from minilora.experiments.evidence.runs import BEST, FINAL_TRAIN, Run, Runs, log10_best_rate
from minilora.experiments.evidence.settings import FULL, grid
from minilora.experiments.evidence.study import Contrast, Study
from minilora.experiments.pages import plots

RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
FIXED = {"n_train": 1000, "batch_size": 16, "steps": 200, "evaluate_every": 20, "r": 8, "lora_alpha": 16.0}
CELLS = [*grid(FIXED, learning_rate=RATES), *grid(FIXED | FULL, learning_rate=RATES)]
QUICK = [
    *grid(FIXED | {"steps": 100}, learning_rate=RATES[::2] + RATES[-1:]),
    *grid(FIXED | {"steps": 100} | FULL, learning_rate=[1e-4, 1e-3, 1e-2, 3e-2]),
]


def roughness(run: Run) -> float:
    """Mean size of second differences of the training loss over the second half of a run; 0 for a straight line."""
    late = np.array(run.train_loss[len(run.train_loss) // 2 :])
    return float(np.abs(np.diff(late, 2)).mean()) if not run.diverged else np.inf


def _against_best(metric, rate: float) -> Measure:
    """The metric at a rate, less that at the best rate."""
    return difference(metric, {"learning_rate": rate}, {}, method="lora")


def _higher(runs: Runs, metric) -> np.ndarray:
    return log10_best_rate(runs.where(method="lora"), metric) - log10_best_rate(runs.where(method="full"), metric)


REGIME = "1,000 female first names, r=8, alpha = 16, all six linear modules, 200 steps of 16"
CONTRASTS = [
    Contrast(
        claim="L1",
        prediction="the learning rate with the lowest validation loss is higher for LoRA than for full fine-tuning",
        plain="at alpha = 16, LoRA's best rate is {effect} powers of ten {higher/lower} than full fine-tuning's",
        smallest_effect=0.25,
        unit="powers of ten",
        measure=partial(_higher, metric=BEST),
        variants={"by the final training loss": partial(_higher, metric=FINAL_TRAIN)},
        regime=REGIME,
    ),
    *(
        Contrast(
            claim="L2",
            prediction=f"at a rate of {rate:g}, the final training loss is above that at the best rate",
            plain=f"at {rate:g} training ends {{effect}} nats {{above/below}} the best rate's",
            smallest_effect=0.05,
                measure=_against_best(FINAL_TRAIN, rate),
            regime=REGIME,
        )
        for rate in (RATES[0], RATES[-1])
    ),
    Contrast(
        claim="L2",
        prediction=f"at rate {RATES[-1]:g}, the training loss swings more between evaluations than at the best rate",
        plain=f"at {RATES[-1]:g} the training loss swings {{effect}} nats {{more/less}} between evaluations",
        smallest_effect=0.01,
        measure=_against_best(roughness, RATES[-1]),
        regime=REGIME + "; mean second difference over the second half of the run",
    ),
]  # fmt: skip


def _u(ax, runs: Runs) -> None:
    lora, full = runs.where(method="lora"), runs.where(method="full")
    validation = ("LoRA,\nvalidation", BEST, plots.VALIDATION, "-")
    training = ("LoRA,\ntraining", FINAL_TRAIN, plots.TRAIN, "-")
    plots.losses(ax, lora, "learning_rate", [validation, training])
    plots.losses(ax, full, "learning_rate", [("full fine-tuning,\nvalidation", BEST, plots.FULL, "-")])
    plots.rates_axis(ax, runs.values("learning_rate"), room=9)
    ax.margins(y=0.12)
    for cell, color in ((lora, plots.VALIDATION), (full, plots.FULL)):
        ax.axvline(10 ** log10_best_rate(cell).mean(), color=color, lw=5, alpha=0.25, zorder=0)
    ax.set_title("Each has a best rate (bar); LoRA's is higher")


def _curves(ax, runs: Runs) -> None:
    lora = runs.where(method="lora")
    for rate, style in zip((RATES[0], 1e-2, RATES[-1]), (":", "-", "--"), strict=True):
        plots.curve(ax, lora.where(learning_rate=rate), "train_loss", f"rate {rate:g}", plots.TRAIN, style=style)
    plots.steps_axis(ax, lora, "training loss")
    ax.set_title("Too small is slow, too large swings")


def draw(runs: Runs, samples):
    """The figure of the study."""
    made, axes = plots.figure(1, 2, 4.4, "LoRA wants a larger learning rate than full fine-tuning, but not any")
    _u(axes[0, 0], runs)
    _curves(axes[0, 1], runs)
    return made


STUDY = Study(
    name="learning_rate",
    question="Which learning rate does LoRA want, and what do others do?",
    cells=CELLS,
    quick_cells=QUICK,
    contrasts=CONTRASTS,
    draw=draw,
    tuned=grid({}, method=["lora", "full"]),
)
