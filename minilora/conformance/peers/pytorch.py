"""What implementations in PyTorch share: forward, gradients and steps on a module with named parameters."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from minilora.conformance.interface import Implementation, Optimizer, Problem
from minilora.conformance.peers.twin import Twin
from minilora.model import ModelConfig
from minilora.trees import nested


def twin(problem: Problem) -> Twin:
    """The base in PyTorch."""
    return Twin(ModelConfig(**problem.model), nested(dict(problem.base)))


class TorchPeer(Implementation):
    """A subclass makes modules in `build` and says in `named` what its parameters are called here."""

    def named(self, made: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
        """(name as in Problem, parameter) of every parameter, those of the base and those of the adapter."""
        raise NotImplementedError

    def mode(self, made: nn.Module, training: bool) -> None:
        """Switch dropout on or off."""
        made.train(training)

    def set_factors(self, made: nn.Module, problem: Problem) -> None:
        """Copy the problem's factors into the module; KeyError for one that has no place."""
        places = dict(self.named(made))
        with torch.no_grad():
            for name, array in (problem.factors or {}).items():
                places[name].copy_(torch.tensor(array))

    def forward(self, made: Any, tokens: np.ndarray, training: bool = False) -> np.ndarray:
        self.mode(made, training)
        with torch.no_grad():
            logits = made(torch.tensor(tokens))
        self.mode(made, False)
        return logits.numpy()

    def factors(self, made: Any):
        return {name: one.detach().numpy().copy() for name, one in self.named(made) if self._is_factor(name, one)}

    def _is_factor(self, name: str, parameter: nn.Parameter) -> bool:
        return ".lora_" in name or (name.endswith(".bias") and parameter.requires_grad)

    def weights(self, made: Any):
        return {name: one.detach().numpy().copy() for name, one in self.named(made) if ".lora_" not in name}

    def trainable(self, made: Any):
        return [name for name, one in self.named(made) if one.requires_grad]

    def gradients(self, made: Any, tokens: np.ndarray, targets: np.ndarray):
        self._backward(made, tokens, targets)
        return {name: one.grad.numpy().copy() for name, one in self.named(made) if one.grad is not None}

    def _backward(self, made: Any, tokens: np.ndarray, targets: np.ndarray) -> None:
        self.mode(made, False)
        made.zero_grad()
        logits = made(torch.tensor(tokens))
        nn.functional.cross_entropy(logits.flatten(0, 1), torch.tensor(targets).flatten(), ignore_index=-1).backward()

    def train(self, made: Any, tokens: np.ndarray, targets: np.ndarray, optimizer: Optimizer) -> None:
        self._steps(made, optimizer, lambda: self._backward(made, tokens, targets))

    def decay(self, made: Any, optimizer: Optimizer) -> None:
        def zero() -> None:
            for _, one in self.named(made):
                one.grad = torch.zeros_like(one) if one.requires_grad else None

        self._steps(made, optimizer, zero)

    def _steps(self, made: Any, optimizer: Optimizer, backward) -> None:
        trained = [(name, one) for name, one in self.named(made) if one.requires_grad]
        groups = [
            {"params": [one], "lr": optimizer.lr_A if name.endswith("lora_A") else optimizer.lr_B}
            for name, one in trained
        ]
        adamw = torch.optim.AdamW(groups, betas=optimizer.betas, eps=optimizer.eps, weight_decay=optimizer.weight_decay)
        for _ in range(optimizer.steps):
            backward()
            before = [one.detach().clone() for _, one in trained]
            adamw.step()
            with torch.no_grad():  # at eps = 0, PyTorch's AdamW makes 0/0 of a gradient of zero; here it is 0
                for (_, one), old in zip(trained, before, strict=True):
                    one.copy_(torch.where(one.isnan(), old, one))
