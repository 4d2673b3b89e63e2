"""LoRA (Hu et al. 2021, arXiv 2106.09685): which modules get factors, how the factors start, and merging them.

An adapter adds to a module's frozen weight W the change (alpha / r) B A, where A is (r, in) and B is (out, r).
"""

import math
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from minilora.adapter import Adapter, check_adapter, check_lora
from minilora.checks import check_rng, check_shapes
from minilora.lora_config import LoraConfig, is_match, pattern_for
from minilora.model import Params, check_params, linear_paths
from minilora.trees import fingerprint, leaves, nested


def select_modules(params: Params, config: LoraConfig) -> list[str]:
    """Dotted paths of the modules that the config adapts, in the order of the model.

    A list of targets matches exact paths and dotted suffixes; a string must match a whole path as a regular
    expression. ValueError for a part of the config without effect: a name, layer or pattern that matches nothing, a
    target that the layers leave out, a layer without a target, an exclusion that takes nothing out. (An exclusion may
    take out all that one of several targets puts in.)

    >>> import minilora as ml
    >>> params = ml.init_params(ml.ModelConfig(), np.random.default_rng(0))
    >>> select_modules(params, LoraConfig(target_modules=["q_proj", "v_proj"], layers_to_transform=-1))
    ['layers.1.q_proj', 'layers.1.v_proj']
    """
    check_params("params", params)
    check_lora("config", config)
    paths = linear_paths(params)
    targeted = _targeted(paths, len(params["layers"]), config)
    exclusion = () if config.exclude_modules is None else config.exclude_modules
    excluded = matching_paths(paths, "exclude_modules", exclusion)
    for one, matched in excluded.items():
        if not targeted & set(matched):
            what = f"takes nothing out: the targets are {', '.join(p for p in paths if p in targeted)}"
            raise ValueError(f"exclude_modules: {one!r} {what}")
    selected = [path for path in paths if path in targeted.difference(*excluded.values())]
    if not selected:
        raise ValueError(
            f"target_modules: {config.target_modules!r} with exclude_modules={config.exclude_modules!r} and "
            f"layers_to_transform={config.layers_to_transform!r} leaves no module; there are {', '.join(paths)}"
        )
    for name in ("rank_pattern", "alpha_pattern"):
        used = {pattern_for(path, getattr(config, name)) for path in selected}
        for key in getattr(config, name):
            if key not in used:
                what = f"matches none of the adapted modules {', '.join(selected)}, or an earlier key matches first"
                raise ValueError(f"{name}: {key!r} {what}")
    return selected


def _targeted(paths: Sequence[str], n_layers: int, config: LoraConfig) -> set[str]:
    """What targets and layers choose together; ValueError for one of either to which the other leaves nothing."""
    targets = matching_paths(paths, "target_modules", config.target_modules)
    layers = config.layers() or tuple(range(n_layers))
    for layer in layers:
        if not -n_layers <= layer < n_layers:
            takes = f"-{n_layers} ... {n_layers - 1}" if n_layers else "none: the model has no layers"
            raise ValueError(f"layers_to_transform: got {layer}, takes {takes}")
    chosen = {layer % n_layers for layer in layers}
    in_layers = {path for path in paths if int(path.split(".")[1]) in chosen}
    for one, matched in targets.items():
        if not in_layers & set(matched):
            what = f"is in none of the layers that layers_to_transform={config.layers_to_transform!r} chooses"
            raise ValueError(f"target_modules: {one!r} {what}; it is {', '.join(matched)}")
    targeted = in_layers & {path for matched in targets.values() for path in matched}
    for layer in () if config.layers_to_transform is None else layers:
        if not any(int(path.split(".")[1]) == layer % n_layers for path in targeted):
            what = f"has none of target_modules={config.target_modules!r}"
            raise ValueError(f"layers_to_transform: layer {layer} {what}")
    return targeted


def matching_paths(paths: Sequence[str], name: str, wanted: str | Collection[str]) -> dict[str, list[str]]:
    """{part of `wanted`: the paths that it matches}; ValueError, naming the field, for a part that matches none.

    >>> matching_paths(["layers.0.q_proj", "layers.0.v_proj"], "target_modules", ["v_proj"])
    {'v_proj': ['layers.0.v_proj']}
    """
    parts = {wanted: wanted} if isinstance(wanted, str) else {one: (one,) for one in wanted}
    matches = {one: [path for path in paths if is_match(part, path)] for one, part in parts.items()}
    for one, matched in matches.items():
        if not matched:
            raise ValueError(f"{name}: {one!r} matches no module; there are {', '.join(paths)}")
    return matches


