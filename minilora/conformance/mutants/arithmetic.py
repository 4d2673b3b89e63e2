"""Mutants for the checks of arithmetic."""

import dataclasses

import numpy as np

import minilora as ml
from minilora.conformance.mutants.planting import mapped, mutant, with_scaling
from minilora.conformance.peers.ours import Minilora
from minilora.trees import leaves, nested


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
        return with_scaling(made, lambda path, one: made.adapter.config.alpha_of(path))


@mutant("doubling-r-halves-the-scale")
class FixedScale(Minilora):
    """the scale is 2 whatever r and alpha are"""

    def build(self, problem):
        return with_scaling(super().build(problem), lambda path, one: 2.0)


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
        return mapped(made, lambda name, one: np.roll(one, 2, axis=0) if name.endswith("q_proj.lora_B") else one)


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


@mutant("a-starts-spread-out")
class AllOnes(Minilora):
    """A starts at all ones, which has rank one"""

    def build(self, problem):
        made = super().build(problem)
        if problem.factors is not None:
            return made
        return mapped(made, lambda name, one: np.ones_like(one) if name.endswith("lora_A") else one)


@mutant("gradient-of-a-is-zero-at-the-start")
class NearlyZero(Minilora):
    """B starts at 1e-8 and not at zero"""

    def build(self, problem):
        made = super().build(problem)
        if problem.factors is not None:
            return made
        return mapped(made, lambda name, one: one + 1e-8 if name.endswith("lora_B") else one)


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
