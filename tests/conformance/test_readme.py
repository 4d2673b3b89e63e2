"""The page of the kit says what the code does."""

import json
import re

from minilora.conformance import CHECKS, Implementation
from minilora.conformance.mutants import MUTANTS

from . import tables

TEXT = tables.PAGE.read_text(encoding="utf-8")


def test_its_tables_are_those_of_the_results():
    assert tables.filled(TEXT) == TEXT


def test_every_mutant_is_caught_by_its_own_check():
    stored = json.loads((tables.RESULTS / "mutants.json").read_text())
    assert list(stored) == list(MUTANTS)
    assert all(check in failing for check, failing in stored.items())
    assert {name for failing in stored.values() for name in failing} <= {one.id for one in CHECKS}


def test_what_is_explained_is_what_fails():
    section = TEXT.split("What fails, and why:")[1].split("\n## ")[0]
    explained = set()
    for names, check in re.findall(r"- \*\*(.*), ([\w-]+)\*\*", section):
        explained |= {(name.strip().lower(), check) for name in names.split(",")}
    failing = {(peer, row["id"]) for peer in tables.PEERS for row in tables.read(peer)["checks"]
               if row["status"] in ("fail", "error")}  # fmt: skip
    assert explained == failing


def test_every_linked_file_is_there():
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", TEXT):
        assert (tables.PAGE.parent / target).exists(), target


def test_the_five_steps_are_five():
    section = TEXT.split("in five steps")[1].split("\n## ")[0]
    assert re.findall(r"^(\d)\. ", section, re.MULTILINE) == list("12345")
    assert issubclass(Implementation, object)
