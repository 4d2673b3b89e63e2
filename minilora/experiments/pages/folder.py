"""What a study leaves behind: CSV, figure, the ledger, samples, provenance."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from minilora.experiments.engine.provenance import provenance
from minilora.experiments.engine.runner import as_run, base, write_names
from minilora.experiments.evidence.claims import ARTICLE
from minilora.experiments.evidence.ledger import Row, all_contrasts, claim_rows, contrast_row, in_order, result_text
from minilora.experiments.evidence.runs import Runs, to_csv
from minilora.experiments.evidence.settings import Settings
from minilora.experiments.evidence.stats import N_SEEDS
from minilora.experiments.evidence.study import Study
from minilora.experiments.pages import overview, plots
from minilora.experiments.pages.ledger import ledger_page
from minilora.files import from_json, read_json, replace_file, to_json

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
