"""Time of one training step (loss, gradient, AdamW update): minilora, plain autograd, PEFT on PyTorch, jax.jit.

    python tests/bench/step.py [--rounds N] [--json FILE]

First all four must give the same loss and gradients in float64, to 1e-8. Then they are timed in float32, each in a
process of its own and all on one core, in turns: each round times every implementation once, so that a slow moment of
the machine meets them all.
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
    "products": ("ours", "MatrixProducts"),
}
NAMES = tuple(IMPLEMENTATIONS)
TOLERANCE = 1e-8
ROUND_SECONDS = 0.2


def make(name: str):
    """What takes steps in its own process: (size, dtype, how many) -> seconds a step, or what was asked for."""
    import ours

    module, kind = IMPLEMENTATIONS[name]
    implementation = getattr(importlib.import_module(module), kind)
    made = {}

    def answer(size, dtype, repeats):
        with one_blas_thread():
            if dtype == "float64":
                return implementation(ours.setup(*size, dtype)).loss_and_gradients()
            if repeats is None:  # how many steps make a round
                made["one"] = implementation(ours.setup(*size, dtype))
                seconds_a_step(made["one"], 5)
                return max(1, round(ROUND_SECONDS / seconds_a_step(made["one"], 5)))
            return seconds_a_step(made["one"], repeats)

    return answer


def seconds_a_step(one, repeats: int) -> float:
    """After three steps that bring its code and data back into the cache."""
    for _ in range(3):
        one.step()
    begin = time.perf_counter()
    for _ in range(repeats):
        one.step()
    return (time.perf_counter() - begin) / repeats


def check(ask, size) -> float:
    """The largest difference of a loss or gradient between implementations, in float64, relative to its size."""
    (expected_loss, expected), *others = (ask(name, size, "float64", None) for name in NAMES[:4])
    worst = 0.0
    for loss, gradients in others:
        assert gradients.keys() == expected.keys()
        differences = [np.abs(g - expected[name]).max() / np.abs(expected[name]).max() for name, g in gradients.items()]
        worst = max(worst, abs(loss - expected_loss), *differences)
    if worst > TOLERANCE:
        raise SystemExit(f"{size}: implementations differ by {worst:.1e}, more than {TOLERANCE}")
    return float(worst)


def measure(ask, size, rounds: int) -> dict[str, list[float]]:
    """{implementation: ms a step, one number a round}."""
    repeats = {name: ask(name, size, "float32", None) for name in NAMES}
    times: dict[str, list[float]] = {name: [] for name in NAMES}
    for _ in range(rounds):
        for name in NAMES:
            times[name].append(1e3 * ask(name, size, "float32", repeats[name]))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    print("ms a step: median (half the distance between the quartiles)")
    with processes(NAMES, make) as ask:
        for size in SIZES:
            worst = check(ask, size)
            times = measure(ask, size, options.rounds)
            ms = {name: statistics.median(values) for name, values in times.items()}
            ratio = {name: ms["minilora"] / ms[name] for name in NAMES[1:4]}
            rows.append(dict(zip(("d_model", "n_layers", "batch"), size, strict=True), ms=ms, ratio=ratio))
            print(f"\nd_model {size[0]}, {size[1]} layers, batch {size[2]} (all agree to {worst:.0e} in float64)")
            for name, values in times.items():
                low, _, high = statistics.quantiles(values, n=4)
                beside = f"   minilora takes {ratio[name]:.2f} of it" if name in ratio else ""
                print(f"  {name:10} {ms[name]:7.2f} ({(high - low) / 2:.2f}){beside}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
