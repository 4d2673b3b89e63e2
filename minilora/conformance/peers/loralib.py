"""Microsoft's loralib on the PyTorch twin of our model.

loralib gives layers, and leaves to its user which to replace; so nothing here says that it selects modules. In its
evaluation mode the change is merged into the weights, in its training mode it is not.
"""

import dataclasses
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import loralib
import safetensors.torch
import torch
from torch import nn

from minilora.conformance.interface import NotOffered, Problem
from minilora.conformance.peers.pytorch import TorchPeer, twin
from minilora.lora_config import LoraConfig
from minilora.model import LINEAR

LEFT_TO_ITS_USER = ("target_modules", "layers_to_transform", "exclude_modules", "rank_pattern", "alpha_pattern")


class Loralib(TorchPeer):
    """loralib.Linear in the place of nn.Linear."""

    name, version = "loralib", f"{version('loralib')} on PyTorch {torch.__version__}"

    def build(self, problem: Problem, transposed: bool = False) -> nn.Module:
        torch.manual_seed(problem.seed)
        made, config = twin(problem), self._config(problem)
        for path in problem.modules or ():
            parent, _, name = path.rpartition(".")
            old = made.get_submodule(path)
            new = loralib.Linear(
                old.in_features, old.out_features, r=self._rank(problem, path), lora_alpha=config.alpha_of(path),
                lora_dropout=config.lora_dropout, fan_in_fan_out=transposed,
            )  # fmt: skip
            new.to(old.weight.dtype)
            new.weight.data.copy_(old.weight.T if transposed else old.weight)
            new.bias.data.copy_(old.bias)
            setattr(made.get_submodule(parent), name, new)
        loralib.mark_only_lora_as_trainable(made, config.bias)
        self.set_factors(made, problem)
        made.merged_now = False
        return made

    def _config(self, problem: Problem) -> LoraConfig:
        if problem.modules is None:
            raise NotOffered("loralib leaves it to its user which modules to replace")
        unknown = problem.config.keys() - {"r", "lora_alpha", "lora_dropout", "bias", *LEFT_TO_ITS_USER}
        if unknown:
            raise NotOffered(f"loralib has no {', '.join(sorted(unknown))}")
        return LoraConfig(**problem.config)

    def _rank(self, problem: Problem, path: str) -> int:
        return problem.config["r"] if problem.factors is None else len(problem.factors[f"{path}.lora_A"])

    def named(self, made: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
        return made.named_parameters()

    def mode(self, made: Any, training: bool) -> None:
        """Not merged is loralib's training mode; dropout is switched by itself."""
        made.train(not made.merged_now)
        for module in made.modules():
            if isinstance(module, nn.Dropout):
                module.train(training)

    def merge(self, made: Any) -> None:
        made.merged_now = True
        made.train(False)

    def unmerge(self, made: Any) -> None:
        made.merged_now = False
        made.train()

    def is_merged(self, made: Any) -> bool:
        return any(getattr(module, "merged", False) for module in made.modules())

    def save(self, made: Any, folder: Path) -> None:
        trains = {name for name, one in made.named_parameters() if one.requires_grad and name.endswith("bias")}
        adapted = {name for name in trains if f"{name.removesuffix('bias')}lora_A" in dict(made.named_parameters())}
        bias = "none" if not trains else "lora_only" if trains == adapted else "all"
        state = loralib.lora_state_dict(made, bias)
        safetensors.torch.save_file(
            {name: one.contiguous() for name, one in state.items()}, folder / "lora.safetensors"
        )

    def load(self, problem: Problem, folder: Path) -> nn.Module:
        made = self.build(problem)
        with torch.no_grad():
            for name, one in self.named(made):
                if ".lora_B" in name:
                    one.zero_()  # as in a model that was just made
        made.load_state_dict(
            safetensors.torch.load_file(folder / "lora.safetensors"), strict=False
        )  # as its README says
        return made

    def transposed(self, problem: Problem) -> nn.Module:
        linear = {f"layers.{i}.{name}.weight" for i in range(problem.model["n_layers"]) for name in LINEAR}
        base = {name: one.T if name in linear else one for name, one in problem.base.items()}
        return self.build(dataclasses.replace(problem, base=base), transposed=True)
