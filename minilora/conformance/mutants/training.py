"""Mutants for the checks of training."""

import dataclasses

import numpy as np

import minilora as ml
from minilora.conformance.mutants.planting import mutant
from minilora.conformance.peers.ours import Minilora
from minilora.trees import leaves, nested


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
        return mask * mask.dtype.type(1 - 0.2)


@mutant("inputs-are-dropped-at-their-rate")
class KeepsAtP(_OwnMask):
    """p is taken for the probability to keep"""

    rng = np.random.default_rng(0)

    def _mask(self, mask):
        p = 0.2
        return (self.rng.random(mask.shape) < p).astype(mask.dtype) / mask.dtype.type(p)


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
