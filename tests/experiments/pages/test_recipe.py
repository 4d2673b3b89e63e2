"""Advice from the ledger: each line from the verdict behind it, and none where nothing is decided."""

import json
import shutil
from pathlib import Path

import pytest

from minilora.experiments import __main__ as command
from minilora.experiments.pages import recipe
from minilora.experiments.pages.folder import read_claims

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
        evidence = recipe.Evidence({row["id"]: row for row in read_claims(FIGURES)}, FIGURES, n, "names")
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
        (["--n-train", "0"], "--n-train: got 0, takes an integer of at least 1"),
        (["--n-train", "x"], "--n-train"),
        (["--n-train", "3", "--task", "math"], "--task"),
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
        f"error: {tmp_path / 'claims.json'} is not there: `python -m minilora.experiments all` makes it"
    ]
    (tmp_path / "claims.json").write_text("[1]")
    status, _, err = ask(capsys, "--n-train", 3, "--out", tmp_path)
    assert status == 2
    assert len(err.splitlines()) == 1
    shutil.copy(FIGURES / "claims.json", tmp_path / "claims.json")
    status, _, err = ask(capsys, "--n-train", 3, "--out", tmp_path)
    assert status == 2
    assert "rank.csv is not there" in err
