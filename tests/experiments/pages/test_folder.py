"""What a study leaves behind: the ledger of claims, its page, the provenance."""

import dataclasses
import io
import json
import math
import platform

import numpy as np
import pytest

from minilora.experiments.engine import provenance
from minilora.experiments.engine.provenance import machine
from minilora.experiments.evidence.claims import ARTICLE, Paper
from minilora.experiments.evidence.ledger import claim_rows, contrast_row, in_order, result_text
from minilora.experiments.evidence.runs import from_csv
from minilora.experiments.pages import folder, ledger
from minilora.experiments.pages.folder import print_verdicts, read_claims, write_overview, write_study

from .. import tiny

KEYS = {"id", "statement", "study", "prediction", "smallest_effect", "effect", "interval", "unit", "n_seeds",
        "verdict", "regime", "figure", "command", "contrasts", "result", "verdict_holm", "paper"}  # fmt: skip


def write(study, out, n_seeds=8, options="", **more):
    runs = tiny.fabricated(study, n_seeds, **more)
    return write_study(study, runs, {"r=1": ["ann", "eve"]} if study.samples else {}, out, options, 12.34)


def _claim(values, **changes):
    """A contrast that gives these values."""
    changes = {"measure": lambda runs: np.array(values, float), "variants": {}} | changes
    return dataclasses.replace(tiny.DIFFERENCE, **changes)


def _row(values, **changes):
    return contrast_row(tiny.TINY, _claim(values, **changes), tiny.fabricated(tiny.TINY), " --seeds 9")


def test_a_study_writes_its_files_and_nothing_else(tmp_path):
    rows = write(tiny.TINY, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "tiny.csv", "tiny.svg", "claims.json", "CLAIMS.md", "provenance.json", "samples.json"
    }  # fmt: skip
    assert claim_rows(rows) == json.loads((tmp_path / "claims.json").read_text()) == read_claims(tmp_path)
    assert list(from_csv((tmp_path / "tiny.csv").read_text())) == list(tiny.fabricated(tiny.TINY))
    assert (tmp_path / "tiny.svg").read_text().startswith("<?xml")


def test_rows_of_claims_have_the_published_keys(tmp_path):
    for row in claim_rows(write(tiny.TINY, tmp_path, options=" --seeds 9")):
        assert row.keys() >= KEYS
        assert row["verdict"] in ("supported", "contradicted", "inconclusive")
        assert len(row["interval"]) == 2
        assert row["figure"] == "tiny.svg"
        assert row["command"] == "python -m minilora.experiments tiny --seeds 9"
        assert row["n_seeds"] == 8
        assert row["study"] == "tiny"


def test_a_row_is_the_claim_with_the_numbers_of_its_contrast():
    row = _row([0.2, 0.3] * 4)
    half = 2.364624 * np.std([0.2, 0.3] * 4, ddof=1) / math.sqrt(8)
    assert row["effect"] == pytest.approx(0.25)
    assert row["interval"] == pytest.approx([0.25 - half, 0.25 + half], rel=1e-6)
    assert row["verdict"] == "supported"
    assert (row["id"], row["statement"]) == ("R2", ARTICLE["R2"].statement)
    for name in ("prediction", "smallest_effect", "unit", "regime"):
        assert row[name] == getattr(tiny.DIFFERENCE, name)
    assert row["result"] == f"0.250 +- {half:.3f} up"
    assert _row([-0.2, -0.3] * 4)["result"] == f"0.250 +- {half:.3f} down"
    assert _row([-0.2, -0.3] * 4)["verdict"] == "contradicted"
    assert _row([0.2, -0.3] * 4)["verdict"] == "inconclusive"


@pytest.mark.parametrize("odd", [math.inf, -math.inf, math.nan])
def test_a_diverged_contrast_has_no_effect_and_decides_nothing(odd, tmp_path):
    row = _row([0.3] * 7 + [odd])
    assert (row["effect"], row["interval"], row["verdict"]) == (None, [None, None], "inconclusive")
    assert "diverged" in result_text(row)
    study = dataclasses.replace(tiny.TINY, contrasts=[_claim([0.3] * 7 + [odd])])
    write(study, tmp_path)  # and the files hold it
    assert read_claims(tmp_path)[0]["effect"] is None


