"""Hugging Face PEFT on the PyTorch twin of our model."""

import re
import warnings
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import peft
import torch
from torch import nn

from minilora.conformance.interface import Arrays, Problem
from minilora.conformance.peers.pytorch import TorchPeer, twin


class Whole(nn.Module):
    """The twin as a part called "model", as in the models that PEFT is made for: it looks for layers below a part."""

    def __init__(self, problem: Problem):
        super().__init__()
        self.model = twin(problem)

    def forward(self, tokens):
        """Logits."""
        return self.model(tokens)


class Peft(TorchPeer):
    """Each method is what PEFT's documentation says to call."""

    name, version = "PEFT", f"{version('peft')} on PyTorch {torch.__version__}"

    def build(self, problem: Problem) -> peft.PeftModel:
        torch.manual_seed(problem.seed)
        made = self._quietly(peft.get_peft_model, Whole(problem), self._config(problem))
        self.set_factors(made, problem)
        return made.train(False)

    def _config(self, problem: Problem) -> peft.LoraConfig:
        return peft.LoraConfig(**problem.config)

    def _quietly(self, function, *arguments, **more):
        with warnings.catch_warnings():  # of a tied head, of fields that it does not use, and the like
            warnings.simplefilter("ignore")
            return function(*arguments, **more)

    def named(self, made: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameter in made.named_parameters():
            name = name.removeprefix("base_model.model.model.").replace(".base_layer.", ".")
            yield re.sub(r"\.lora_([AB])\.\w+\.weight$", r".lora_\1", name), parameter

    def merge(self, made: Any) -> None:
        self._quietly(made.merge_adapter)

    def unmerge(self, made: Any) -> None:
        self._quietly(made.unmerge_adapter)

    def is_merged(self, made: Any) -> bool:
        return any(
            getattr(module, "merged", False)
            for module in made.modules()
            if isinstance(module, peft.tuners.lora.LoraLayer)
        )

    def disable(self, made: Any) -> None:
        self._quietly(made.base_model.disable_adapter_layers)

    def save(self, made: Any, folder: Path) -> None:
        self._quietly(made.save_pretrained, folder)

    def load(self, problem: Problem, folder: Path) -> peft.PeftModel:
        return peft.PeftModel.from_pretrained(Whole(problem), folder).train(False)  # its warnings are for the check

    def combine(self, problem: Problem, adapters: Sequence[Arrays], weights: Sequence[float]) -> peft.PeftModel:
        made = self.build(problem)
        names = [f"adapter{i}" for i in range(len(adapters))]
        for name, factors in zip(names, adapters, strict=True):
            made.add_adapter(name, self._config(problem))
            state = {f"base_model.model.model.{key}.weight": torch.tensor(one) for key, one in factors.items()}
            peft.set_peft_model_state_dict(made, state, adapter_name=name)
        made.base_model.add_weighted_adapter(
            names, list(weights), "sum", combination_type="cat"
        )  # "linear" has cross terms
        made.set_adapter("sum")
        return made.train(False)
