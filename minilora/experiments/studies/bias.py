"""Training biases beside the factors: what it adds on ample data and on scarce (B1)."""

from minilora.experiments.evidence.runs import BEST, FINAL_TRAIN, OVERFIT, Metric, Runs
from minilora.experiments.evidence.settings import grid
from minilora.experiments.evidence.study import Contrast, Study
from minilora.experiments.pages import plots

MODES = ("none", "lora_only", "all")
RATES = (1e-3, 3e-3, 1e-2)
SCARCE = {"n_train": 200, "batch_size": 16, "steps": 300, "evaluate_every": 30, "r": 4, "lora_alpha": 8.0}
AMPLE = SCARCE | {"n_train": 2775, "evaluate_every": 75}
SHARED = 3e-3
CELLS = [
    *grid(SCARCE, bias=MODES, learning_rate=(3e-4, *RATES)),
    *grid(AMPLE, bias=MODES, learning_rate=(*RATES, 3e-2)),
]
QUICK = [cell for data in (SCARCE, AMPLE) for cell in grid(data | {"steps": 100}, bias=MODES, learning_rate=[SHARED])]


def _effect(runs: Runs, data, metric: Metric, tuned: bool = True):
    """What training all biases adds to the metric."""
    at = runs.where(n_train=data["n_train"])
    at = at if tuned else at.where(learning_rate=SHARED)
    return at.tuned(metric, bias="all") - at.tuned(metric, bias="none")


REGIME = "female first names, r=4, alpha = 8, all six linear modules; the figure has the parameter counts"
CONTRASTS = [
    Contrast(
        claim="B1",
        prediction="ample data: training all biases too lowers the final training loss",
        plain="with 2,775 names, all biases end {effect} nats {below/above} none in training loss",
        smallest_effect=0.005,
        unit="nats per letter",
        measure=lambda runs: -_effect(runs, AMPLE, FINAL_TRAIN),
        variants={
            "by the best validation loss": lambda runs: -_effect(runs, AMPLE, BEST),
            f"one rate, {SHARED:g}": lambda runs: -_effect(runs, AMPLE, FINAL_TRAIN, tuned=False),
        },
        regime=REGIME + ", 2,775 names, rates tuned",
    ),
    Contrast(
        claim="B1",
        prediction=f"scarce data: training all biases too raises final minus best validation loss, at rate {SHARED:g}",
        plain="with 200 names, all biases overfit {effect} nats {more/less} than none",
        smallest_effect=0.005,
        unit="nats per letter",
        measure=lambda runs: _effect(runs, SCARCE, OVERFIT, tuned=False),
        variants={"rates tuned": lambda runs: _effect(runs, SCARCE, OVERFIT)},
        regime=REGIME + ", 200 names, one rate for both",
    ),
]


def _panel(ax, runs: Runs, data, title: str) -> None:
    at = runs.where(n_train=data["n_train"], learning_rate=SHARED)
    counts = [at.where(bias=mode)[0].trainable for mode in MODES]
    for label, metric, color, style in plots.LOSSES:
        plots.line(ax, range(3), [at.per_seed(metric, bias=mode) for mode in MODES], label, color, style=style)
    ax.set_xticks(range(3), [f"{mode}\n{count:,}" for mode, count in zip(MODES, counts, strict=True)])
    ax.set(
        title=title,
        ylabel="loss (nats per letter)",
        xlim=(-0.2, 3.0),
        xlabel="biases that train, and all parameters that do",
    )


def draw(runs: Runs, samples):
    """The figure of the study."""
    made, axes = plots.figure(1, 2, 4.4, f"Training biases changes little either way (rate {SHARED:g})")
    _panel(axes[0, 0], runs, SCARCE, "200 names")
    _panel(axes[0, 1], runs, AMPLE, "2,775 names")
    return made


STUDY = Study(
    name="bias",
    question="Does it pay to train biases too?",
    cells=CELLS,
    quick_cells=QUICK,
    contrasts=CONTRASTS,
    draw=draw,
    tuned=[{"n_train": data["n_train"], "bias": mode} for data in (SCARCE, AMPLE) for mode in MODES],
)
