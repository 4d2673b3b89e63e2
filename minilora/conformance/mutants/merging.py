"""Mutants for the checks of merging, saving and state."""

import dataclasses
from pathlib import Path
from typing import Any

import minilora as ml
from minilora.conformance.interface import Problem
from minilora.conformance.mutants.planting import mapped, mutant, with_scaling
from minilora.conformance.peers.ours import Made, Minilora
from minilora.trees import leaves, nested


@mutant("merging-happens")
class NeverMerges(Minilora):
    """the flag is set and the weights stay: the override is dead code"""

    def merge(self, made):
        made.merged = True

    def forward(self, made, tokens, training=False):
        return ml.forward(made.params, tokens, made.base.config, adapter=made.adapter if made.enabled else None)


class _Accumulates(Minilora):
    """Adds and subtracts in place, without a guard."""

    def _add(self, made: Made, sign: float) -> None:
        arrays = dict(leaves(made.params))
        for path, change in ml.weight_changes(made.adapter).items():
            before = arrays[f"{path}.weight"]
            arrays[f"{path}.weight"] = (before + sign * change).astype(before.dtype)
        made.params = nested(arrays)


@mutant("merging-twice")
class MergesAgain(_Accumulates):
    """merging twice adds the change twice"""

    def merge(self, made):
        self._add(made, 1.0)
        made.merged = True


@mutant("unmerging-twice")
class UnmergesAlways(_Accumulates):
    """unmerging takes out what was not in"""

    def unmerge(self, made):
        self._add(made, -1.0)
        made.merged = False


@mutant("no-drift-over-cycles")
class Drifts(_Accumulates):
    """unmerging subtracts, so that roundings add up"""

    def merge(self, made):
        if not made.merged:
            self._add(made, 1.0)
        made.merged = True

    def unmerge(self, made):
        if made.merged:
            self._add(made, -1.0)
        made.merged = False


@mutant("small-changes-survive-merging")
class MergesInHalf(Minilora):
    """merging computes in half precision"""

    def merge(self, made):
        super().merge(made)
        merged = {name: one.astype("float16").astype(one.dtype) for name, one in leaves(made.params).items()}
        made.params = nested(merged)


@mutant("any-sequence-of-calls")
class ForgetsTheFlag(Minilora):
    """unmerging restores the weights and leaves the flag"""

    def unmerge(self, made):
        made.params = made.base.params


@mutant("removing-restores-the-base")
class DisablesWhatIsMerged(Minilora):
    """switching off after merging leaves the change in the weights"""

    def disable(self, made):
        made.enabled = False


@mutant("removing-restores-biases")
class DisablesFactorsOnly(Minilora):
    """switching off leaves the trained biases on"""

    def disable(self, made):
        super().disable(made)
        made.params = nested(
            leaves(made.base.params) | {f"{path}.bias": one for path, one in made.adapter.biases.items()}
        )


@mutant("saved-in-any-mode")
class SavesMerged(Minilora):
    """loading what was saved merged merges it once more"""

    def save(self, made, folder: Path):
        factor = 2.0 if made.merged else 1.0
        doubled = {
            name: one * factor if name.endswith("lora_B") else one for name, one in made.adapter.arrays().items()
        }
        ml.save_adapter(made.adapter.with_arrays(doubled), folder)


@mutant("loading-keeps-every-scale")
class LosesAlpha(Minilora):
    """loading takes alpha for r"""

    def load(self, problem: Problem, folder: Path) -> Any:
        return with_scaling(super().load(problem, folder), lambda path, one: 1.0)


@mutant("biases-are-saved")
class DropsBiases(Minilora):
    """biases are trained and not saved"""

    def load(self, problem: Problem, folder: Path) -> Any:
        made, base = super().load(problem, folder), dict(problem.base)
        return mapped(made, lambda name, one: base[name] if name.endswith(".bias") else one)


@mutant("wrong-keys-are-refused")
class LoadsWhatItCan(Minilora):
    """arrays whose names it does not know are left out, and B stays zero there"""

    def load(self, problem: Problem, folder: Path) -> Any:
        try:
            return super().load(problem, folder)
        except ValueError:
            return self.build(dataclasses.replace(problem, factors=None))