def test_one_seed_has_an_effect_and_no_interval():
    row = _row([0.3])
    assert (row["effect"], row["interval"], row["verdict"]) == (0.3, [None, None], "inconclusive")
    assert result_text(row) == "no interval: one seed gives no interval"


def test_exact_claims_say_so():
    row = _row([0.0] * 8, exact=True)
    assert (row["exact"], row["effect"], row["interval"], row["verdict"]) == (True, 0.0, [0.0, 0.0], "supported")
    assert result_text(row) == "0 nats (exact)"
    assert _row([0.0] * 7 + [1.0], exact=True)["verdict"] == "contradicted"


def test_an_exact_claim_that_could_not_be_measured_can_be_written(tmp_path):
    study = dataclasses.replace(tiny.TINY, contrasts=[_claim([math.nan] * 8, exact=True)])
    write(study, tmp_path)
    assert read_claims(tmp_path)[0]["verdict"] != "supported"


def test_a_claim_without_its_runs_has_no_row(tmp_path):
    assert [row["id"] for row in write(tiny.TINY, tmp_path, quick=True)] == ["R1"]


def test_the_shared_rate_has_its_own_numbers_and_verdict():
    row = _row([0.3] * 8, variants={"otherwise": lambda runs: np.array([-0.3] * 8)})
    assert row["verdict"] == "supported"
    assert row["variants"]["otherwise"]["verdict"] == "contradicted"
    assert row["variants"]["otherwise"]["effect"] == pytest.approx(-0.3)
    page = ledger.ledger_page(claim_rows([row]), {})
    assert "measured otherwise" in page
    assert "-0.300 [-0.300, -0.300] nats | contradicted" in page


# --- several studies in one folder ---


def test_rows_of_other_studies_stay(tmp_path):
    write(tiny.TINY, tmp_path)
    write(tiny.OTHER, tmp_path)
    both = read_claims(tmp_path)
    others = [row for row in both if row["study"] == "other"]
    write(tiny.TINY, tmp_path, n_seeds=3)
    again = read_claims(tmp_path)
    assert [(row["id"], row["study"]) for row in again] == [(row["id"], row["study"]) for row in both]
    assert [row for row in again if row["study"] == "other"] == others
    assert {row["n_seeds"] for row in again if row["study"] == "tiny"} == {3}
    assert json.loads((tmp_path / "provenance.json").read_text()).keys() == {"tiny", "other"}
    assert json.loads((tmp_path / "samples.json").read_text()).keys() == {"tiny"}


def test_a_row_whose_claim_is_gone_goes(tmp_path):
    write(tiny.TINY, tmp_path)
    write(dataclasses.replace(tiny.TINY, contrasts=[tiny.EXACT]), tmp_path)
    assert [row["id"] for row in read_claims(tmp_path)] == ["R1"]


def test_the_order_is_the_articles_whatever_is_written_first(tmp_path, monkeypatch):
    monkeypatch.setattr(folder.plots, "to_svg", lambda *arguments: "")  # it takes most of the time
    ids = ["R1", "R2", "R4", "A1", "A3", "D2", "T1", "L1", "G2"]
    studies = [tiny.study(f"s{i}", tiny.OTHER.cells, [_claim([0.1] * 8, claim=i)]) for i in ids]
    for order in (studies, studies[::-1], studies[4:] + studies[:4]):
        out = tmp_path / order[0].name
        for study in order:
            write(study, out)
        assert [row["id"] for row in read_claims(out)] == ids


def test_claims_json_that_cannot_be_read_is_not_overwritten(tmp_path):
    (tmp_path / "claims.json").write_text('[{"id": ')
    with pytest.raises(ValueError, match=r"claims\.json: not valid JSON"):
        write(tiny.TINY, tmp_path)
    assert (tmp_path / "claims.json").read_text() == '[{"id": '


# --- for people ---


