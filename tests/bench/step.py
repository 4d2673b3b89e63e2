"""Time of one training step (loss, gradient, AdamW update): minilora, plain autograd, PEFT on PyTorch, jax.jit.

    python tests/bench/step.py [--rounds N] [--json FILE]

At four sizes a step is taken on one batch of random names of 12 letters, which all count; then on 50 batches of real
first names in turn, the model and batches of the studies. There minilora, autograd and PEFT take each batch as long as
its longest name, and jax.jit both so, compiled for each shape, and padded to the longest name of all, compiled once.

First all must give the same loss and gradients in float64, to 1e-8. Then they are timed in float32, each in a process
of its own and all on one core, in turns: each round times every implementation once, so that a slow moment of the
machine meets them all.
"""

import argparse
import importlib
import json
import statistics
import time
from pathlib import Path

import numpy as np
from processes import processes

from minilora.conditions import one_blas_thread

SIZES = ((32, 2, 32), (64, 2, 32), (64, 4, 64), (128, 4, 64))  # d_model, n_layers, batch
IMPLEMENTATIONS = {  # name -> module beside this one, class; each is imported in its own process alone
    "minilora": ("ours", "Minilora"),
    "autograd": ("written_out", "PlainAutograd"),
    "peft": ("pytorch", "Peft"),
    "jax.jit": ("jax_jit", "JaxJit"),
    "jax.jit padded": ("jax_jit", "JaxJitPadded"),
    "products": ("ours", "MatrixProducts"),
}
AT_SIZES = ("minilora", "autograd", "peft", "jax.jit", "products")
ON_NAMES = ("minilora", "autograd", "peft", "jax.jit", "jax.jit padded")
CHECKED = (0, 1, 12)  # batches of names; the last of these is a small one
TOLERANCE = 1e-8
ROUND_SECONDS = 0.2


def make(name: str):
    """What takes steps in its own process: (a size or "names", dtype, how many) -> seconds a step.

    In float64, losses and gradients in its place; where it is not said how many, the number that makes a round.
    """
    import ours

    module, kind = IMPLEMENTATIONS[name]
    implementation = getattr(importlib.import_module(module), kind)
    made = {}

    def answer(what, dtype, n_steps):
        start = ours.names(dtype) if what == "names" else ours.setup(*what, dtype)
        n_batches = len(start.batches)
        with one_blas_thread():
            if dtype == "float64":
                one = implementation(start)
                return [one.loss_and_gradients(i) for i in (CHECKED if what == "names" else (0,))]
            if n_steps is None:  # how many steps make a round: the batches a whole number of times
                made["one"] = implementation(start)
                for i in range(n_batches):  # compiles
                    made["one"].step(i)
                passes = ROUND_SECONDS / seconds_a_step(made["one"], max(5, n_batches), n_batches) / n_batches
                return n_batches * max(1, round(passes))
            return seconds_a_step(made["one"], n_steps, n_batches)

    return answer


def seconds_a_step(one, n_steps: int, n_batches: int) -> float:
    """After three steps that bring its code and data back into the cache."""
    for _ in range(3):
        one.step(0)
    begin = time.perf_counter()
    for i in range(n_steps):
        one.step(i % n_batches)
    return (time.perf_counter() - begin) / n_steps


def check(ask, names, what) -> float:
    """The largest difference of a loss or gradient between implementations, in float64, relative to its size."""
    expected, *others = (ask(name, what, "float64", None) for name in names if name != "products")
    worst = max(difference(*pair) for other in others for pair in zip(expected, other, strict=True))
    if not worst <= TOLERANCE:
        raise SystemExit(f"{what}: implementations differ by {worst:.1e}, more than {TOLERANCE}")
    return worst


def difference(expected, found) -> float:
    """Between two losses and their gradients: (loss, {name: gradient})."""
    (expected_loss, expected_gradients), (loss, gradients) = expected, found
    assert gradients.keys() == expected_gradients.keys()
    differences = [np.abs(gradients[name] - g).max() / np.abs(g).max() for name, g in expected_gradients.items()]
    return float(max(abs(loss - expected_loss), *differences))


def measure(ask, names, what, rounds: int) -> dict[str, list[float]]:
    """{implementation: ms a step, one number a round}."""
    n_steps = {name: ask(name, what, "float32", None) for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            times[name].append(1e3 * ask(name, what, "float32", n_steps[name]))
    return times


def compared(ask, names, what, shown: str, rounds: int) -> dict:
    """{"ms": {implementation: median}, "ratio": {peer: minilora's ms over its}}, checked first and printed."""
    worst = check(ask, names, what)
    times = measure(ask, names, what, rounds)
    ms = {name: statistics.median(values) for name, values in times.items()}
    ratio = {name: ms["minilora"] / ms[name] for name in names if name not in ("minilora", "products")}
    print(f"\n{shown} (all agree to {worst:.0e} in float64)")
    for name, values in times.items():
        low, _, high = statistics.quantiles(values, n=4)
        beside = f"   minilora takes {ratio[name]:.2f} of it" if name in ratio else ""
        print(f"  {name:14} {ms[name]:7.2f} ({(high - low) / 2:.2f}){beside}", flush=True)
    return {"ms": ms, "ratio": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    print("ms a step: median (half the distance between the quartiles)")
    with processes(AT_SIZES, make) as ask:
        for size in SIZES:
            shown = f"d_model {size[0]}, {size[1]} layers, batch {size[2]}"
            found = compared(ask, AT_SIZES, size, shown, options.rounds)
            rows.append(dict(zip(("d_model", "n_layers", "batch"), size, strict=True)) | found)
    with processes(ON_NAMES, make) as ask:
        names = compared(ask, ON_NAMES, "names", "names, d_model 32, 2 layers, batch 16", options.rounds)
    if options.json:
        options.json.write_text(json.dumps({"sizes": rows, "names": names}, indent=1) + "\n")


if __name__ == "__main__":
    main()
