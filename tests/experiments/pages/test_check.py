"""--check's comparison: what counts as the same, and that each kind of difference is seen and named."""

import dataclasses
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from minilora.experiments.engine.provenance import versions
from minilora.experiments.evidence.runs import MEASURED, Runs, from_csv, to_csv
from minilora.experiments.pages.check import EFFECT_TOLERANCE, MEAN_TOLERANCE, compare
from minilora.experiments.pages.folder import write_study

from .. import tiny


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """The files of one study, as the command leaves them."""
    out = tmp_path_factory.mktemp("made")
    write_study(tiny.TINY, tiny.fabricated(tiny.TINY), {}, out, "", 1.0)
    return out


@pytest.fixture
def two(made, tmp_path):
    """Two folders with the same files: the committed ones and those of a rerun."""
    folders = SimpleNamespace(committed=tmp_path / "committed", rerun=tmp_path / "rerun")
    for folder in vars(folders).values():
        shutil.copytree(made, folder)
    return folders


def _compare(two, study=tiny.TINY):
    return compare(study, two.committed, two.rerun)


def _edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def _another_machine(two, part=("machine", "cpu_features"), value="other") -> None:
    path = two.committed / "provenance.json"
    provenance = json.loads(path.read_text())
    provenance["tiny"][part[0]][part[1]] = value
    path.write_text(json.dumps(provenance))


def _shift_losses(folder: Path, by: float) -> None:
    path = folder / "tiny.csv"
    runs = [
        dataclasses.replace(run, **{name: tuple(x + by for x in getattr(run, name))
                                    for name in ("train_loss", "validation_loss")})
        for run in from_csv(path.read_text())
    ]  # fmt: skip
    path.write_text(to_csv(Runs(runs)))


def _claims(folder: Path, **changes) -> None:
    """Change the row of the claim that is not exact."""
    path = folder / "claims.json"
    rows = json.loads(path.read_text())
    for row in rows:
        row["contrasts"] = [one | (changes if one["id"] == "R2" else {}) for one in row["contrasts"]]
    path.write_text(json.dumps(rows))


def _row(folder: Path):
    return next(row for row in json.loads((folder / "claims.json").read_text()) if row["id"] == "R2")


# --- on the same machine: bit for bit ---


def test_identical_files_are_the_same(two):
    found = _compare(two)
    assert found.same
    assert re.search(r"identical bit for bit: 16 runs, 48 rows, the claims and the figure", found.text)


@pytest.mark.parametrize("name", ["train_loss", "validation_loss"])
@pytest.mark.parametrize("where", ["committed", "rerun"])
def test_one_digit_of_a_loss_differs_and_its_place_is_named(two, name, where):
    path = getattr(two, where) / "tiny.csv"
    runs = list(from_csv(path.read_text()))
    losses = getattr(runs[5], name)
    runs[5] = dataclasses.replace(runs[5], **{name: (losses[0], losses[1] + 1e-15, losses[2])})
    path.write_text(to_csv(Runs(runs)))
    found = _compare(two)
    assert not found.same
    assert f"{name} of {runs[5].settings.label()}" in found.text


def test_a_digit_that_is_not_a_losss_differs(two):
    runs = list(from_csv((two.rerun / "tiny.csv").read_text()))
    runs[3] = dataclasses.replace(runs[3], trainable=runs[3].trainable + 1)
    (two.rerun / "tiny.csv").write_text(to_csv(Runs(runs)))
    found = _compare(two)
    assert not found.same
    assert "trainable" in found.text


def test_changed_claims_differ(two):
    _claims(two.committed, verdict="another")
    found = _compare(two)
    assert not found.same
    assert "claims" in found.text


def test_missing_claims_differ(two):
    (two.committed / "claims.json").unlink()
    assert not _compare(two).same


def test_a_changed_figure_differs(two):
    _edit(two.committed / "tiny.svg", "</svg>", "<!-- edited --></svg>")
    found = _compare(two)
    assert not found.same
    assert "figure" in found.text


def test_a_missing_figure_differs(two):
    (two.committed / "tiny.svg").unlink()
    found = _compare(two)
    assert not found.same
    assert "tiny.svg" in found.text


def test_figures_of_another_matplotlib_are_not_compared(two):
    _edit(two.committed / "tiny.svg", "</svg>", "<!-- edited --></svg>")
    _another_machine(two, ("versions", "matplotlib"), "0.1")
    found = _compare(two)
    assert found.same
    assert "figure not compared" in found.text


@pytest.mark.parametrize("name", ["tiny.csv", "tiny.svg", "claims.json", "provenance.json"])
@pytest.mark.parametrize("where", ["committed", "rerun"])
def test_line_ends_are_not_compared(two, name, where):
    """Git on Windows may write CRLF; that is no other number."""
    path = getattr(two, where) / name
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    found = _compare(two)
    assert found.same, found.text
    assert "the claims and the figure" in found.text


