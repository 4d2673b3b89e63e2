"""Checks of single fields. Every message names the field, what it got and what it takes.

>>> check_integer("r", 0, at_least=1)
Traceback (most recent call last):
ValueError: r: got 0, takes an integer of at least 1
"""

import difflib
from collections.abc import Callable, Iterable
from dataclasses import fields
from typing import Any

import numpy as np


def check_integer(name: str, value: Any, at_least: int | None = None) -> int:
    """The value as a Python int: an integer (NumPy's count, bool does not), optionally bounded from below."""
    number = value.item() if isinstance(value, np.generic) else value
    is_integer = isinstance(number, int) and not isinstance(number, bool)
    if not is_integer or (at_least is not None and number < at_least):
        bound = "" if at_least is None else f" of at least {at_least}"
        raise ValueError(f"{name}: got {value!r}, takes an integer{bound}")
    return number


def check_number(name: str, value: Any, takes: str, accept: Callable[[float], bool]) -> float:
    """The value as a Python number, finite and such that `accept(value)` holds; `takes` says that in words.

    A NumPy number would turn float32 arithmetic into float64.
    """
    number = value.item() if isinstance(value, np.generic) else value
    is_number = isinstance(number, int | float) and not isinstance(number, bool) and abs(number) < 1e308
    if not is_number or not accept(number):
        raise ValueError(f"{name}: got {value!r}, takes {takes}")
    return number


def normalize(instance: Any, **values: Any) -> None:
    """Set fields of a frozen dataclass while it is being made, to what its checks returned."""
    for name, value in values.items():
        object.__setattr__(instance, name, value)


def check_one_of(name: str, value: Any, allowed: Iterable[Any]) -> None:
    """One of a few values, of the same type (so that 1 does not pass for True)."""
    allowed = list(allowed)
    if not any(type(value) is type(one) and value == one for one in allowed):
        raise ValueError(f"{name}: got {value!r}, takes one of {', '.join(map(repr, allowed))}")


def check_fields(cls, given: Iterable[str], where: str) -> None:
    """No field but those of the dataclass, with the nearest name in the message."""
    known = [field.name for field in fields(cls)]
    for name in given:
        if name not in known:
            raise ValueError(f"{where}: unknown field {name!r}{nearest(name, known)}; takes {', '.join(known)}")


def nearest(name: str, known: Iterable[str]) -> str:
    """' (did you mean ...?)', or nothing.

    >>> nearest("lora_alfa", ["r", "lora_alpha"])
    " (did you mean 'lora_alpha'?)"
    """
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def a_few(names: list[str], most: int = 8) -> str:
    """Names for a message, not all of hundreds.

    >>> a_few(["a", "b", "c"], most=2), a_few([])
    ('a, b and 1 more', 'nothing')
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "nothing") + more
