"""What a check is, and what the checks share."""

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from minilora.checks import a_few
from minilora.conformance import vectors
from minilora.conformance.interface import Arrays, Implementation, NotOffered, Problem
from minilora.conformance.peers.ours import Minilora
from minilora.lora import weight_changes

TOLERANCE = {"float64": 1e-10, "float32": 2e-5}  # of a result, relative to the largest number in it (but at least 1)
OURS = Minilora()


class Failed(AssertionError):
    """The implementation does something else than it should; the message says what."""


class WrongOutputError(TypeError):
    """The implementation returned something of another kind, shape or dtype than the interface asks for."""


@dataclass(frozen=True)
class Check:
    """A check: what has to hold, why (a bug that was really there), and the code that finds out."""

    id: str
    title: str
    source: str  # where the bug was seen, or what the number follows from
    function: Callable[["Subject"], str | None]  # what it returns is a remark on a pass

    def __str__(self) -> str:
        return self.id


def collect(found: list[Check]):
    """A decorator that makes a function a check of that list; its docstring is the title."""

    def decorator(source: str):
        def register(function: Callable[["Subject"], str | None]):
            title = inspect.getdoc(function) or ""
            found.append(Check(function.__name__.replace("_", "-"), title.split("\n")[0], source, function))
            return function

        return register

    return decorator


class Subject:
    """An implementation under a check: its methods with what they return looked at, and problems to build."""

    def __init__(self, implementation: Implementation):
        self.it = implementation
        self.dtype = np.dtype(getattr(implementation, "dtype", "float64"))
        self.tolerance = TOLERANCE[self.dtype.name]

    def problem(self, name: str = "all_modules", **changes: Any) -> Problem:
        """The problem of a vector in the implementation's dtype; `changes` are of its config."""
        given = vectors.load(name).problem
        config = dict(given.config) | changes
        factors = given.factors if not changes else self._random_factors(given, config)
        assert factors is not None
        return Problem(
            model=dict(given.model) | {"dtype": self.dtype.name},
            base=self.cast(given.base),
            config=config,
            factors=self.cast(factors),
            modules=list(dict.fromkeys(name.rpartition(".")[0] for name in factors if ".lora_" in name)),
        )

    def _random_factors(self, given: Problem, config: Mapping[str, Any]) -> Arrays:
        """Factors that are nowhere zero, for a config that has no vector."""
        rng = np.random.default_rng(0)
        blank = OURS.factors(OURS.build(dataclasses.replace(given, config=config, factors=None)))
        return {name: 0.5 * rng.standard_normal(one.shape) for name, one in blank.items()}

    def fresh(self, problem: Problem, select: bool = False) -> Problem:
        """The same without factors: to start afresh; with `select`, also to find the modules by itself."""
        return dataclasses.replace(problem, factors=None, modules=None if select else problem.modules)

    def cast(self, arrays: Arrays) -> dict[str, np.ndarray]:
        return {name: np.array(one, self.dtype) for name, one in arrays.items()}

    @property
    def tokens(self) -> np.ndarray:
        return vectors.load("all_modules").tokens

    @property
    def targets(self) -> np.ndarray:
        return vectors.load("all_modules").targets

    # --- the implementation's methods ---

    def build(self, problem: Problem) -> Any:
        return self.it.build(problem)

    def forward(self, made: Any, tokens: np.ndarray | None = None, training: bool = False) -> np.ndarray:
        tokens = self.tokens if tokens is None else tokens
        logits = self.it.forward(made, tokens, training)
        shape = (*tokens.shape, vectors.SIZES["vocab_size"])
        if not isinstance(logits, np.ndarray) or logits.shape != shape or logits.dtype != self.dtype:
            raise WrongOutputError(f"forward: got {_kind(logits)}, takes {self.dtype} of shape {shape}")
        return logits

    def named(self, method: str, *arguments: Any, like: Arrays | None = None) -> dict[str, np.ndarray]:
        """What a method returns that gives arrays by name, which must have the names and shapes of `like`."""
        found = getattr(self.it, method)(*arguments)
        if not isinstance(found, Mapping):
            raise WrongOutputError(f"{method}: got {_kind(found)}, takes a dict of arrays")
        for name, one in found.items():
            if not isinstance(one, np.ndarray) or one.dtype != self.dtype:
                raise WrongOutputError(f"{method}: {name}: got {_kind(one)}, takes an array of {self.dtype}")
        if like is not None:
            same_names(found, like, method)
            for name, one in like.items():
                if found[name].shape != one.shape:
                    raise WrongOutputError(f"{method}: {name}: got shape {found[name].shape}, takes {one.shape}")
        return dict(found)

    def weights(self, made: Any, problem: Problem) -> dict[str, np.ndarray]:
        return self.named("weights", made, like=problem.base)

    def changes(self, made: Any, problem: Problem) -> dict[str, np.ndarray]:
        """What merging put into the weights: those that differ from the base, less the base."""
        weights = self.weights(made, problem)
        return {
            name: weights[name] - one for name, one in problem.base.items() if not np.array_equal(weights[name], one)
        }

    def merged(self, problem: Problem) -> Any:
        made = self.build(problem)
        self.it.merge(made)
        return made

    def close(self, got: np.ndarray, expected: np.ndarray, what: str, tolerance: float | None = None) -> None:
        """Failed unless equal to rounding."""
        tolerance = self.tolerance if tolerance is None else tolerance
        if got.shape != expected.shape:
            raise Failed(f"{what}: got shape {got.shape}, takes {expected.shape}")
        off = float(np.abs(got - expected).max(initial=0.0)) / max(1.0, float(np.abs(expected).max(initial=0.0)))
        if not off <= tolerance:
            raise Failed(f"{what}: off by {off:.2g}, allowed {tolerance:.2g}")

    def all_close(self, got: Arrays, expected: Arrays, what: str, tolerance: float | None = None) -> None:
        same_names(got, expected, what)
        for name, one in expected.items():
            self.close(got[name], np.asarray(one), f"{what} of {name}", tolerance)