def test_the_page_mentions_each_claim_and_contrast(tmp_path):
    write(tiny.TINY, tmp_path)
    write(tiny.OTHER, tmp_path)
    page = (tmp_path / "CLAIMS.md").read_text()
    claims, contrasts = page.split("## Each contrast")
    for row in read_claims(tmp_path):
        (line,) = [one for one in claims.splitlines() if one.startswith(f"| {row['id']} ")]
        for part in (
            row["statement"],
            row["result"],
            f"**{row['verdict']}**",
            f"[{row['study']}]({row['figure']})",
            row["command"],
        ):
            assert part in line
        for contrast in row["contrasts"]:
            (line,) = [one for one in contrasts.splitlines() if contrast["prediction"] in one and one.startswith("| ")]
            for part in (f"| {contrast['smallest_effect']:g} |", result_text(contrast), "| 8 |", contrast["verdict"]):
                assert part in line
    assert "- r=1: ann, eve" in page


# --- a claim from its contrasts ---


def _rows(**claims):
    """Claims of contrasts with these values."""
    return {
        row["id"]: row for row in claim_rows(in_order(_row(v, claim=i) for i, all_ in claims.items() for v in all_))
    }


GOOD, OPEN, BAD = [0.2, 0.3] * 4, [0.2, -0.3] * 4, [-0.2, -0.3] * 4


@pytest.mark.parametrize(
    ("contrasts", "decides"),
    [([GOOD], 0), ([GOOD, GOOD], 0), ([GOOD, OPEN], 1), ([OPEN, BAD], 1), ([BAD, OPEN], 0), ([OPEN, BAD, BAD], 1)],
)  # fmt: skip
def test_a_claim_holds_if_all_its_contrasts_do_and_shows_the_one_that_decides(contrasts, decides):
    row = _rows(R2=contrasts)["R2"]
    expected = _row(contrasts[decides])
    for name in ("effect", "interval", "verdict", "result"):
        assert row[name] == expected[name]
    assert len(row["contrasts"]) == len(contrasts)


def test_holm_takes_back_what_many_claims_would_show_by_chance():
    barely = [0.25, 0.05, 0.2, 0.1, 0.25, 0.0, 0.2, 0.02]
    alone = _rows(R2=[barely])["R2"]
    assert (alone["verdict"], alone["verdict_holm"]) == ("supported", "supported")
    many = _rows(R2=[barely], **{i: [OPEN] for i in ("R3", "R4", "A1", "A2", "A3", "A4", "D1", "D2", "D3", "T1", "T2")})
    assert (many["R2"]["verdict"], many["R2"]["verdict_holm"]) == ("supported", "inconclusive")
    assert "(after Holm inconclusive)" in ledger.claims_table(list(many.values()))
    assert many["R2"]["p_holm"] == pytest.approx(12 * many["R2"]["p"])


def test_a_claim_in_two_studies_names_both_in_its_command(tmp_path, monkeypatch):
    monkeypatch.setattr(folder.plots, "to_svg", lambda *arguments: "")
    for name, values in (("one", GOOD), ("two", BAD)):
        write(tiny.study(name, tiny.OTHER.cells, [_claim(values)]), tmp_path, options=" --quick")
    (row,) = read_claims(tmp_path)
    assert row["command"] == "python -m minilora.experiments one two --quick"
    assert (row["study"], row["figure"], row["verdict"]) == ("two", "two.svg", "contradicted")


@pytest.mark.parametrize(
    ("says", "values", "word"),
    [("for", GOOD, "agrees"), ("for", BAD, "disagrees"), ("against", GOOD, "disagrees"), ("against", BAD, "agrees"),
     ("for", OPEN, "open here"), ("other", GOOD, "asks it otherwise")],
)  # fmt: skip
def test_a_paper_stands_beside_the_verdict(says, values, word, monkeypatch):
    paper = Paper("arXiv 1", "the same", says)
    monkeypatch.setitem(ARTICLE, "R2", dataclasses.replace(ARTICLE["R2"], paper=paper))
    row = _rows(R2=[values])["R2"]
    assert row["paper"] == {"source": "arXiv 1", "reported": "the same", "agreement": word}
    assert f"{word}: the same (arXiv 1)" in ledger.claims_table([row])


def test_bootstrap_and_t_are_both_shown_where_they_disagree():
    row = _row([0.1] * 7 + [10.0])  # far from normal
    assert (row["verdict"], row["verdict_bootstrap"]) == ("inconclusive", "supported")
    assert "bootstrap [" in ledger.contrasts_table([row])
    assert "bootstrap [" not in ledger.contrasts_table([_row(GOOD)])


