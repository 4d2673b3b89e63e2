"""Reading what a folder of results holds: claims, samples, provenance, runs, each as it is written or an error.

Every message names the file. What is written is checked by the same functions.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from minilora.experiments.evidence.claims import ARTICLE
from minilora.experiments.evidence.ledger import VERDICTS, Row
from minilora.experiments.evidence.runs import Runs, from_csv
from minilora.files import from_json, read_json

Form = dict[str, tuple[str, Callable[[Any], bool]]]  # field: (what it takes, whether a value is that)


def _number(x: Any) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x)


def _interval(x: Any) -> bool:
    """Two bounds, or none where a run diverged or there is one seed."""
    return isinstance(x, list) and (x == [None, None] or (len(x) == 2 and all(map(_number, x)) and x[0] <= x[1]))


TEXT = ("a text", lambda x: isinstance(x, str) and bool(x.strip()))
NUMBER = ("a number", _number)
SHARE = ("a number between 0 and 1", lambda x: _number(x) and 0 <= x <= 1)
INTERVAL = ("two numbers in order, or two nulls", _interval)
VERDICT = (f"one of {', '.join(VERDICTS)}", lambda x: x in VERDICTS)
OBJECT = ("an object", lambda x: isinstance(x, dict))
MEASURED: Form = {
    "effect": ("a number or null", lambda x: x is None or _number(x)),
    "interval": INTERVAL,
    "interval_bootstrap": INTERVAL,
    "verdict": VERDICT,
    "verdict_bootstrap": VERDICT,
    "p_supported": SHARE,
    "p_contradicted": SHARE,
}
CONTRAST: Form = MEASURED | {
    "id": ("a claim of the article", lambda x: isinstance(x, str) and x in ARTICLE),
    **dict.fromkeys(("statement", "study", "prediction", "unit", "regime", "figure", "command", "result"), TEXT),
    "smallest_effect": ("a number of at least 0", lambda x: _number(x) and x >= 0),
    "scale": ("a number above 0", lambda x: _number(x) and x > 0),
    "n_seeds": ("an integer of at least 1", lambda x: type(x) is int and x >= 1),
    "exact": ("true or false", lambda x: isinstance(x, bool)),
    "variants": OBJECT,
}
CLAIM: Form = CONTRAST | {
    "p": SHARE,
    "p_holm": ("a number between 0 and 1, or null", lambda x: x is None or SHARE[1](x)),
    "verdict_holm": VERDICT,
    "paper": ("an object or null", lambda x: x is None or isinstance(x, dict)),
    "contrasts": ("a list of contrasts", lambda x: isinstance(x, list) and bool(x)),
}
PAPER: Form = {
    "source": TEXT,
    "reported": TEXT,
    "agreement": ("a text", lambda x: isinstance(x, str)),
}


def check_form(value: Any, form: Form, where: str) -> None:
    """ValueError that names the field unless it is an object with these fields (and maybe more)."""
    if not isinstance(value, dict):
        raise ValueError(f"{where}: got {value!r:.60}, takes an object")
    for name, (takes, holds) in form.items():
        if name not in value:
            raise ValueError(f"{where}: lacks {name!r}")
        if not holds(value[name]):
            raise ValueError(f"{where}: {name}: got {value[name]!r:.60}, takes {takes}")


def check_claims(rows: Any) -> list[Row]:
    """The rows of a ledger, if they are that: each claim once, with its contrasts and what was measured otherwise."""
    if not isinstance(rows, list):
        raise ValueError(f"got {rows!r:.60}, takes a list of claims")
    for number, row in enumerate(rows, start=1):
        check_form(row, CLAIM, f"claim {number}")
        where = f"claim {row['id']}"
        if row["paper"] is not None:
            check_form(row["paper"], PAPER, f"{where}: paper")
        for one in (row, *row["contrasts"]):
            check_form(one, CONTRAST, f"{where}: a contrast")
            if one["id"] != row["id"]:
                raise ValueError(f"{where}: a contrast is of {one['id']}")
            for label, other in one["variants"].items():
                check_form(other, MEASURED, f"{where}: {label}")
        if [one["id"] for one in rows[:number]].count(row["id"]) > 1:
            raise ValueError(f"{where}: stands there twice")
    return rows


def check_samples(samples: Any) -> dict[str, dict[str, list[str]]]:
    """{study: {label: names that a model wrote}}, if it is that."""
    for study, of_study in samples.items():
        check_form(of_study, {}, study)
        for label, names in of_study.items():
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise ValueError(f"{study}: {label!r}: got {names!r:.60}, takes a list of names")
    return samples


PROVENANCE: Form = {
    "command": TEXT,
    "versions": OBJECT,
    "machine": OBJECT,
    "seconds": ("a number or null", lambda x: x is None or _number(x)),
}


def check_provenance(everything: Any) -> dict[str, dict[str, Any]]:
    """{study: what its numbers were made from}, if it is that."""
    for study, one in everything.items():
        check_form(one, PROVENANCE, study)
    return everything


def read_claims(out: Path) -> list[Row]:
    """The rows of claims.json, or none where there is no such file."""
    return _read(out / "claims.json", lambda path: check_claims(from_json(path.read_text(encoding="utf-8"))), [])


def read_samples(out: Path) -> dict[str, dict[str, list[str]]]:
    """What samples.json holds, or nothing where there is no such file."""
    return _read(out / "samples.json", lambda path: check_samples(read_json(path)), {})


def read_provenance(out: Path) -> dict[str, dict[str, Any]]:
    """What provenance.json holds, or nothing where there is no such file."""
    return _read(out / "provenance.json", lambda path: check_provenance(read_json(path)), {})


def _read(path: Path, read: Callable[[Path], Any], otherwise: Any) -> Any:
    if not path.exists():
        return otherwise
    try:
        return read(path)
    except ValueError as error:
        said = str(error).removeprefix(f"{path}: ")
        raise ValueError(f"{path}: {said}; remove it to write it anew") from None


def read_runs(out: Path, study: str) -> Runs:
    """The runs in a study's CSV; FileNotFoundError or ValueError that names the file and what makes it."""
    path, makes = out / f"{study}.csv", f"`python -m minilora.experiments {study}` makes it"
    if not path.exists():
        raise FileNotFoundError(f"{path} is not there: {makes}")
    try:
        runs = from_csv(path.read_text(encoding="utf-8"))
        if not runs:
            raise ValueError("holds no runs")
    except ValueError as error:
        raise ValueError(f"{path}: {error}; {makes} anew") from None
    return runs


def same_text(one: Path, other: Path) -> bool:
    """Whether two files hold the same text, whatever their line ends: Git may write CRLF, and editors a mark."""
    first, second = (path.read_bytes().removeprefix(b"\xef\xbb\xbf") for path in (one, other))
    return first.replace(b"\r\n", b"\n") == second.replace(b"\r\n", b"\n")
