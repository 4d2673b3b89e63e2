"""What a study leaves behind: CSV, figure, the ledger, samples, provenance."""

import contextlib
import dataclasses
import hashlib
import math
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from minilora.data.base import BASES
from minilora.data.names import TABLES, load_names
from minilora.experiments import overview, plots
from minilora.experiments.claims import ARTICLE
from minilora.experiments.ledger import Row, all_contrasts, claim_rows, contrast_row, in_order, result_text
from minilora.experiments.runner import as_run, base, code_version, machine, write_names
from minilora.experiments.runs import Runs, to_csv, tuned_rates
from minilora.experiments.study import N_SEEDS, Settings, Study
from minilora.files import from_json, read_json, replace_file, to_json
from minilora.trees import fingerprint

CLAIM_KEYS = {
    "id", "statement", "study", "prediction", "smallest_effect", "effect", "interval", "unit", "n_seeds", "verdict",
    "regime", "figure", "command", "contrasts", "result", "verdict_holm", "paper", "exact",
}  # fmt: skip


def write_study(
    study: Study, runs: Runs, samples: dict[str, list[str]], out: Path, options: str, seconds: float | None
) -> list[Row]:
    """Write all of a study's files into `out`; contrasts of other studies that are there stay. Returns its own."""
    rows = [row for one in study.contrasts if (row := contrast_row(study, one, runs, options)) is not None]
    replace_file(out / f"{study.name}.csv", to_csv(runs))
    replace_file(out / f"{study.name}.svg", plots.to_svg(study.draw, runs, samples))
    others = [row for row in all_contrasts(read_claims(out)) if row["study"] != study.name]
    ledger = claim_rows(in_order(others + rows))
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


def write_overview(out: Path) -> list[Row]:
    """Draw all claims that are in `out` into overview.svg; the claims."""
    ledger = read_claims(out)
    replace_file(out / "overview.svg", plots.to_svg(overview.draw, ledger))
    return ledger


def read_claims(out: Path) -> list[Row]:
    """The rows of claims.json, or none where there is no such file."""
    path = out / "claims.json"
    try:
        rows = from_json(path.read_text(encoding="utf-8")) if path.exists() else []
        if not all(isinstance(row, dict) and row.keys() >= CLAIM_KEYS and row["id"] in ARTICLE for row in rows):
            raise ValueError("not a list of claims")
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}; remove it to write it anew") from None
    return rows


