"""Running checks on an implementation: a row each, whatever the implementation does."""

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from minilora.conformance.checks import CHECKS
from minilora.conformance.checks.subject import Check, Failed, Subject
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

    >>> from minilora.conformance.peers.ours import Minilora
    >>> {one.status for one in run(Minilora(), CHECKS[:2])}
    {'pass'}
    """
    made = implementation() if callable(implementation) else implementation
    return [result(one, made, seconds) for one in checks]


def result(one: Check, implementation: Implementation, seconds: float = SECONDS) -> Result:
    """The result of one check, which is left behind if it takes longer than that."""
    found: list[tuple[str, str]] = []
    thread = threading.Thread(target=lambda: found.append(_outcome(one, implementation)), daemon=True)
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
    found = result(one, implementation() if callable(implementation) else implementation)
    if found.status == NOT_OFFERED:
        import pytest

        pytest.skip(f"not offered {found.detail}".strip())
    if found.status != PASS:
        raise AssertionError(f"{found.title}: {found.status}: {found.detail} (seen in {found.source})")