def init_adapter(params: Params, config: LoraConfig, rng: np.random.Generator) -> Adapter:
    """A fresh adapter for these parameters, in their dtype; the parameters are only read.

    Warns where r is above what a module can use, min(in, out). ValueError where the config does not fit the parameters
    (see `select_modules`) or a scale is no number of their dtype.

    >>> import minilora as ml
    >>> params = ml.init_params(ml.ModelConfig(), np.random.default_rng(0))
    >>> adapter = init_adapter(params, LoraConfig(r=4), np.random.default_rng(0))
    >>> {name: array.shape for name, array in adapter.factors["layers.1.v_proj"].items()}
    {'lora_A': (4, 32), 'lora_B': (32, 4)}
    """
    check_rng("rng", rng)
    selected = select_modules(params, config)
    modules = module_table(params)
    factors = {}
    for path in selected:
        weight, r = modules[path]["weight"], config.rank_of(path)
        _check_scale(config, path, weight.dtype)
        if r > min(weight.shape):
            field = _field("r", "rank_pattern", config, path)
            what = f"for {path}, whose weight {weight.shape} has no rank above {min(weight.shape)}"
            warnings.warn(f"{field}: got {r} {what}", stacklevel=2)
        lora_A, lora_B = init_factors(config.init_lora_weights, weight.shape[0], weight.shape[1], r, rng)
        factors[path] = {"lora_A": lora_A.astype(weight.dtype), "lora_B": lora_B.astype(weight.dtype)}
    biases = {path: modules[path]["bias"].copy() for path in bias_paths(params, config)}
    scaling = {path: config.scaling_of(path) for path in factors}
    return Adapter(config, factors, biases, scaling, fingerprint(params))


def _check_scale(config: LoraConfig, path: str, dtype: np.dtype) -> None:
    """ValueError for a scale that is infinite or zero in that dtype: nothing would train."""
    scale, smallest, largest = config.scaling_of(path), float(np.finfo(dtype).tiny), float(np.finfo(dtype).max)
    if not smallest <= scale <= largest:
        field = _field("lora_alpha", "alpha_pattern", config, path)
        what = f"which makes the scale of {path} {scale:g}, takes one between {smallest:g} and {largest:g}"
        raise ValueError(f"{field}: got {config.alpha_of(path)!r}, {what} ({dtype})")


def _field(name: str, patterns: str, config: LoraConfig, path: str) -> str:
    """The field that decides for that path: the general one, or a key of the patterns."""
    key = pattern_for(path, getattr(config, patterns))
    return name if key is None else f"{patterns}[{key!r}]"


def module_table(params: Params) -> dict[str, dict[str, np.ndarray]]:
    """{dotted path: {"weight": ..., "bias": ...}} of every module."""
    table: dict[str, dict[str, np.ndarray]] = {}
    for path, array in leaves(params).items():
        module, _, name = path.rpartition(".")
        table.setdefault(module, {})[name] = array
    return table


def bias_paths(params: Params, config: LoraConfig) -> list[str]:
    """Paths of the modules whose bias trains."""
    if config.bias == "none":
        return []
    if config.bias == "lora_only":
        return select_modules(params, config)
    return [path for path, module in module_table(params).items() if "bias" in module]


