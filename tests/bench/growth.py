"""How the time of a step grows with tokens, r, layers, d_model and context length; and whether memory grows with steps.

    python tests/bench/growth.py [--rounds N] [--steps N] [--json FILE]

One thing is varied at a time, the others are as in MIDDLE. An exponent is the slope of log time against log size, over
all sizes and over the two largest: fixed costs hide growth at small sizes. Then a step is taken --steps times, and
memory is read on the way.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path

import numpy as np
from ours import Minilora, Setup

import minilora as ml
from minilora.conditions import working_conditions

MIDDLE = {"batch": 32, "r": 8, "n_layers": 2, "d_model": 64, "n_tokens": 12}
VARIED = {
    "batch": (1, 4, 16, 64, 256),
    "r": (1, 4, 16, 64),
    "n_layers": (1, 2, 4, 8, 16),
    "d_model": (16, 32, 64, 128, 256, 512),
    "n_tokens": (8, 16, 32, 64, 128, 256),
}


def stepper(batch: int, r: int, n_layers: int, d_model: int, n_tokens: int) -> Minilora:
    """LoRA on all six modules of a random model: its `step()` is loss, gradient and AdamW update, in float32."""
    config = ml.ModelConfig(27, n_tokens, d_model, 4, n_layers, 4 * d_model)
    rng = np.random.default_rng(0)
    params = ml.init_params(config, rng)
    adapter = ml.init_adapter(params, ml.LoraConfig(r, 2 * r, target_modules="all-linear"), rng)
    tokens = rng.integers(0, 27, (batch, n_tokens + 1))
    return Minilora(Setup(ml.Model(config, params), adapter, (ml.Dataset(tokens[:, :-1], tokens[:, 1:]),)))


def ms_a_step(one: Minilora, rounds: int) -> float:
    """Median over rounds of at least 20 ms."""
    one.step()
    times = []
    for _ in range(rounds):
        begin, n = time.perf_counter(), 0
        while time.perf_counter() - begin < 0.02:
            one.step()
            n += 1
        times.append(1e3 * (time.perf_counter() - begin) / n)
    return statistics.median(times)


def growth(name: str, rounds: int) -> dict:
    """{"sizes", "ms", "exponent", "exponent_of_the_largest"} for one thing varied."""
    sizes = VARIED[name]
    ms = [ms_a_step(stepper(**MIDDLE | {name: size}), rounds) for size in sizes]
    x, y = np.log2(sizes), np.log2(ms)
    steepest = (y[-1] - y[-2]) / (x[-1] - x[-2])
    return {"sizes": sizes, "ms": ms, "exponent": np.polyfit(x, y, 1)[0], "exponent_of_the_largest": steepest}


def resident_mb() -> float:
    """Memory that this process holds now (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def memory(n_steps: int) -> dict[int, float]:
    """{steps done: MB held}."""
    one, held = stepper(**MIDDLE), {}
    for done in range(n_steps + 1):
        if done in (100, n_steps // 4, n_steps // 2, 3 * n_steps // 4, n_steps):
            held[done] = resident_mb()
        one.step()
    return held


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    report: dict = {"middle": MIDDLE, "growth": {}}
    print("ms a step, one thread; the others are", MIDDLE)
    with working_conditions():
        for name in VARIED:
            found = report["growth"][name] = growth(name, options.rounds)
            shown = "  ".join(f"{size}: {ms:.2f}" for size, ms in zip(found["sizes"], found["ms"], strict=True))
            exponents = f"{found['exponent']:.2f}, between the two largest {found['exponent_of_the_largest']:.2f}"
            print(f"{name:9} {shown}   exponent {exponents}", flush=True)
        report["memory_mb"] = memory(options.steps)
    print("MB held after", ", ".join(f"{done:,} steps: {mb:.1f}" for done, mb in report["memory_mb"].items()))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
