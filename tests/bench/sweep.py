"""Runs per minute of one sweep of 32 fine-tuning runs, by minilora and by PEFT on PyTorch.

    python tests/bench/sweep.py [--json FILE]

Ranks 2, 4, 8, 16 by 8 seeds: 300 steps of 16 from 200 first names, all six linear modules, with the validation loss on
400 names before, every 100 steps and at the end. Both see the same names in the same order and start from the same
factors, so that losses are the same up to rounding, which 300 steps of overfitting amplify: their means are printed.
Each has a process of its own and one core, and they take turns, a part of the sweep at a time. minilora is measured
with `fit_stack` and, for comparison, with `fit`, run by run.
"""

import argparse
import itertools
import json
import statistics
import time
from pathlib import Path

from processes import processes

RANKS, SEEDS, PART = (2, 4, 8, 16), range(8), 8
STEPS, BATCH, N_TRAIN, N_VALIDATION, EVERY, RATE = 300, 16, 200, 400, 100, 3e-3
NAMES = ("fit_stack", "fit", "peft")


def parts() -> list[list[tuple[int, int]]]:
    """(rank, seed) of each run, in the parts in which they are done: the seeds of one rank."""
    runs = list(itertools.product(RANKS, SEEDS))
    return [runs[i : i + PART] for i in range(0, len(runs), PART)]


def make(name: str):
    """What does a part of the sweep in its own process: [(rank, seed)] -> final validation losses."""
    import minilora as ml
    from minilora.conditions import one_blas_thread
    from minilora.stack import FineTuning

    base = ml.load_base("surnames")
    config = ml.TrainConfig(
        steps=STEPS, batch_size=BATCH, learning_rate=RATE, evaluate_every=EVERY, evaluation_size=N_VALIDATION
    )

    def run(rank, seed):
        train, validation = ml.names_task("female", N_TRAIN, seed)
        lora = ml.LoraConfig(rank, 2 * rank, 0.0, "all-linear")
        return FineTuning(lora, train, validation, config, seed)

    def with_fit_stack(part):
        histories = ml.fit_stack(base, [run(*one) for one in part], progress=False)
        return [history.validation_loss[-1] for history in histories]

    def with_fit(part):
        runs = [run(*one) for one in part]
        histories = [ml.fit(base, o.lora, o.train, o.validation, o.config, o.seed, progress=False) for o in runs]
        return [history.validation_loss[-1] for history in histories]

    def with_peft(part):
        import pytorch

        return [pytorch.fine_tune(base, run(*one)) for one in part]

    do = {"fit_stack": with_fit_stack, "fit": with_fit, "peft": with_peft}[name]

    def timed(part):
        do([(2, 99)])  # imports, caches and the clock of the core
        begin = time.perf_counter()
        losses = do(part)
        return time.perf_counter() - begin, losses

    with one_blas_thread():
        return timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    seconds, losses = dict.fromkeys(NAMES, 0.0), {name: [] for name in NAMES}
    with processes(NAMES, make) as ask:
        for part in parts():
            for name in NAMES:
                took, found = ask(name, part)
                seconds[name] += took
                losses[name] += found
                print(
                    f"{name:10} r={part[0][0]:2}, {len(part)} seeds: {60 * len(part) / took:6.1f} runs a minute",
                    flush=True,
                )
    n_runs = len(RANKS) * len(SEEDS)
    per_minute = {name: 60 * n_runs / took for name, took in seconds.items()}
    ratio = {name: per_minute["fit_stack"] / per_minute[name] for name in NAMES[1:]}
    print(f"\n{n_runs} runs of {STEPS} steps, one core each, runs a minute:")
    for name in NAMES:
        mean = statistics.mean(losses[name])
        beside = f"   fit_stack does {ratio[name]:.2f} times as many" if name in ratio else ""
        print(f"  {name:10} {per_minute[name]:6.1f}   mean final validation loss {mean:.3f}{beside}")
    if options.json:
        options.json.write_text(json.dumps({"runs_per_minute": per_minute, "ratio": ratio}, indent=1) + "\n")


if __name__ == "__main__":
    main()
