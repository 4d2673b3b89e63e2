"""Figures: the same bytes for the same numbers, whoever draws them; and every shipped study can be drawn."""

import hashlib
import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest

from minilora.experiments.evidence.runs import BEST, FINAL, MissingRunsError
from minilora.experiments.pages import plots
from minilora.experiments.studies import load_studies, search

from .. import tiny

STUDIES = load_studies()
shipped = pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES)
quick_and_full = pytest.mark.parametrize("quick", [True, False], ids=["quick", "full"])
# Differences of infinite losses are NaN; the command ignores these warnings too.
infinities = pytest.mark.filterwarnings("ignore::RuntimeWarning")
NAMES = {"base,\nnot adapted": ["smith", "jones"], "r=8": ["mary", "ann"]}


def tiny_svg() -> str:
    """A figure with text, bands and labels."""
    return plots.to_svg(tiny.TINY.draw, tiny.fabricated(tiny.TINY), {})


def test_the_same_numbers_give_the_same_bytes():
    assert tiny_svg() == tiny_svg()
    other = plots.to_svg(tiny.TINY.draw, tiny.fabricated(tiny.TINY, n_seeds=5), {})
    assert other != tiny_svg()
    assert "<dc:date>" not in other


def test_another_process_with_a_matplotlibrc_of_its_own_draws_the_same_bytes(tmp_path):
    (tmp_path / "matplotlibrc").write_text("font.size: 20\nsvg.fonttype: none\naxes.grid: True\nlines.linewidth: 9\n")
    program = "import sys; from experiments.pages.test_plots import tiny_svg; sys.stdout.write(tiny_svg())"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True,
        env=os.environ | {"MATPLOTLIBRC": str(tmp_path), "PYTHONHASHSEED": "7"},
    )  # fmt: skip
    assert hashlib.sha256(done.stdout.encode()).hexdigest() == hashlib.sha256(tiny_svg().encode()).hexdigest()


def test_the_users_settings_of_matplotlib_neither_matter_nor_change():
    plain = tiny_svg()
    mine = {"font.size": 20.0, "axes.grid": True, "svg.hashsalt": "mine", "lines.linewidth": 9.0, "savefig.dpi": 300.0}
    with mpl.rc_context(mine):
        assert tiny_svg() == plain
        assert {name: mpl.rcParams[name] for name in mine} == mine


def test_colours_have_one_meaning_each():
    colours = [plots.TRAIN, plots.VALIDATION, plots.FULL, plots.BASE, plots.PREDICTION, plots.OTHER]
    assert len(set(colours)) == len(colours)


@pytest.fixture(autouse=True)
def _few_searches(monkeypatch):
    """Looked-up searches take most of the time of these tests; two of them draw the same things."""
    monkeypatch.setattr(search, "N_REPEATS", 2)


# --- the parts ---


def _axes():
    made, axes = plots.figure(1, 1, 3, "A title")
    return made, axes[0, 0]


def test_a_line_is_the_mean_with_its_interval():
    _, ax = _axes()
    plots.line(ax, [1, 2], [np.array([1.0, 2.0, 3.0]), np.array([5.0, 5.0, 5.0])], "here", plots.TRAIN)
    (drawn,) = ax.lines
    assert drawn.get_ydata().tolist() == [2.0, 5.0]
    (band,) = ax.collections
    half = 4.302653 / 3**0.5  # Student's t at 0.975 with 2 degrees of freedom
    lows_and_highs = band.get_paths()[0].vertices[:, 1]
    assert (lows_and_highs.min(), lows_and_highs.max()) == pytest.approx((2 - half, 5.0), rel=1e-6)
    (label,) = ax.texts
    assert (label.get_text(), label.xy) == ("here", (2, 5.0))


def test_a_line_leaves_out_what_diverged():
    _, ax = _axes()
    inf = np.inf
    columns = [np.array([1.0, inf, 3.0]), np.array([inf, inf, inf]), np.array([np.nan, 4.0, 4.0])]
    plots.line(ax, [1, 2, 4], columns, "", plots.TRAIN)
    assert ax.lines[0].get_xdata().tolist() == [1, 4]
    assert ax.lines[0].get_ydata().tolist() == [2.0, 4.0]
    plots.line(ax, [1], [np.array([inf])], "", plots.TRAIN)
    assert len(ax.lines) == 1, "nothing to draw"


def test_a_curve_leaves_out_what_diverged():
    _, ax = _axes()
    sound, diverged = tiny.fabricate(tiny.settings()), tiny.fabricate(tiny.settings(seed=1), diverged=True)
    means = plots.curve(ax, plots.Runs([sound, diverged]), "train_loss", "", plots.TRAIN)
    assert means == pytest.approx(sound.train_loss)
    assert ax.lines[0].get_xdata().tolist() == list(sound.step)
    assert plots.curve(ax, plots.Runs([diverged]), "train_loss", "", plots.TRAIN) == []


