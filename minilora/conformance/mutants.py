"""minilora with one bug each put in: what every check has to find. The bugs are those of other implementations."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

import minilora as ml
from minilora.conformance.interface import Implementation, Problem
from minilora.conformance.ours import Made, Minilora
from minilora.trees import leaves, nested

MUTANTS: dict[str, type[Implementation]] = {}  # id of the check that has to fail -> the mutant


def mutant(check: str):
    """A decorator: the mutant that this check has to find."""

    def register(made: type[Implementation]):
        made.name = f"minilora, {(made.__doc__ or '').strip().rstrip('.')}"
        MUTANTS[check] = made
        return made

    return register


def _with_scaling(made: Made, change) -> Made:
    """The same with another scale a module: change(path, scale)."""
    scaling = {path: change(path, one) for path, one in made.adapter.scaling.items()}
    made.adapter = dataclasses.replace(made.adapter, scaling=scaling)
    return made


def _mapped(made: Made, change) -> Made:
    """The same with other arrays: change(name, array)."""
    made.adapter = made.adapter.with_arrays({name: change(name, one) for name, one in made.adapter.arrays().items()})
    return made


# --- arithmetic ---


@mutant("logits")
class IgnoresTheAdapter(Minilora):
    """the adapter is never used"""

    def forward(self, made, tokens, training=False):
        return ml.forward(made.params, tokens, made.base.config)


@mutant("merged-weights")
class MergesWithoutBiases(Minilora):
    """merging leaves trained biases behind"""

    def merge(self, made):
        made.params = ml.merge(made.params, dataclasses.replace(made.adapter, biases=dict(made.adapter.biases)))
        made.params = nested(
            leaves(made.params)
            | {f"{path}.bias": leaves(made.base.params)[f"{path}.bias"] for path in made.adapter.biases}
        )
        made.merged = True


@mutant("gradients")
class GradientOfASum(Minilora):
    """the loss is summed over tokens where it should be averaged"""

    def gradients(self, made, tokens, targets):
        n = float((targets >= 0).sum())
        return {name: one * one.dtype.type(n) for name, one in super().gradients(made, tokens, targets).items()}


@mutant("trained")
class CoupledDecay(Minilora):
    """weight decay goes through Adam's moments, as in L2 regularisation"""

    def train(self, made, tokens, targets, optimizer):
        decay = optimizer.weight_decay

        def gradients():
            plain, arrays = self.gradients(made, tokens, targets), made.adapter.arrays()
            return {name: one + decay * arrays[name] for name, one in plain.items()}

        self._steps(made, dataclasses.replace(optimizer, weight_decay=0.0), gradients)


@mutant("selected-modules")
class IgnoresExclusions(Minilora):
    """exclude_modules is accepted and ignored when the list names paths"""

    def config(self, problem):
        config = super().config(problem)
        excluded = [name for name in config.exclude_modules or () if "." not in name] or None
        return dataclasses.replace(config, exclude_modules=excluded)


@mutant("parameter-count")
class CountsOneMore(Minilora):
    """rank_pattern is off by one"""

    def config(self, problem):
        config = super().config(problem)
        return dataclasses.replace(config, rank_pattern={key: r + 1 for key, r in config.rank_pattern.items()})


@mutant("scale-is-alpha-over-r")
class ScaleIsAlpha(Minilora):
    """alpha in place of alpha / r"""

    def build(self, problem):
        made = super().build(problem)
        return _with_scaling(made, lambda path, one: made.adapter.config.alpha_of(path))


@mutant("doubling-r-halves-the-scale")
class FixedScale(Minilora):
    """the scale is 2 whatever r and alpha are"""

    def build(self, problem):
        return _with_scaling(super().build(problem), lambda path, one: 2.0)


@mutant("rslora-scales-by-the-root")
class NoRslora(Minilora):
    """use_rslora is ignored"""

    def config(self, problem):
        return dataclasses.replace(super().config(problem), use_rslora=False)


@mutant("change-stays-in-its-head")
class WrongHeads(Minilora):
    """q's heads come out of B in another order"""

    def build(self, problem):
        made = super().build(problem)
        return _mapped(made, lambda name, one: np.roll(one, 2, axis=0) if name.endswith("q_proj.lora_B") else one)


@mutant("every-mask-of-q-k-v")
class FusedWithoutAMask(Minilora):
    """q, k and v are merged as if all three were adapted: with k alone, v's weights change"""

    def merge(self, made):
        super().merge(made)
        arrays = leaves(made.params)
        for path in list(made.adapter.factors):
            other = path.replace("k_proj", "v_proj")
            if path.endswith("k_proj") and other not in made.adapter.factors:
                arrays[f"{other}.weight"] = arrays[f"{other}.weight"] + ml.weight_changes(made.adapter)[path]
        made.params = nested(arrays)


@mutant("transposed-storage")
class TransposesSquaresTwice(Minilora):
    """only weights that are not square are transposed"""

    def transposed(self, problem):
        shapes = ml.model.param_shapes(ml.ModelConfig(**problem.model))
        base = {name: one.T if one.shape != shapes[name] else one for name, one in problem.base.items()}
        return self.build(dataclasses.replace(problem, base=base))


@mutant("starts-at-the-base")
class BothRandom(Minilora):
    """both factors start random"""

    def config(self, problem):
        return dataclasses.replace(super().config(problem), init_lora_weights=False)


@mutant("gradient-of-a-is-zero-at-the-start")
class NearlyZero(Minilora):
    """B starts at 1e-8 and not at zero"""

    def build(self, problem):
        made = super().build(problem)
        if problem.factors is not None:
            return made
        return _mapped(made, lambda name, one: one + 1e-8 if name.endswith("lora_B") else one)


