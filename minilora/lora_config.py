"""What LoRA is put where, and how it starts: the config and its checks.

Names, defaults and meanings are those of Hugging Face PEFT wherever it has them; where minilora differs, it says so.
"""

import math
import re
from collections.abc import Callable, Collection, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minilora.checks import check_integer, check_number, check_one_of, normalize

BIAS_MODES = ("none", "all", "lora_only")
STARTS_AT_BASE = (True, "gaussian", "he", "xavier", "zero_A")  # exactly; "orthogonal" does up to rounding
INITS = (*STARTS_AT_BASE, "orthogonal", False)


class Patterns(dict):
    """A dict that stays as it was made, as the config that holds it does."""

    def _refuse(self, *_: Any, **__: Any) -> Any:
        raise TypeError("a LoraConfig cannot be changed: dataclasses.replace makes another one")

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse  # type: ignore[assignment]

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))

    def __reduce__(self):
        """How it is copied and pickled: by default a dict's items are set one by one."""
        return Patterns, (dict(self),)


@dataclass(frozen=True)
class LoraConfig:
    """What LoRA is put where, and how it starts. Names and layers have no order: they are kept sorted, each once.

    Stricter than PEFT: a target, layer, exclusion or pattern without effect is an error (see `select_modules`). Wider
    than PEFT: `layers_to_transform` may be negative (counting from the end) and goes with every form of
    `target_modules`.

    >>> LoraConfig(r=8, lora_alpha=16).scaling_of("layers.0.q_proj")
    2.0
    >>> LoraConfig(r=0)
    Traceback (most recent call last):
    ValueError: r: got 0, takes an integer of at least 1
    """

    r: int = 8  # rank of the change; its parameters are r (in + out) a module
    lora_alpha: float = 8  # the change is scaled by lora_alpha / r
    lora_dropout: float = 0.0  # probability that an element of the input of A is dropped in training, in [0, 1)
    target_modules: str | Collection[str] = (
        "q_proj",
        "v_proj",
    )  # names or dotted suffixes; a regex; or "all-linear"
    layers_to_transform: int | Collection[int] | None = None  # None: every layer
    exclude_modules: str | Collection[str] | None = None  # as target_modules, taken out after it; none if empty
    rank_pattern: Mapping[str, int] = field(default_factory=dict)  # regex or suffix of a path -> its own r
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)  # the same for its own lora_alpha
    bias: str = "none"  # which biases train: "none", "all" (layer norms' too), "lora_only" (of adapted modules)
    init_lora_weights: bool | str = True  # see `init_factors`
    use_rslora: bool = False  # scale by alpha / sqrt(r) (Kalajdzievski 2023, arXiv 2312.03732)

    def __post_init__(self):
        normalize(  # to plain Python values, so that equal configs are equal, and stay as they are
            self,
            r=_check_rank("r", self.r),
            rank_pattern=_check_patterns("rank_pattern", self.rank_pattern, _check_rank),
            lora_alpha=_check_alpha("lora_alpha", self.lora_alpha),
            alpha_pattern=_check_patterns("alpha_pattern", self.alpha_pattern, _check_alpha),
            lora_dropout=check_number("lora_dropout", self.lora_dropout, "a number in [0, 1)", lambda p: 0 <= p < 1),
            target_modules=check_names("target_modules", self.target_modules),
            exclude_modules=_check_exclusion(self.exclude_modules),
            layers_to_transform=_check_layers(self.layers_to_transform),
        )
        check_one_of("bias", self.bias, BIAS_MODES)
        check_one_of("init_lora_weights", self.init_lora_weights, INITS)
        check_one_of("use_rslora", self.use_rslora, (True, False))
        if self.init_lora_weights == "orthogonal":
            ranks = {"r": self.r} | {f"rank_pattern[{key!r}]": r for key, r in self.rank_pattern.items()}
            for name, r in ranks.items():
                check_number(name, r, 'an even number with init_lora_weights="orthogonal"', lambda r: r % 2 == 0)

    def layers(self) -> tuple[int, ...] | None:
        """`layers_to_transform` as a tuple."""
        layers = self.layers_to_transform
        return (layers,) if isinstance(layers, int) else layers  # type: ignore[return-value]

    def rank_of(self, path: str) -> int:
        """r of the module at that path."""
        return _first_match(path, self.rank_pattern, self.r)

    def alpha_of(self, path: str) -> float:
        """lora_alpha of the module at that path."""
        return _first_match(path, self.alpha_pattern, self.lora_alpha)

    def scaling_of(self, path: str) -> float:
        """alpha / r, or alpha / sqrt(r) with rsLoRA, of the module at that path."""
        r = self.rank_of(path)
        return self.alpha_of(path) / (math.sqrt(r) if self.use_rslora else r)


