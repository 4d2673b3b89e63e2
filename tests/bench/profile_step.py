"""Where the time of a step goes: by operation, and what of it is matrix products, tape and fixed cost.

    python tests/bench/profile_step.py [--steps N] [--json FILE]

At the sizes of step.py. Every operation is timed from outside, forward and backward, which costs under a microsecond
each; what no operation accounts for is the tape, the model's Python, sums of gradients and AdamW. The fixed cost is a
step on one sequence of one token, where there is next to nothing to compute.
"""

import argparse
import collections
import json
import statistics
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import ours
from step import SIZES

from minilora import ops
from minilora.autodiff import operation, value_and_gradients
from minilora.conditions import working_conditions

OPERATIONS = (
    "embed",
    "layer_norm",
    "linear",
    "lora_linear",
    "causal_attention",
    "relu",
    "reshape",
    "cross_entropy",
)


def timed(function, record):
    """The function, which tells `record` the seconds that each call took."""

    def call(*arguments):
        begin = time.perf_counter()
        answer = function(*arguments)
        record(time.perf_counter() - begin)
        return answer

    return call


@contextmanager
def spied(seconds):
    """Within it, `seconds["relu", "forward"]` and so on add up."""
    originals = {name: getattr(ops, name) for name in OPERATIONS}

    def spy(name):
        def record(what):
            return lambda took: seconds.update({(name, what): took})

        forward = timed(originals[name].__wrapped__, record("forward"))

        def function(*arguments):
            answer, gradients = forward(*arguments)
            return answer, tuple(gradient and timed(gradient, record("backward")) for gradient in gradients)

        return operation(function)

    for name in OPERATIONS:
        setattr(ops, name, spy(name))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(ops, name, original)


def ms(step, n_steps: int) -> float:
    """Median time of a call."""
    times = []
    for _ in range(n_steps):
        begin = time.perf_counter()
        step()
        times.append(1e3 * (time.perf_counter() - begin))
    return statistics.median(times)


def tape_ms(n_operations: int, n_steps: int) -> float:
    """A step's worth of operations that compute nothing."""
    nothing = operation(lambda x, weight, bias: (x, (lambda g: g, None, None)))
    x = np.ones(1)

    def run(arrays):
        y = arrays["x"]
        for _ in range(n_operations):
            y = nothing(y, x, x)
        return y

    return ms(lambda: value_and_gradients(run, {"x": x}), n_steps)


def profile(size, steps: int) -> dict:
    """{"total", "products", "tape", "fixed", "operations": {name: [forward, backward]}} in ms a step."""
    n_steps = steps * 32 // (size[0] * size[1] // 2)
    start = ours.setup(*size, "float32")
    one, small = ours.Minilora(start), ours.Minilora(start.of_one_token())
    found = {
        "total": ms(one.step, n_steps),
        "products": ms(ours.MatrixProducts(start).step, n_steps),
        "tape": tape_ms(11 * size[1], n_steps),  # about as many operations are recorded
        "fixed": ms(small.step, n_steps),
    }
    seconds: collections.Counter = collections.Counter()
    with spied(seconds):
        for _ in range(n_steps):
            one.step()
    found["operations"] = {
        name: [1e3 * seconds[name, what] / n_steps for what in ("forward", "backward")] for name in OPERATIONS
    }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for size in SIZES:
        with working_conditions():
            found = profile(size, options.steps)
        rows.append(dict(zip(("d_model", "n_layers", "batch"), size, strict=True)) | found)
        print(f"\nd_model {size[0]}, {size[1]} layers, batch {size[2]}: {found['total']:.2f} ms a step")
        print("  " + ", ".join(f"{name} {found[name]:.2f}" for name in ("products", "tape", "fixed")))
        for name, (forward, backward) in found["operations"].items():
            share = (forward + backward) / found["total"]
            print(f"  {name:16} forward {forward:6.2f}  backward {backward:6.2f}  {share:4.0%}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