def test_a_study_in_which_every_run_diverges_has_its_row_and_figure(tmp_path):
    rows = write(tiny.TINY, tmp_path, diverged=lambda settings: True)
    assert [(row["id"], row["verdict"]) for row in rows] == [("R1", "supported"), ("R2", "inconclusive")]
    assert "diverged" in (tmp_path / "CLAIMS.md").read_text()
    write_overview(tmp_path)
    assert (tmp_path / "overview.svg").exists()


def _printed(rows):
    file = io.StringIO()
    print_verdicts(rows, file)
    return file.getvalue()


def test_verdicts_on_a_terminal(tmp_path):
    rows = claim_rows(write(tiny.TINY, tmp_path))
    lines = _printed(rows).splitlines()
    for row in rows:
        (line,) = [one for one in lines if one.startswith(row["id"])]
        assert row["statement"] in line
        assert row["verdict"] in line
        assert result_text(row) in line
    assert "Below 8 seeds" not in _printed(rows)
    assert "Below 8 seeds" in _printed(write(tiny.TINY, tmp_path, n_seeds=7))
    assert _printed([]) == ""


# --- provenance ---


def test_provenance_says_what_the_numbers_come_from(tmp_path):
    write(tiny.TINY, tmp_path, n_seeds=3, diverged=lambda settings: (settings.r, settings.seed) == (2, 1))
    got = json.loads((tmp_path / "provenance.json").read_text())["tiny"]
    assert got["versions"]["numpy"] == np.__version__
    assert got["versions"]["python"] == platform.python_version()
    assert got["versions"].keys() >= {"minilora", "autograd", "scipy", "matplotlib", "joblib"}
    assert got["machine"] == machine()
    assert all(got["machine"].values())
    assert got["seeds"] == [0, 1, 2]
    assert got["runs"] == 6
    assert got["settings"]["r"] == [1, 2]
    assert got["settings"].keys() == {field.name for field in dataclasses.fields(tiny.settings())} - {"seed"}
    assert got["data"].keys() == {"surnames", "female", "male"}
    assert all(len(digest) == 64 for digest in got["data"].values())
    assert got["bases"].keys() == {"surnames", "surnames_4_layers"}
    assert got["code"]
    assert got["seconds"] == 12.3
    (diverged,) = got["diverged"]
    assert tiny.settings(r=2, lora_alpha=4.0, seed=1).label() in diverged
    assert got["command"] == "python -m minilora.experiments tiny"


def test_provenance_names_optuna_where_it_decides_the_numbers(tmp_path):
    for packages in ([], ["optuna"]):
        write(dataclasses.replace(tiny.TINY, packages=packages), tmp_path, n_seeds=1)
        got = json.loads((tmp_path / "provenance.json").read_text())["tiny"]
        assert ("optuna" in got["versions"]) == bool(packages)


@pytest.mark.parametrize(("best", "inside"), [(1e-3, False), (3e-3, True), (1e-2, False)])
def test_provenance_says_whether_the_tuned_rate_lies_inside_the_grid(tmp_path, best, inside):
    rates = [1e-3, 3e-3, 1e-2]
    cells = [dict(tiny.FIXED, learning_rate=rate, r=1) for rate in rates]
    runs = [
        dataclasses.replace(run, validation_loss=(2.0 + abs(math.log(run.settings.learning_rate / best)),))
        for run in tiny.fabricated(tiny.study("rates", cells))
    ]
    study = tiny.study("rates", cells, tuned=[{"r": 1}])
    (got,) = provenance.provenance(study, folder.Runs(runs), "", 0)["tuned_learning_rates"]
    assert (got["inside"], got["tried"]) == (inside, rates)
    assert got["chosen_by_seed"] == [best] * 8


def test_samples_are_of_the_first_seed_after_those_of_the_base():
    runs = tiny.fabricated(tiny.TINY, n_seeds=2)
    results = {run.settings: {"samples": [f"r{run.settings.r}s{run.settings.seed}"]} for run in runs}
    got = folder.samples_of(tiny.TINY, dict(reversed(results.items())))
    assert list(got)[1:] == ["r=1"]
    assert got["r=1"] == ["r1s0"]
    assert all(name.isalpha() for name in next(iter(got.values())))
    assert folder.samples_of(tiny.OTHER, results) == {}
