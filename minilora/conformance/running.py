"""Running checks on an implementation: a row each, whatever the implementation does."""

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from minilora.checks import check_number
from minilora.conformance.checks import CHECKS
from minilora.conformance.checks.subject import TOLERANCE, Check, Failed, Subject
from minilora.conformance.interface import Implementation

SECONDS = 30.0  # that a check may take
PASS, FAIL, NOT_OFFERED, ERROR = "pass", "fail", "not offered", "error"


@dataclass(frozen=True)
class Result:
    """A row: `status` is "pass", "fail", "not offered" or "error", and `detail` says why."""

    id: str
    title: str
    status: str
    detail: str
    source: str


def run(
    implementation: Implementation | Callable[[], Implementation],
    checks: Iterable[Check] = CHECKS,
    seconds: float = SECONDS,
) -> list[Result]:
    """A result for each check. What the implementation raises, returns or hangs in costs it that one row.

    TypeError or ValueError that names the argument for one that is of another kind, before any check runs.

    >>> from minilora.conformance.peers.ours import Minilora
    >>> {one.status for one in run(Minilora(), CHECKS[:2])}
    {'pass'}
    """
    made, chosen = as_implementation(implementation), _as_checks(checks)
    _check_seconds(seconds)
    return [result(one, made, seconds) for one in chosen]


def as_implementation(given: Implementation | Callable[[], Implementation]) -> Implementation:
    """What is given, or what it makes, if it is a class; TypeError for anything that is no Implementation."""
    made = given() if callable(given) and not isinstance(given, Implementation) else given
    if not isinstance(made, Implementation):
        raise TypeError(f"implementation: got {made!r:.60}, takes an Implementation, or its class")
    for name in ("name", "version"):
        if not isinstance(getattr(made, name), str):
            raise TypeError(f"implementation: {name}: got {getattr(made, name)!r}, takes a text")
    dtype = getattr(made, "dtype", "float64")
    if str(dtype) not in TOLERANCE:
        raise ValueError(f"implementation: dtype: got {dtype!r}, takes one of {', '.join(map(repr, TOLERANCE))}")
    return made


def _as_checks(checks: Iterable[Check]) -> list[Check]:
    found = [] if isinstance(checks, str | Check) or not isinstance(checks, Iterable) else list(checks)
    if not found or not all(isinstance(one, Check) for one in found):
        raise TypeError(f"checks: got {checks!r:.60}, takes Checks, at least one, as in CHECKS[:3]")
    return found


def _check_seconds(seconds: float) -> None:
    takes = f"a number above 0 and below {threading.TIMEOUT_MAX:g}"
    check_number("seconds", seconds, takes, lambda x: 0 < x < threading.TIMEOUT_MAX)


def result(
    one: Check, implementation: Implementation | Callable[[], Implementation], seconds: float = SECONDS
) -> Result:
    """The result of one check, which is left behind if it takes longer than that."""
    (one,), made = _as_checks([one]), as_implementation(implementation)
    _check_seconds(seconds)
    found: list[tuple[str, str]] = []
    thread = threading.Thread(target=lambda: found.append(_outcome(one, made)), daemon=True)
    thread.start()
    thread.join(seconds)
    status, detail = found[0] if found else (ERROR, f"still running after {seconds:g} s")
    return Result(one.id, one.title, status, detail, one.source)


def _outcome(one: Check, implementation: Implementation) -> tuple[str, str]:
    try:
        remark = one.function(Subject(implementation))
    except NotImplementedError as error:
        return NOT_OFFERED, _line(error)
    except Failed as error:
        return FAIL, _line(error)
    except BaseException as error:  # also SystemExit: it is the implementation's, and the rest still runs
        return ERROR, f"{type(error).__name__}: {_line(error)}"
    return PASS, remark or ""


def _line(error: BaseException) -> str:
    """The first line of what it says."""
    return (str(error).strip().splitlines() or [""])[0][:300]


def check(one: Check, implementation: Implementation | Callable[[], Implementation]) -> None:
    """For pytest: nothing if it passes, AssertionError if it does not, skipped if it is not offered."""
    found = result(one, implementation)
    if found.status == NOT_OFFERED:
        import pytest

        pytest.skip(f"not offered {found.detail}".strip())
    if found.status != PASS:
        raise AssertionError(f"{found.title}: {found.status}: {found.detail} (seen in {found.source})")
