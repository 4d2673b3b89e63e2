"""Models and adapters on disk: safetensors for arrays, JSON for configs, never pickle.

An adapter folder is PEFT's: `adapter_config.json` and `adapter_model.safetensors`. What PEFT has no field for (the
base's fingerprint, an init that PEFT does not know) is in the metadata of the safetensors file, where PEFT ignores it.
"""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from minilora.checks import check_fields, nearest
from minilora.files import from_json, read_json, replace_file, to_json
from minilora.lora import Adapter, LoraConfig, check_base, check_shapes
from minilora.model import Model, ModelConfig, Params, param_shapes
from minilora.trees import fingerprint, leaves, nested

PREFIX = "base_model.model."  # of every name in a PEFT adapter file
PEFT_INITS = (True, False, "gaussian", "orthogonal")  # those of ours that PEFT knows too

# Fields that PEFT writes and minilora does not have, with the values at which they change nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "fan_in_fan_out": (False,),
    "modules_to_save": (None, []),
    "lora_bias": (False,),
    "use_dora": (False,),
    "layers_pattern": (None, "layers", ["layers"], []),
    "layer_replication": (None,),
    "megatron_config": (None,),
    "trainable_token_indices": (None,),
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None,),
    "use_qalora": (False,),
    "ensure_weight_tying": (False,),
    "arrow_config": (None,),
    "corda_config": (None,),
    "eva_config": (None,),
    "kasa_config": (None,),
    "loftq_config": (None, {}),
    "monteclora_config": (None,),
    "lora_ga_config": (None,),
    "velora_config": (None,),
    "use_bdlora": (None, False),
}
# Fields that describe the folder and do not enter the computation.
DESCRIPTIVE = (
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
)


def save_model(model: Model, folder: str | Path, notes: dict[str, Any] | None = None) -> None:
    """Write `config.json` (the config, the fingerprint, and `notes`) and `model.safetensors`."""
    folder = Path(folder)
    description = (notes or {}) | dataclasses.asdict(model.config) | {"fingerprint": fingerprint(model.params)}
    replace_file(folder / "model.safetensors", _to_bytes(leaves(model.params), {"format": "np"}))
    replace_file(folder / "config.json", to_json(description))


def load_model(folder: str | Path) -> Model:
    """Read what `save_model` wrote. ValueError where anything is missing, misshapen or not as when it was saved."""
    folder = Path(folder)
    description = read_json(folder / "config.json")
    names = [field.name for field in dataclasses.fields(ModelConfig)]
    missing = [name for name in (*names, "fingerprint") if name not in description]
    if missing:
        raise ValueError(f"{folder / 'config.json'}: lacks {', '.join(missing)}")
    try:
        config = ModelConfig(**{name: description[name] for name in names})
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'}: {error}") from None
    path = folder / "model.safetensors"
    arrays, _ = read_arrays(path)
    if config.n_layers > len(arrays):
        raise ValueError(f"{path}: got {len(arrays)} arrays, takes those of {config.n_layers} layers")
    shapes = param_shapes(config)
    check_shapes(str(path), arrays, shapes)
    params = nested({name: arrays[name] for name in shapes})
    if fingerprint(params) != description["fingerprint"]:
        raise ValueError(f"{folder}: the arrays are not those whose fingerprint config.json states")
    if any(array.dtype != config.dtype for array in arrays.values()):
        raise ValueError(f"{path}: got another dtype, takes {config.dtype} as config.json states")
    return Model(config, params)


def save_adapter(adapter: Adapter, folder: str | Path) -> None:
    """Write a PEFT adapter folder. Factors are stored as they are; the scaling follows from the config.

    PEFT knows neither negative layers nor layers together with a pattern of targets, and its patterns match layer norms
    and embeddings too: there `adapter_config.json` lists the adapted modules, which comes to the same. Nor does it know
    all of our inits. Our own config is in the metadata.
    """
    folder = Path(folder)
    metadata = {
        "format": "pt",
        "minilora.base": adapter.base,
        "minilora.config": json.dumps(dataclasses.asdict(adapter.config)),
    }
    names = {
        PREFIX + (f"{name}.weight" if ".lora_" in name else _bias_key(adapter, name)): array
        for name, array in adapter.arrays().items()
    }
    described = {"peft_type": "LORA", "task_type": None, "base_model_name_or_path": None, "inference_mode": True}
    replace_file(folder / "adapter_model.safetensors", _to_bytes(names, metadata))
    replace_file(folder / "adapter_config.json", to_json(described | _as_peft(adapter.config, list(adapter.factors))))


def _as_peft(config: LoraConfig, adapted: list[str]) -> dict[str, Any]:
    """The config in PEFT's words."""
    stated = dataclasses.asdict(config)
    is_pattern = isinstance(config.target_modules, str) and config.target_modules != "all-linear"
    if is_pattern or config.layers_to_transform is not None:
        stated |= {"target_modules": sorted(adapted), "exclude_modules": None, "layers_to_transform": None}
    if config.init_lora_weights not in PEFT_INITS:
        stated["init_lora_weights"] = True
    return stated


def _bias_key(adapter: Adapter, name: str) -> str:
    """PEFT wraps an adapted module, whose own bias is then one level down."""
    path = name.removesuffix(".bias")
    return f"{path}.base_layer.bias" if path in adapter.factors else name