@pytest.mark.parametrize("where", ["committed", "rerun"])
def test_where_no_loss_differs_what_does_is_named(two, where):
    path = getattr(two, where) / "tiny.csv"
    runs = list(from_csv(path.read_text()))
    path.write_text(to_csv(Runs(runs[::-1])))
    assert "no loss does, but the order of the rows" in _compare(two).text
    runs[1] = dataclasses.replace(runs[1], floor=0.1)
    path.write_text(to_csv(Runs(runs)))
    assert "no loss does, but floor; on this machine" in _compare(two).text


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("tiny.csv", "a,b\n", "tiny.csv: columns: got"),
        ("claims.json", "[1]", "claims.json: claim 1: got 1, takes an object"),
        ("provenance.json", '{"tiny": 1}', "provenance.json: tiny: got 1, takes an object"),
    ],
)
def test_what_is_committed_and_cannot_be_read_differs_and_is_named(two, name, content, says):
    """The comparison with what other studies have there goes on."""
    (two.committed / name).write_text(content)
    found = _compare(two)
    assert not found.same
    assert f"{two.committed}/{says}" in found.text


# --- runs that one side lacks ---


def test_a_missing_csv_differs(two):
    (two.committed / "tiny.csv").unlink()
    found = _compare(two)
    assert not found.same
    assert f"{two.committed / 'tiny.csv'} is not there" in found.text


@pytest.mark.parametrize(("where", "text"), [("rerun", "1 stored runs"), ("committed", "1 new ones")])
@pytest.mark.parametrize("other", [False, True], ids=["same machine", "another"])
def test_runs_of_one_side_only_differ(two, where, text, other):
    if other:
        _another_machine(two)
    path = getattr(two, where) / "tiny.csv"
    path.write_text(to_csv(Runs(from_csv(path.read_text())[1:])))
    found = _compare(two)
    assert not found.same
    assert text in found.text


# --- on another machine, or with other versions: within tolerance ---


@pytest.mark.parametrize(
    "part", [("machine", "cpu_features"), ("machine", "blas"), ("versions", "numpy"), ("versions", "autograd")]
)
def test_losses_of_another_machine_may_differ_a_little(two, part):
    _shift_losses(two.rerun, 0.9 * MEAN_TOLERANCE)
    assert not _compare(two).same
    _another_machine(two, part)
    found = _compare(two)
    assert found.same
    assert "another machine" in found.text


@pytest.mark.parametrize("stored", ["0.1", None])
def test_the_version_of_a_package_counts_where_it_decides_the_numbers(two, stored):
    """Searches of another Optuna ask for other points, which no run notices."""
    searching = dataclasses.replace(tiny.TINY, packages=["optuna"])
    _another_machine(two, ("versions", "optuna"), versions(["optuna"])["optuna"])
    assert "bit for bit" in _compare(two, searching).text
    _another_machine(two, ("versions", "optuna"), stored)
    assert "bit for bit" in _compare(two).text
    assert "other versions" in _compare(two, searching).text


@pytest.mark.parametrize("sign", [1, -1])
def test_losses_of_another_machine_may_not_differ_much(two, sign):
    _another_machine(two)
    _shift_losses(two.rerun, 1.1 * sign * MEAN_TOLERANCE)
    assert not _compare(two).same


@pytest.mark.parametrize(("share", "same"), [(0.9, True), (-0.9, True), (1.1, False), (-1.1, False)])
def test_an_effect_may_move_by_half_the_half_width(two, share, same):
    _another_machine(two)
    row = _row(two.committed)
    half = max((row["interval"][1] - row["interval"][0]) / 2, 0.01)
    _claims(two.rerun, effect=row["effect"] + share * EFFECT_TOLERANCE * half)
    assert _compare(two).same == same


def test_without_provenance_tolerances_apply(two):
    (two.committed / "provenance.json").unlink()
    assert _compare(two).same
    _shift_losses(two.rerun, 2 * MEAN_TOLERANCE)
    assert not _compare(two).same


def test_an_effect_that_one_side_only_has_differs(two):
    _another_machine(two)
    _claims(two.rerun, effect=None, interval=[None, None])
    assert not _compare(two).same
    _claims(two.committed, effect=None, interval=[None, None])
    assert _compare(two).same


def test_a_run_that_diverged_on_one_side_only_differs(two):
    _another_machine(two)
    path = two.rerun / "tiny.csv"
    runs = list(from_csv(path.read_text()))
    shorter = {name: getattr(runs[2], name)[:2] for name in MEASURED}
    runs[2] = dataclasses.replace(runs[2], diverged_at=3, **shorter)
    path.write_text(to_csv(Runs(runs)))
    assert not _compare(two).same


def test_a_claim_that_was_reworded_differs(two):
    """Compared as text on the same machine; elsewhere its row has no counterpart."""
    _claims(two.committed, prediction="something else")
    assert not _compare(two).same
    _another_machine(two)
    found = _compare(two)
    assert not found.same
    assert "claim" in found.text
