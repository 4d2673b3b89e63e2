"""Advice from the ledger: each line from the verdict behind it, and none where nothing is decided."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from minilora.experiments import __main__ as command
from minilora.experiments.evidence.runs import Runs, from_csv, to_csv
from minilora.experiments.pages import findings, recipe
from minilora.files import to_json

FIGURES = Path(__file__).parents[3] / "figures"


def ask(capsys, *arguments):
    try:
        status = command.main(["recipe", *map(str, arguments)])
    except SystemExit as error:
        status = error.code
    shown = capsys.readouterr()
    return status, shown.out, shown.err


@pytest.mark.parametrize("task", ["names", "planted"])
@pytest.mark.parametrize("n", [1, 100, 300, 2775, 10**6])
def test_each_line_has_its_claims(capsys, n, task):
    status, out, err = ask(capsys, "--n-train", n, "--task", task, "--out", FIGURES)
    assert (status, err) == (0, "")
    assert out.startswith(f"For {n:,} names (task {task})")
    for advice in recipe.ADVICE:
        assert advice.knob in out
        assert all(claim in out for claim in advice.claims)
    assert max(map(len, out.splitlines())) <= 120


def test_more_data_gets_less_dropout_and_no_smaller_rank(capsys):
    def advised(n):
        evidence = recipe.Evidence(findings.shipped(), n, "names")
        return recipe._best_rank(evidence)[0], float(recipe._dropout(evidence).split()[2])

    (few_rank, few_p), (many_rank, many_p) = advised(100), advised(2775)
    assert few_p > many_p
    assert few_rank <= many_rank


@pytest.fixture
def folder(tmp_path):
    for name in ("claims.json", "rank.csv", "dropout.csv"):
        shutil.copy(FIGURES / name, tmp_path / name)
    return tmp_path


def _change(folder, claim, verdict):
    rows = json.loads((folder / "claims.json").read_text())
    for row in rows:
        if row["id"] == claim:
            row["verdict"] = verdict
    (folder / "claims.json").write_text(json.dumps(rows))


@pytest.mark.parametrize(
    ("claim", "verdict", "words"),
    [("T3", "supported", "attention before the MLP"), ("T3", "contradicted", "the MLP before attention"),
     ("A2", "supported", "keep it when r changes"), ("A2", "contradicted", "tune it again when r changes"),
     ("A3", "contradicted", "search alpha / r")],
)  # fmt: skip
def test_the_advice_turns_with_the_verdict(capsys, folder, claim, verdict, words):
    _change(folder, claim, verdict)
    assert words in ask(capsys, "--n-train", 300, "--out", folder)[1]


@pytest.mark.parametrize("claim", ["T3", "A2", "D1", "W1"])
def test_what_is_not_decided_is_said_and_not_advised(capsys, folder, claim):
    _change(folder, claim, "inconclusive")
    out = ask(capsys, "--n-train", 300, "--out", folder)[1]
    assert f"{claim} inconclusive" in " ".join(out.partition("No advice")[2].split())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "--n-train"),
        (["--n-train", "0"], "--n-train: got '0', takes an integer of at least 1"),
        (["--n-train", "x"], "--n-train"),
        (["--n-train", "3", "--task", "math"], "--task"),
        (["--n-train", "3", "--extract", "x"], "takes --n-train N, or --extract FILE"),
        (["--n-train", "3", "--out", "no/such/folder"], "--out: no/such/folder is not there"),
    ],
    ids=str,
)
def test_bad_usage_is_2_and_names_the_option(capsys, arguments, says):
    status, out, err = ask(capsys, *arguments)
    assert (status, out) == (2, "")
    assert says in err


def test_a_folder_without_a_ledger_says_what_makes_one(capsys, tmp_path):
    status, _, err = ask(capsys, "--n-train", 3, "--out", tmp_path)
    assert status == 2
    assert err.splitlines() == [
        f"error: --out: {tmp_path / 'claims.json'} is not there: `python -m minilora.experiments all` makes it"
    ]
    (tmp_path / "claims.json").write_text("[1]")
    status, _, err = ask(capsys, "--n-train", 3, "--out", tmp_path)
    assert status == 1
    assert len(err.splitlines()) == 1
    shutil.copy(FIGURES / "claims.json", tmp_path / "claims.json")
    status, _, err = ask(capsys, "--n-train", 3, "--out", tmp_path)
    assert status == 2
    assert "rank.csv is not there" in err


def test_a_table_that_lacks_runs_is_named(capsys, folder):
    runs = from_csv((folder / "rank.csv").read_text())
    kept = [run for run in runs if (run.settings.r, run.settings.seed) != (2, 7) or run.settings.learning_rate < 2e-3]
    assert len(kept) < len(runs)
    (folder / "rank.csv").write_text(to_csv(Runs(kept)))
    status, out, err = ask(capsys, "--n-train", 300, "--out", folder)
    assert (status, out) == (1, "")
    assert err.startswith(f"error: {folder / 'rank.csv'}: no run with")
    assert len(err.splitlines()) == 1


def test_a_claim_with_fewer_contrasts_than_the_advice_is_about_is_not_decided(capsys, folder):
    """As in a quick folder, or one of an older version."""
    rows = json.loads((folder / "claims.json").read_text())
    for row in rows:
        row["contrasts"] = row["contrasts"][:1]
    (folder / "claims.json").write_text(json.dumps(rows))
    status, out, _ = ask(capsys, "--n-train", 300, "--out", folder)
    assert status == 0
    assert "epochs (E1" in " ".join(out.partition("No advice")[2].split())


@pytest.mark.parametrize("task", ["names", "planted"])
def test_a_folder_s_advice_is_its_own_and_that_of_figures_is_what_ships(capsys, monkeypatch, tmp_path, task):
    of_figures = ask(capsys, "--n-train", 300, "--task", task, "--out", FIGURES)[1]
    monkeypatch.chdir(tmp_path)  # where there is no figures/
    status, out, err = ask(capsys, "--n-train", 300, "--task", task)
    assert (status, err) == (0, "")
    assert out.splitlines()[1:] == of_figures.splitlines()[1:]
    assert out.splitlines()[0].endswith("from what ships with minilora 0.1.0:")


def test_what_ships_is_extracted_from_the_committed_results(capsys, tmp_path):
    """Else: python -m minilora.experiments recipe --out figures --extract minilora/experiments/pages/recipe.json"""
    assert ask(capsys, "--out", FIGURES, "--extract", tmp_path / "recipe.json") == (0, "", "")
    shipped = Path(recipe.__file__).with_name(findings.SHIPPED)
    assert (tmp_path / "recipe.json").read_text(encoding="utf-8") == shipped.read_text(encoding="utf-8")
    assert to_json(findings.shipped()) == shipped.read_text(encoding="utf-8")
    package_data = (FIGURES.parent / "pyproject.toml").read_text(encoding="utf-8").split("package-data]")[1]
    assert '"experiments/pages/*.json"' in package_data.split("\n\n")[0]


@pytest.mark.parametrize(
    ("n", "says"),
    [
        (99, "99 lie beyond: this is the advice for 100."),
        (100, None),
        (101, None),
        (2775, None),
        (2776, "2,776 lie beyond: this is the advice for 2,775."),
        (30_000, "30,000 lie beyond: this is the advice for 2,775."),
    ],
)
def test_beyond_what_was_measured_it_says_so(capsys, n, says):
    _, out, _ = ask(capsys, "--n-train", n)
    second = out.splitlines()[1]
    assert second == (f"Measured was from 100 to 2,775 names. {says}" if says else "")


def test_it_draws_nothing_and_so_needs_no_matplotlib(capsys, monkeypatch):
    for name in [name for name in sys.modules if name.startswith(("minilora.experiments.pages", "matplotlib"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert ask(capsys, "--n-train", 300)[0] == 0
