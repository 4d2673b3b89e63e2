"""PEFT's adapter folders in our words: the fields of its config, the names of its arrays, and what they come to.

Those who write a LoraConfig are told of every part without effect. Reading a folder asks one thing: are the arrays in
the file those of the modules that the config adapts? What the config names besides, of other architectures say, is
passed over, as PEFT does.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from minilora.adapter import Adapter
from minilora.checks import a_few, nearest
from minilora.files import read_json
from minilora.lora_config import LoraConfig, adapts
from minilora.model import linear_paths

PREFIX = "base_model.model."  # of every name in a PEFT adapter file
PEFT_INITS = (True, False, "gaussian", "orthogonal")  # those of ours that PEFT knows too
# PEFT's other inits: those that leave the base as it is, so that the file is plain LoRA, and those that change it, so
# that the file is right on that changed base alone. "lora_ga" is of the first where its config is null, as it then
# finds no gradients. (tests/peers runs all but LoftQ, which needs bitsandbytes.)
PLAIN_INITS = ("eva", "lora_ga", "mica")
CHANGING_INITS = ("corda", "loftq", "olora", "pissa")

# Fields that PEFT writes and minilora does not have, with the values at which they change nothing; null never does.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "fan_in_fan_out": (False,),
    "modules_to_save": (None, []),
    "lora_bias": (False,),
    "use_dora": (False,),
    "layers_pattern": (None, "layers", ["layers"], [], ""),
    "layer_replication": (None,),
    "megatron_config": (None,),
    "trainable_token_indices": (None,),
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None,),
    "use_qalora": (False,),
    "arrow_config": (None,),
    "kasa_config": (None,),
    "monteclora_config": (None,),
    "velora_config": (None,),
    "use_bdlora": (None, False),
    "enable_lora": (None,),  # this and the next are in folders of 2023
    "merge_weights": (False,),
}
# Fields that describe the folder or how the factors started, and do not enter the computation. `ensure_weight_tying`
# is about modules that are tied to another one, and none of ours that can be adapted is.
DESCRIPTIVE = (
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "inference_mode",
    "loftq_config",
    "lora_ga_config",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
)
KEY = re.compile(rf"{re.escape(PREFIX)}(.+?)\.(lora_[AB]\.weight|base_layer\.bias|bias|weight)")


def read_lora_config(path: Path) -> LoraConfig:
    """The LoraConfig that a PEFT config states; fields that would change the result and that we lack are refused."""
    stated = read_json(path)
    ours = [field.name for field in dataclasses.fields(LoraConfig)]
    if stated.get("peft_type") != "LORA":
        raise ValueError(f"{path}: peft_type: got {stated.get('peft_type')!r}, takes 'LORA'")
    for name, value in stated.items():
        if name in NEUTRAL and value is not None and value not in NEUTRAL[name] and not _is_ours(name, value):
            raise ValueError(f"{path}: {name}: got {value!r}, which minilora does not have; takes {NEUTRAL[name][0]!r}")
        if name not in (*ours, *NEUTRAL, *DESCRIPTIVE):
            raise ValueError(f"{path}: unknown field {name!r}{nearest(name, ours)}")
    values = {name: value for name, value in stated.items() if name in ours}
    for name in ("rank_pattern", "alpha_pattern"):
        values[name] = values.get(name) or {}
    for name in ("layers_to_transform", "exclude_modules"):
        if values.get(name) in ([], ""):  # PEFT: no filter
            values[name] = None
    try:
        if "init_lora_weights" in values:
            values["init_lora_weights"] = _init(values["init_lora_weights"], stated.get("lora_ga_config") is not None)
        return LoraConfig(**values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None


def _is_ours(name: str, value: Any) -> bool:
    """Whether among several names for the list of layers there is that of our models, and OPT's."""
    return name == "layers_pattern" and isinstance(value, list) and "layers" in value


def _init(init: Any, has_gradients: bool) -> Any:
    """One of PEFT's inits as ours. How factors started does not matter to trained ones, unless the base was changed."""
    if not isinstance(init, str):
        return init
    name = init.lower()
    if name.startswith(CHANGING_INITS) or (name == "lora_ga" and has_gradients):
        raise ValueError(
            f"init_lora_weights: got {init!r}, takes one that leaves the base as it is: this one changes the base's "
            "weights by what it puts into the factors, so that the file is right on that changed base alone"
        )
    return "gaussian" if name == "gaussian" else True if name in PLAIN_INITS else init