@mutant("one-adapter-at-weight-1")
class WeightsTwice(Minilora):
    """the scale is applied again to what already has it"""

    def combine(self, problem, adapters, weights):
        made = self.build(problem)
        scale = next(iter(made.adapter.scaling.values()))
        return super().combine(problem, adapters, [weight * scale for weight in weights])


@mutant("sums-have-no-cross-terms")
class SumsFactors(Minilora):
    """A's and B's are summed apart, so that cross terms come in"""

    def combine(self, problem, adapters, weights):
        names = list(adapters[0])
        root = np.sqrt(np.abs(weights)) * np.sign(weights)
        mixed = {
            name: sum(
                (root if name.endswith("lora_B") else np.abs(root))[i] * one[name] for i, one in enumerate(adapters)
            )
            for name in names
        }
        return super().combine(problem, [mixed], [1.0])


@mutant("unknown-settings-are-refused")
class TakesAnything(Minilora):
    """settings that it does not know are dropped"""

    def config(self, problem):
        known = {field.name for field in dataclasses.fields(ml.LoraConfig)}
        config = {name: one for name, one in problem.config.items() if name in known}
        return super().config(dataclasses.replace(problem, config=config))


# --- merging, saving, state ---


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
        return _with_scaling(super().load(problem, folder), lambda path, one: 1.0)


@mutant("biases-are-saved")
class DropsBiases(Minilora):
    """biases are trained and not saved"""

    def load(self, problem: Problem, folder: Path) -> Any:
        made, base = super().load(problem, folder), dict(problem.base)
        return _mapped(made, lambda name, one: base[name] if name.endswith(".bias") else one)


@mutant("wrong-keys-are-refused")
class LoadsWhatItCan(Minilora):
    """arrays whose names it does not know are left out, and B stays zero there"""

    def load(self, problem: Problem, folder: Path) -> Any:
        try:
            return super().load(problem, folder)
        except ValueError:
            return self.build(dataclasses.replace(problem, factors=None))


# --- training ---


@mutant("evaluation-is-deterministic")
class DropoutStaysOn(Minilora):
    """dropout stays on after a training pass"""

    def forward(self, made, tokens, training=False):
        made.left_on = training or getattr(made, "left_on", False)
        return super().forward(made, tokens, made.left_on)


@mutant("dropout-acts-in-training")
class NoDropout(Minilora):
    """dropout is in the config and nowhere else"""

    def forward(self, made, tokens, training=False):
        return super().forward(made, tokens, False)


class _OwnMask(Minilora):
    """Training multiplies the input of A by what `_mask` gives."""

    def forward(self, made, tokens, training=False):
        if not training or not made.adapter.config.lora_dropout:
            return super().forward(made, tokens)
        adapter = _Masked(**vars(made.adapter))
        object.__setattr__(adapter, "mask", self._mask)
        return ml.forward(made.params, tokens, made.base.config, adapter=adapter, rng=made.rng)

    def _mask(self, mask):
        raise NotImplementedError


class _Masked(ml.Adapter):
    def dropout_mask(self, x, rng):
        return self.mask(super().dropout_mask(x, rng))  # type: ignore[attr-defined]


@mutant("dropout-keeps-the-mean")
class NoRescaling(_OwnMask):
    """kept inputs are not divided by 1 - p"""

    def _mask(self, mask):
        return mask / 2


@mutant("tokens-have-masks-of-their-own")
class OneMask(_OwnMask):
    """all tokens share one mask"""

    def _mask(self, mask):
        return np.broadcast_to(mask[..., :1, :], mask.shape)


@mutant("base-does-not-train")
class TrainsLayerNorms(Minilora):
    """layer norms train with the factors"""

    def train(self, made, tokens, targets, optimizer):
        super().train(made, tokens, targets, optimizer)
        arrays = leaves(made.params)
        made.params = nested(
            arrays | {"norm.weight": arrays["norm.weight"] * (1 - arrays["norm.weight"].dtype.type(1e-3))}
        )


@mutant("trainable-names")
class NoBiases(Minilora):
    """bias="lora_only" trains no bias at all"""

    def trainable(self, made):
        return [name for name in super().trainable(made) if ".lora_" in name]


@mutant("decay-pulls-towards-the-base")
class NoDecayWithoutGradient(Minilora):
    """decay is skipped where the gradient is zero"""

    def decay(self, made, optimizer):
        super().decay(made, dataclasses.replace(optimizer, weight_decay=0.0))


@mutant("step-size-is-the-rate")
class NoBiasCorrection(Minilora):
    """AdamW without the correction of its first moment"""

    def train(self, made, tokens, targets, optimizer):
        first = 1 - optimizer.betas[0]
        rates = {"lr_A": optimizer.lr_A * first, "lr_B": optimizer.lr_B * first}
        super().train(made, tokens, targets, dataclasses.replace(optimizer, **rates))


@mutant("four-knobs-are-two")
class DecaysAnyway(Minilora):
    """a weight decay of 0.01 that was not asked for"""

    def train(self, made, tokens, targets, optimizer):
        super().train(
            made, tokens, targets, dataclasses.replace(optimizer, weight_decay=optimizer.weight_decay or 0.01)
        )


@mutant("the-rate-of-b-counts")
class OneGroup(Minilora):
    """one learning rate for all, that of B"""

    def train(self, made, tokens, targets, optimizer):
        super().train(made, tokens, targets, dataclasses.replace(optimizer, lr_A=optimizer.lr_B))


# --- configs ---


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
