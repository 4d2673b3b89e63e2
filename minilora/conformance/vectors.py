"""Reference vectors: what LoRA has to compute, in float64, as safetensors and JSON that need no Python to read.

`python -m minilora.conformance.make_vectors --out FOLDER` makes them again, to the bit on a machine of the same kind.
The format is in README.md beside this file, its schema in vectors/schema.json.
"""

import dataclasses
import functools
import hashlib
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

import minilora as ml
from minilora.checks import a_few, check_one_of
from minilora.conformance.interface import Optimizer, Problem
from minilora.conformance.peers.ours import Minilora
from minilora.files import from_json, to_json
from minilora.trees import leaves

FORMAT = 1
SIZES: dict[str, Any] = {
    "vocab_size": 13,
    "context_length": 7,
    "d_model": 6,
    "n_heads": 3,
    "n_layers": 3,
    "d_ff": 11,
    "dtype": "float64",
}
OPTIMIZER = Optimizer(steps=3, lr_A=0.01, lr_B=0.02, weight_decay=0.1)
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
CONFIGS: dict[str, dict[str, Any]] = {  # between them they set every field of LoraConfig
    "scale_of_1": {"r": 2, "lora_alpha": 2, "target_modules": ["q_proj", "v_proj"]},
    "alpha": {"r": 2, "lora_alpha": 5, "target_modules": ["q_proj", "v_proj"]},
    "all_modules": {"r": 3, "lora_alpha": 6, "target_modules": ALL},
    "all_linear": {"r": 1, "lora_alpha": 2, "target_modules": "all-linear"},
    "regex": {"r": 2, "lora_alpha": 3, "target_modules": r".*layers\.[02]\.(up|down)_proj"},
    "suffix": {"r": 2, "lora_alpha": 3, "target_modules": ["1.k_proj", "o_proj"]},
    "first_layer": {"r": 2, "lora_alpha": 4, "target_modules": ["v_proj", "up_proj"], "layers_to_transform": 0},
    "layers": {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "down_proj"], "layers_to_transform": [0, 2]},
    "exclude": {"r": 2, "lora_alpha": 4, "target_modules": ALL, "exclude_modules": ["k_proj", "layers.1.up_proj"]},
    "rank_pattern": {"r": 2, "lora_alpha": 3, "target_modules": ["q_proj", "up_proj"],
                     "rank_pattern": {"up_proj": 4, r"layers\.0\.q_proj": 1}},
    "alpha_pattern": {"r": 2, "lora_alpha": 3, "target_modules": ["v_proj", "down_proj"],
                      "alpha_pattern": {"down_proj": 7}},
    "rslora": {"r": 4, "lora_alpha": 3, "target_modules": ["q_proj", "v_proj"], "use_rslora": True},
    "bias_lora_only": {"r": 2, "lora_alpha": 3, "target_modules": ["k_proj", "up_proj"], "bias": "lora_only"},
    "bias_all": {"r": 2, "lora_alpha": 3, "target_modules": ["o_proj"], "bias": "all"},
    "dropout": {"r": 2, "lora_alpha": 3, "target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.5},
    "orthogonal": {"r": 2, "lora_alpha": 3, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": "orthogonal"},
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Vector:
    """A case: the problem, its data, and what has to come out."""

    name: str
    problem: Problem
    tokens: np.ndarray  # (B, T)
    targets: np.ndarray  # (B, T), -1: nothing to predict
    optimizer: Optimizer
    modules: tuple[str, ...]  # those that get factors
    scaling: dict[str, float]
    counts: dict[str, int]  # parameters: "trainable", "total"
    expected: dict[str, np.ndarray]  # "logits", "loss", "base_logits", "merged.*", "gradient.*", "trained.*"

    def expecting(self, prefix: str) -> dict[str, np.ndarray]:
        """The expected arrays of one kind, without its prefix."""
        return {name[len(prefix) + 1 :]: one for name, one in self.expected.items() if name.startswith(f"{prefix}.")}


def base_arrays(rng: np.random.Generator) -> dict[str, np.ndarray]:
    """A base in which nothing is zero, so that nothing hides."""
    shapes = ml.model.param_shapes(ml.ModelConfig(**SIZES))
    arrays = {name: 0.5 * rng.standard_normal(shape) for name, shape in shapes.items()}
    return {name: one + 1 if "norm.weight" in name else one for name, one in arrays.items()}


def make(name: str) -> Vector:
    """Compute a vector. Its numbers follow from its place in CONFIGS."""
    check_one_of("name", name, CONFIGS)
    rng = np.random.default_rng([FORMAT, list(CONFIGS).index(name)])
    base, ours = base_arrays(rng), Minilora()
    blank = ours.build(Problem(SIZES, base, CONFIGS[name]))
    factors = {key: 0.5 * rng.standard_normal(one.shape) for key, one in ours.factors(blank).items()}
    problem = Problem(SIZES, base, CONFIGS[name], factors)
    tokens, targets = rng.integers(0, SIZES["vocab_size"], (2, 3, 7))
    targets[0, 5:] = -1  # the first sequence is shorter
    made, merged, trained, off = (ours.build(problem) for _ in range(4))
    ours.merge(merged)
    ours.disable(off)
    ours.train(trained, tokens, targets, OPTIMIZER)
    logits = ours.forward(made, tokens)
    merged_weights = {key: one for key, one in leaves(merged.params).items() if not np.array_equal(one, base[key])}
    expected = {
        "logits": logits,
        "loss": np.array([ml.ops.cross_entropy(logits, targets)]),
        "base_logits": ours.forward(off, tokens),
        **{f"merged.{key}": one for key, one in merged_weights.items()},
        **{f"gradient.{key}": one for key, one in ours.gradients(made, tokens, targets).items()},
        **{f"trained.{key}": one for key, one in ours.factors(trained).items()},
    }
    count = ml.count_parameters(made.base.params, made.adapter.config)
    counts = {"trainable": count.trainable, "total": count.total}
    return Vector(name, problem, tokens, targets, OPTIMIZER, tuple(made.adapter.factors), dict(made.adapter.scaling),
                  counts, expected)  # fmt: skip


def to_files(vector: Vector) -> tuple[str, bytes]:
    """(JSON, safetensors) of a vector; ValueError for one that `read` would refuse."""
    check(vector)
    arrays = {
        **{f"base.{name}": one for name, one in vector.problem.base.items()},
        **{f"factor.{name}": one for name, one in (vector.problem.factors or {}).items()},
        "tokens": vector.tokens,
        "targets": vector.targets,
        **{f"expected.{name}": one for name, one in vector.expected.items()},
    }
    packed = safetensors.numpy.save({name: np.ascontiguousarray(one) for name, one in arrays.items()})
    described = {
        "format": FORMAT,
        "name": vector.name,
        "model": dict(vector.problem.model),
        "config": dict(vector.problem.config),
        "optimizer": dataclasses.asdict(vector.optimizer),
        "modules": list(vector.modules),
        "scaling": vector.scaling,
        "counts": vector.counts,
        "sha256": hashlib.sha256(packed).hexdigest(),
    }
    return to_json(described), packed


def check(vector: Vector) -> None:
    """ValueError unless its parts fit together: else a check would blame an implementation for a vector's fault."""
    base, factors, expected = vector.problem.base, vector.problem.factors or {}, vector.expected
    ml.ModelConfig(**vector.problem.model)
    config = ml.LoraConfig(**vector.problem.config)
    adapted = list(dict.fromkeys(name.rpartition(".")[0] for name in factors if ".lora_" in name))
    if sorted(adapted) != sorted(vector.modules):
        raise ValueError(f"modules: got {a_few(list(vector.modules), 3)}, and factors of {a_few(adapted, 3)}")
    if vector.scaling != {path: config.scaling_of(path) for path in vector.modules}:
        raise ValueError("scaling: not what the config gives")
    trainable = sum(one.size for one in factors.values())
    if vector.counts.get("trainable") != trainable:
        raise ValueError(f"counts: got {vector.counts}, takes trainable = {trainable}")
    for name, one in {**base, **factors, **expected}.items():
        if one.dtype != np.float64 or not np.isfinite(one).all():
            raise ValueError(f"{name}: got {one.dtype}, or numbers that are not finite, takes finite float64")
    shapes = {name: one.shape for name, one in factors.items()}
    for kind in ("gradient", "trained"):
        if {name: one.shape for name, one in vector.expecting(kind).items()} != shapes:
            raise ValueError(f"expected.{kind}: not of the names and shapes of the factors")
    if not vector.expecting("merged").keys() <= base.keys():
        raise ValueError("expected.merged: has names that the base has not")
    if not {"logits", "loss", "base_logits"} <= expected.keys() or vector.tokens.shape != vector.targets.shape:
        raise ValueError("expected: lacks logits, loss or base_logits, or tokens and targets differ in shape")


def read(folder: Path, name: str) -> Vector:
    """A vector from its two files; ValueError that names the file if they are damaged or not of this format."""
    path = folder / f"{name}.json"
    try:
        stated = from_json(path.read_text(encoding="utf-8"))
        if stated["format"] != FORMAT:
            raise ValueError(f"format: got {stated['format']!r}, takes {FORMAT}")
        packed = (folder / f"{name}.safetensors").read_bytes()
        if hashlib.sha256(packed).hexdigest() != stated["sha256"]:
            raise ValueError(f"sha256: {name}.safetensors is not the file that this one was written with")
        arrays = safetensors.numpy.load(packed)
        parts: dict[str, dict[str, np.ndarray]] = {"base": {}, "factor": {}, "expected": {}}
        for key, one in sorted(arrays.items()):
            kind, _, rest = key.partition(".")
            parts.get(kind, {})[rest] = one
        problem = Problem(stated["model"], parts["base"], stated["config"], parts["factor"])
        optimizer = Optimizer(**stated["optimizer"] | {"betas": tuple(stated["optimizer"]["betas"])})
        vector = Vector(stated["name"], problem, arrays["tokens"], arrays["targets"], optimizer,
                        tuple(stated["modules"]), stated["scaling"], stated["counts"], parts["expected"])  # fmt: skip
        check(vector)
        return vector
    except (OSError, ValueError, KeyError, TypeError, AttributeError, safetensors.SafetensorError) as error:
        said = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path}: {said}") from None


def shipped() -> Path:
    """The folder of the vectors that come with the package."""
    return Path(str(files("minilora.conformance") / "vectors"))


@functools.cache
def load(name: str) -> Vector:
    """A shipped vector."""
    return read(shipped(), name)