def _read_or_empty(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


QUICK_NOTE = (
    "This is the quick version: few settings, few steps, and mostly one learning rate, so that nothing is tuned."
)
RULE = """\
Written by `python -m minilora.experiments`. Effects are means over paired seeds with 95 % intervals (Student's t),
positive in the predicted direction. *Supported*: the whole interval lies beyond the smallest effect worth having, which
was written down before the run. *Contradicted*: it lies wholly on the other side of zero. *Inconclusive* otherwise.
A claim of several contrasts holds if all of them do; its line shows the contrast that decides. Where a verdict does not
survive Holm's correction for the number of claims, that is said beside it.
"""


def ledger_page(rows: Sequence[Row], samples: dict[str, dict[str, list[str]]]) -> str:
    """CLAIMS.md."""
    parts = ["# What the article says, and what we measured", RULE.strip()]
    if any("--quick" in row["command"] for row in rows):
        parts.append(QUICK_NOTE)
    parts += ["![All claims, their effects and verdicts](overview.svg)", claims_table(rows)]
    parts += ["## Each contrast", contrasts_table(all_contrasts(rows))]
    otherwise = variants_table(all_contrasts(rows))
    if otherwise:
        parts += ["## The same contrasts, measured otherwise", OTHERWISE.strip(), otherwise]
    parts += ["## Where it was measured", _regimes(rows)]
    for study, written in samples.items():
        parts.append(f"## What the models of the study `{study}` write")
        parts.append(
            "\n".join(f"- {label.replace(chr(10), ' ')}: {', '.join(names)}" for label, names in written.items())
        )
    return "\n\n".join(parts) + "\n"


def _table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Markdown; empty where there are no lines."""
    body = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join(["| " + " | ".join(header) + " |", "| --- " * len(header) + "|", *body]) if body else ""


def _verdict_words(row: Row) -> str:
    """The verdict, with what qualifies it."""
    text = f"**{row['verdict']}**"
    if row["verdict"] != row["verdict_holm"]:
        text += f" (after Holm {row['verdict_holm']})"
    n, same = len(row["contrasts"]), sum(one["verdict"] == row["verdict"] for one in row["contrasts"])
    return text if same == n else f"{text} ({n - same} of {n} contrasts otherwise)"


def _paper_words(row: Row) -> str:
    paper = row["paper"]
    return f"{paper['agreement']}: {paper['reported']} ({paper['source']})" if paper else ""


def claims_table(rows: Sequence[Row]) -> str:
    """A line a claim."""
    return _table(
        ["claim", "statement", "what decides it", "verdict", "papers", "figure", "makes this row"],
        [
            [row["id"], row["statement"], row["result"], _verdict_words(row), _paper_words(row),
             f"[{row['study']}]({row['figure']})", f"`{row['command']}`"]
            for row in rows
        ],
    )  # fmt: skip


def contrasts_table(contrasts: Sequence[Row]) -> str:
    """A line a contrast, with its numbers; the bootstrap's where they would give another verdict."""
    lines = []
    for row in contrasts:
        measured = result_text(row)
        if row["verdict_bootstrap"] != row["verdict"]:
            low, high = row["interval_bootstrap"]
            measured += f"; bootstrap [{low:.3f}, {high:.3f}]: {row['verdict_bootstrap']}"
        lines.append([row["id"], row["prediction"], f"{row['smallest_effect']:g}", measured, str(row["n_seeds"]),
                      row["verdict"], f"[{row['study']}]({row['figure']})"])  # fmt: skip
    return _table(["claim", "prediction", "smallest effect", "measured", "seeds", "verdict", "figure"], lines)


OTHERWISE = """\
Above, each learning rate is tuned where several were tried, unless the prediction or its regime names one: the one with
the lowest best validation loss (that of early stopping), on the mean over the other seeds.
"""


def variants_table(contrasts: Sequence[Row]) -> str:
    """The same contrasts, measured otherwise; nothing where that comes to the same, as where nothing is tuned."""
    return _table(
        ["claim", "study", "as above", "otherwise", "measured", "verdict it would give"],
        [
            [row["id"], row["study"], result_text(row), label, result_text(row | other), other["verdict"]]
            for row in contrasts
            for label, other in row["variants"].items()
            if other["interval"] != row["interval"]
        ],
    )


def _regimes(rows: Sequence[Row]) -> str:
    contrasts = all_contrasts(rows)
    return "\n".join(dict.fromkeys(f"- **{row['id']}** ({row['study']}): {row['regime']}" for row in contrasts))


def verdict_summary(rows: Sequence[Row]) -> str:
    """The table of README.md: a line a claim."""
    lines = [
        [f"[{row['id']}](figures/{row['figure']})", row["statement"], row["result"], _verdict_words(row)]
        for row in rows
    ]
    return _table(["claim", "statement", "what decides it (+- half the 95 % interval)", "verdict"], lines) + "\n"


def provenance(study: Study, runs: Runs, options: str, seconds: float | None) -> dict[str, Any]:
    """What these numbers were made from, on what, and in what time (None: all runs were stored already)."""
    return {
        "command": f"python -m minilora.experiments {study.name}{options}",
        "versions": versions(),
        "machine": machine(),
        "platform": f"{platform.system()} {platform.machine()}",
        "code": code_version(),
        "bases": {name: fingerprint(base(name).params) for name in BASES},
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
    found = {"python": platform.python_version()}
    for name in ("minilora", "numpy", "autograd", "scipy", "matplotlib", "joblib", "optuna"):
        with contextlib.suppress(PackageNotFoundError):  # optuna is an extra
            found[name] = version(name)
    return found


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
    return {"base,\nnot adapted": write_names(base("surnames"), base("surnames"), 0)} | chosen if chosen else {}


def print_verdicts(rows: Iterable[Row], file=None) -> None:
    """The table of verdicts, for a terminal."""
    file = file or sys.stdout
    rows = list(rows)
    if not rows:
        return
    width = max(len(row["statement"]) for row in rows)
    few = any(row["n_seeds"] < N_SEEDS for row in rows)
    print(f"\n{'claim':6}{'study':16}{'verdict':14}{'statement':{width + 2}}measured [95 % interval]", file=file)
    for row in rows:
        print(
            f"{row['id']:6}{row['study']:16}{row['verdict']:14}{row['statement']:{width + 2}}{result_text(row)}",
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
