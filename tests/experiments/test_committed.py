"""The committed figures, claims and provenance are what the committed numbers give."""

import dataclasses
import json
from pathlib import Path

import pytest
from drawings import assert_drawn_alike

from minilora.experiments.engine import provenance
from minilora.experiments.engine.provenance import machine
from minilora.experiments.evidence import ledger
from minilora.experiments.evidence.claims import ARTICLE
from minilora.experiments.evidence.runs import Runs, best_on_others, from_csv, tuned_rates
from minilora.experiments.evidence.stats import N_SEEDS
from minilora.experiments.pages import folder as written
from minilora.experiments.pages import overview, plots
from minilora.experiments.pages.ledger import ledger_page
from minilora.experiments.studies import load_studies, search

FIGURES = Path(__file__).parents[2] / "figures"
PLACES = {"full": (FIGURES, ""), "quick": (FIGURES / "quick", " --quick")}
CASES = [(size, name) for size in PLACES for name in load_studies()]


def committed(size, name):
    folder, options = PLACES[size]
    runs = from_csv((folder / f"{name}.csv").read_text(encoding="utf-8"))
    return folder, options, load_studies()[name], runs


@pytest.mark.parametrize(("size", "name"), CASES)
def test_the_runs_are_those_of_the_study(size, name):
    _, options, study, runs = committed(size, name)
    assert {run.settings for run in runs} == set(study.runs(range(N_SEEDS), quick=bool(options)))


def made_on_such_a_machine(folder, name) -> bool:
    """Whether sums come out the same here to the bit."""
    return json.loads((folder / "provenance.json").read_text())[name]["machine"] == machine()


def skip_if_another_decides(folder, study) -> None:
    """What a package decides, as Optuna where it searches, follows from the runs with that version alone."""
    made_with = json.loads((folder / "provenance.json").read_text())[study.name]["versions"]
    for package in study.packages:
        if made_with[package] != provenance.versions(study.packages).get(package):
            pytest.skip(f"made with {package} {made_with[package]}")


def _approximately(value):
    """A number or two, or None where a run diverged."""
    missing = value is None or (isinstance(value, list) and None in value)
    return value if missing else pytest.approx(value, rel=1e-6, abs=1e-12)


def _approximate_bootstrap(interval, exact: bool):
    """Elsewhere rounding may put one resample on the other side of a quantile."""
    if exact or interval is None or None in interval:
        return _approximately(interval)
    return pytest.approx(interval, rel=0, abs=0.02 * (interval[1] - interval[0]) + 1e-12)


@pytest.mark.parametrize(("size", "name"), CASES)
def test_the_contrasts_follow_from_the_numbers(size, name):
    folder, options, study, runs = committed(size, name)
    skip_if_another_decides(folder, study)
    stored = [row for row in ledger.all_contrasts(written.read_claims(folder)) if row["study"] == name]
    made = [row for one in study.contrasts if (row := ledger.contrast_row(study, one, runs, options)) is not None]
    assert len(stored) == len(made) > 0
    exact = made_on_such_a_machine(folder, name)
    for old, new in zip(stored, ledger.in_order(made), strict=True):
        close = {key: _approximately(new.pop(key)) for key in ("effect", "interval", "p_supported", "p_contradicted")}
        close["interval_bootstrap"] = _approximate_bootstrap(new.pop("interval_bootstrap"), exact)
        variants = {label: one["verdict"] for label, one in new.pop("variants").items()}
        assert {label: one["verdict"] for label, one in old.pop("variants").items()} == variants
        assert old == new | close


@pytest.mark.parametrize("folder", [folder for folder, _ in PLACES.values()], ids=PLACES)
def test_the_claims_and_their_picture_follow_from_the_contrasts(folder):
    rows = written.read_claims(folder)
    assert ledger.claim_rows(ledger.all_contrasts(rows)) == rows
    if (
        provenance.versions()["matplotlib"]
        == json.loads((folder / "provenance.json").read_text())["rank"]["versions"]["matplotlib"]
    ):
        assert plots.to_svg(overview.draw, rows) == (folder / "overview.svg").read_text(encoding="utf-8")


def test_all_claims_have_a_verdict_from_data():
    rows = written.read_claims(FIGURES)
    assert [row["id"] for row in rows] == list(ARTICLE)
    assert all(row["n_seeds"] >= N_SEEDS and row["effect"] is not None for row in rows)


@pytest.mark.parametrize(("size", "name"), CASES)
def test_the_figure_drawn_again_is_the_same(size, name):
    """To the byte, on such a machine as made it."""
    folder, _, study, runs = committed(size, name)
    made_with = json.loads((folder / "provenance.json").read_text())[name]["versions"]["matplotlib"]
    if made_with != provenance.versions()["matplotlib"]:
        pytest.skip(f"drawn with matplotlib {made_with}")
    skip_if_another_decides(folder, study)
    samples = json.loads((folder / "samples.json").read_text()).get(name, {})
    drawn, stored = plots.to_svg(study.draw, runs, samples), (folder / f"{name}.svg").read_text(encoding="utf-8")
    if made_on_such_a_machine(folder, name):
        assert drawn == stored
    else:
        assert_drawn_alike(drawn, stored, points=0.01)


@pytest.mark.parametrize("name", load_studies())
def test_the_best_learning_rates_lie_inside_their_grids(name):
    """On every seed; a best rate at the edge of its grid could be anywhere beyond."""
    provenance = json.loads((FIGURES / "provenance.json").read_text())[name]
    assert [one["group"] for one in provenance["tuned_learning_rates"] if not one["inside"]] == []
    assert provenance["seeds"] == list(range(N_SEEDS))


@pytest.mark.parametrize("name", load_studies())
def test_whatever_ran_at_several_rates_has_its_best_one_inside(name):
    """Also where no contrast tunes it, but figures or chapters show it; one corner of the search is left out."""
    groups: dict = {}
    for run in committed("full", name)[3]:
        groups.setdefault(dataclasses.replace(run.settings, seed=0, learning_rate=1.0), []).append(run)
    for settings, runs in groups.items():
        rates, chosen = Runs(runs).values("learning_rate"), tuned_rates(Runs(runs))
        corner = name == "search" and (settings.n_train, settings.r, settings.lora_alpha) == (200, 16, 128)
        assert len(rates) < 3 or corner or rates[0] < min(chosen) <= max(chosen) < rates[-1], settings


@pytest.mark.parametrize("task", search.TASKS)
def test_the_best_rates_of_the_recipe_and_its_opposite_lie_inside_the_space(task):
    losses = search.table(committed("full", "search")[3], task)
    for recipe in (search.RECIPE[task], search.OPPOSITE[task]):
        of_rates = losses[search.rows_of(recipe)]
        chosen = best_on_others(of_rates)
        assert chosen.min() > 0, recipe
        assert chosen.max() < len(of_rates) - 1, recipe


def test_the_ledger_page_is_that_of_the_claims():
    for folder, _ in PLACES.values():
        samples = json.loads((folder / "samples.json").read_text())
        assert (folder / "CLAIMS.md").read_text(encoding="utf-8") == ledger_page(written.read_claims(folder), samples)
