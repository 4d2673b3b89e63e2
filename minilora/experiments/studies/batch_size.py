"""Batch size: loss at equal steps and at equal epochs, and how noisy a batch's gradient is (S1)."""

import functools
import math

import numpy as np

from minilora.data.base import load_base
from minilora.data.names import names_task
from minilora.experiments.evidence.measures import Measure, difference, each_seed, one_rate
from minilora.experiments.evidence.runs import BEST, FINAL_TRAIN, Runs
from minilora.experiments.evidence.settings import grid
from minilora.experiments.evidence.study import Contrast, Study
from minilora.experiments.pages import plots
from minilora.lora import LoraConfig, init_adapter
from minilora.train import Trainable

N, SIZES, STEPS, EPOCHS = 1000, (4, 16, 64), 100, 4
RATES = {4: (3e-4, 1e-3, 3e-3, 1e-2), 16: (1e-3, 3e-3, 1e-2, 3e-2), 64: (1e-3, 3e-3, 1e-2, 3e-2)}
SHARED = 3e-3
R = 8
FIXED = {"n_train": N, "r": R, "lora_alpha": 2.0 * R}


def _cells(batch: int, steps: int, rates) -> list[dict]:
    return grid(FIXED, batch_size=[batch], steps=[steps], evaluate_every=[math.ceil(steps / 4)], learning_rate=rates)


def _epochs(batch: int, epochs: int = EPOCHS) -> int:
    return epochs * math.ceil(N / batch)


CELLS = [cell for b in SIZES for steps in (STEPS, _epochs(b)) for cell in _cells(b, steps, RATES[b])]
QUICK = [cell for b in SIZES for steps in (25, _epochs(b, 1)) for cell in _cells(b, steps, [SHARED])]


def _at(runs: Runs, what: str) -> Runs:
    """Runs with the number of steps that every batch size has ("steps"), or with their own ("epochs")."""
    equal = set.intersection(*(set(runs.where(batch_size=b).values("steps")) for b in SIZES))
    return Runs([run for run in runs if (run.settings.steps in equal) == (what == "steps")])


def _above(what: str, metric, higher: int, lower: int, by=BEST) -> Measure:
    """How far the metric with one batch size lies above that with another."""
    measure = difference(metric, {"batch_size": higher}, {"batch_size": lower}, by)
    return lambda runs: measure(_at(runs, what))


@functools.cache
def noise_scale(seed: int) -> float:
    """The simple noise scale tr(S) / |G|^2 of the first step, in names (McCandlish et al. 2018, arXiv 1812.06162).

    S is the covariance of the gradients of single names, G their mean; |G|^2 is freed of the noise in it. At a batch
    of this size a gradient has as much noise as signal.
    """
    base = load_base()
    data, _ = names_task("female", N, seed)
    lora = LoraConfig(r=R, lora_alpha=2 * R, target_modules="all-linear")
    trainable = Trainable(base, init_adapter(base.params, lora, np.random.default_rng(seed)))
    gradients = [trainable.loss_and_gradient(trainable.vector, data.take([i]), None)[1] for i in range(400)]
    mean, variance = np.mean(gradients, axis=0, dtype=float), np.var(gradients, axis=0, ddof=1, dtype=float).sum()
    return float(variance / (mean @ mean - variance / len(gradients)))


BY_STEP, BY_EPOCH = _above("steps", BEST, 4, 64), _above("epochs", FINAL_TRAIN, 64, 4)
REGIME = "1,000 female first names, r=8, alpha = 16, all six linear modules"
CONTRASTS = [
    Contrast(
        claim="S1",
        prediction=f"at equal steps ({STEPS}) a batch of 64 reaches a lower validation loss than one of 4",
        plain="at equal steps a batch of 64 ends {effect} nats {below/above} one of 4",
        smallest_effect=0.01,
        measure=BY_STEP,
        variants=one_rate(SHARED, BY_STEP),
        regime=REGIME + ", rates tuned",
    ),
    Contrast(
        claim="S1",
        prediction=f"at equal epochs ({EPOCHS}) a batch of 64 ends with a higher training loss than one of 4",
        plain="at equal epochs a batch of 64 ends {effect} nats {above/below} one of 4 in training loss",
        smallest_effect=0.01,
        measure=BY_EPOCH,
        variants=one_rate(SHARED, BY_EPOCH)
        | {
            "by the best validation loss": _above("epochs", BEST, 64, 4),
            "rate tuned on the training loss (added after the run)": _above("epochs", FINAL_TRAIN, 64, 4, FINAL_TRAIN),
        },
        regime=REGIME + ", rates tuned",
    ),
    Contrast(
        claim="S1",
        prediction="a batch of 4 has more noise than signal: the noise scale of the first step is above 4 names",
        plain="the noise scale is {effect} doublings {above/below} 4 names",
        smallest_effect=0.5,
        unit="doublings above 4 names",
        measure=lambda runs: np.log2(each_seed(noise_scale)(runs) / SIZES[0]),
        regime=REGIME + ", before the first step",
    ),
]


def _panel(ax, runs: Runs, what: str, title: str) -> None:
    validation = ("validation,\nat its best", BEST, plots.VALIDATION, "-")
    training = ("training,\nat the end", FINAL_TRAIN, plots.TRAIN, "-")
    plots.losses(ax, _at(runs, what), "batch_size", [validation, training])
    scale, place = each_seed(noise_scale)(runs).mean(), ax.get_xaxis_transform()
    ax.axvline(scale, color=plots.PREDICTION, lw=6, alpha=0.5, zorder=0)
    ax.annotate("noise scale", (scale, 0.97), xycoords=place, ha="center", fontsize=8, color=plots.BASE)
    plots.powers_of_two(ax, SIZES, "batch size (names)", room=2.2)
    ax.set_title(title)


def draw(runs: Runs, samples):
    """The figure of the study."""
    made, axes = plots.figure(1, 2, 4.4, "By the step a large batch wins; by the epoch it has fewer steps to win with")
    _panel(axes[0, 0], runs, "steps", "Equal steps: less noise helps")
    _panel(axes[0, 1], runs, "epochs", "Equal epochs: fewer steps")
    return made


STUDY = Study(
    name="batch_size",
    question="What does a larger batch buy, by the step and by the epoch?",
    cells=CELLS,
    quick_cells=QUICK,
    contrasts=CONTRASTS,
    draw=draw,
    tuned=[{"batch_size": b, "steps": steps} for b in SIZES for steps in (STEPS, _epochs(b))],
)
