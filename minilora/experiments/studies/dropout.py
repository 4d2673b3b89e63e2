"""Dropout on the input of A: what it does against overfitting, and what it costs when there is data enough (D1-D4)."""

import dataclasses
import itertools

import numpy as np

from minilora import ops
from minilora.data.base import load_base
from minilora.data.names import names_task
from minilora.experiments.evidence.runs import Runs
from minilora.experiments.evidence.settings import FULL, grid
from minilora.experiments.evidence.study import Contrast, Study
from minilora.experiments.pages import plots
from minilora.lora import LoraConfig, init_adapter
from minilora.model import forward

R = 16
RATE = 3e-3
PROBABILITIES = (0.0, 0.1, 0.2, 0.3, 0.5)
SIZES = (100, 200, 500, 2775)
SCARCE, AMPLE = 200, 2775
FIXED = {
    "r": R, "lora_alpha": 2.0 * R, "learning_rate": RATE, "batch_size": 16, "steps": 300,
    "evaluate_every": 10,  # without dropout the best step on 200 names comes within 30, and passes quickly
}  # fmt: skip
CELLS = [
    *grid(FIXED, n_train=SIZES, lora_dropout=PROBABILITIES),
    *grid(FIXED | FULL, n_train=[SCARCE, AMPLE], learning_rate=[3e-4, 1e-3, 3e-3]),
]
QUICK = grid(FIXED | {"steps": 150}, n_train=[SCARCE, AMPLE], lora_dropout=[0.0, 0.2, 0.5])


def _effect(runs: Runs, metric, n_train: int, p: float) -> np.ndarray:
    lora = runs.where(method="lora", n_train=n_train)
    return lora.per_seed(metric, lora_dropout=p) - lora.per_seed(metric, lora_dropout=0.0)


def _best_p(runs: Runs, n_train: int) -> np.ndarray:
    """The dropout with the lowest final validation loss, for each seed."""
    lora = runs.where(method="lora", n_train=n_train)
    tried = lora.values("lora_dropout")
    losses = np.array(plots.by(lora, "lora_dropout", tried, lambda run: run.final))
    return np.array(tried)[losses.argmin(0)]


def _evaluation_deviation(seed: int) -> float:
    """Largest difference between an evaluation and itself, one without dropout, and of one module's from its mean over
    all 2^6 masks of 6 inputs at p = 1/2 (a kept one is doubled); small integers make those sums exact.
    """
    base, rng = load_base(), np.random.default_rng(seed)
    tokens = names_task("female", 20, seed)[0].inputs
    adapter = init_adapter(base.params, LoraConfig(r=4, lora_dropout=0.5, init_lora_weights=False), rng)
    plain = dataclasses.replace(adapter, config=LoraConfig(r=4, init_lora_weights=False))
    once, again, without = (forward(base.params, tokens, base.config, adapter=one) for one in (adapter, adapter, plain))
    x, weight, A, B = (rng.integers(-4, 5, shape).astype(float) for shape in ((1, 6), (7, 6), (3, 6), (7, 3)))
    masks = 2.0 * np.array(list(itertools.product((0, 1), repeat=6)))
    module = [ops.lora_linear(x, weight, None, A, B, 2.0, mask) for mask in (None, *masks[:, None])]
    off = np.mean(module[1:], axis=0) - module[0]
    return float(max(np.abs(difference).max() for difference in (once - again, once - without, off)))


