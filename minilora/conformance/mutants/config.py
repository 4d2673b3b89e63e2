"""Mutants for the checks of configs."""

import dataclasses
from typing import Any

import minilora as ml
from minilora.conformance.interface import Problem
from minilora.conformance.mutants.planting import mutant
from minilora.conformance.peers.ours import Made, Minilora
from minilora.trees import leaves, nested


class _Lenient(Minilora):
    """Modules by a rule of its own: `_chosen(paths, config)`."""

    def build(self, problem: Problem) -> Made:
        params = nested(dict(problem.base))
        chosen = self._chosen(ml.model.linear_paths(params), dict(problem.config))
        extra = {"layers_to_transform", "exclude_modules", "target_modules"}
        config = {name: one for name, one in problem.config.items() if name not in extra}
        return super().build(
            dataclasses.replace(problem, config=config | {"target_modules": chosen or ["layers.0.q_proj"]})
        )

    def _chosen(self, paths: list[str], config: dict[str, Any]) -> list[str]:
        targets, layers = config.get("target_modules", ["q_proj", "v_proj"]), config.get("layers_to_transform")
        wanted = [layers] if isinstance(layers, int) else layers
        return [path for path in paths if self._matches(path, targets) and self._in_layer(path, wanted)]

    def _matches(self, path: str, targets: Any) -> bool:
        return not isinstance(targets, str) and any(path.endswith(f".{one}") for one in targets)

    def _in_layer(self, path: str, layers: list[int] | None) -> bool:
        return not layers or int(path.split(".")[1]) in layers


@mutant("a-target-that-matches-nothing")
class PassesSilently(_Lenient):
    """a target that matches nothing is passed over"""


@mutant("exactly-these-layers")
class ZeroIsAll(_Lenient):
    """layer 0 is taken for no choice, so that it means every layer"""

    def _in_layer(self, path, layers):
        return not layers or not any(layers) or int(path.split(".")[1]) in layers


@mutant("a-layer-that-is-not-there")
class DropsMissingLayers(_Lenient):
    """layers that are not there are dropped"""


@mutant("no-layers")
class EmptyMeansNone(_Lenient):
    """an empty list of layers adapts the first layer alone"""

    def _in_layer(self, path, layers):
        return layers is None or int(path.split(".")[1]) in (layers or [0])


@mutant("names-are-matched-whole")
class MatchesSubstrings(_Lenient):
    """a name matches wherever it stands in a path"""

    def _matches(self, path, targets):
        return not isinstance(targets, str) and any(one in path for one in targets)


@mutant("a-tied-head")
class AdaptsTheTiedHead(Minilora):
    """merging an adapter on the head changes the embedding it is tied to"""

    def build(self, problem):
        targets = problem.config.get("target_modules")
        if targets not in (["lm_head"], ["embed_tokens"]):
            return super().build(problem)
        made = super().build(dataclasses.replace(problem, config=dict(problem.config) | {"target_modules": ["q_proj"]}))
        arrays = leaves(made.base.params)
        changed = nested(arrays | {"embed_tokens.weight": arrays["embed_tokens.weight"] + 1})
        made.merge_to = changed
        return made

    def merge(self, made):
        made.params, made.merged = getattr(made, "merge_to", None) or ml.merge(made.params, made.adapter), True


@mutant("impossible-settings")
class ClampsSettings(Minilora):
    """impossible settings are moved to possible ones"""

    def config(self, problem):
        config = dict(problem.config)
        config["r"] = max(1, config.get("r", 8))
        config["lora_dropout"] = min(max(config.get("lora_dropout", 0.0), 0.0), 0.9)
        return super().config(dataclasses.replace(problem, config=config))


@mutant("excluded-modules")
class ExcludesNothing(Minilora):
    """exclude_modules is ignored"""

    def config(self, problem):
        return dataclasses.replace(super().config(problem), exclude_modules=None)
