"""What a study leaves behind: CSV, figure, claims with verdicts, samples, provenance."""

import contextlib
import dataclasses
import hashlib
import math
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from minilora.data.names import TABLES, load_names
from minilora.experiments import plots
from minilora.experiments.runner import as_run, base, code_version, machine, write_names
from minilora.experiments.runs import MissingRunsError, Runs, to_csv, tuned_rates
from minilora.experiments.stats import Estimate, estimate, verdict
from minilora.experiments.study import HEADLINE, N_SEEDS, Claim, Settings, Study
from minilora.files import from_json, read_json, replace_file, to_json
from minilora.trees import fingerprint

Row = dict[str, Any]
CLAIM_KEYS = {
    "id", "statement", "study", "prediction", "smallest_effect", "effect", "interval", "unit", "n_seeds", "verdict",
    "regime", "figure", "command",
}  # fmt: skip


def write_study(
    study: Study, runs: Runs, samples: dict[str, list[str]], out: Path, options: str, seconds: float | None
) -> list[Row]:
    """Write all of a study's files into `out`; rows of other studies that are there stay. Returns its claims."""
    rows = [row for claim in study.claims if (row := claim_row(study, claim, runs, options)) is not None]
    replace_file(out / f"{study.name}.csv", to_csv(runs))
    replace_file(out / f"{study.name}.svg", plots.to_svg(study.draw, runs, samples))
    others = [row for row in read_claims(out) if row["study"] != study.name]
    ledger = sorted(others + rows, key=_place)
    replace_file(out / "claims.json", to_json(ledger))
    everything = _read_or_empty(out / "provenance.json")
    written = _read_or_empty(out / "samples.json")
    if samples:
        written[study.name] = samples
        replace_file(out / "samples.json", to_json(written))
    replace_file(out / "CLAIMS.md", ledger_page(ledger, written))
    if seconds is None:
        seconds = everything.get(study.name, {}).get("seconds")
    everything[study.name] = provenance(study, runs, options, seconds)
    replace_file(out / "provenance.json", to_json(dict(sorted(everything.items()))))
    return rows


def read_claims(out: Path) -> list[Row]:
    """The rows of claims.json, or none where there is no such file."""
    path = out / "claims.json"
    try:
        rows = from_json(path.read_text(encoding="utf-8")) if path.exists() else []
        if not all(isinstance(row, dict) and row.keys() >= CLAIM_KEYS for row in rows):
            raise ValueError("not a list of claims")
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}; remove it to write it anew") from None
    return rows


