"""Writes the tables of minilora/conformance/README.md from results/: of peers (`--json`), and of mutants (made here).

python -m minilora.conformance --peer peft --json tests/conformance/results/peft.json   (and loralib)
python tests/conformance/tables.py --mutants   # runs every check on every mutant: a minute
python tests/conformance/tables.py
"""

import json
import sys
from pathlib import Path

from minilora import conformance
from minilora.conformance import CHECKS
from minilora.conformance.mutants import MUTANTS

RESULTS = Path(__file__).parent / "results"
PAGE = Path(conformance.__file__).parent / "README.md"
PEERS = ("peft", "loralib")
SHOWN = {"pass": "ok", "fail": "**FAIL**", "error": "**ERROR**", "not offered": "-"}


def read(name: str):
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def peers() -> str:
    """A row a check, a column a peer."""
    found = {name: read(name) for name in PEERS}
    header = ["check", "what has to hold", *(f"{name} {found[name]['version']}" for name in PEERS)]
    lines = [header, ["---"] * len(header)]
    for i, one in enumerate(CHECKS):
        rows = [found[name]["checks"][i] for name in PEERS]
        assert all(row["id"] == one.id for row in rows), f"{one.id}: run the peers again"
        lines.append([one.id, one.title, *(SHOWN[row["status"]] for row in rows)])
    counts = [
        ", ".join(f"{sum(row['status'] == status for row in found[name]['checks'])} {status}" for status in SHOWN)
        for name in PEERS
    ]
    lines.append(["", f"{len(CHECKS)} checks", *counts])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def mutants() -> str:
    """A row a mutant: what is wrong with it, and the checks that fail."""
    lines = [["mutant of", "the bug", "checks that fail on it"], ["---"] * 3]
    for check, failing in read("mutants").items():
        bug = (MUTANTS[check].__doc__ or "").strip()
        others = [name for name in failing if name != check]
        lines.append([check, bug, ", ".join([f"**{check}**", *others])])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def filled(text: str) -> str:
    """The page with its tables made anew."""
    for make in (peers, mutants):
        opening, closing = f"<!-- {make.__name__} -->\n", f"<!-- /{make.__name__} -->"
        before, _, rest = text.partition(opening)
        _, _, after = rest.partition(closing)
        text = before + opening + make() + closing + after
    return text


def run_mutants() -> None:
    """Every check on every mutant."""
    table = {}
    for check, kind in MUTANTS.items():
        table[check] = [row.id for row in conformance.run(kind) if row.status != "pass"]
        print(f"{check}: {len(table[check])}", flush=True)
    (RESULTS / "mutants.json").write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if "--mutants" in sys.argv:
        run_mutants()
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
