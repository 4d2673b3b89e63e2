"""`python tests/experiments/kills.py N` kills commands N times at random moments and prints a fault table.

Each command is killed several times, whole, in a worker or in its parent alone, starts again, and at last runs to its
end: then its files have to be those of a command that nothing happened to, and what had been stored must never have
been lost, changed or done again. Ctrl-C and SIGTERM are timed besides.
"""

import argparse
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from experiments import commands

ARGUMENTS = ["slow", "--seeds", "4", "--jobs", "2"]
KINDS = ("the command and its workers", "one worker", "the command alone")
EARLIEST, LATEST = 0.3, 3.0  # seconds after the start, from Python's imports to the last runs


def kill(process: subprocess.Popen, kind: str, rng: random.Random) -> str:
    """kill -9; the kind that it was, as before there are workers there is nothing else to kill than the command."""
    workers = commands.workers_of(process) if kind == "one worker" else []
    if kind == "the command alone":
        os.kill(process.pid, signal.SIGKILL)
    elif workers:
        os.kill(rng.choice(workers), signal.SIGKILL)
        return kind
    else:
        os.killpg(process.pid, signal.SIGKILL)
        kind = KINDS[0]
    process.wait()
    commands.kill_all(process)  # workers without a command end by themselves, but only after some idle seconds
    process.communicate()
    return kind


def killed_once(out: Path, rng: random.Random, table: Counter) -> bool:
    """Start the command and kill it; whether it was still running then."""
    process = commands.start(*ARGUMENTS, "--out", out)
    time.sleep(rng.uniform(EARLIEST, LATEST))
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("runs/*.json")}
    contents = commands.stored(out)
    if process.poll() is not None:
        process.communicate()
        return False
    kind = kill(process, rng.choice(KINDS), rng)
    if kind == "one worker":
        _, error = process.communicate(timeout=120)
        table[kind, "wrong results"] += process.returncode != 0 or "Traceback" in error
    after = commands.stored(out)
    table[kind, "times"] += 1
    table[kind, "runs lost"] += sum(after.get(name) != content for name, content in contents.items())
    table[kind, "done again"] += sum((out / "runs" / name).stat().st_mtime_ns != then for name, then in before.items())
    return True


def campaign(n: int, root: Path, rng: random.Random) -> Counter:
    """Kill until there were n kills, and hold each folder to the undisturbed one; {(kind, what): count}."""
    assert commands.whole(*ARGUMENTS, "--out", root / "undisturbed").returncode == 0
    expected, table = commands.products(root / "undisturbed"), Counter()
    while (so_far := sum(table[kind, "times"] for kind in KINDS)) < n:
        print(f"{so_far} of {n}", file=sys.stderr, flush=True)
        out = root / "out"
        for _ in range(rng.choice([2, 4, 6])):
            if not killed_once(out, rng, table):
                break
        last = commands.whole(*ARGUMENTS, "--out", out)
        wrong = last.returncode != 0 or commands.products(out) != expected
        if wrong:
            differing = sorted(name for name, _ in set(commands.products(out).items()) ^ set(expected.items()))
            print(f"exit status {last.returncode}, {last.err.strip()}, differing: {differing}", file=sys.stderr)
        table["any", "wrong results"] += wrong
        table["any", "folders compared"] += 1
        shutil.rmtree(out)
    return table


def seconds_to_end(how: signal.Signals, root: Path, rng: random.Random) -> float:
    """How long the command and all its workers take to be gone."""
    process = commands.start(*ARGUMENTS, "--out", root / "stopped")
    commands.wait_until(lambda: len(commands.stored(root / "stopped")) >= 1, 60)
    time.sleep(rng.uniform(0, 0.5))
    process.send_signal(how)
    begin = time.monotonic()
    process.communicate(timeout=60)  # to the end of the last process that has its pipes, so of the workers too
    took = time.monotonic() - begin
    assert commands.wait_until(lambda: not commands.alive(process.pid), 60)
    shutil.rmtree(root / "stopped")
    return took


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("n", type=int)
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    rng = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as folder:
        table = campaign(given.n, Path(folder), rng)
        stops = {how.name: [seconds_to_end(how, Path(folder), rng) for _ in range(5)]
                 for how in (signal.SIGINT, signal.SIGTERM)}  # fmt: skip
    print("| killed with -9 | times | runs lost | runs done again | wrong results |\n| --- | --- | --- | --- | --- |")
    for kind in KINDS:
        counts = [table[kind, what] for what in ("times", "runs lost", "done again", "wrong results")]
        print(f"| {kind} | {' | '.join(map(str, counts))} |")
    print(f"\n{table['any', 'folders compared']} folders ended, {table['any', 'wrong results']} of them otherwise than "
          "an undisturbed one.")  # fmt: skip
    for name, seconds in stops.items():
        print(f"{name}: all gone after {statistics.median(seconds):.2f} s (median of 5), {max(seconds):.2f} s at most")
    return 0


if __name__ == "__main__":
    sys.exit(main())
