"""An adapter: LoRA factors and what they need to be used, and what is checked of one wherever it is taken."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from minilora import ops
from minilora.checks import a_few, check_kind, check_rng, check_stored, described
from minilora.lora_config import LoraConfig, adapts

FLOATS = ("float32", "float64")
PLACES = ("target_modules", "exclude_modules", "layers_to_transform")  # the fields that say where factors are


@dataclass(frozen=True)
class Adapter:
    """Trained or fresh LoRA factors, and what they need to be used: their config and the base they belong to."""

    config: LoraConfig
    factors: dict[str, dict[str, Any]]  # "layers.0.q_proj" -> {"lora_A": (r, in), "lora_B": (out, r)}
    biases: dict[str, Any]  # "layers.0.q_proj" -> (out,), its own copy of each bias that trains
    scaling: dict[str, float]  # "layers.0.q_proj" -> alpha / r
    base: str  # fingerprint of the base's parameters

    def arrays(self) -> dict[str, Any]:
        """Everything that trains: {"layers.0.q_proj.lora_A": ..., "layers.0.q_proj.bias": ...}."""
        biases = {f"{path}.bias": bias for path, bias in self.biases.items()}
        return {f"{path}.{name}": array for path, pair in self.factors.items() for name, array in pair.items()} | biases

    def dropout_mask(self, x, rng: np.random.Generator | None) -> np.ndarray | None:
        """A fresh mask for the input of one module, or None where nothing is dropped."""
        if rng is None or self.config.lora_dropout == 0:
            return None
        return ops.dropout_mask(x.shape, self.config.lora_dropout, rng, x.dtype)

    def check_rng(self, rng: Any) -> None:
        """TypeError unless dropout can be drawn from it."""
        check_rng("rng", rng)

    def with_arrays(self, arrays: Mapping[str, Any]) -> "Adapter":
        """The same adapter with other arrays, keyed as in `arrays()`; ValueError for one too few or too many."""
        own = self.arrays().keys()
        if arrays.keys() != own:  # asked at every step, so the names are sorted for the message alone
            missing, extra = sorted(own - arrays.keys()), sorted(arrays.keys() - own)
            raise ValueError(f"arrays: lacks {a_few(missing)}; has unexpected {a_few(extra)}")
        factors = {path: {name: arrays[f"{path}.{name}"] for name in pair} for path, pair in self.factors.items()}
        return dataclasses.replace(self, factors=factors, biases={path: arrays[f"{path}.bias"] for path in self.biases})


def check_lora(name: str, config: Any) -> None:
    """TypeError unless it is a LoraConfig."""
    check_kind(name, config, LoraConfig, "a LoraConfig")


def check_adapter(name: str, adapter: Any) -> None:
    """TypeError unless it is one Adapter: no Model, which full fine-tuning gives, and no stack of several."""
    if type(adapter) is not Adapter:
        takes = "an Adapter (a Model, as full fine-tuning gives, is used by itself, and save_model writes it)"
        raise TypeError(f"{name}: got {described(adapter)}, takes {takes}")
    check_lora(f"{name}.config", adapter.config)
    for field in ("factors", "biases", "scaling"):
        check_kind(f"{name}.{field}", getattr(adapter, field), dict, "a dict by the paths of modules")


def check_whole(name: str, adapter: Adapter) -> None:
    """ValueError unless the arrays are finite floats that fit each other and the config: what may be in a file.

    Which modules of a base the config leaves out or calls for besides, only that base can tell: see `check_base`.
    """
    if not adapter.factors:
        raise ValueError(f"{name}: lacks lora_A and lora_B: has no factors")
    check_stored(name, adapter.arrays(), FLOATS)
    for path, pair in adapter.factors.items():
        r, shapes = adapter.config.rank_of(path), {one: array.shape for one, array in pair.items()}
        takes = f"lora_A (r, in) and lora_B (out, r) with r = {r} by its config"
        if set(pair) != {"lora_A", "lora_B"} or any(len(shape) != 2 for shape in shapes.values()):
            raise ValueError(f"{name}: {path}: got {shapes}, takes {takes}")
        if shapes["lora_A"][0] != r or shapes["lora_B"][1] != r:
            raise ValueError(f"{name}: {path}: got {shapes}, takes {takes}")
        if not adapts(adapter.config, path):
            stated = ", ".join(f"{one}={getattr(adapter.config, one)!r}" for one in PLACES)
            raise ValueError(f"{name}: {path}: has factors, which its config does not call for ({stated})")
    _check_biases(name, adapter)


def _check_biases(name: str, adapter: Adapter) -> None:
    """ValueError unless there are the biases that the config's `bias` calls for, as far as the factors tell."""
    bias, found, adapted = adapter.config.bias, adapter.biases.keys(), adapter.factors.keys()
    missing = sorted(adapted - found) if bias != "none" else []
    extra = sorted(found - adapted) if bias == "lora_only" else sorted(found) if bias == "none" else []
    if missing or extra:
        of = f"of the biases that train with bias={bias!r}"
        raise ValueError(f"{name}: {of}, lacks {a_few(missing)}; has unexpected {a_few([f'{p}.bias' for p in extra])}")
    for path, array in adapter.biases.items():
        n_out = adapter.factors[path]["lora_B"].shape[0] if path in adapted else np.size(array)
        if array.shape != (n_out,):
            raise ValueError(f"{name}: {path}.bias: got shape {array.shape}, takes {(n_out,)}")