def load_adapter(folder: str | Path, params: Params | None = None) -> Adapter:
    """Read a PEFT adapter folder.

    With the base's `params`, everything is checked against them: the fingerprint where one is stored, and that
    exactly the arrays that the config calls for are there, in their shapes. Without, that check comes when the
    adapter is merged or evaluated. ValueError names the file and what is wrong with it.
    """
    folder = Path(folder)
    config = read_lora_config(folder / "adapter_config.json")
    path = folder / "adapter_model.safetensors"
    arrays, metadata = read_arrays(path)
    adapter = assemble_adapter(path, config, arrays, metadata.get("minilora.base", ""))
    if "minilora.config" in metadata:
        own = _own_config(path, metadata["minilora.config"])
        if LoraConfig(**_as_peft(own, list(adapter.factors))) != config:
            raise ValueError(f"{path}: adapter_config.json is not the one it was saved with")
        adapter = dataclasses.replace(adapter, config=own)
    if params is None:
        return adapter
    if not adapter.base:  # made by PEFT: it belongs to the base it is loaded onto, if all shapes fit
        adapter = dataclasses.replace(adapter, base=fingerprint(params))
    try:
        check_base(params, adapter)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return adapter


def _own_config(path: Path, text: str) -> LoraConfig:
    try:
        stated = from_json(text)
        if not isinstance(stated, dict):
            raise ValueError(f"got {stated!r}, takes an object")
        check_fields(LoraConfig, stated, "minilora.config")
        return LoraConfig(**stated)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: metadata minilora.config: {error}") from None


def read_lora_config(path: Path) -> LoraConfig:
    """The LoraConfig that a PEFT config states; fields that would change the result and that we lack are refused."""
    stated = read_json(path)
    ours = [field.name for field in dataclasses.fields(LoraConfig)]
    if stated.get("peft_type") != "LORA":
        raise ValueError(f"{path}: peft_type: got {stated.get('peft_type')!r}, takes 'LORA'")
    for name, value in stated.items():
        if name in NEUTRAL and value not in NEUTRAL[name]:
            raise ValueError(f"{path}: {name}: got {value!r}, which minilora does not have; takes {NEUTRAL[name][0]!r}")
        if name not in (*ours, *NEUTRAL, *DESCRIPTIVE):
            raise ValueError(f"{path}: unknown field {name!r}{nearest(name, ours)}")
    values = {name: value for name, value in stated.items() if name in ours}
    for name in ("rank_pattern", "alpha_pattern"):
        values[name] = values.get(name) or {}
    for name in ("layers_to_transform", "exclude_modules"):
        if values.get(name) == []:  # PEFT: no filter
            values[name] = None
    try:
        return LoraConfig(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None


def assemble_adapter(path: Path, config: LoraConfig, arrays: dict[str, np.ndarray], base: str) -> Adapter:
    """The adapter that a file's arrays make, by PEFT's names; ValueError for a name or shape that does not fit."""
    factors: dict[str, dict[str, np.ndarray]] = {}
    biases: dict[str, np.ndarray] = {}
    for key in sorted(arrays, key=_natural):
        name = key.removeprefix(PREFIX)
        module, _, last = name.rpartition(".")
        if key.startswith(PREFIX) and last == "weight" and module.endswith((".lora_A", ".lora_B")):
            module, _, factor = module.rpartition(".")
            factors.setdefault(module, {})[factor] = arrays[key]
        elif key.startswith(PREFIX) and last == "bias":
            biases[module.removesuffix(".base_layer")] = arrays[key]
        else:
            raise ValueError(
                f"{path}: unexpected array {key!r}, takes {PREFIX}(module).lora_A.weight, .lora_B.weight or .bias"
            )
    for module, pair in factors.items():
        shapes = {name: array.shape for name, array in pair.items()}
        r = config.rank_of(module)
        if set(pair) != {"lora_A", "lora_B"} or any(array.ndim != 2 for array in pair.values()):
            raise ValueError(f"{path}: {module}: got {shapes}, takes lora_A (r, in) and lora_B (out, r)")
        if shapes["lora_A"][0] != r or shapes["lora_B"][1] != r:
            raise ValueError(f"{path}: {module}: got {shapes}, takes r = {r} as adapter_config.json has it")
    scaling = {module: config.scaling_of(module) for module in factors}
    return Adapter(config, factors, biases, scaling, base)


def _natural(key: str) -> list[Any]:
    """Layer 10 after layer 9."""
    return [(0, int(part), "") if re.fullmatch("[0-9]{1,9}", part) else (1, 0, part) for part in key.split(".")]


def _to_bytes(arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> bytes:
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return safetensors.numpy.save(contiguous, metadata=metadata)


def read_arrays(
    path: Path, dtypes: tuple[str, ...] = ("float32", "float64")
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays and metadata of a safetensors file; ValueError if it is damaged or holds anything but finite floats."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with safetensors.safe_open(path, framework="np") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            metadata = file.metadata() or {}
    except TypeError as error:  # bfloat16
        raise ValueError(f"{path}: stored in a dtype that NumPy lacks, takes {' or '.join(dtypes)} ({error})") from None
    except (safetensors.SafetensorError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error})") from None
    for name, array in arrays.items():
        if array.dtype.name not in dtypes:
            raise ValueError(f"{path}: {name}: got {array.dtype}, takes {' or '.join(dtypes)}")
        if not np.isfinite(array).all():
            raise ValueError(f"{path}: {name}: holds NaN or infinite numbers")
    return arrays, metadata
