"""Reading a folder of results: what is there is what was written, or an error that names the file and the field."""

import json
import shutil
from pathlib import Path

import pytest

from minilora.experiments.pages import stored
from minilora.experiments.pages.folder import write_study
from minilora.experiments.pages.stored import check_claims, check_provenance, check_samples, read_claims, read_runs

from .. import tiny

FIGURES = Path(__file__).parents[3] / "figures"


@pytest.mark.parametrize("folder", [FIGURES, FIGURES / "quick"], ids=["full", "quick"])
def test_what_is_committed_is_what_would_be_written(folder):
    assert check_claims(json.loads((folder / "claims.json").read_text(encoding="utf-8"))) == read_claims(folder)
    assert stored.read_samples(folder)
    assert len(stored.read_provenance(folder)) == 14


def test_where_there_is_nothing_nothing_is_read(tmp_path):
    assert (read_claims(tmp_path), stored.read_samples(tmp_path), stored.read_provenance(tmp_path)) == ([], {}, {})


@pytest.fixture
def folder(tmp_path):
    for name in ("claims.json", "samples.json", "provenance.json"):
        shutil.copy(FIGURES / "quick" / name, tmp_path / name)
    return tmp_path


def _spoil(folder, name, change):
    path = folder / name
    content = json.loads(path.read_text(encoding="utf-8"))
    changed = change(content)
    path.write_text(json.dumps(content if changed is None else changed), encoding="utf-8")


def _set(name, value, at=0, contrast=None):
    """Change a field of a claim, or of one of its contrasts."""

    def change(rows):
        row = rows[at] if contrast is None else rows[at]["contrasts"][contrast]
        row[name] = value

    return change


BAD_CLAIMS = {
    "an object": (lambda rows: {"rows": rows}, "got .*, takes a list of claims"),
    "numbers": (lambda rows: [1], "claim 1: got 1, takes an object"),
    "no verdict": (lambda rows: [{**rows[0], "verdict": None}], "claim 1: verdict: got None, takes one of"),
    "another verdict": (_set("verdict", "true"), "verdict: got 'true', takes one of contradicted"),
    "no study": (lambda rows: [{key: one for key, one in rows[0].items() if key != "study"}], "claim 1: lacks 'study'"),
    "a text for an effect": (_set("effect", "0.1"), "effect: got '0.1', takes a number or null"),
    "true for an effect": (_set("effect", True), "effect: got True"),
    "one bound": (_set("interval", [0.1]), r"interval: got \[0.1\], takes two numbers in order, or two nulls"),
    "bounds the wrong way round": (_set("interval", [0.2, 0.1], contrast=0), r"interval: got \[0.2, 0.1\]"),
    "half an interval": (_set("interval", [None, 0.1]), r"interval: got \[None, 0.1\]"),
    "no seeds": (_set("n_seeds", 0), "n_seeds: got 0, takes an integer of at least 1"),
    "a scale of zero": (_set("scale", 0, contrast=0), "claim R1: a contrast: scale: got 0, takes a number above 0"),
    "a claim of nobody's": (_set("id", "Z9"), "id: got 'Z9', takes a claim of the article"),
    "a claim that is a list": (_set("id", ["R1"]), r"id: got \['R1'\]"),
    "another claim's contrast": (_set("id", "R2", contrast=0), "claim R1: a contrast is of R2"),
    "no contrasts": (_set("contrasts", []), r"contrasts: got \[\], takes a list of contrasts"),
    "contrasts that are none": (_set("contrasts", [1]), "claim R1: a contrast: got 1, takes an object"),
    "a claim twice": (lambda rows: rows.append(rows[0]), "claim R1: stands there twice"),
    "a probability of 2": (_set("p", 2), "p: got 2, takes a number between 0 and 1"),
    "variants that are none": (_set("variants", {"one rate": {"effect": 1}}, contrast=0), "one rate: lacks 'interval'"),
    "a paper that is none": (_set("paper", {"source": "x"}), "claim R1: paper: lacks 'reported'"),
    "a paper that is a text": (_set("paper", "arXiv"), "paper: got 'arXiv', takes an object or null"),
}


@pytest.mark.parametrize("name", BAD_CLAIMS)
def test_a_ledger_that_minilora_would_not_write_is_not_read(folder, name):
    change, says = BAD_CLAIMS[name]
    _spoil(folder, "claims.json", change)
    with pytest.raises(ValueError, match=rf"claims\.json: .*{says}.*; remove it to write it anew"):
        read_claims(folder)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[]", "got a JSON list, takes an object"),
        ('{"rank": []}', r"rank: got \[\], takes an object"),
        ('{"rank": {"r=8": "anna"}}', "rank: 'r=8': got 'anna', takes a list of names"),
        ('{"rank": {"r=8": [1]}}', r"rank: 'r=8': got \[1\]"),
        ('{"rank": ', "not valid JSON"),
        ("\xff", "codec can't decode"),
    ],
)
def test_samples_that_are_none_are_refused(folder, content, says):
    (folder / "samples.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ValueError, match=rf"samples\.json: .*{says}.*; remove it"):
        stored.read_samples(folder)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda one: [], "got a JSON list, takes an object"),
        (lambda one: one | {"rank": 3}, "rank: got 3, takes an object"),
        (lambda one: one["rank"].pop("machine") and None, "rank: lacks 'machine'"),
        (lambda one: one["rank"].update(versions=[]), r"rank: versions: got \[\], takes an object"),
        (lambda one: one["rank"].update(seconds="3"), "rank: seconds: got '3', takes a number or null"),
    ],
    ids=range(5),
)
def test_provenance_that_is_none_is_refused(folder, change, says):
    _spoil(folder, "provenance.json", change)
    with pytest.raises(ValueError, match=rf"provenance\.json: .*{says}.*; remove it"):
        stored.read_provenance(folder)


@pytest.mark.parametrize("name", ["claims.json", "samples.json", "provenance.json"])
def test_a_study_is_not_written_beside_what_cannot_be_read(folder, name):
    """Not even in part: its CSV would be of other runs than its claims."""
    (folder / name).write_text("1", encoding="utf-8")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        write_study(tiny.TINY, tiny.fabricated(tiny.TINY), {"r=1": ["ann"]}, folder, "", 1.0)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_what_is_written_is_checked_as_what_is_read(tmp_path):
    runs = tiny.fabricated(tiny.TINY)
    with pytest.raises(ValueError, match=r"tiny: 'r=1': got \[1\], takes a list of names"):
        write_study(tiny.TINY, runs, {"r=1": [1]}, tmp_path, "", 1.0)  # type: ignore[list-item]
    with pytest.raises(ValueError, match="got a run twice"):
        write_study(tiny.TINY, type(runs)([*runs, runs[0]]), {}, tmp_path, "", 1.0)
    assert list(tmp_path.iterdir()) == []
    for check in (check_samples, check_provenance):
        with pytest.raises(ValueError, match="takes an object"):
            check({"rank": 1})


def test_a_table_that_cannot_be_read_is_named_with_what_makes_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"rank\.csv is not there: `python -m minilora.experiments rank` makes"):
        read_runs(tmp_path, "rank")
    text = (FIGURES / "quick" / "rank.csv").read_text(encoding="utf-8")
    for spoilt, says in [
        (text[:-20], "another number of values"),
        (text.splitlines()[0], "holds no runs"),
        ("\x00", "columns"),
    ]:
        (tmp_path / "rank.csv").write_text(spoilt, encoding="utf-8")
        with pytest.raises(ValueError, match=rf"rank\.csv: .*{says}.*; `python -m .* rank` makes it anew"):
            read_runs(tmp_path, "rank")
