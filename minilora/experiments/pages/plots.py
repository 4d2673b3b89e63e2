"""The visual language of the figures: one meaning per colour, lines labelled at their ends, byte-identical SVG."""

import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from minilora.experiments.evidence.runs import BEST, FINAL, FINAL_TRAIN, Runs
from minilora.experiments.evidence.stats import estimate
from minilora.files import replace_file

# Okabe and Ito, "Color Universal Design" (2008)
TRAIN, VALIDATION, FULL, BASE = "#0072B2", "#D55E00", "#009E73", "#555555"
PREDICTION = "#BBBBBB"
END_LABEL = "end-label"
Numbers = Sequence[float] | np.ndarray
Columns = Sequence[np.ndarray] | np.ndarray  # one (seeds,) for each place on the x axis
OTHER = "#CC79A7"
STYLE = {
    "svg.hashsalt": "minilora",  # element ids from this and not from a random number
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",  # ships with matplotlib
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titlepad": 15,
    "axes.titleweight": "bold",
    "lines.linewidth": 1.8,
    "lines.markersize": 4.5,
    "axes.formatter.useoffset": False,
}


def paler(color: str, strength: float) -> tuple[float, ...]:
    """The colour mixed with white: 1 is the colour itself, 0 is white."""
    return tuple(1 - strength * (1 - np.array(mpl.colors.to_rgb(color))))


def figure(n_rows: int, n_columns: int, height: float, title: str) -> tuple[Figure, np.ndarray]:
    """A figure 10 inches wide (800 px at 80 dpi) with a sentence on top, and its axes (n_rows, n_columns)."""
    made = Figure(figsize=(10, height), layout="constrained")
    axes = made.subplots(n_rows, n_columns, squeeze=False)
    made.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    made.get_layout_engine().set(w_pad=0.12, h_pad=0.08)
    return made, axes


def to_svg(draw: Callable[..., Figure], *arguments) -> str:
    """What `draw(*arguments)` draws as SVG, the same bytes for the same numbers."""
    text = io.StringIO()
    with mpl.rc_context({**mpl.rcParamsDefault, **STYLE}):
        made = draw(*arguments)
        for ax in made.axes:
            _place_labels(ax)
        FigureCanvasSVG(made).print_svg(text, metadata={"Date": None, "Creator": "minilora"})
    return text.getvalue()


@dataclass(frozen=True)
class Saved:
    """A drawing that was written to a file, which notebooks show."""

    svg: str

    def _repr_svg_(self) -> str:
        return self.svg


def save(draw: Callable[..., Figure], path: str | os.PathLike, *arguments) -> Saved:
    """Write what `draw(*arguments)` draws as SVG."""
    svg = to_svg(draw, *arguments)
    replace_file(path, svg)
    return Saved(svg)


def line(ax: Axes, x: Numbers, columns: Columns, label: str, color, *, style="-", marker="o") -> None:
    """Mean over seeds with its 95 % interval as a band, labelled at its right end.

    `columns` has one array (seeds,) for each x; seeds that diverged are left out and counted.
    """
    finite = [column[np.isfinite(column)] for column in columns]
    kept = [(place, estimate(values)) for place, values in zip(x, finite, strict=True) if len(values)]
    if not kept:
        return
    places = [place for place, _ in kept]
    means, low, high = ([getattr(one, name) for _, one in kept] for name in ("mean", "low", "high"))
    ax.plot(places, means, style, marker=marker, color=color)
    if np.isfinite(low).all():
        ax.fill_between(places, low, high, color=color, alpha=0.18, lw=0)
    for place, column, values in zip(x, columns, finite, strict=True):
        if len(values) < len(column):
            y = values.mean() if len(values) else means[-1]
            ax.annotate(f"\N{MULTIPLICATION SIGN} {len(column) - len(values)} diverged", (place, y), (0, 6),
                        textcoords="offset points", color=color, ha="center", fontsize=8)  # fmt: skip
    ax.annotate(label, (places[-1], means[-1]), (7, 0), textcoords="offset points", color=color, va="center",
                fontsize=9, gid=END_LABEL)  # fmt: skip