def pattern_for(path: str, patterns: Mapping[str, Any]) -> str | None:
    """The first key that matches the path's end after a dot (or the whole path), as in PEFT."""
    return next((key for key in patterns if re.match(_suffix(key), path)), None)


def is_match(wanted: str | Collection[str], path: str) -> bool:
    """Whether target or excluded modules mean that path: a regex the whole of it, a listed name its end after a dot."""
    if isinstance(wanted, str):
        return wanted == "all-linear" or re.fullmatch(wanted, path) is not None
    return any(path == one or path.endswith(f".{one}") for one in wanted)


def adapts(config: LoraConfig, path: str, n_layers: int | None = None) -> bool:
    """Whether the module of that path is adapted, where nothing but the path is known: what PEFT does with a config.

    Stricter is `select_modules`, for those who write one. Here what matches nothing is passed over, and a path that is
    listed whole is adapted whatever the layers are. Without `n_layers`, a layer that counts from the end may be any.
    """
    if config.exclude_modules is not None and is_match(config.exclude_modules, path):
        return False
    if not isinstance(config.target_modules, str) and path in config.target_modules:
        return True
    return is_match(config.target_modules, path) and _in_layers(config.layers(), path, n_layers)


def _in_layers(layers: tuple[int, ...] | None, path: str, n_layers: int | None) -> bool:
    if layers is None or (n_layers is None and min(layers) < 0):
        return True
    index = next((int(part) for part in path.split(".") if re.fullmatch("[0-9]{1,9}", part)), None)
    return index is not None and (index in layers or (n_layers is not None and index - n_layers in layers))


def _suffix(pattern: Any) -> str:
    """A regular expression for paths that end in the pattern, after a dot or as a whole."""
    return rf"(.*\.)?({pattern})$"


def _first_match(path: str, patterns: Mapping[str, Any], otherwise: Any) -> Any:
    key = pattern_for(path, patterns)
    return otherwise if key is None else patterns[key]


def _check_rank(name: str, value: Any) -> int:
    return check_integer(name, value, at_least=1)


def _check_alpha(name: str, value: Any) -> float:
    return check_number(name, value, "a finite number above 0", lambda alpha: alpha > 0)


def _check_layers(layers: Any) -> int | tuple[int, ...] | None:
    layers = layers.tolist() if isinstance(layers, np.ndarray) else layers
    if layers is None:
        return None
    if not isinstance(layers, list | tuple | range | Set):
        number = layers.item() if isinstance(layers, np.generic) else layers
        if not isinstance(number, int) or isinstance(number, bool):
            takes = "an integer, a list, tuple, set, range or array of integers, or None for every layer"
            raise ValueError(f"layers_to_transform: got {layers!r}, takes {takes}")
        return number
    if len(layers) == 0:
        raise ValueError("layers_to_transform: got an empty list, takes None for every layer, an index, or a list")
    return tuple(sorted({check_integer("layers_to_transform", layer) for layer in layers}))


def check_names(name: str, value: Any) -> str | tuple[str, ...]:
    """A regular expression or "all-linear" as it is, or names in the order of the alphabet, each once."""
    if isinstance(value, str):
        _compile(name, value, value)
        return value
    if not isinstance(value, list | tuple | Set) or not value or not all(isinstance(one, str) for one in value):
        takes = "a list, tuple or set of names, a regular expression, or 'all-linear'"
        raise ValueError(f"{name}: got {value!r}, takes {takes}")
    return tuple(sorted({str(one) for one in value}))


def _check_exclusion(value: Any) -> str | tuple[str, ...] | None:
    is_empty = value is None or (isinstance(value, list | tuple | Set) and not value)
    return None if is_empty else check_names("exclude_modules", value)


def _check_patterns(name: str, patterns: Any, check: Callable[[str, Any], Any]) -> Patterns:
    if not isinstance(patterns, Mapping):
        raise ValueError(f"{name}: got {patterns!r}, takes a dict from a module's name or pattern to a number")
    for key in patterns:
        _compile(name, key, _suffix(key))
    return Patterns({key: check(f"{name}[{key!r}]", value) for key, value in patterns.items()})


def _compile(name: str, given: Any, pattern: str) -> None:
    try:
        if not isinstance(given, str):
            raise TypeError("not a string")
        re.compile(given)
        re.compile(pattern)
    except (re.error, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{name}: got {given!r}, takes a regular expression ({error})") from None
