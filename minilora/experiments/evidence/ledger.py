"""The ledger: contrasts with their numbers, and the claims of the article that they decide."""

import contextlib
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from minilora.experiments.evidence.claims import ARTICLE, ORDER, agreement
from minilora.experiments.evidence.measures import Measure
from minilora.experiments.evidence.runs import MissingRunsError, Runs
from minilora.experiments.evidence.stats import Estimate, bootstrap_interval, estimate, holm, p_values, verdict
from minilora.experiments.evidence.study import Contrast, Study

Row = dict[str, Any]
VERDICTS = (
    "contradicted",
    "inconclusive",
    "supported",
)  # what decides a claim of several contrasts: the first of these
SIGNIFICANCE = 0.05  # two-sided, as the intervals are
COMMAND = "python -m minilora.experiments"


def contrast_row(study: Study, contrast: Contrast, runs: Runs, options: str) -> Row | None:
    """A contrast with its numbers; None where this version of the study lacks the runs for it."""
    try:
        values = _measured(contrast.measure, runs)
    except MissingRunsError:
        return None
    row = {
        "id": contrast.claim,
        "statement": ARTICLE[contrast.claim].statement,
        "study": study.name,
        "prediction": contrast.prediction,
        "smallest_effect": contrast.smallest_effect,
        **_numbers(contrast, values),
        "unit": contrast.unit,
        "n_seeds": len(values),
        "exact": contrast.exact,
        "scale": contrast.smallest_effect or contrast.scale,
        "regime": contrast.regime,
        "figure": f"{study.name}.svg",
        "command": f"{COMMAND} {study.name}{options}",
        "variants": {},
    }
    row["result"] = in_words(contrast.plain, row)
    for label, measure in contrast.variants.items():
        with contextlib.suppress(MissingRunsError):
            row["variants"][label] = _numbers(contrast, _measured(measure, runs))
    return row


def _measured(measure: Measure, runs: Runs) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # a run that diverged is infinite, and the difference of two is no number
        return measure(runs)


def _numbers(contrast: Contrast, values: np.ndarray) -> Row:
    """An effect with its intervals, p-values and verdict; an exact one is its largest deviation, without width."""
    measured = estimate(values)
    if contrast.exact:
        largest = float(np.max(np.abs(values)))
        measured = Estimate(largest, largest, largest, len(values))
    found = verdict(measured, contrast.smallest_effect, contrast.exact)
    bootstrap = (measured.low, measured.high) if contrast.exact else bootstrap_interval(values)
    resampled = Estimate(measured.mean, *bootstrap, measured.n)
    ps = p_values(values, contrast.smallest_effect)
    return {
        "effect": _finite(measured.mean),
        "interval": [_finite(measured.low), _finite(measured.high)],
        "interval_bootstrap": [_finite(bound) for bound in bootstrap],
        "verdict_bootstrap": verdict(resampled, contrast.smallest_effect, contrast.exact),
        "p_supported": float(found != "supported") if contrast.exact else ps[0],
        "p_contradicted": float(found != "contradicted") if contrast.exact else ps[1],
        "verdict": found,
    }  # fmt: skip


def _finite(x: float) -> float | None:
    return x if math.isfinite(x) else None


def in_words(plain: str, row: Row) -> str:
    """The result as a sentence.

    >>> row = {"effect": -0.25, "interval": [-0.3, -0.2], "exact": False, "n_seeds": 8}
    >>> in_words("r=1 ends {effect} nats {above/below} r=8", row)
    'r=1 ends 0.250 +- 0.050 nats below r=8'
    """
    if row["effect"] is None or row["interval"][0] is None:
        return result_text(row)
    half = (row["interval"][1] - row["interval"][0]) / 2
    size = f"{row['effect']:g}" if row["exact"] else f"{abs(row['effect']):.3f} +- {half:.3f}"
    words = re.sub(r"\{(\w+)/(\w+)\}", lambda pair: pair[1 if row["effect"] >= 0 else 2], plain)
    given_up = f"{row.get('scale', 0) - row['effect']:.3f} +- {half:.3f}"
    return words.replace("{effect}", size).replace("{given_up}", given_up)


def result_text(row: Row) -> str:
    """Effect, interval and unit in a few words.

    >>> row = {"effect": 0.2, "interval": [0.1, 0.3], "unit": "nats", "exact": False, "n_seeds": 8}
    >>> result_text(row)
    '0.200 [0.100, 0.300] nats'
    """
    if row.get("exact") and row["effect"] is not None:
        return f"{row['effect']:g} {row['unit']} (exact)"
    if row["effect"] is None or row["interval"][0] is None:
        reason = (
            "one seed gives no interval"
            if row.get("n_seeds") == 1
            else "a run of the contrast diverged or never got there"
        )
        return f"no interval: {reason}"
    low, high = row["interval"]
    return f"{row['effect']:.3f} [{low:.3f}, {high:.3f}] {row['unit']}"


def claim_rows(contrasts: Iterable[Row]) -> list[Row]:
    """One row a claim, in the order of the article, from the contrasts that there are.

    All contrasts of a claim have to hold. The row shows the one that decides: the first contradicted, else the first
    inconclusive, else the first. `verdict_holm` is what is left after Holm's correction for the number of claims.
    """
    by_claim: dict[str, list[Row]] = {}
    for row in contrasts:
        by_claim.setdefault(row["id"], []).append(row)
    rows = [_claim_row(by_claim[one]) for one in ORDER if one in by_claim]
    uncertain = [row for row in rows if not row["exact"]]
    for row, adjusted in zip(uncertain, holm([row["p"] for row in uncertain]), strict=True):
        row["p_holm"] = adjusted
        row["verdict_holm"] = row["verdict"] if adjusted <= SIGNIFICANCE else "inconclusive"
    return rows


def _claim_row(contrasts: Sequence[Row]) -> Row:
    deciding = min(contrasts, key=lambda row: VERDICTS.index(row["verdict"]))
    holds = max(row["p_supported"] for row in contrasts)  # all have to hold
    fails = min(1.0, len(contrasts) * min(row["p_contradicted"] for row in contrasts))  # any may fail (Bonferroni)
    paper = ARTICLE[deciding["id"]].paper
    studies = dict.fromkeys(row["study"] for row in contrasts)
    options = deciding["command"].removeprefix(f"{COMMAND} {deciding['study']}")
    return deciding | {
        "exact": all(row["exact"] for row in contrasts),
        "command": f"{COMMAND} {' '.join(studies)}{options}",
        "p": min(1.0, 2 * min(holds, fails)),
        "p_holm": None,
        "verdict_holm": deciding["verdict"],
        "paper": None if paper is None else {
            "source": paper.source, "reported": paper.reported, "agreement": agreement(paper, deciding["verdict"])
        },
        "contrasts": list(contrasts),
    }  # fmt: skip


def in_order(contrasts: Iterable[Row]) -> list[Row]:
    """Contrasts in the order of the article; those of one claim in the order of the first claims of their studies."""
    contrasts = list(contrasts)
    first: dict[str, int] = {}
    for row in contrasts:
        first[row["study"]] = min(ORDER.index(row["id"]), first.get(row["study"], len(ORDER)))
    return sorted(contrasts, key=lambda row: (ORDER.index(row["id"]), first[row["study"]], row["study"]))


def all_contrasts(rows: Iterable[Row]) -> list[Row]:
    """The contrasts of the claims."""
    return [contrast for row in rows for contrast in row["contrasts"]]
