"""What a long command says while it works: runs done, reused and failed, who works on them, and how long it will be."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from minilora.experiments.engine import runner
from minilora.experiments.engine.runner import Stack
from minilora.experiments.engine.store import Store
from minilora.experiments.evidence.runs import Runs
from minilora.experiments.evidence.settings import Settings
from minilora.experiments.evidence.study import Study

LINE_EVERY = 30.0  # seconds between lines where output is not a terminal
AT_ONCE = 0.2  # seconds within which runs count as done together, as those of a stack are
ASK_EVERY = 1.0  # seconds between questions to a cluster for its workers


def cost(stack: Stack) -> float:
    """About how long a stack takes, in the time that one more name in a batch takes for one block of the model.

    The factors come from least squares over the times of all studies in figures/ and tell how studies compare, which
    is all that the time left needs: a step costs as much as 27 names whatever its batch, evaluating a name 0.7, and a
    run, with the names that it writes and its file, 8,000.
    """
    first = stack[0]
    evaluated = (first.steps // first.evaluate_every + 1) * 2 * first.evaluation_size
    names = first.steps * (27 + len(stack) * first.batch_size) + 0.7 * len(stack) * evaluated
    return runner.base(first.base).config.n_layers * names + 8000 * len(stack)


def costs(studies: Mapping[str, Sequence[Settings]], missing: set[Settings]) -> dict[Settings, float]:
    """{run that is still to do: its share of the cost of its stack}, where each study does what is left for it."""
    found: dict[Settings, float] = {}
    for todo in studies.values():
        for stack in runner.stacks(one for one in todo if one in missing and one not in found):
            found |= dict.fromkeys(stack, cost(stack) / len(stack))
    return found


def duration(seconds: float) -> str:
    """A time as one would say it.

    >>> duration(42.4), duration(125), duration(4000)
    ('42 s', '2 min 5 s', '1 h 6 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class Progress:
    """One bar for all studies on a terminal; a line a study, and one every half minute, elsewhere.

    `n_workers` says how many work on it now; None where that is not worth saying.
    """

    def __init__(
        self, studies: Mapping[str, Sequence[Settings]], store: Store, n_workers: Callable[[], int] | None = None
    ):
        from tqdm import tqdm

        unique = list(dict.fromkeys(one for todo in studies.values() for one in todo))
        missing = {one for one in unique if store.get(one) is None}
        self.costs = costs(studies, missing)
        self.n_missing, self.n_workers = len(missing), n_workers
        self.n_done, self.n_new, self.n_failed = 0, 0, 0
        self.cost_done, self.cost_before = 0.0, 0.0  # of all runs that are done, and of those done first
        self.terminal = sys.stderr.isatty()
        self.bar = tqdm(
            total=len(missing), unit="run", file=sys.stderr, disable=not self.terminal, dynamic_ncols=True,
            bar_format="{desc} {percentage:3.0f}%|{bar}| {n_fmt} of {total_fmt} runs, {elapsed}{postfix}",
        )  # fmt: skip
        self.since = 0.0  # when the first runs were done
        self.last_said, self.last_asked, self.workers = time.perf_counter(), float("-inf"), ""
        self.say(
            f"{len(unique)} runs in {len(studies)} {'study' if len(studies) == 1 else 'studies'}; "
            f"{len(unique) - len(missing)} are stored already, {len(missing)} to do{self._on_workers()}"
        )
        for path, why in store.damaged.items():
            self.say(f"warning: {path}: a stored run was set aside, and is done again ({why})")

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.bar.close()

    def say(self, text: str) -> None:
        """A line that stays, above the bar."""
        self.bar.write(text, file=sys.stdout)
        sys.stdout.flush()

    def seconds_left(self) -> float | None:
        """The time that the rest will take if it goes on as it went, by cost; None where nothing is known yet.

        Measured from when the first runs were done, as starting the processes takes seconds too and happens once.
        """
        measured = self.cost_done - self.cost_before
        if measured <= 0:
            return None
        return (time.perf_counter() - self.since) / measured * (sum(self.costs.values()) - self.cost_done)

    def starting(self, study: Study) -> Callable[[Settings, bool], None]:
        """Called when a study starts; returns what to call after each of its runs."""
        self.bar.set_description(study.name)
        self.n_new = 0

        def done(settings: Settings, failed: bool) -> None:
            now = time.perf_counter()
            self.n_done, self.n_new, self.n_failed = self.n_done + 1, self.n_new + 1, self.n_failed + failed
            self.cost_done += self.costs.get(settings, 0.0)
            if self.n_done == 1:
                self.since = now
            if now - self.since < AT_ONCE:
                self.cost_before = self.cost_done
            left = self.seconds_left()
            state = "" if left is None else f", about {duration(left)} left"
            state += f", {self.n_failed} failed" if self.n_failed else ""
            state += self._on_workers()
            self.bar.set_postfix_str(f"{state[2:]}; {settings.label()}", refresh=False)
            self.bar.update()
            if not self.terminal and now - self.last_said > LINE_EVERY:
                self.last_said = now
                self.say(f"{study.name}: {self.n_done} of {self.n_missing} runs done{state}")

        return done

    def _on_workers(self) -> str:
        if self.n_workers is not None and time.perf_counter() - self.last_asked > ASK_EVERY:
            self.last_asked, n = time.perf_counter(), self.n_workers()
            self.workers = f", on {n} {'worker' if n == 1 else 'workers'}"
        return self.workers

    def writing(self, study: Study) -> None:
        """Called when a study's runs are done and its files are made, which may take seconds."""
        self.bar.set_description(f"{study.name}, drawing")

    def finished(self, study: Study, runs: Runs, out: Path, seconds: float) -> None:
        """Called when a study's files are written."""
        n_diverged = sum(run.diverged for run in runs)
        diverged = f", {n_diverged} diverged" if n_diverged else ""
        self.say(f"{study.name}: {len(runs)} runs{diverged}, {seconds:.0f} s, {out / study.name}.svg")
        for run in runs:
            if run.diverged:
                self.say(f"  diverged at step {run.diverged_at}: {run.settings.label()}")
