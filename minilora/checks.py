"""Checks of single fields and arguments. Every message names the field, what it got and what it takes.

A value that is out of range is a ValueError, an object of another kind than an argument takes a TypeError.

>>> check_integer("r", 0, at_least=1)
Traceback (most recent call last):
ValueError: r: got 0, takes an integer of at least 1
"""

import difflib
from collections.abc import Callable, Iterable, Mapping
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


def check_kind(name: str, value: Any, kind: type | tuple[type, ...], takes: str) -> None:
    """TypeError unless the value is of that kind.

    >>> check_kind("params", 3, dict, "the parameters of a Model")
    Traceback (most recent call last):
    TypeError: params: got 3, takes the parameters of a Model
    """
    if not isinstance(value, kind):
        raise TypeError(f"{name}: got {described(value)}, takes {takes}")


def check_rng(name: str, rng: Any) -> None:
    """TypeError unless it is a generator: neither a seed, nor NumPy's older RandomState."""
    check_kind(name, rng, np.random.Generator, "a numpy.random.Generator, as np.random.default_rng(seed) makes")


def described(value: Any) -> str:
    """What an argument got, without all that is in it.

    >>> described(0.5), described({"a": 1}), described(np.zeros(3))
    ('0.5', 'a dict', 'an array')
    """
    if value is None or isinstance(value, bool | int | float | str | np.generic):
        return repr(value)
    name = type(value).__name__.removeprefix("nd")
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def check_shapes(name: str, found: Mapping[str, Any], expected: Mapping[str, tuple[int, ...]]) -> None:
    """ValueError unless there are exactly the expected arrays, each in its shape."""
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or extra:
        raise ValueError(f"{name}: lacks {a_few(missing)}; has unexpected {a_few(extra)}")
    for path, shape in expected.items():
        if np.shape(found[path]) != shape:
            raise ValueError(f"{name}: {path}: got shape {np.shape(found[path])}, takes {shape}")


def check_stored(name: str, arrays: Mapping[str, Any], dtypes: Iterable[str]) -> None:
    """ValueError unless all are arrays of these dtypes and finite: what may be in a file, written or read."""
    dtypes = list(dtypes)
    for path, array in arrays.items():
        found = array.dtype.name if isinstance(array, np.ndarray) else described(array)
        if found not in dtypes:
            raise ValueError(f"{name}: {path}: got {found}, takes {' or '.join(dtypes)}")
        if not np.isfinite(array).all():
            raise ValueError(f"{name}: {path}: holds NaN or infinite numbers")


def check_fields(cls, given: Iterable[str], where: str) -> None:
    """No field but those of the dataclass, with the nearest name in the message."""
    known = [field.name for field in fields(cls)]
    for name in given:
        if name not in known:
            raise ValueError(f"{where}: unknown field {name!r}{nearest(name, known)}; takes {', '.join(known)}")


def nearest(name: str, known: Iterable[str]) -> str:
    """' (did you mean ...?)' where a name is really near, or nothing.

    >>> nearest("lora_alfa", ["r", "lora_alpha"]), nearest("merge_weights", ["r", "init_lora_weights"])
    (" (did you mean 'lora_alpha'?)", '')
    """
    close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.7)
    return f" (did you mean {close[0]!r}?)" if close else ""


def a_few(names: list[str], most: int = 8) -> str:
    """Names for a message, not all of hundreds.

    >>> a_few(["a", "b", "c"], most=2), a_few([])
    ('a, b and 1 more', 'nothing')
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "nothing") + more