def test_a_ranking_is_of_differences_paired_by_seed():
    _, ax = _axes()
    default = np.array([1.0, 2.0, 3.0])
    values = {
        "default": default,
        "worse": default + np.array([0.1, 0.2, 0.3]),
        "better": default - 1,
        "lost": default * np.inf,
    }
    plots.ranking(ax, values, "default", "loss")
    assert [label.get_text() for label in ax.get_yticklabels()] == ["better", "default", "worse"]
    dots = [line.get_xdata()[0] for line in ax.lines if line.get_marker() == "o"]
    assert dots == pytest.approx([-1.0, 0.0, 0.2])
    plots.ranking(_axes()[1], {"default": default * np.nan, "other": default}, "default", "loss")


def test_one_seed_has_no_band():
    _, ax = _axes()
    plots.line(ax, [1, 2], [np.array([1.0]), np.array([2.0])], "", plots.TRAIN)
    assert not ax.collections


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_labels_at_the_ends_of_lines_do_not_overlap(scale):
    """Four lines that end in nearly the same place: their labels keep the order of the lines, one below the other."""

    def draw():
        made, ax = _axes()
        ax.set_yscale(scale)
        for i in (2, 0, 3, 1):
            plots.line(ax, [0, 1], [np.array([1.0 + i]), np.array([1.0 + 0.001 * i])], str(i), plots.TRAIN)
        kept.append(made)
        return made

    kept = []
    plots.to_svg(draw)
    made = kept[0]
    boxes = {text.get_text(): text.get_window_extent() for text in made.axes[0].texts}
    for below, above in zip("012", "123", strict=True):
        assert boxes[below].y1 <= boxes[above].y0 + 1


@pytest.mark.parametrize("places", [None, {2: 0, 1: 5}])
def test_losses_are_drawn_over_a_setting(places):
    _, ax = _axes()
    runs = tiny.fabricated(tiny.TINY)
    assert plots.losses(ax, runs, "r", places=places) == ([1, 2] if places is None else [0, 5])
    by_rank = dict(zip((1, 2), runs.over("r", FINAL).mean(1), strict=True))
    final, best, training = ax.lines
    assert final.get_ydata().tolist() == pytest.approx([by_rank[r] for r in places or (1, 2)])
    assert (final.get_color(), best.get_color(), training.get_color()) == (plots.VALIDATION,) * 2 + (plots.TRAIN,)


def test_references_are_the_base_and_full_fine_tuning_at_its_best():
    _, ax = _axes()
    lora = tiny.fabricated(tiny.TINY, n_seeds=2)
    full = [tiny.fabricate(tiny.settings(method="full", seed=seed, learning_rate=rate))
            for rate in (1e-3, 1e-2) for seed in (0, 1)]  # fmt: skip
    plots.references(ax, plots.Runs([*lora, *full]), "full", far=False)
    base, tuned = ax.lines
    assert base.get_ydata()[0] == np.mean([run.validation_loss[0] for run in lora if run.settings.r == 1])
    assert tuned.get_ydata()[0] == plots.Runs(full).tuned(BEST).mean()
    _, ax = _axes()
    plots.references(ax, lora, far=False)
    assert len(ax.lines) == 1


def test_a_paler_colour_lies_between_it_and_white():
    assert plots.paler("#000000", 1.0) == (0, 0, 0)
    assert plots.paler("#000000", 0.25) == (0.75, 0.75, 0.75)


# --- the shipped studies, drawn from runs that were never done ---


def _some_diverged(settings) -> bool:
    return (settings.seed + settings.r) % 5 == 1


def _high_rates_diverged(settings) -> bool:
    return settings.learning_rate > 3e-3


def _draw(study, runs) -> str:
    samples = NAMES if study.samples else {}
    return plots.to_svg(study.draw, runs, samples)


@shipped
@quick_and_full
def test_a_shipped_study_can_be_drawn(study, quick):
    """All in SVG that is well-formed, 10 inches wide, the same when drawn again."""
    runs = tiny.fabricated(study, quick=quick)
    text = _draw(study, runs)
    assert ElementTree.fromstring(text).get("width") == "720pt"
    assert text == _draw(study, runs)


@shipped
def test_a_shipped_study_can_be_drawn_from_one_seed(study):
    _draw(study, tiny.fabricated(study, n_seeds=1, quick=True))


@infinities
@shipped
@quick_and_full
@pytest.mark.parametrize("diverged", [_some_diverged, _high_rates_diverged])
def test_a_shipped_study_can_be_drawn_where_runs_diverged(study, quick, diverged):
    runs = tiny.fabricated(study, quick=quick, diverged=diverged)
    if any(run.diverged for run in runs):
        _draw(study, runs)


@infinities
@shipped
@quick_and_full
@pytest.mark.parametrize("diverged", [lambda settings: False, _some_diverged], ids=["sound", "diverged"])
@pytest.mark.parametrize("n_seeds", [1, 8])
def test_a_contrast_is_one_number_a_seed_or_lacks_its_runs(study, quick, diverged, n_seeds):
    runs = tiny.fabricated(study, n_seeds, quick, diverged)
    found = []
    for measure in [one for contrast in study.contrasts for one in (contrast.measure, *contrast.variants.values())]:
        try:
            found.append(measure(runs))
        except MissingRunsError:
            assert quick, "the full version has all runs"
    assert found, "some claim can be looked at in the quick version too"
    for values in found:
        assert values.shape == (n_seeds,)
        if diverged is not _some_diverged:
            assert np.isfinite(values).all()
