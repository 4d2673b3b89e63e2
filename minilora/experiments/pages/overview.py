"""One picture of the whole ledger: every contrast's effect with its interval, and the verdict by colour and mark."""

import textwrap
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from minilora.experiments.evidence.ledger import Row

LOOKS = {"supported": ("#56B4E9", "o"), "inconclusive": ("#999999", "s"), "contradicted": ("#CC79A7", "D")}
INK = "#333333"
END = 30.0  # effects and bounds beyond this many smallest effects are drawn here
ROW_INCHES, HEAD_INCHES, FOOT_INCHES = 0.27, 0.85, 0.75
LETTERS = 84  # in a line of a prediction


def draw(claims: Sequence[Row]) -> Figure:
    """The figure; effects in units of the smallest one worth having."""
    lines = [(row, contrast) for row in claims for contrast in row["contrasts"]]
    inches = HEAD_INCHES + FOOT_INCHES + ROW_INCHES * len(lines)
    made = Figure(figsize=(10, inches))
    ax = made.add_axes((0.52, FOOT_INCHES / inches, 0.45, 1 - (HEAD_INCHES + FOOT_INCHES) / inches))
    for span, verdict in (((1, 2 * END), "supported"), ((-2 * END, 0), "contradicted")):
        ax.axvspan(*span, color=LOOKS[verdict][0], alpha=0.10, lw=0)
    for y, (row, contrast) in enumerate(lines):
        _mark(ax, y, contrast)
        ax.annotate(textwrap.fill(contrast["prediction"], LETTERS), (-0.015, y), xycoords=("axes fraction", "data"),
                    va="center", ha="right", ma="right", fontsize=6.5, linespacing=1.0)  # fmt: skip
        if contrast is row["contrasts"][0]:
            _begin_claim(ax, y, row)
    _frame(ax, len(lines))
    counts = {verdict: sum(row["verdict"] == verdict for row in claims) for verdict in LOOKS}
    title = f"{len(claims)} claims of the article: " + ", ".join(f"{n} {verdict}" for verdict, n in counts.items())
    made.suptitle(title, x=0.01, y=1 - 0.12 / inches, va="top", ha="left", fontsize=13, fontweight="bold")
    handles = [
        Line2D([], [], ls="", marker=mark, color=color, mec=INK, label=verdict)
        for verdict, (color, mark) in LOOKS.items()
    ]
    made.legend(
        handles=handles, ncols=3, loc="upper left", bbox_to_anchor=(0, 1 - 0.4 / inches), frameon=False, fontsize=9
    )
    return made


def _begin_claim(ax, y: int, row: Row) -> None:
    """A line above the claim's contrasts, and its id in the colour of its verdict."""
    ax.plot([-1.15, 1], [y - 0.5] * 2, color="#CCCCCC", lw=0.6, transform=ax.get_yaxis_transform(), clip_on=False)
    box = {"boxstyle": "round,pad=0.15", "fc": LOOKS[row["verdict"]][0], "ec": "none", "alpha": 0.45}
    ax.annotate(
        row["id"], (-1.14, y), xycoords=("axes fraction", "data"), va="center", fontsize=9, fontweight="bold", bbox=box
    )


def _mark(ax, y: int, contrast: Row) -> None:
    color, mark = LOOKS[contrast["verdict"]]
    numbers = [contrast["interval"][0], contrast["effect"], contrast["interval"][1]]
    if contrast["exact"]:
        ax.plot([2], [y], mark, color=color, mec=INK, mew=0.6, ms=6)
        holds = "holds to the bit" if contrast["verdict"] == "supported" else "does not hold"
        ax.annotate(f"exact: {holds}", (2.5, y), va="center", fontsize=7, color=INK)
    elif None in numbers:
        ax.annotate("no interval", (0.1, y), va="center", fontsize=7, color=INK)
    else:
        low, effect, high = (min(max(x / contrast["scale"], -END), END) for x in numbers)
        ax.plot([low, high], [y, y], "-", color=INK, lw=1.2, zorder=2)
        ax.plot([effect], [y], mark, color=color, mec=INK, mew=0.6, ms=6, zorder=3)


def _frame(ax, n: int) -> None:
    ax.axvline(0, color=INK, lw=0.8)
    ax.axvline(1, color=INK, lw=0.8, ls=":")
    ax.set_xscale("symlog", linthresh=1, linscale=0.8)
    ticks = [-30, -10, -3, -1, 0, 1, 3, 10, 30]
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.set_xticks([], minor=True)
    ax.set(xlim=(-END * 1.25, END * 1.25), ylim=(n - 0.5, -0.5), yticks=[])
    ax.set_xlabel(
        "effect, in units of the smallest one worth having (30: that or more)\n"
        "predicted direction to the right; what is allowed to lose something holds right of 0"
    )
    ax.spines["left"].set_visible(False)
