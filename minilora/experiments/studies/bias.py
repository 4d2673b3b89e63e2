"""Training biases beside the factors: what it adds on ample data and on scarce (B1)."""

from minilora.experiments.evidence.measures import difference, one_rate
from minilora.experiments.evidence.runs import BEST, FINAL_TRAIN, OVERFIT, Runs
from minilora.experiments.evidence.settings import grid
from minilora.experiments.evidence.study import Contrast, Study
from minilora.experiments.pages import plots

MODES = ("none", "lora_only", "all")
RATES = (1e-3, 3e-3, 1e-2)
SHARED = 3e-3
SCARCE, AMPLE = 200, 2775  # names
ON_SCARCE = {"n_train": SCARCE, "batch_size": 16, "steps": 300, "evaluate_every": 30, "r": 4, "lora_alpha": 8.0}
ON_AMPLE = ON_SCARCE | {"n_train": AMPLE, "evaluate_every": 75}
CELLS = [
    *grid(ON_SCARCE, bias=MODES, learning_rate=(3e-4, *RATES)),
    *grid(ON_AMPLE, bias=MODES, learning_rate=(*RATES, 3e-2)),
]
BRIEF = {"steps": 100}
QUICK = [*grid(ON_SCARCE | BRIEF, bias=MODES, learning_rate=[SHARED]),
         *grid(ON_AMPLE | BRIEF, bias=MODES, learning_rate=[SHARED])]  # fmt: skip
NONE, ALL = {"bias": "none"}, {"bias": "all"}
GAINED = difference(FINAL_TRAIN, NONE, ALL, n_train=AMPLE)


REGIME = "female first names, r=4, alpha = 8, all six linear modules; the figure has the parameter counts"
CONTRASTS = [
    Contrast(
        claim="B1",
        prediction="ample data: training all biases too lowers the final training loss",
        plain="with 2,775 names, all biases end {effect} nats {below/above} none in training loss",
        smallest_effect=0.005,
        measure=GAINED,
        variants={"by the best validation loss": difference(BEST, NONE, ALL, n_train=AMPLE)} | one_rate(SHARED, GAINED),
        regime=REGIME + ", 2,775 names, rates tuned",
    ),
    Contrast(
        claim="B1",
        prediction=f"scarce data: training all biases too raises final minus best validation loss, at rate {SHARED:g}",
        plain="with 200 names, all biases overfit {effect} nats {more/less} than none",
        smallest_effect=0.005,
        measure=difference(OVERFIT, ALL, NONE, n_train=SCARCE, learning_rate=SHARED),
        variants={"rates tuned": difference(OVERFIT, ALL, NONE, n_train=SCARCE)},
        regime=REGIME + ", 200 names, one rate for both",
    ),
]


def _panel(ax, runs: Runs, n_train: int, title: str) -> None:
    at = runs.where(n_train=n_train, learning_rate=SHARED)
    plots.losses(ax, at, "bias", places={mode: i for i, mode in enumerate(MODES)})
    ax.set_xticks(range(3), [f"{mode}\n{at.where(bias=mode)[0].trainable:,}" for mode in MODES])
    ax.set(title=title, xlim=(-0.2, 3.0), xlabel="biases that train, and all parameters that do")


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
    tuned=grid({}, n_train=[SCARCE, AMPLE], bias=MODES),
)