def curve(ax: Axes, runs: Runs, what: str, label: str, color, *, style="-") -> list[float]:
    """What runs measured on their way ("train_loss" ...), without those that diverged; the means that are drawn."""
    kept = [run for run in runs if not run.diverged]
    if not kept:
        return []
    columns = [np.array([getattr(run, what)[i] for run in kept]) for i in range(len(kept[0].step))]
    line(ax, kept[0].step, columns, label, color, style=style, marker="")
    return [float(column.mean()) for column in columns]


def steps_axis(ax: Axes, runs: Runs, what: str) -> None:
    """An x axis for steps, with room for labels at the right, and a y axis for a loss."""
    last = runs[0].settings.steps
    ax.set(xlabel="step", ylabel=f"{what} (nats per letter)", xlim=(0, last * 1.45), xticks=range(0, last + 1, 50))


def _place_labels(ax: Axes) -> None:
    """Move the labels at the ends of lines apart where they would overlap, keeping their order."""
    labels = [text for text in ax.texts if text.get_gid() == END_LABEL]
    if not labels:
        return
    height = ax.get_figure().get_figheight() * 72 * 0.72 / ax.get_subplotspec().get_gridspec().nrows  # points, about
    low, high = ax.transScale.transform([(1, y) for y in ax.get_ylim()])[:, 1]
    wanted = [(ax.transScale.transform((1, text.xy[1]))[1] - low) / (high - low) * height for text in labels]
    half = np.array([6.5 * (1 + text.get_text().count("\n")) for text in labels])
    order = np.argsort(wanted, kind="stable")
    place = np.array(wanted)
    for _ in range(200):  # push neighbours that overlap apart, each by half of it
        for lower, upper in pairwise(order):
            overlap = half[lower] + half[upper] - (place[upper] - place[lower])
            if overlap > 0:
                place[lower] -= overlap / 2
                place[upper] += overlap / 2
        place = np.maximum(place, half)
    for text, at, before in zip(labels, place, wanted, strict=True):
        text.set_position((7, at - before))


def level(ax: Axes, values: np.ndarray, label: str, color: str, *, far: bool = True) -> None:
    """A horizontal line at a mean over seeds, as long as the lines drawn before it, labelled at its right end.

    Far above what is drawn already it would flatten the rest: then a note on top replaces it, unless `far` is False.
    """
    finite = values[np.isfinite(values)]
    if not len(finite):
        return
    mean = float(np.mean(finite))
    x, y = (np.concatenate([np.asarray(one, float) for one in data]) for data in zip(*_drawn(ax), strict=True))
    if far and mean - max(y) > 0.5 * (max(y) - min(y)):
        note = f"\N{UPWARDS ARROW} {label.replace(chr(10), ' ')}: {mean:.2f}"
        ax.annotate(note, (0, 1), (0, 2), xycoords="axes fraction", textcoords="offset points", color=color, fontsize=9)
        return
    ax.plot([min(x), max(x)], [mean, mean], ls="--", color=color, lw=1.3, zorder=1)
    ax.annotate(label, (max(x), mean), (7, 0), textcoords="offset points", color=color, va="center", fontsize=9,
                gid=END_LABEL)  # fmt: skip


def _drawn(ax: Axes) -> list[tuple]:
    """(x, y) of every line so far; a point at the origin where there is none."""
    return [one.get_data() for one in ax.lines] or [([0.0], [0.0])]


LOSSES = (
    ("validation,\nat the end", FINAL, VALIDATION, "-"),
    ("validation,\nat its best", BEST, VALIDATION, ":"),
    ("training,\nat the end", FINAL_TRAIN, TRAIN, "-"),
)