def offered(names: Iterable[str], test: Callable[[str], None]) -> str:
    """Do a test for each name that the implementation offers, and say for which it does not; a failure says where."""
    names, left_out = list(names), {}
    for name in names:
        try:
            test(name)
        except NotImplementedError as error:
            left_out[name] = str(error)
        except Failed as error:
            raise Failed(f"vector {name}: {error}") from None
    if len(left_out) == len(names):
        raise NotOffered(next(iter(left_out.values())))
    return f"without {', '.join(left_out)} (not offered)" if left_out else ""


def same_names(got: Iterable[str], expected: Iterable[str], what: str) -> None:
    """Failed unless both have the same names."""
    missing, extra = sorted(set(expected) - set(got)), sorted(set(got) - set(expected))
    if missing or extra:
        parts = [f"lacks {a_few(missing, 3)}"] * bool(missing) + [f"has {a_few(extra, 3)} beside them"] * bool(extra)
        raise Failed(f"{what}: " + ", ".join(parts))


def require(condition: bool, message: str) -> None:
    """Failed with the message unless the condition holds."""
    if not condition:
        raise Failed(message)


def refused(action: Callable[[], Any]) -> str | None:
    """What an action is refused with; None if it is not refused."""
    try:
        action()
    except NotOffered:
        raise
    except Exception as error:  # NotImplementedError too: what is right was built before this was tried
        return str(error) or type(error).__name__
    return None


def change_of(problem: Problem) -> dict[str, np.ndarray]:
    """{path.weight: (alpha / r) B A} by minilora."""
    return {f"{path}.weight": one for path, one in weight_changes(OURS.build(problem).adapter).items()}


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} of shape {value.shape}"
    return f"{type(value).__name__}"
