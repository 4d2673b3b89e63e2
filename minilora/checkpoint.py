"""Models and adapters on disk: safetensors for arrays, JSON for configs, never pickle.

An adapter folder is PEFT's: `adapter_config.json` and `adapter_model.safetensors`. What PEFT has no field for (the
base's fingerprint, an init that PEFT does not know) is in the metadata of the safetensors file, where PEFT ignores it.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from minilora.checks import check_fields, nearest
from minilora.files import read_json, replace_file, to_json
from minilora.lora import Adapter, LoraConfig, bias_paths, check_base, select_modules
from minilora.model import Model, ModelConfig, Params, init_params
from minilora.trees import fingerprint, leaves, nested

PREFIX = "base_model.model."  # of every name in a PEFT adapter file
PEFT_INITS = (True, False, "gaussian", "orthogonal")  # those of ours that PEFT knows too

# Fields that PEFT writes and minilora does not have, with the values at which they change nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "fan_in_fan_out": (False,),
    "modules_to_save": (None, []),
    "lora_bias": (False,),
    "use_dora": (False,),
    "layers_pattern": (None, "layers", []),
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
    "loftq_config": (None, {}),
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
    description = dataclasses.asdict(model.config) | {"fingerprint": fingerprint(model.params)} | (notes or {})
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
    config = ModelConfig(**{name: description[name] for name in names})
    arrays, _ = _read(folder / "model.safetensors")
    expected = leaves(init_params(config, np.random.default_rng(0)))
    _check_arrays(folder / "model.safetensors", arrays, {path: array.shape for path, array in expected.items()})
    params = nested({path: arrays[path] for path in expected})
    if fingerprint(params) != description["fingerprint"]:
        raise ValueError(f"{folder}: the arrays are not those whose fingerprint config.json states")
    return Model(config, params)


def save_adapter(adapter: Adapter, folder: str | Path) -> None:
    """Write a PEFT adapter folder. Factors are stored as they are; the scaling is in the config."""
    folder = Path(folder)
    config = adapter.config
    stated = {name: list(v) if isinstance(v, tuple | set) else v for name, v in vars(config).items()}
    stated["rank_pattern"], stated["alpha_pattern"] = dict(config.rank_pattern), dict(config.alpha_pattern)
    if config.init_lora_weights not in PEFT_INITS:
        stated["init_lora_weights"] = True
    metadata = {
        "format": "pt",
        "minilora.base": adapter.base,
        "minilora.init_lora_weights": json.dumps(config.init_lora_weights),
    }
    names = {PREFIX + (f"{name}.weight" if ".lora_" in name else _bias_key(adapter, name)): array
             for name, array in adapter.arrays().items()}  # fmt: skip
    replace_file(folder / "adapter_model.safetensors", _to_bytes(names, metadata))
    described = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
    }
    replace_file(folder / "adapter_config.json", to_json(described | stated))


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
    config = _lora_config(folder / "adapter_config.json")
    path = folder / "adapter_model.safetensors"
    arrays, metadata = _read(path)
    if "minilora.init_lora_weights" in metadata:
        init = _metadata_value(path, metadata, "minilora.init_lora_weights")
        config = dataclasses.replace(config, init_lora_weights=init)
    adapter = _assemble(path, config, arrays, metadata.get("minilora.base", ""))
    if params is None:
        return adapter
    if not adapter.base:  # made by PEFT: it belongs to the base it is loaded onto, if all shapes fit
        adapter = dataclasses.replace(adapter, base=fingerprint(params))
    check_base(params, adapter)
    _check_arrays(path, adapter.arrays(), _expected_shapes(params, config))
    return adapter


def _metadata_value(path: Path, metadata: dict[str, str], name: str) -> Any:
    try:
        return json.loads(metadata[name])
    except json.JSONDecodeError:
        raise ValueError(f"{path}: metadata {name}: got {metadata[name]!r}, takes JSON") from None


def _lora_config(path: Path) -> LoraConfig:
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
    check_fields(LoraConfig, values, str(path))
    for name in ("rank_pattern", "alpha_pattern"):
        values[name] = values.get(name) or {}
    if values.get("layers_to_transform") == []:  # PEFT: no filter
        values["layers_to_transform"] = None
    try:
        return LoraConfig(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None


def _assemble(path: Path, config: LoraConfig, arrays: dict[str, np.ndarray], base: str) -> Adapter:
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
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in key.split(".")]


def _expected_shapes(params: Params, config: LoraConfig) -> dict[str, tuple[int, ...]]:
    flat = leaves(params)
    shapes: dict[str, tuple[int, ...]] = {}
    for path in select_modules(params, config):
        n_out, n_in = flat[f"{path}.weight"].shape
        r = config.rank_of(path)
        shapes |= {f"{path}.lora_A": (r, n_in), f"{path}.lora_B": (n_out, r)}
    return shapes | {f"{path}.bias": flat[f"{path}.bias"].shape for path in bias_paths(params, config)}


def _check_arrays(path: Path, found: dict[str, np.ndarray], expected: dict[str, tuple[int, ...]]) -> None:
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or extra:
        raise ValueError(
            f"{path}: lacks {', '.join(missing) or 'nothing'}; has unexpected {', '.join(extra) or 'nothing'}"
        )
    for name, shape in expected.items():
        if found[name].shape != shape:
            raise ValueError(f"{path}: {name}: got shape {found[name].shape}, takes {shape}")


def _to_bytes(arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> bytes:
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return safetensors.numpy.save(contiguous, metadata=metadata)


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays and metadata of a safetensors file; ValueError if it is damaged or holds anything but finite floats."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with safetensors.safe_open(path, framework="np") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            metadata = file.metadata() or {}
    except (safetensors.SafetensorError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error})") from None
    for name, array in arrays.items():
        if array.dtype not in (np.float32, np.float64):
            raise ValueError(f"{path}: {name}: got {array.dtype}, takes float32 or float64")
        if not np.isfinite(array).all():
            raise ValueError(f"{path}: {name}: holds NaN or infinite numbers")
    return arrays, metadata
