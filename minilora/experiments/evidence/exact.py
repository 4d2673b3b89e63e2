"""What holds to the bit or not at all, tried on the model itself: each function gives the largest deviation."""

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import numpy as np

from minilora import ops
from minilora.data.base import load_base
from minilora.data.names import names_task
from minilora.experiments.evidence.runs import Runs
from minilora.lora import LoraConfig, init_adapter
from minilora.lora_config import STARTS_AT_BASE
from minilora.model import forward, param_shapes
from minilora.train import Trainable


def count_deviation(runs: Runs, ranks: Sequence[int]) -> np.ndarray:
    """Of the sizes of made factors, and of the counts of the runs, from r (in + out) summed; the same for each seed.

    An element of A or B is used once a token, in x A^T or (x A^T) B^T, so this counts multiply-adds too.
    """
    base = load_base()
    in_plus_out = sum(sum(shape) for path, shape in param_shapes(base.config).items() if path.endswith("_proj.weight"))
    deviations = [abs(run.trainable - run.settings.r * in_plus_out) for run in runs.where(method="lora")]
    for r in ranks:
        made = init_adapter(base.params, LoraConfig(r=r, target_modules="all-linear"), np.random.default_rng(0))
        deviations.append(abs(sum(array.size for array in made.arrays().values()) - r * in_plus_out))
    return np.array([float(max(deviations))] * len(runs.values("seed")))


@functools.cache
def start_deviation(seed: int) -> float:
    """0 where every init with B or A zero starts at the base to the bit and the other factor alone has a gradient."""
    base = load_base()
    data = names_task("female", 32, seed)[0]
    expected, off = forward(base.params, data.inputs, base.config), 0.0
    for init in STARTS_AT_BASE:
        adapter = init_adapter(base.params, LoraConfig(r=8, init_lora_weights=init), np.random.default_rng(seed))
        off = max(off, float(np.abs(forward(base.params, data.inputs, base.config, adapter=adapter) - expected).max()))
        trainable = Trainable(base, adapter)
        gradients = trainable.arrays(trainable.loss_and_gradient(trainable.vector, data, None)[1])
        zero, moving = ("lora_B", "lora_A") if init == "zero_A" else ("lora_A", "lora_B")
        off = max(off, *(float(np.abs(g).max()) for name, g in gradients.items() if name.endswith(zero)))
        off += sum(not g.any() for name, g in gradients.items() if name.endswith(moving))
    return off


def evaluation_deviation(seed: int) -> float:
    """Of an evaluation from itself, from one without dropout, and of one module's from its mean over all 2^6 masks.

    The masks are those of 6 inputs at p = 1/2 (a kept one is doubled); small integers make their sums exact.
    """
    base, rng = load_base(), np.random.default_rng(seed)
    tokens = names_task("female", 20, seed)[0].inputs
    adapter = init_adapter(base.params, LoraConfig(r=4, lora_dropout=0.5, init_lora_weights=False), rng)
    plain = dataclasses.replace(adapter, config=LoraConfig(r=4, init_lora_weights=False))
    once, again, without = (forward(base.params, tokens, base.config, adapter=one) for one in (adapter, adapter, plain))
    x, weight, A, B = (rng.integers(-4, 5, shape).astype(float) for shape in ((1, 6), (7, 6), (3, 6), (7, 3)))
    masks = 2.0 * np.array(list(itertools.product((0, 1), repeat=6)))
    module = [ops.lora_linear(x, weight, None, A, B, 2.0, mask) for mask in (None, *masks[:, None])]
    off = np.mean(module[1:], axis=0) - module[0]
    return float(max(np.abs(difference).max() for difference in (once - again, once - without, off)))