def _read_or_empty(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _place(row: Row) -> tuple:
    """The order of the article: R, A, D, then the rest; within an id, by study."""
    letters = "RADTYLIBSWEG"
    study = HEADLINE.index(row["study"]) if row["study"] in HEADLINE else len(HEADLINE)
    return letters.find(row["id"][0]), row["id"], study


def claim_row(study: Study, claim: Claim, runs: Runs, options: str) -> Row | None:
    """One row of the ledger; None where this version of the study lacks the runs for it."""
    try:
        measured = _estimate(claim, claim.contrast(runs))
    except MissingRunsError:
        return None
    row = {
        "id": claim.id,
        "statement": claim.statement,
        "study": study.name,
        "prediction": claim.prediction,
        "smallest_effect": claim.smallest_effect,
        **_numbers(claim, measured),
        "unit": claim.unit,
        "n_seeds": measured.n,
        "exact": claim.exact,
        "regime": claim.regime,
        "figure": f"{study.name}.svg",
        "command": f"python -m minilora.experiments {study.name}{options}",
    }
    row["variants"] = {}
    for label, contrast in claim.variants.items():
        with contextlib.suppress(MissingRunsError):
            row["variants"][label] = _numbers(claim, _estimate(claim, contrast(runs)))
    return row


def _estimate(claim: Claim, values: np.ndarray) -> Estimate:
    """With an interval over seeds; an exact claim's is its largest deviation, without width."""
    if not claim.exact:
        return estimate(values)
    largest = float(np.max(np.abs(values)))
    return Estimate(largest, largest, largest, len(values))


def _numbers(claim: Claim, measured: Estimate) -> Row:
    bounds = [measured.low, measured.high]
    return {
        "effect": measured.mean if math.isfinite(measured.mean) else None,
        "interval": [bound if math.isfinite(bound) else None for bound in bounds],
        "verdict": verdict(measured, claim.smallest_effect, claim.exact),
    }


def result_text(row: Row) -> str:
    """Effect, interval and unit in a few words.

    >>> row = {"effect": 0.2, "interval": [0.1, 0.3], "unit": "nats", "exact": False, "n_seeds": 8}
    >>> result_text(row)
    '0.200 [0.100, 0.300] nats'
    """
    if row.get("exact") and row["effect"] is not None:
        return f"{row['effect']:g} {row['unit']} (exact)"
    if row["effect"] is None or row["interval"][0] is None:
        reason = "one seed gives no interval" if row.get("n_seeds") == 1 else "a run of the contrast diverged"
        return f"no interval: {reason}"
    low, high = row["interval"]
    return f"{row['effect']:.3f} [{low:.3f}, {high:.3f}] {row['unit']}"


QUICK_NOTE = (
    "",
    "This is the quick version: few settings, few steps, and one learning rate, so that nothing is tuned.",
)


def ledger_page(rows: Sequence[Row], samples: dict[str, dict[str, list[str]]]) -> str:
    """CLAIMS.md."""
    lines = [
        "# What the article says, and what we measured",
        "",
        "Written by `python -m minilora.experiments`. Effects are means over paired seeds with",
        "95 % intervals, positive in the predicted direction. *Supported*: the whole interval lies beyond the smallest",
        "effect worth having, which was written down before the run. *Contradicted*: it lies wholly on the other side",
        "of zero. *Inconclusive* otherwise.",
        *[line for line in QUICK_NOTE if any("--quick" in row["command"] for row in rows)],
        "",
        "| claim | statement | prediction | smallest effect | measured | seeds | verdict | figure |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        figure = f"[{row['study']}]({row['figure']})"
        lines.append(
            f"| {row['id']} | {row['statement']} | {row['prediction']} | {row['smallest_effect']:g} "
            f"| {result_text(row)} | {row['n_seeds']} | **{row['verdict']}** | {figure} |"
        )
    lines += _variants(rows)
    lines += ["", "## Where it was measured", ""]
    lines += list(
        dict.fromkeys(f"- **{row['id']}** ({row['study']}): {row['regime']}. `{row['command']}`" for row in rows)
    )
    for study, written in samples.items():
        lines += ["", f"## What the models of the study `{study}` write", ""]
        lines += [f"- {label.replace(chr(10), ' ')}: {', '.join(names)}" for label, names in written.items()]
    return "\n".join(lines) + "\n"


def _variants(rows: Sequence[Row]) -> list[str]:
    """The same contrasts, measured otherwise; nothing where that comes to the same, as where nothing is tuned."""
    table = [
        f"| {row['id']} | {row['study']} | {result_text(row)} | {label} | {result_text(row | other)} "
        f"| {other['verdict']} |"
        for row in rows
        for label, other in row.get("variants", {}).items()
        if other["interval"] != row["interval"]
    ]
    heading = [
        "",
        "## The same contrasts, measured otherwise",
        "",
        "Above, each learning rate is tuned where several were tried: the one with the lowest best validation loss",
        "(that of early stopping), on the mean over the other seeds.",
        "",
        "| claim | study | as above | otherwise | measured | verdict it would give |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    return heading + table if table else []


def verdict_summary(rows: Sequence[Row]) -> str:
    """The table of README.md: a line a claim."""
    lines = ["| claim | statement | measured [95 % interval] | verdict |", "| --- | --- | --- | --- |"]
    lines += [
        f"| [{row['id']}](figures/{row['figure']}) | {row['statement']}: {row['prediction']} | {result_text(row)} "
        f"| **{row['verdict']}** |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def provenance(study: Study, runs: Runs, options: str, seconds: float | None) -> dict[str, Any]:
    """What these numbers were made from, on what, and in what time (None: all runs were stored already)."""
    return {
        "command": f"python -m minilora.experiments {study.name}{options}",
        "versions": versions(),
        "machine": machine(),
        "platform": f"{platform.system()} {platform.machine()}",
        "code": code_version(),
        "base": fingerprint(base().params),
        "data": {table: hashlib.sha256("\n".join(load_names(table)).encode()).hexdigest() for table in TABLES},
        "seeds": runs.values("seed"),
        "runs": len(runs),
        "diverged": [run.settings.label() + f" at step {run.diverged_at}" for run in runs if run.diverged],
        "seconds": seconds and round(seconds, 1),
        "settings": {f.name: runs.values(f.name) for f in dataclasses.fields(runs[0].settings) if f.name != "seed"},
        "tuned_learning_rates": [_tuning(runs, group) for group in study.tuned if len(runs.where(**group))],
    }


def versions() -> dict[str, str]:
    """Of Python and of what computes and draws."""
    packages = ("minilora", "numpy", "autograd", "scipy", "matplotlib", "joblib")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}


def _tuning(runs: Runs, group: Mapping[str, Any]) -> dict[str, Any]:
    """The learning rates tried for a group of runs, the one with the lowest mean loss, and whether it lies inside."""
    cell = runs.where(**group)
    rates = cell.values("learning_rate")
    means = [float(np.mean(cell.per_seed(lambda run: run.best, learning_rate=rate))) for rate in rates]
    chosen = tuned_rates(cell)
    inside = rates[0] < min(chosen) and max(chosen) < rates[-1]
    return {"group": dict(group), "tried": rates, "mean_best_loss": [m if math.isfinite(m) else None for m in means],
            "chosen_by_seed": chosen, "inside": inside}  # fmt: skip


def samples_of(study: Study, results: dict[Any, dict[str, Any]]) -> dict[str, list[str]]:
    """{label: names} of the study's sampled runs at the first seed, after those of the base."""
    chosen = {}
    for label, wanted in study.samples.items():
        for settings, result in results.items():
            if settings.seed == 0 and all(getattr(settings, name) == value for name, value in wanted.items()):
                chosen[label] = result["samples"]
                break
    return {"base,\nnot adapted": write_names(base(), 0)} | chosen if chosen else {}


def print_verdicts(rows: Iterable[Row], file=None) -> None:
    """The table of verdicts, for a terminal."""
    file = file or sys.stdout
    rows = list(rows)
    if not rows:
        return
    width = max(len(row["statement"]) for row in rows)
    few = any(row["n_seeds"] < N_SEEDS for row in rows)
    print(f"\n{'claim':6}{'study':14}{'verdict':14}{'statement':{width + 2}}measured [95 % interval]", file=file)
    for row in rows:
        print(
            f"{row['id']:6}{row['study']:14}{row['verdict']:14}{row['statement']:{width + 2}}{result_text(row)}",
            file=file,
        )
    if few:
        print(f"Below {N_SEEDS} seeds every verdict that is not exact stays inconclusive.", file=file)


def sample_lines(samples: dict[str, list[str]]) -> list[str]:
    """Names that models write, before and after adaptation, for a terminal."""
    return [f"  {label.replace(chr(10), ' '):24}{'  '.join(names[:8])}" for label, names in samples.items()]


def table(results: dict[Settings, dict[str, Any]]) -> Runs:
    """Results of the runner as a table."""
    return Runs([as_run(settings, result) for settings, result in results.items()])
