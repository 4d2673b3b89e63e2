"""OPT checkpoints and adapters (Zhang et al. 2022, arXiv 2205.01068) as Hugging Face transformers and PEFT store them.

OPT is the architecture of `minilora.model` under other names, so reading it is renaming; there is no second model.
What would make it another one (OPT-350m's layer norms after the blocks, GELU in Galactica) is refused by field.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from minilora.adapter import FLOATS, Adapter
from minilora.checkpoint import read_adapter
from minilora.checks import check_integer, check_one_of, check_shapes
from minilora.files import check_folder, read_json
from minilora.lora import module_table
from minilora.model import Model, ModelConfig, Params, check_params, param_shapes
from minilora.peft_format import PREFIX
from minilora.tensors import HALVES, read_arrays, refuse_pickle, refuse_pickle_for, widest
from minilora.trees import nested

OPT_MODULES = {  # ours -> OPT's; embed_tokens and embed_positions are called the same
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "o_proj": "self_attn.out_proj",
    "up_proj": "fc1",
    "down_proj": "fc2",
    "input_layernorm": "self_attn_layer_norm",
    "post_attention_layernorm": "final_layer_norm",
    "norm": "final_layer_norm",  # of the decoder, not of a layer
}
OPT_SIZES = {  # field of ModelConfig -> OPT's
    "vocab_size": "vocab_size",
    "context_length": "max_position_embeddings",
    "d_model": "hidden_size",
    "n_heads": "num_attention_heads",
    "n_layers": "num_hidden_layers",
    "d_ff": "ffn_dim",
}
# Fields that change the computation, with the only value at which it is ours: OPT's default where a config lacks them.
COVERED: dict[str, Any] = {
    "model_type": "opt",
    "do_layer_norm_before": True,
    "activation_function": "relu",
    "enable_bias": True,
    "layer_norm_elementwise_affine": True,
    "tie_word_embeddings": True,
    "_remove_final_layer_norm": False,
    "quantization_config": None,
}
POSITION_OFFSET = 2  # position p is row p + 2 of OPT's table; what is before is never read without padding
HEAD = "lm_head.weight"  # in some files, as a copy of the embedding


def load_opt(folder: str | os.PathLike, dtype: str | None = None) -> Model:
    """Read an OPT checkpoint: `config.json`, and `model.safetensors` or, where there is none, an index and its shards.

    The model has the dtype that is stored, or the one given; float16 is widened to float32. Its logits are those of
    `transformers.OPTForCausalLM` on tokens without padding. ValueError names the file, and the field or array, where
    anything is missing, misshapen, not finite, or of an OPT that is not this architecture.

    >>> load_opt("opt-125m", dtype="float16")
    Traceback (most recent call last):
    ValueError: dtype: got 'float16', takes one of 'float32', 'float64'
    """
    if dtype is not None:
        check_one_of("dtype", dtype, FLOATS)
    where = check_folder("folder", folder)
    sizes = _sizes(where / "config.json")
    path, arrays = _arrays(where)
    if sizes["n_layers"] > len(arrays):  # before anything is made for each layer that is only claimed
        raise ValueError(f"{path}: got {len(arrays)} arrays, takes those of {sizes['n_layers']} layers")
    config = ModelConfig(**sizes, dtype=dtype or widest(arrays).name)
    return Model(config, nested(_params(path, arrays, config)))


def load_opt_adapter(folder: str | os.PathLike, params: Params) -> Adapter:
    """Read a PEFT adapter that was made on OPT, for `params` from `load_opt`.

    As `load_adapter(folder, params)`, by the same code: only the names of modules are OPT's. The config comes back in
    ours.
    """
    where = check_folder("folder", folder)
    check_params("params", params)

    def modules(arrays: Iterable[str]) -> dict[str, str]:
        base = _base([key.removeprefix(PREFIX) for key in arrays])
        return {base + _opt_path(module): module for module in module_table(params)}

    return read_adapter(where, params, modules)


def _opt_path(path: str) -> str:
    """OPT's name of one of our modules.

    >>> _opt_path("layers.0.o_proj"), _opt_path("norm")
    ('decoder.layers.0.self_attn.out_proj', 'decoder.final_layer_norm')
    """
    layer, _, module = path.rpartition(".")
    return ".".join(part for part in ("decoder", layer, OPT_MODULES.get(module, module)) if part)


def _base(names: list[str]) -> str:
    """What comes before "decoder.": OPTForCausalLM holds the decoder in `model`, the bare OPTModel does not."""
    return "model." if any(name.startswith("model.") for name in names) else ""


def _sizes(path: Path) -> dict[str, int]:
    """The sizes that an OPT config states, by our names; ValueError where it is not this architecture."""
    stated = read_json(path)
    try:
        for name, takes in COVERED.items():
            check_one_of(name, stated.get(name, takes), (takes,))
        missing = [name for name in ("model_type", *OPT_SIZES.values()) if name not in stated]
        if missing:
            raise ValueError(f"lacks {', '.join(missing)}")
        sizes = {ours: check_integer(name, stated[name], at_least=1) for ours, name in OPT_SIZES.items()}
        d_model, n_heads = sizes["d_model"], sizes["n_heads"]
        if stated.get("word_embed_proj_dim") is not None:  # null: as wide as the rest
            check_one_of("word_embed_proj_dim", stated["word_embed_proj_dim"], (d_model,))
        if d_model % n_heads:
            raise ValueError(f"num_attention_heads: got {n_heads}, takes a divisor of hidden_size = {d_model}")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return sizes


def _arrays(folder: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """Every array by OPT's name, and the file that answers for them: the one that has them, or the index."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if not index.is_file():
        refuse_pickle_for(whole)
    if whole.is_file() or not index.is_file():  # both: the whole one, as transformers does
        return whole, read_arrays(whole, HALVES)[0]
    placed: dict[str, set[str]] = {}
    for name, shard in _weight_map(index).items():
        placed.setdefault(shard, set()).add(name)
    arrays: dict[str, np.ndarray] = {}
    for shard, names in placed.items():
        found, _ = read_arrays(folder / shard, HALVES)
        if found.keys() != names:  # an array in two shards is one too many in one of them
            lacks, has = ", ".join(sorted(names - found.keys())), ", ".join(sorted(found.keys() - names))
            what = f"lacks {lacks or 'nothing'}; has unexpected {has or 'nothing'}"
            raise ValueError(f"{folder / shard}: not the arrays that {index.name} places here: {what}")
        arrays |= found
    return index, arrays


