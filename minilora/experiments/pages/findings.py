"""What advice is made of: an extract of a folder of results. That of figures/ ships with minilora, as recipe.json.

`python -m minilora.experiments recipe --out figures --extract minilora/experiments/pages/recipe.json` makes it again.
"""

from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from minilora.experiments.evidence.runs import BEST, FINAL, MissingRunsError, Runs, tuned_rates
from minilora.experiments.pages.stored import read_claims, read_runs
from minilora.files import from_json

RANK_STUDY = {"names": "rank", "planted": "planted_rank"}  # where each task's ranks were compared
SHIPPED = "recipe.json"
DIGITS = 6  # of a loss in nats; what is compared differs in the second

Findings = dict[str, Any]  # "claims": {id: verdict, result, contrasts}; "ranks": {task: sizes}; "dropout": sizes


def extract(folder: Path, tasks: tuple[str, ...] = tuple(RANK_STUDY)) -> Findings:
    """The findings in a folder; OSError or ValueError that names the file if one is missing or holds something else."""
    rows = read_claims(folder)
    if not rows:
        raise FileNotFoundError(f"{folder / 'claims.json'} is not there: `python -m minilora.experiments all` makes it")
    claims = {row["id"]: _decided(row) | {"contrasts": list(map(_decided, row["contrasts"]))} for row in rows}
    decided = all(claims.get(claim, {}).get("verdict") == "supported" for claim in ("D1", "D3"))
    return {
        "claims": claims,
        "ranks": {task: _by_size(folder, RANK_STUDY[task], _ranks) for task in tasks},
        "dropout": _by_size(folder, "dropout", _dropouts) if decided else [],
    }


def shipped() -> Findings:
    """The findings that ship with minilora: those of its figures/."""
    return from_json((files("minilora.experiments.pages") / SHIPPED).read_text(encoding="utf-8"))


def _decided(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("verdict", "result")}


def _by_size(folder: Path, study: str, summarize) -> list[dict[str, Any]]:
    """[{n_train, ...}]: what the LoRA runs of a study found with each number of names to train on."""
    runs = read_runs(folder, study).where(method="lora")
    try:
        if not runs:
            raise ValueError("holds no runs of LoRA")
        return [{"n_train": n} | summarize(runs.where(n_train=n)) for n in runs.values("n_train")]
    except (ValueError, MissingRunsError) as error:
        raise ValueError(
            f"{folder / study}.csv: {error}; `python -m minilora.experiments {study}` makes it anew"
        ) from None


def _ranks(runs: Runs) -> dict[str, Any]:
    """For each rank its loss at the best step, each seed at the rate that the others choose, and that rate."""
    found = []
    for r in runs.values("r"):
        rates = tuned_rates(runs.where(r=r))
        loss = round(float(np.mean(runs.tuned(BEST, r=r))), DIGITS)
        found.append({"r": r, "loss": loss, "learning_rate": max(set(rates), key=rates.count)})
    return {"tried": found}


def _dropouts(runs: Runs) -> dict[str, Any]:
    """For each dropout its loss at the end and at the best step, and at which rank and rate they were measured."""
    first = runs[0].settings
    found = [
        {"p": p, **{name: round(float(np.mean(runs.per_seed(metric, lora_dropout=p))), DIGITS)
                    for name, metric in (("final", FINAL), ("best", BEST))}}
        for p in runs.values("lora_dropout")
    ]  # fmt: skip
    return {"r": first.r, "learning_rate": first.learning_rate, "tried": found}
