"""Models and adapters on disk: safetensors for arrays, JSON for configs, never pickle.

An adapter folder is PEFT's: `adapter_config.json` and `adapter_model.safetensors`. What PEFT has no field for (the
base's fingerprint, an init that PEFT does not know) is in the metadata of the safetensors file, where PEFT ignores it.
What is saved is checked as what is loaded.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minilora.adapter import Adapter, check_adapter, check_whole
from minilora.checks import a_few, check_fields, check_kind, check_shapes, check_stored
from minilora.files import check_folder, from_json, read_json, replace_file, to_json
from minilora.lora import adapter_shapes, check_made_for, module_table
from minilora.lora_config import LoraConfig
from minilora.model import Model, ModelConfig, Params, check_model, check_params, param_shapes
from minilora.peft_format import array_names, as_peft, check_embeddings, our_names, placed, read_lora_config
from minilora.tensors import HALVES, read_arrays, refuse_pickle_for, to_bytes, widest
from minilora.trees import fingerprint, leaves, nested


def save_model(model: Model, folder: str | os.PathLike, notes: dict[str, Any] | None = None) -> None:
    """Write `config.json` (the config, the fingerprint, and `notes`) and `model.safetensors`.

    ValueError for parameters that the config does not describe, or that are not finite numbers of its dtype, and for
    notes that JSON does not have or that would hide a field; TypeError for what is no Model. Then nothing is written.
    """
    path = check_folder("folder", folder)
    check_model("model", model)
    check_stored("model.params", leaves(model.params), [model.config.dtype])
    described = dataclasses.asdict(model.config) | {"fingerprint": fingerprint(model.params)}
    check_kind("notes", notes or {}, dict, "a dict, or None")
    hidden = sorted(described.keys() & (notes or {}).keys())
    if hidden:
        raise ValueError(f"notes: got {', '.join(hidden)}, takes what is no field of the model")
    try:
        description = to_json((notes or {}) | described)
    except (TypeError, ValueError) as error:
        raise ValueError(f"notes: got what JSON does not have ({error})") from None
    replace_file(path / "model.safetensors", to_bytes(leaves(model.params), {"format": "np"}))
    replace_file(path / "config.json", description)


def load_model(folder: str | os.PathLike) -> Model:
    """Read what `save_model` wrote. ValueError where anything is missing, misshapen or not as when it was saved."""
    where = check_folder("folder", folder)
    description = read_json(where / "config.json")
    names = [field.name for field in dataclasses.fields(ModelConfig)]
    missing = [name for name in (*names, "fingerprint") if name not in description]
    if missing:
        raise ValueError(f"{where / 'config.json'}: lacks {', '.join(missing)}")
    try:
        config = ModelConfig(**{name: description[name] for name in names})
    except ValueError as error:
        raise ValueError(f"{where / 'config.json'}: {error}") from None
    path = where / "model.safetensors"
    refuse_pickle_for(path)
    arrays, _ = read_arrays(path)
    if config.n_layers > len(arrays):
        raise ValueError(f"{path}: got {len(arrays)} arrays, takes those of {config.n_layers} layers")
    shapes = param_shapes(config)
    check_shapes(str(path), arrays, shapes)
    params = nested({name: arrays[name] for name in shapes})
    if fingerprint(params) != description["fingerprint"]:
        raise ValueError(f"{where}: the arrays are not those whose fingerprint config.json states")
    if any(array.dtype != config.dtype for array in arrays.values()):
        raise ValueError(f"{path}: got another dtype, takes {config.dtype} as config.json states")
    return Model(config, params)


def save_adapter(adapter: Adapter, folder: str | os.PathLike) -> None:
    """Write a PEFT adapter folder. Factors are stored as they are; the scaling follows from the config.

    PEFT knows neither negative layers nor layers together with a pattern of targets, and its patterns match layer norms
    and embeddings too: there `adapter_config.json` lists the adapted modules, which comes to the same. Nor does it know
    all of our inits. Our own config is in the metadata.

    ValueError for arrays that are not finite, or do not fit each other or the config, and for a scaling that is not the
    config's, which would be lost; TypeError for a Model, which `save_model` writes, or a stack.
    """
    path = check_folder("folder", folder)
    check_adapter("adapter", adapter)
    check_whole("adapter", adapter)
    scaling = {module: adapter.config.scaling_of(module) for module in adapter.factors}
    for module in scaling.keys() | adapter.scaling.keys():
        got, takes = adapter.scaling.get(module), scaling.get(module)
        if got != takes:
            raise ValueError(f"adapter: scaling of {module}: got {got}, takes {takes} by its config, which is stored")
    metadata = {
        "format": "pt",
        "minilora.base": adapter.base,
        "minilora.config": json.dumps(dataclasses.asdict(adapter.config)),
    }
    described = {"peft_type": "LORA", "task_type": None, "base_model_name_or_path": None, "inference_mode": True}
    stated = to_json(described | as_peft(adapter.config, list(adapter.factors)))
    replace_file(path / "adapter_model.safetensors", to_bytes(array_names(adapter), metadata))
    replace_file(path / "adapter_config.json", stated)


def load_adapter(folder: str | os.PathLike, params: Params | None = None) -> Adapter:
    """Read a PEFT adapter folder.

    With the base's `params`, everything is checked against them: the fingerprint where one is stored, and that
    exactly the arrays that the config calls for are there, in their shapes. A folder that names no base, as PEFT's do
    not, then belongs to this one, and its config comes back with the exact paths of what is adapted. Without `params`,
    that check comes when the adapter is merged or evaluated. float16 is widened to float32. ValueError names the file
    and what is wrong with it.
    """
    where = check_folder("folder", folder)
    if params is not None:
        check_params("params", params)
        return read_adapter(where, params, lambda _: {path: path for path in module_table(params)})
    read = _read(where)
    found, whole = our_names(read.path, read.arrays, None)
    check_embeddings(read.path, whole, None)
    adapter = _assemble(_own_config(read, found) or read.stated, found, read.base)
    check_whole(str(read.path), adapter)
    return adapter


def read_adapter(folder: Path, params: Params, modules: Callable[[Mapping[str, Any]], dict[str, str]]) -> Adapter:
    """A PEFT folder for a base. `modules(arrays)` says which of our modules each of the file's is: {theirs: ours}."""
    read = _read(folder)
    ours = modules(read.arrays)
    found, whole = our_names(read.path, read.arrays, ours)
    check_embeddings(read.path, whole, params)
    base, own = fingerprint(params), _own_config(read, found)
    try:
        check_made_for(read.base or base, base)
    except ValueError as error:
        raise ValueError(f"{read.path}: {error}") from None
    try:
        if own is None or not read.base:  # else it was written for this very base, and fits as it is
            own = placed(read.stated, params, {path: theirs for theirs, path in ours.items()})
        shapes = adapter_shapes(params, own)
    except ValueError as error:
        raise ValueError(f"{folder / 'adapter_config.json'}: {error}") from None
    check_shapes(str(read.path), found, shapes)
    return _assemble(own, found, base)