def _weight_map(index: Path) -> dict[str, str]:
    """{array: shard}; a shard is a plain file name, so that no index leads out of its folder."""
    placed = read_json(index).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise ValueError(f"{index}: weight_map: got {placed!r}, takes an object from arrays to file names")
    for name, shard in placed.items():
        where = f"{index}: weight_map: {name}"
        refuse_pickle(f"{where}: {shard!r}", shard)
        if not isinstance(shard, str) or not re.fullmatch(r"[A-Za-z0-9_.-]{1,200}\.safetensors", shard):
            raise ValueError(f"{where}: got {shard!r}, takes the plain name of a .safetensors file beside the index")
    return placed


def _params(path: Path, arrays: dict[str, np.ndarray], config: ModelConfig) -> dict[str, np.ndarray]:
    """Our parameters by dotted path, out of exactly the arrays that OPT has."""
    base = _base(list(arrays))
    names = {}
    for one in param_shapes(config):
        module, _, kind = one.rpartition(".")
        names[one] = f"{base}{_opt_path(module)}.{kind}"
    tokens, positions = names["embed_tokens.weight"], names["embed_positions.weight"]
    shapes = {names[one]: shape for one, shape in param_shapes(config).items()}
    shapes[positions] = (config.context_length + POSITION_OFFSET, config.d_model)
    if HEAD in arrays:
        shapes[HEAD] = shapes[tokens]
    check_shapes(str(path), arrays, shapes)
    if HEAD in arrays and not np.array_equal(arrays[HEAD], arrays[tokens]):
        raise ValueError(f"{path}: {HEAD}: differs from {tokens}, takes a head tied to it")
    params = {one: _as_dtype(path, name, arrays[name], config.dtype) for one, name in names.items()}
    params["embed_positions.weight"] = params["embed_positions.weight"][POSITION_OFFSET:]
    return params


def _as_dtype(path: Path, name: str, array: np.ndarray, dtype: str) -> np.ndarray:
    with np.errstate(over="ignore"):  # it is an error here, not a warning
        converted = array.astype(dtype, copy=False)
    if not np.isfinite(converted).all():
        raise ValueError(f"{path}: {name}: holds numbers that are too large for {dtype}")
    return converted