REGIME = f"female first names, r={R}, all six linear modules, alpha = 2r, rate {RATE:g}"
CONTRASTS = [
    Contrast(
        claim="D1",
        prediction="scarce data: final minus best validation loss is smaller at p=0.5 than at p=0",
        plain="with 200 names, p=0.5 overfits {effect} nats {less/more} than p=0",
        smallest_effect=0.05,
        unit="nats per letter",
        measure=lambda runs: -_effect(runs, lambda run: run.overfit, SCARCE, 0.5),
        regime=REGIME + ", 200 names",
    ),
    Contrast(
        claim="D2",
        prediction="ample data: the final training loss is higher at p=0.5 than at p=0",
        plain="with 2,775 names, p=0.5 ends {effect} nats {above/below} p=0 in training loss",
        smallest_effect=0.02,
        unit="nats per letter",
        measure=lambda runs: _effect(runs, lambda run: run.final_train, AMPLE, 0.5),
        regime=REGIME + ", 2,775 names",
    ),
    Contrast(
        claim="D3",
        prediction="the p with the lowest final validation loss is higher with 100 names than with 2,775",
        plain="the best p is {effect} {higher/lower} with 100 names than with 2,775",
        smallest_effect=0.1,
        unit="dropout probability",
        measure=lambda runs: _best_p(runs, 100) - _best_p(runs, AMPLE),
        regime=REGIME,
    ),
    Contrast(
        claim="D4",
        prediction="evaluation is the same to the bit each time, is that of no dropout, and is the mean over all masks",
        plain="evaluation deviates by {effect}",
        smallest_effect=0.0,
        unit="deviation",
        measure=lambda runs: np.array([_evaluation_deviation(seed) for seed in runs.values("seed")]),
        exact=True,
        regime="any model whose dropout rescales; the mean over masks is taken for one module, at p = 1/2",
    ),
]


def _panel(ax, runs: Runs, n_train: int, title: str) -> None:
    of = runs.where(n_train=n_train)
    lora = of.where(method="lora")
    tried = lora.values("lora_dropout")
    for metric, label, color, style in (
        (lambda run: run.final, "validation,\nat the end", plots.VALIDATION, "-"),
        (lambda run: run.best, "validation,\nat its best", plots.VALIDATION, ":"),
        (lambda run: run.final_train, "training,\nat the end", plots.TRAIN, "-"),
    ):
        plots.line(ax, tried, plots.by(lora, "lora_dropout", tried, metric), label, color, style=style)
    plots.level(ax, plots.start_of(of), "base,\nnot adapted", plots.BASE)
    full = of.where(method="full")
    if full:
        plots.level(ax, full.tuned(lambda run: run.best), "full fine-tuning,\nat its best", plots.FULL)
    ax.set(
        title=title, xlabel="dropout probability p", ylabel="loss (nats per letter)", xlim=(-0.03, 0.78), xticks=tried
    )


def _by_size(ax, runs: Runs) -> None:
    lora = runs.where(method="lora")
    sizes, tried = lora.values("n_train"), lora.values("lora_dropout")
    shades = np.linspace(0.5, 1.0, len(sizes))
    for n_train, shade in zip(sizes, shades, strict=True):
        gains = [_effect(runs, lambda run: run.final, n_train, p) for p in tried]
        color = tuple(1 - shade * (1 - np.array(plots.mpl.colors.to_rgb(plots.VALIDATION))))
        plots.line(ax, tried, gains, f"{n_train:,} names", color)
    ax.axhline(0, color=plots.PREDICTION, lw=1, zorder=0)
    ax.set(title="Fewer names, more help", xlabel="dropout probability p", xlim=(-0.03, 0.78), xticks=tried,
           ylabel="final validation loss, against p = 0")  # fmt: skip


def draw(runs: Runs, samples):
    """The figure of the study."""
    made, axes = plots.figure(1, 3, 4.4, "Dropout holds back overfitting on scarce data and learning on ample data")
    _panel(axes[0, 0], runs, SCARCE, "200 names")
    _panel(axes[0, 1], runs, AMPLE, "2,775 names")
    _by_size(axes[0, 2], runs)
    return made


STUDY = Study(
    name="dropout",
    question="How much dropout, for how much data?",
    cells=CELLS,
    quick_cells=QUICK,
    contrasts=CONTRASTS,
    draw=draw,
    headline=True,
    tuned=[{"method": "full", "n_train": n_train} for n_train in (SCARCE, AMPLE)],
    samples={
        "p=0, 200 names": {"n_train": SCARCE, "lora_dropout": 0.0, "method": "lora"},
        "p=0.5, 200 names": {"n_train": SCARCE, "lora_dropout": 0.5},
    },
)
