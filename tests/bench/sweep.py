"""Runs per minute of one sweep of 32 fine-tuning runs, by minilora, by PEFT on PyTorch and by JAX.

    python tests/bench/sweep.py [--json FILE]

Ranks 2, 4, 8, 16 by 8 seeds: 300 steps of 16 from 200 first names, all six linear modules, with the loss on these and
on 400 held-out names before, every 100 steps and at the end. All see the same names in the same order and start from
the same factors. First a few steps of some runs in float64 must give all the same losses, to 1e-8; in float32, 300
steps of overfitting amplify rounding, so that only the means of the final losses agree.

Each has a process of its own and one core, and they take turns, a part of the sweep at a time: the seeds of a rank.
minilora is measured with `fit_stack` and, for comparison, with `fit`, run by run. JAX compiles a part as one program,
with `vmap` over the runs and with `map`; the seconds that takes are shown apart and not counted.
"""

import argparse
import importlib
import itertools
import json
import resource
import statistics
import time
from pathlib import Path

import numpy as np
from processes import processes

RANKS, SEEDS, PART = (2, 4, 8, 16), range(8), 8
STEPS, EVERY = 300, 100
BATCH, N_TRAIN, N_VALIDATION, RATE = 16, 200, 400, 3e-3
CHECK_STEPS, CHECK_EVERY, TOLERANCE = 6, 3, 1e-8
SWEEPS = {  # name -> module beside this one, class; each is imported in its own process alone
    "fit_stack": ("ours", "FitStack"),
    "fit": ("ours", "Fit"),
    "peft": ("pytorch", "PeftSweep"),
    "jit(vmap(scan))": ("jax_sweep", "SideBySide"),
    "jit(map(scan))": ("jax_sweep", "OneByOne"),
}
NAMES = tuple(SWEEPS)


def parts() -> list[list[tuple[int, int]]]:
    """(rank, seed) of each run, in the parts in which they are done: the seeds of one rank."""
    runs = list(itertools.product(RANKS, SEEDS))
    return [runs[i : i + PART] for i in range(0, len(runs), PART)]


def runs_of(part, steps: int, every: int) -> list:
    """Each as the arguments of a `fit`."""
    import minilora as ml
    from minilora.stack import FineTuning

    settings = {"batch_size": BATCH, "learning_rate": RATE, "evaluate_every": every, "evaluation_size": N_VALIDATION}
    config = ml.TrainConfig(steps=steps, **settings)
    tasks = [(rank, seed, ml.names_task("female", N_TRAIN, seed)) for rank, seed in part]
    return [
        FineTuning(ml.LoraConfig(rank, 2 * rank, 0.0, "all-linear"), *task, config, seed) for rank, seed, task in tasks
    ]


def make(name: str):
    """What does a part of the sweep in its own process: (part, dtype, steps, steps between evaluations) -> answer.

    The answer: seconds of compiling, seconds of doing it, losses (runs, evaluations, 2). Asked nothing, it is the MB of
    memory at the peak of its process.
    """
    import ours

    from minilora.conditions import one_blas_thread

    module, kind = SWEEPS[name]
    implementation = getattr(importlib.import_module(module), kind)

    def answer(part=None, dtype="float32", steps=STEPS, every=EVERY):
        if part is None:
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10  # KB on Linux
        runs, sweep = runs_of(part, steps, every), implementation(ours.base_of(dtype))
        with one_blas_thread():
            compiling = sweep.prepare(runs)
            begin = time.perf_counter()
            losses = sweep.fine_tune(runs)
            return compiling, time.perf_counter() - begin, losses

    return answer


def check(ask) -> float:
    """The largest difference of a loss between implementations, in float64, relative to its size."""
    part = [(4, seed) for seed in SEEDS]
    expected, *others = (ask(name, part, "float64", CHECK_STEPS, CHECK_EVERY)[-1] for name in NAMES)
    assert (expected[:, 0] != expected[:, -1]).all(), "nothing was learned"
    worst = max(float(np.abs(losses / expected - 1).max()) for losses in others)
    if not worst <= TOLERANCE:
        raise SystemExit(f"implementations differ by {worst:.1e}, more than {TOLERANCE}")
    return worst


def measure(ask) -> dict[str, dict]:
    """{name: {"runs_per_minute", "compile_seconds": one a part, "mean_loss": validation at the end, "peak_mb"}}."""
    found = {name: {"seconds": 0.0, "compile_seconds": [], "losses": []} for name in NAMES}
    for part, name in itertools.product(parts(), NAMES):
        compiling, seconds, losses = ask(name, part)
        found[name]["seconds"] += seconds
        found[name]["compile_seconds"].append(compiling)
        found[name]["losses"] += losses[:, -1, 1].tolist()
        print(
            f"{name:16} r={part[0][0]:2}, {len(part)} seeds: {60 * len(part) / seconds:6.1f} runs a minute", flush=True
        )
    return {
        name: {
            "runs_per_minute": 60 * len(one["losses"]) / one["seconds"],
            "compile_seconds": one["compile_seconds"],
            "mean_loss": statistics.mean(one["losses"]),
            "peak_mb": ask(name),
        }
        for name, one in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with processes(NAMES, make) as ask:
        print(f"{CHECK_STEPS} steps in float64: all agree to {check(ask):.0e}")
        found = measure(ask)
    fastest = found["fit_stack"]["runs_per_minute"]
    print(f"\n{len(RANKS) * len(SEEDS)} runs of {STEPS} steps, one core each, runs a minute:")
    for name, one in found.items():
        print(
            f"  {name:16} {one['runs_per_minute']:6.1f}   mean final validation loss {one['mean_loss']:.3f}, "
            f"peak {one['peak_mb']:.0f} MB, compiled in {sum(one['compile_seconds']):.0f} s; "
            f"fit_stack does {fastest / one['runs_per_minute']:.2f} times as many"
        )
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
