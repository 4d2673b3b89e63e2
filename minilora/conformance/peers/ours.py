"""minilora itself, seen through the interface: the implementation that the others are checked against."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

import minilora as ml
from minilora.checks import check_fields
from minilora.conformance.interface import Implementation, Optimizer, Problem
from minilora.train import Dataset, Trainable
from minilora.trees import leaves, nested


class Made:
    """minilora's values are never written to; the interface wants a thing with a state."""

    def __init__(self, base: ml.Model, adapter: ml.Adapter):
        self.base, self.adapter, self.params = base, adapter, base.params
        self.merged, self.enabled = False, True
        self.rng = np.random.default_rng(0)

    @property
    def active(self) -> ml.Adapter | None:
        return self.adapter if self.enabled and not self.merged else None


class Minilora(Implementation):
    """Every method a call or two of the public package."""

    name, version = "minilora", ml.__version__

    def build(self, problem: Problem) -> Made:
        base = ml.Model(ml.ModelConfig(**problem.model), nested(dict(problem.base)))
        adapter = ml.init_adapter(base.params, self.config(problem), np.random.default_rng(problem.seed))
        return Made(base, adapter if problem.factors is None else adapter.with_arrays(problem.factors))

    def config(self, problem: Problem) -> ml.LoraConfig:
        check_fields(ml.LoraConfig, problem.config, "config")
        return ml.LoraConfig(**problem.config)

    def forward(self, made: Made, tokens, training: bool = False):
        rng = made.rng if training else None
        return ml.forward(made.params, tokens, made.base.config, adapter=made.active, rng=rng)

    def factors(self, made: Made):
        return made.adapter.arrays()

    def weights(self, made: Made):
        return leaves(made.params)

    def merge(self, made: Made) -> None:
        made.params, made.merged = ml.merge(made.params, made.adapter), True  # refuses what is merged already

    def unmerge(self, made: Made) -> None:
        made.params, made.merged = made.base.params, False

    def is_merged(self, made: Made) -> bool:
        return made.merged

    def trainable(self, made: Made):
        return list(made.adapter.arrays())

    def gradients(self, made: Made, tokens, targets):
        trainable = Trainable(made.base, made.adapter)
        return trainable.arrays(trainable.loss_and_gradient(trainable.vector, Dataset(tokens, targets), None)[1])

    def train(self, made: Made, tokens, targets, optimizer: Optimizer) -> None:
        self._steps(made, optimizer, lambda: self.gradients(made, tokens, targets))

    def decay(self, made: Made, optimizer: Optimizer) -> None:
        self._steps(made, optimizer, lambda: {name: np.zeros_like(one) for name, one in made.adapter.arrays().items()})

    def _steps(self, made: Made, optimizer: Optimizer, gradients) -> None:
        adamw = ml.AdamW(1.0, optimizer.betas, optimizer.eps, optimizer.weight_decay)
        rates = {"lora_A": optimizer.lr_A, "lora_B": optimizer.lr_B, "bias": optimizer.lr_B}
        states: dict[str, Any] = {name: adamw.init(array) for name, array in made.adapter.arrays().items()}
        for _ in range(optimizer.steps):
            arrays, gradient = dict(made.adapter.arrays()), gradients()
            for name, array in arrays.items():
                rate = rates[name.rpartition(".")[2]]
                arrays[name], states[name] = adamw.update(array, gradient[name], states[name], rate)
            made.adapter = made.adapter.with_arrays(arrays)

    def disable(self, made: Made) -> None:
        made.enabled, made.merged, made.params = False, False, made.base.params

    def save(self, made: Made, folder: Path) -> None:
        ml.save_adapter(made.adapter, folder)

    def load(self, problem: Problem, folder: Path) -> Made:
        base = ml.Model(ml.ModelConfig(**problem.model), nested(dict(problem.base)))
        return Made(base, ml.load_adapter(folder, base.params))

    def combine(self, problem: Problem, adapters, weights) -> Made:
        made = self.build(problem)
        arrays = leaves(made.params)
        for factors, weight in zip(adapters, weights, strict=True):
            for path, change in ml.weight_changes(made.adapter.with_arrays(factors)).items():
                before = arrays[f"{path}.weight"]
                arrays[f"{path}.weight"] = (before + weight * change).astype(before.dtype)
        made.params, made.merged = nested(arrays), True
        return made

    def transposed(self, problem: Problem) -> Made:
        linear = {f"{path}.weight" for path in ml.model.linear_paths(nested(dict(problem.base)))}
        base = {name: array.T if name in linear else array for name, array in problem.base.items()}
        return self.build(dataclasses.replace(problem, base=base))
