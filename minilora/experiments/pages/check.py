"""Comparing a study's new numbers with the stored ones."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minilora.command_line import in_a_line
from minilora.experiments.engine.provenance import machine, versions
from minilora.experiments.evidence.ledger import Row, all_contrasts
from minilora.experiments.evidence.runs import CONSTANT, MEASURED, Run, Runs
from minilora.experiments.evidence.study import Study
from minilora.experiments.pages.stored import read_claims, read_provenance, read_runs, same_text

# Between machines the last bits differ, and training amplifies them: see CONTRIBUTING.md for how these were measured.
MEAN_TOLERANCE = 0.01  # nats: mean over all evaluations of |difference| in a loss
EFFECT_TOLERANCE = 0.5  # half-widths of the interval: how far a claim's effect may move


COMPUTING = ("python", "numpy", "autograd", "scipy")  # whose versions decide the bits of every study


@dataclass(frozen=True)
class Comparison:
    """`same`: within what was asked for; `text` says in a line how far apart."""

    same: bool
    text: str


def compare(study: Study, committed: Path, rerun: Path) -> Comparison:
    """A study's CSV, claims and figure in two folders: to the bit on the machine that made them, else nearly.

    Line ends are not compared.
    """
    name = study.name
    old_csv = committed / f"{name}.csv"
    if not old_csv.exists():
        return Comparison(False, f"{old_csv} is not there: nothing to compare with")
    try:
        old, made_by = read_runs(committed, name), read_provenance(committed).get(name, {})
        stored = _claims(committed, name)
    except ValueError as error:  # of what is committed; the other studies are compared all the same
        return Comparison(False, in_a_line(error))
    new = read_runs(rerun, name)
    missing, extra = _unmatched(old, new), _unmatched(new, old)
    if missing or extra:
        return Comparison(False, f"{missing} stored runs were not done again, {extra} new ones are not stored")
    if made_by.get("machine") == machine() and _same_versions(made_by, (*COMPUTING, *study.packages)):
        return _bit_for_bit(name, committed, rerun, made_by, old, new)
    return _within_tolerance(stored, _claims(rerun, name), old, new)


def _unmatched(one: Runs, other: Runs) -> int:
    return len({run.settings for run in one} - {run.settings for run in other})


def _same_versions(made_by: dict[str, Any], packages: Sequence[str]) -> bool:
    stored, here = made_by.get("versions", {}), versions(packages)
    return all(stored.get(name) == here.get(name) for name in packages)


def _bit_for_bit(name: str, committed: Path, rerun: Path, made_by, old: Runs, new: Runs) -> Comparison:
    rows = sum(len(run.step) for run in old)
    if not same_text(committed / f"{name}.csv", rerun / f"{name}.csv"):
        return Comparison(
            False, f"differs: {_largest_difference(old, new)}; on this machine it should be bit for bit the same"
        )
    if _claims(committed, name) != _claims(rerun, name):
        return Comparison(False, "the numbers are the same, but not the claims made of them")
    if not _same_versions(made_by, ("matplotlib",)):
        return Comparison(
            True, f"identical bit for bit, {len(old)} runs, {rows} rows (figure not compared: other matplotlib)"
        )
    figure = committed / f"{name}.svg"
    if not figure.exists():
        return Comparison(False, f"{figure} is not there")
    if not same_text(figure, rerun / f"{name}.svg"):
        return Comparison(False, "the numbers are the same, but not the figure drawn of them")
    return Comparison(True, f"identical bit for bit: {len(old)} runs, {rows} rows, the claims and the figure")


def _within_tolerance(before: list[Row], after: list[Row], old: Runs, new: Runs) -> Comparison:
    differences = [d for _, d in _differences(old, new)]
    mean = sum(differences) / len(differences)
    moved = {(row["id"], row["prediction"]): row for row in after}
    stored = {(row["id"], row["prediction"]): row for row in before}
    if moved.keys() != stored.keys():
        return Comparison(False, "the claims stored are not the claims that the study makes now")
    worst = max((_movement(row, moved[key]) for key, row in stored.items()), default=0.0)
    same = mean <= MEAN_TOLERANCE and worst <= EFFECT_TOLERANCE
    text = (
        f"another machine or other versions: losses differ by {mean:.2g} nats on average "
        f"(tolerance {MEAN_TOLERANCE:g}), effects by at most {worst:.2g} half-widths of their intervals "
        f"(tolerance {EFFECT_TOLERANCE:g})"
    )
    flipped = [
        f"{key[0]} is {moved[key]['verdict']}" for key, row in stored.items() if row["verdict"] != moved[key]["verdict"]
    ]
    return Comparison(same, text + "".join(f"; here {one}" for one in flipped))


def _claims(folder: Path, name: str) -> list[Row]:
    return [row for row in all_contrasts(read_claims(folder)) if row["study"] == name]


def _movement(old: dict[str, Any], new: dict[str, Any]) -> float:
    """How far an effect moved, in half-widths of its stored interval (but at least 0.01 of its unit a half-width)."""
    if old["effect"] is None or new["effect"] is None or old["interval"][0] is None:
        return 0.0 if old["effect"] == new["effect"] else math.inf
    half = max((old["interval"][1] - old["interval"][0]) / 2, 0.01)
    return abs(old["effect"] - new["effect"]) / half


def _differences(old: Runs, new: Runs) -> list[tuple[str, float]]:
    """(where, |difference|) of every loss that both have; a run that diverged in one only counts as infinitely far."""
    found: dict[Any, Run] = {run.settings: run for run in new}
    differences = []
    for run in old:
        other = found[run.settings]
        if run.diverged != other.diverged:
            differences.append((f"{run.settings.label()}: diverged in one only", math.inf))
        for name in ("train_loss", "validation_loss"):
            pairs = zip(getattr(run, name), getattr(other, name), strict=False)
            differences += [(f"{name} of {run.settings.label()}", abs(a - b)) for a, b in pairs]
    return differences


def _largest_difference(old: Runs, new: Runs) -> str:
    where, largest = max(_differences(old, new), key=lambda pair: pair[1])
    if largest > 0:
        return f"by up to {largest:.3g} nats, in {where}"
    found = {run.settings: run for run in new}
    others = [name for name in (*MEASURED, *CONSTANT)
              if any(getattr(run, name) != getattr(found[run.settings], name) for run in old)]  # fmt: skip
    return f"no loss does, but {', '.join(others) or 'the order of the rows, or how numbers are written'}"