class _Read(NamedTuple):
    """What is in an adapter folder."""

    stated: LoraConfig  # by adapter_config.json
    path: Path  # of the arrays
    arrays: dict[str, np.ndarray]
    own: str | None  # our config as JSON, None in a folder of PEFT's
    base: str  # fingerprint of the base, "" in a folder of PEFT's


def _read(folder: Path) -> _Read:
    stated, path = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    inner = sorted(one.parent.name for one in folder.glob(f"*/{stated.name}"))
    if inner and not stated.exists():
        raise FileNotFoundError(f"{stated}: no such file; there are adapters in the folders {a_few(inner)}")
    config = read_lora_config(stated)
    refuse_pickle_for(path)
    arrays, metadata = read_arrays(path, HALVES)
    return _Read(config, path, arrays, metadata.get("minilora.config"), metadata.get("minilora.base", ""))


def _assemble(config: LoraConfig, arrays: Mapping[str, np.ndarray], base: str) -> Adapter:
    """The adapter with these arrays, keyed as in `Adapter.arrays`, in the widest of their dtypes."""
    factors: dict[str, dict[str, np.ndarray]] = {}
    biases: dict[str, np.ndarray] = {}
    dtype = widest(arrays)
    for name, array in arrays.items():
        path, _, kind = name.rpartition(".")
        if kind == "bias":
            biases[path] = array.astype(dtype, copy=False)
        else:
            factors.setdefault(path, {})[kind] = array.astype(dtype, copy=False)
    return Adapter(config, factors, biases, {path: config.scaling_of(path) for path in factors}, base)


def _own_config(read: _Read, found: Mapping[str, Any]) -> LoraConfig | None:
    """Our own config, of which adapter_config.json has to be what PEFT knows; None in a folder of PEFT's."""
    if read.own is None:
        return None
    try:
        stated = from_json(read.own)
        if not isinstance(stated, dict):
            raise ValueError(f"got {stated!r}, takes an object")
        check_fields(LoraConfig, stated, "minilora.config")
        own = LoraConfig(**stated)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{read.path}: metadata minilora.config: {error}") from None
    adapted = [name.removesuffix(".lora_A") for name in found if name.endswith(".lora_A")]
    if LoraConfig(**as_peft(own, adapted)) != read.stated:
        raise ValueError(f"{read.path}: adapter_config.json is not the one it was saved with")
    return own
