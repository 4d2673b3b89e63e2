"""Checks of single fields. Every message names the field, what it got and what it takes.

>>> check_integer("r", 0, at_least=1)
Traceback (most recent call last):
ValueError: r: got 0, takes an integer of at least 1
"""

import difflib
import math
from collections.abc import Iterable
from dataclasses import fields
from typing import Any


def check_integer(name: str, value: Any, at_least: int | None = None) -> None:
    """An integer (NumPy's count, bool does not), optionally bounded from below."""
    is_integer = hasattr(value, "__index__") and not isinstance(value, bool)
    if not is_integer or (at_least is not None and value < at_least):
        bound = "" if at_least is None else f" of at least {at_least}"
        raise ValueError(f"{name}: got {value!r}, takes an integer{bound}")


def check_number(name: str, value: Any, takes: str, accept) -> None:
    """A finite number for which `accept(value)` holds; `takes` says that in words."""
    is_number = hasattr(value, "__float__") and not isinstance(value, bool | str)
    if not is_number or not math.isfinite(value) or not accept(value):
        raise ValueError(f"{name}: got {value!r}, takes {takes}")


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
