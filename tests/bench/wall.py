"""Wall time of whole commands of this checkout beside those of another, on the same list of runs.

    python tests/bench/wall.py --beside PATH [--run=ARGUMENTS ...] [--rounds N] [--json FILE]

ARGUMENTS are those of `python -m minilora.experiments`, as in --run="all --quick"; without any --run they are the
headline studies in short, all studies in short, and all studies in full. The two take turns, which one goes first too;
each writes into a new folder, so that no run is done already. Both are run by the Python that runs this.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parents[2]
COMMANDS = ("--quick", "all --quick", "all")
LIST_RUNS = """
import sys
import minilora
from minilora.experiments import __main__ as command
print(minilora.__file__)
options = command.parser().parse_args(sys.argv[1:])
for study in command.choose(options.studies):
    print(*command.runs_of(study, options), sep="\\n")
"""


def python(checkout: Path, *arguments: str) -> str:
    """What Python printed with that checkout's minilora; SystemExit with its complaint where it failed."""
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    done = subprocess.run([sys.executable, *arguments], cwd=checkout, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{checkout}: python {' '.join(arguments)}:\n{done.stdout}{done.stderr}")
    return done.stdout


def runs_of(checkout: Path, command: str) -> set[str]:
    """The settings of every run that the command asks for; what two studies share is one run."""
    where, *runs = python(checkout, "-c", LIST_RUNS, *command.split()).splitlines()
    if not Path(where).is_relative_to(checkout):
        raise SystemExit(f"{checkout}: its minilora is {where}")
    return set(runs)


def seconds(checkout: Path, command: str) -> float:
    """Wall time of the command, from the start of Python to its end."""
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        python(checkout, "-m", "minilora.experiments", *command.split(), "--out", f"{folder}/out")
        return time.perf_counter() - begin


def compared(checkouts: dict[str, Path], command: str, rounds: int) -> dict:
    """{"runs": how many, "seconds": {"this": one a round, "beside": the same}, "ratio": of their medians}."""
    this, beside = (runs_of(path, command) for path in checkouts.values())
    print(f"\n{command}: {len(this)} runs, beside {len(beside)}", flush=True)
    if this != beside:
        raise SystemExit(f"{command}: {len(this ^ beside)} runs are of one of them alone")
    took: dict[str, list[float]] = {name: [] for name in checkouts}
    for i in range(rounds):
        for name in sorted(checkouts, reverse=i % 2 == 0):
            took[name].append(seconds(checkouts[name], command))
            print(f"  {name:6} {took[name][-1]:7.1f} s", flush=True)
    ratio = statistics.median(took["this"]) / statistics.median(took["beside"])
    print(f"  this checkout takes {ratio:.2f} of the other's time")
    return {"runs": len(this), "seconds": took, "ratio": ratio}


def commit(checkout: Path) -> str:
    """The commit it is at, and whether there are changes beside it."""
    described = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(described, check=True, capture_output=True, text=True).stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--beside", type=Path, required=True)
    parser.add_argument("--run", action="append", metavar="ARGUMENTS")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    checkouts = {"this": HERE, "beside": options.beside.resolve()}
    report = {name: commit(path) for name, path in checkouts.items()}
    found = {command: compared(checkouts, command, options.rounds) for command in options.run or COMMANDS}
    if options.json:
        options.json.write_text(json.dumps(report | {"commands": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
