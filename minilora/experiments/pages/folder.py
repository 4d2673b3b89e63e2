"""What a study leaves behind: CSV, figure, the ledger, samples, provenance."""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from minilora.command_line import in_a_line, write_file
from minilora.experiments.engine.provenance import provenance
from minilora.experiments.engine.runner import as_run, base, write_names
from minilora.experiments.evidence.ledger import Row, all_contrasts, claim_rows, contrast_row, in_order, result_text
from minilora.experiments.evidence.runs import Runs, to_csv
from minilora.experiments.evidence.settings import Settings
from minilora.experiments.evidence.stats import N_SEEDS
from minilora.experiments.evidence.study import Contrast, Study, StudyError
from minilora.experiments.pages import overview, plots
from minilora.experiments.pages.ledger import ledger_page
from minilora.experiments.pages.stored import (
    check_claims,
    check_provenance,
    check_samples,
    read_claims,
    read_provenance,
    read_samples,
)
from minilora.files import to_json


def write_study(
    study: Study, runs: Runs, samples: dict[str, list[str]], out: Path, options: str, seconds: float | None
) -> list[Row]:
    """Write all of a study's files into `out`; contrasts of other studies that are there stay. Returns its own.

    Everything is made and checked before the first file is written. StudyError for a contrast or a figure that fails.
    """
    table_of_runs = to_csv(runs)
    rows = [row for one in study.contrasts if (row := _contrast(study, one, runs, options)) is not None]
    drawn = _of_study(f"study {study.name}: draw", plots.to_svg, study.draw, runs, samples)
    others = [row for row in all_contrasts(read_claims(out)) if row["study"] != study.name]
    ledger = claim_rows(in_order(others + rows))
    written, everything = read_samples(out), read_provenance(out)
    if samples:
        written[study.name] = samples
        check_samples(written)
    if seconds is None:
        seconds = everything.get(study.name, {}).get("seconds")
    everything[study.name] = provenance(study, runs, options, seconds)
    contents = {
        f"{study.name}.csv": table_of_runs,
        f"{study.name}.svg": drawn,
        "claims.json": to_json(check_claims(ledger)),
        "CLAIMS.md": ledger_page(ledger, written),
        "provenance.json": to_json(check_provenance(dict(sorted(everything.items())))),
    }
    if samples:
        contents["samples.json"] = to_json(written)
    for name, content in contents.items():
        write_file(out / name, content)
    return rows


def _contrast(study: Study, contrast: Contrast, runs: Runs, options: str) -> Row | None:
    return _of_study(f"study {study.name}: {contrast.claim}: measure", contrast_row, study, contrast, runs, options)


def _of_study(what: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """What a study's own function gives; StudyError that names it for whatever it raises."""
    try:
        return function(*arguments)
    except Exception as error:
        raise StudyError(f"{what}: {type(error).__name__}: {in_a_line(error)}") from error


def write_overview(out: Path) -> list[Row]:
    """Draw all claims that are in `out` into overview.svg; the claims."""
    ledger = read_claims(out)
    write_file(out / "overview.svg", plots.to_svg(overview.draw, ledger))
    return ledger


def check_folder(out: Path) -> None:
    """ValueError that names the file for one in `out` that could not be added to."""
    read_claims(out), read_samples(out), read_provenance(out)


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