def losses(ax: Axes, runs: Runs, over: str, lines=LOSSES, places: Mapping[Any, float] | None = None) -> list:
    """Losses against a setting, as lines, tuned where runs are at several rates; their places on the x axis.

    `places` says where which value of the setting stands; without it each stands at itself.
    """
    x = {value: value for value in runs.values(over)} if places is None else places
    for label, metric, color, style in lines:
        line(ax, list(x.values()), runs.over(over, metric, list(x)), label, color, style=style)
    ax.set_ylabel("loss (nats per letter)")
    return list(x.values())


def base_level(ax: Axes, runs: Runs, *, far: bool = True) -> None:
    """The loss before any training, of the first run of each seed: all of them start at the base."""
    first = {run.settings.seed: run for run in reversed(runs)}
    level(ax, np.array([first[seed].start for seed in sorted(first)]), "base,\nnot adapted", BASE, far=far)


def references(ax: Axes, runs: Runs, full: str = "full fine-tuning,\nat its best", *, far: bool = True) -> None:
    """The levels that losses stand between: the base before training, and full fine-tuning where it was run."""
    base_level(ax, runs, far=far)
    if runs.where(method="full"):
        level(ax, runs.tuned(BEST, method="full"), full, FULL)


def rates_axis(ax: Axes, rates: Sequence[float], room: float = 6.0) -> None:
    """A logarithmic x axis for learning rates, and room for labels at the right."""
    ax.set_xscale("log")
    ax.set(xlim=(min(rates) / 1.6, max(rates) * room), xlabel="learning rate")
    ax.set_xticks(list(rates), [f"{rate:g}" for rate in rates], fontsize=8)
    ax.set_xticks([], minor=True)


def ranking(ax: Axes, values: Mapping[str, np.ndarray], reference: str, label: str, color=VALIDATION) -> None:
    """How far each name's values lie from the reference's, paired by seed: a dot with its 95 % interval, lowest on top.

    Names without a finite value are left out.
    """
    finite = {name: column for name, column in values.items() if np.isfinite(column).all()}
    if reference not in finite:
        ax.set_xlabel(f"{label}: runs of {reference} diverged")
        return
    against = {name: column - finite[reference] for name, column in finite.items()}
    order = sorted(against, key=lambda name: float(np.mean(against[name])))
    for y, name in enumerate(order):
        mean, low, high, _ = estimate(against[name])
        if np.isfinite(low):
            ax.plot([low, high], [y, y], "-", color=color, lw=1.4)
        ax.plot([mean], [y], "o", color=color, mfc=color if name == reference else "white")
    ax.axvline(0, color=PREDICTION, lw=1, zorder=0)
    ax.set_yticks(range(len(order)), order, fontsize=8)
    for tick, name in zip(ax.get_yticklabels(), order, strict=True):
        tick.set_fontweight("bold" if name == reference else "normal")
    ax.set_ylim(len(order) - 0.5, -0.5)
    ax.set_xlabel(label)
    ax.locator_params(axis="x", nbins=6)
    ax.grid(axis="y", color="#EEEEEE")
    ax.set_axisbelow(True)


def powers_of_two(ax: Axes, values: Numbers, label: str, room: float = 1.9) -> None:
    """A base-2 logarithmic x axis with these ticks, and room for labels at the right."""
    ax.set_xscale("log", base=2)
    ax.set_xticks(list(values), [{0.25: "¼", 0.5: "½"}.get(value, f"{value:g}") for value in values])
    ax.set_xticks([], minor=True)
    ax.set_xlim(min(values) / 1.5, max(values) * room**2)
    ax.set_xlabel(label)


def names_table(ax: Axes, samples: Mapping[str, Sequence[str]], title: str, n: int = 10) -> None:
    """Names that models write, as text: one column a model."""
    ax.axis("off")
    ax.set_title(title)
    for i, (label, written) in enumerate(samples.items()):
        x = i / len(samples)
        ax.text(x, 0.97, label, transform=ax.transAxes, fontsize=8, fontweight="bold", va="top")
        ax.text(x, 0.84, "\n".join(written[:n]), transform=ax.transAxes, fontsize=9, va="top", linespacing=1.6)
