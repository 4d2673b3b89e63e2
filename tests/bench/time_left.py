"""`python tests/bench/time_left.py [ARGUMENTS]` runs the command and holds each "about ... left" to the real end.

The arguments are those of `python -m minilora.experiments`; without any it is `all --quick`.
"""

import contextlib
import io
import statistics
import sys
import tempfile
import time

from minilora.experiments import __main__ as command
from minilora.experiments.engine import progress


def main(arguments: list[str]) -> int:
    """Print a table of what was said, when, and what was true."""
    said: list[tuple[float, float]] = []  # (moment, seconds that were said to be left)
    starting = progress.Progress.starting

    def listening(self, study):
        done = starting(self, study)

        def told(settings, failed):
            done(settings, failed)
            left = self.seconds_left()
            if left is not None and (not said or time.perf_counter() - said[-1][0] > 1.0):
                said.append((time.perf_counter(), left))

        return told

    progress.Progress.starting = listening
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()):
        command.main([*arguments, "--out", out])
    end = time.perf_counter()
    print("| part of the time gone | s left | s said | said / left |\n| --- | --- | --- | --- |")
    for part in (0.05, 0.1, 0.25, 0.5, 0.75, 0.9):
        moment, left = min(said, key=lambda one: abs(one[0] - begin - part * (end - begin)))
        print(f"| {part:.0%} | {end - moment:.0f} | {left:.0f} | {left / (end - moment):.2f} |")
    ratios = [left / (end - moment) for moment, left in said if moment - begin < 0.9 * (end - begin)]
    print(f"\n{end - begin:.0f} s; said / left has median {statistics.median(ratios):.2f}, from {min(ratios):.2f} "
          f"to {max(ratios):.2f} over the first nine tenths ({len(ratios)} times)")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["all", "--quick"]))