def as_peft(config: LoraConfig, adapted: list[str]) -> dict[str, Any]:
    """The config in PEFT's words."""
    stated = dataclasses.asdict(config)
    is_pattern = isinstance(config.target_modules, str) and config.target_modules != "all-linear"
    if is_pattern or config.layers_to_transform is not None:
        stated |= {"target_modules": sorted(adapted), "exclude_modules": None, "layers_to_transform": None}
    if config.init_lora_weights not in PEFT_INITS:
        stated["init_lora_weights"] = True
    return stated


def placed(config: LoraConfig, params: Any, theirs: Mapping[str, str]) -> LoraConfig:
    """A PEFT config for the modules of these parameters: exact paths for what it adapts, and a number for each pattern.

    `theirs` has the file's name for each of our paths; the config's expressions are about those.
    """
    n_layers = len(params["layers"])
    adapted = [path for path in linear_paths(params) if adapts(config, theirs[path], n_layers)]
    if not adapted:
        raise ValueError(
            f"target_modules: {config.target_modules!r} with exclude_modules={config.exclude_modules!r} and "
            f"layers_to_transform={config.layers_to_transform!r} leaves no module of the base; there are "
            f"{a_few([theirs[path] for path in linear_paths(params)])}"
        )
    ranks = {path: r for path in adapted if (r := config.rank_of(theirs[path])) != config.r}
    alphas = {path: alpha for path in adapted if (alpha := config.alpha_of(theirs[path])) != config.lora_alpha}
    return dataclasses.replace(
        config, target_modules=adapted, layers_to_transform=None, exclude_modules=None,
        rank_pattern=ranks, alpha_pattern=alphas,
    )  # fmt: skip


def array_names(adapter: Adapter) -> dict[str, np.ndarray]:
    """The arrays of an adapter by PEFT's names. It wraps an adapted module, whose own bias is then one level down."""
    named = {}
    for name, array in adapter.arrays().items():
        path = name.removesuffix(".bias")
        inner = f"{path}.base_layer.bias" if path in adapter.factors else name
        named[PREFIX + (f"{name}.weight" if ".lora_" in name else inner)] = array
    return named


def our_names(
    path: Path, arrays: Mapping[str, np.ndarray], ours: Mapping[str, str] | None
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The arrays of a file keyed as in `Adapter.arrays`, and apart from these the embeddings that are stored whole.

    `ours` has our path for each module of the base by the file's name; None takes every name as it is. ValueError for
    an array of no module, and for one that is there twice.
    """
    found: dict[str, np.ndarray] = {}
    whole: dict[str, np.ndarray] = {}
    for key in sorted(arrays, key=_natural):
        match = KEY.fullmatch(key)
        module = None if match is None else match[1] if ours is None else ours.get(match[1])
        if match is not None and match[2] == "weight" and (module == "embed_tokens" or match[1] == "lm_head"):
            whole[key] = arrays[key]
        elif match is None or module is None or match[2] == "weight":
            takes = f"takes {PREFIX}(module).lora_A.weight, .lora_B.weight or .bias"
            raise ValueError(f"{path}: unexpected array {key!r}, {takes}")
        else:
            name = f"{module}.{match[2].removeprefix('base_layer.').removesuffix('.weight')}"
            if name in found:
                raise ValueError(f"{path}: {key!r}: {name} is there under another name too")
            found[name] = arrays[key]
    return found, whole


def check_embeddings(path: Path, whole: Mapping[str, np.ndarray], params: Any) -> None:
    """ValueError unless embeddings stored with an adapter, and the head tied to them, are the base's own."""
    if whole and params is None:
        raise ValueError(f"{path}: has {', '.join(whole)}: load it with the base's params, to compare it with theirs")
    for name, array in whole.items():
        table = params["embed_tokens"]["weight"]
        with np.errstate(over="ignore"):
            is_copy = np.array_equal(array.astype(table.dtype), table)
        if not is_copy:
            raise ValueError(f"{path}: {name}: is not the base's, takes an adapter that leaves the embedding alone")


def _natural(key: str) -> list[Any]:
    """Layer 10 after layer 9."""
    return [(0, int(part), "") if re.fullmatch("[0-9]{1,9}", part) else (1, 0, part) for part in key.split(".")]