def init_factors(init: bool | str, n_out: int, n_in: int, r: int, rng: np.random.Generator):
    """(A, B), float64, (r, in) and (out, r).

    | init | A | B | starts at the base |
    | --- | --- | --- | --- |
    | True | uniform in +-1/sqrt(in) (PEFT, loralib: Kaiming uniform, a = sqrt 5) | 0 | exactly |
    | "gaussian" | normal, deviation 1/r (PEFT; Hu et al. 2021 give no scale) | 0 | exactly |
    | "he" | normal, deviation sqrt(2/in) (He et al. 2015, arXiv 1502.01852, eq. 10) | 0 | exactly |
    | "xavier" | uniform in +-sqrt(6/(in + r)) (Glorot and Bengio 2010, eq. 16) | 0 | exactly |
    | "zero_A" | 0 | uniform in +-1/sqrt(r) | exactly |
    | "orthogonal" | from even rows of a rotation, / 10 (PEFT) | from odd ones, / 10 | to rounding |
    | False | as True | uniform in +-1/sqrt(r) | no |
    """
    zero_A, zero_B = np.zeros((r, n_in)), np.zeros((n_out, r))

    def uniform(bound, shape):
        return rng.uniform(-bound, bound, shape)

    if init is True:
        return uniform(n_in**-0.5, zero_A.shape), zero_B
    if init == "gaussian":
        return rng.normal(0, 1 / r, zero_A.shape), zero_B
    if init == "he":
        return rng.normal(0, math.sqrt(2 / n_in), zero_A.shape), zero_B
    if init == "xavier":
        return uniform(math.sqrt(6 / (n_in + r)), zero_A.shape), zero_B
    if init == "zero_A":
        return zero_A, uniform(r**-0.5, zero_B.shape)
    if init is False:
        return uniform(n_in**-0.5, zero_A.shape), uniform(r**-0.5, zero_B.shape)
    rotation, _ = np.linalg.qr(rng.standard_normal((r, r)))
    lora_A = (rng.standard_normal((n_in, r // 2)) @ rotation[0::2]).T / 10
    lora_B = rng.standard_normal((n_out, r // 2)) @ rotation[1::2] / 10
    return lora_A, lora_B


def merge(params: Params, adapter: Adapter) -> Params:
    """New parameters with the adapter's change in the weights: W + (alpha / r) B A, computed in float64.

    The given parameters are not written to. ValueError where they are not the ones the adapter was made for, so
    that nothing is merged twice or into another base, and where a merged weight is no longer a finite number.
    """
    check_base(params, adapter)
    merged = {path: array.copy() for path, array in leaves(params).items()}
    for path, change in weight_changes(adapter).items():
        weight = merged[f"{path}.weight"]
        with np.errstate(over="ignore", invalid="ignore"):  # it is an error here, not a warning
            merged[f"{path}.weight"] = (weight + change).astype(weight.dtype)
    for path, bias in adapter.biases.items():
        merged[f"{path}.bias"] = bias.copy()
    for path, array in merged.items():
        if not np.isfinite(array).all():
            raise ValueError(f"adapter: merged, {path} holds NaN or infinite numbers ({array.dtype})")
    return nested(merged)


def weight_changes(adapter: Adapter) -> dict[str, np.ndarray]:
    """{path: (alpha / r) B A}, float64, (out, in). ValueError for a change that is not finite."""
    check_adapter("adapter", adapter)
    with np.errstate(over="ignore", invalid="ignore"):
        changes = {
            path: adapter.scaling[path] * pair["lora_B"].astype("float64") @ pair["lora_A"].astype("float64")
            for path, pair in adapter.factors.items()
        }
    for path, change in changes.items():
        if not np.isfinite(change).all():
            raise ValueError(f"adapter: the change of {path} holds NaN or infinite numbers")
    return changes


def check_base(params: Params, adapter: Adapter) -> None:
    """ValueError unless the adapter was made for exactly these parameters, and has all that its config calls for."""
    check_params("params", params)
    check_adapter("adapter", adapter)
    if not adapter.base:
        raise ValueError(
            "adapter: has no fingerprint of its base (PEFT stores none): load it with load_adapter(folder, params)"
        )
    check_made_for(adapter.base, fingerprint(params))
    check_shapes("adapter", adapter.arrays(), adapter_shapes(params, adapter.config))


def check_made_for(base: str, found: str) -> None:
    """ValueError unless an adapter's fingerprint of its base is that of the parameters."""
    if found != base:
        raise ValueError(
            f"adapter: made for the base with fingerprint {base[:12]}, got parameters with {found[:12]} "
            "(another base, another dtype, or an adapter merged into it already)"
        )


def adapter_shapes(params: Params, config: LoraConfig) -> dict[str, tuple[int, ...]]:
    """The shape of everything that trains under a config, keyed as in `Adapter.arrays`."""
    modules = module_table(params)
    shapes: dict[str, tuple[int, ...]] = {}
    for path in select_modules(params, config):
        (n_out, n_in), r = modules[path]["weight"].shape, config.rank_of(path)
        shapes |= {f"{path}.lora_A": (r, n_in), f"{path}.lora_B": (n_out, r)}
    return shapes | {f"{path}.bias": modules[path]["bias"].shape for path in bias_paths(params, config)}


@dataclass(frozen=True)
class ParameterCount:
    """How many numbers train, how many there are in all, and how many train in each module."""

    trainable: int
    total: int
    per_module: dict[str, int]


def count_parameters(params: Params, config: LoraConfig | None) -> ParameterCount:
    """The closed form, without making an adapter: r (in + out) a module, plus the biases that train.

    `config=None` counts full fine-tuning, where everything trains. ValueError as for `select_modules`.

    >>> import minilora as ml
    >>> params = ml.init_params(ml.ModelConfig(), np.random.default_rng(0))
    >>> count_parameters(params, LoraConfig(r=8)).trainable  # 2 layers x (q, v) x 8 x (32 + 32)
    2048
    """
    check_params("params", params)
    modules = module_table(params)
    size = {path: sum(array.size for array in module.values()) for path, module in modules.items()}
    n_base = sum(size.values())
    if config is None:
        return ParameterCount(n_base, n_base, size)
    per_module = {
        path: config.rank_of(path) * sum(modules[path]["weight"].shape) for path in select_modules(params, config)
    }
    n_factors = sum(per_module.values())
    for path in bias_paths(params, config):
        per_module[path] = per_module.get(path, 0) + modules[path]["bias"].size
    return ParameterCount(sum(per_module.values()), n_base + n_factors, per_module)
