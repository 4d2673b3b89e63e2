"""How a mutant is made: minilora with a bug put in, registered under the check that has to find it."""

import dataclasses

from minilora.conformance.interface import Implementation
from minilora.conformance.peers.ours import Made

MUTANTS: dict[str, type[Implementation]] = {}  # id of the check that has to fail -> the mutant


def mutant(check: str):
    """A decorator: the mutant that this check has to find."""

    def register(made: type[Implementation]):
        made.name = f"minilora, {(made.__doc__ or '').strip().rstrip('.')}"
        MUTANTS[check] = made
        return made

    return register


def with_scaling(made: Made, change) -> Made:
    """The same with another scale a module: change(path, scale)."""
    scaling = {path: change(path, one) for path, one in made.adapter.scaling.items()}
    made.adapter = dataclasses.replace(made.adapter, scaling=scaling)
    return made


def mapped(made: Made, change) -> Made:
    """The same with other arrays: change(name, array)."""
    made.adapter = made.adapter.with_arrays({name: change(name, one) for name, one in made.adapter.arrays().items()})
    return made
