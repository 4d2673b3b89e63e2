"""The study that CONTRIBUTING.md adds in ten steps works as written."""

import importlib
import json
import re
import sys
from pathlib import Path

import pytest

from minilora.experiments import __main__ as command
from minilora.experiments import studies

TEXT = (Path(__file__).parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
(CODE,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture
def schedule(tmp_path, monkeypatch):
    """The file in its place, for this test alone."""
    (tmp_path / "schedule.py").write_text(CODE)
    monkeypatch.setattr(studies, "__path__", [*studies.__path__, str(tmp_path)])
    yield importlib.import_module(f"{studies.__name__}.schedule").STUDY
    del sys.modules[f"{studies.__name__}.schedule"]


def test_it_is_one_short_file():
    assert len(CODE.splitlines()) <= 100


def test_the_command_knows_it_and_runs_it(schedule, tmp_path, capsys):
    assert command.main(["--list", "schedule"]) == 0
    assert schedule.question in capsys.readouterr().out
    out = tmp_path / "out"
    assert command.main(["schedule", "--quick", "--seeds", "2", "--jobs", "1", "--out", str(out)]) == 0
    (row,) = json.loads((out / "claims.json").read_text())
    assert (row["id"], row["study"]) == ("L2", "schedule")
    assert {path.name for path in out.iterdir()} >= {"schedule.svg", "schedule.csv", "overview.svg"}


def test_there_are_ten_steps():
    section = TEXT.split("## How to add a study")[1].split("\n## ")[0]
    assert re.findall(r"^(\d+)\. ", section, re.MULTILINE) == [str(n) for n in range(1, 11)]
