"""Doing runs: in this process, in several, or on a cluster; each stored as soon as its stack is done.

A worker that dies takes with it what it was doing and nothing else: that is tried again, twice at most, alone.
"""

import contextlib
import itertools
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from typing import Any, Protocol

from tqdm import tqdm

from minilora.conditions import one_blas_thread
from minilora.experiments.engine import runner
from minilora.experiments.engine.runner import Stack
from minilora.experiments.engine.store import Store
from minilora.experiments.evidence.settings import Settings

Outcome = tuple[Settings, dict[str, Any]]  # a result, or {"error": what went wrong}
ONE_AT_A_TIME = threading.Lock()  # autograd's tape is one for all threads, and a Dask worker may have several
RETRIES = 2  # of what was being done where a worker died


class Elsewhere(Protocol):
    """What does runs in the place of this machine, as `cluster.Cluster` does."""

    def outcomes(self, stacks: Sequence[Stack]) -> Iterator[Outcome]:
        """The outcome of every run, in the order in which they end."""


class RunFailedError(RuntimeError):
    """Runs that raised, or whose workers died each time; the others are done and stored."""


def run_all(
    todo: Iterable[Settings],
    store: Store,
    jobs: int,
    done: Callable[[Settings, bool], None] = lambda settings, failed: None,
    cluster: Elsewhere | None = None,
) -> dict[Settings, dict[str, Any]]:
    """{settings: result} for every run, from the store where it is there, else done now and stored at once.

    Results do not depend on `jobs`, on `cluster` (which does them instead) or on what was stored: each run
    seeds itself, has one BLAS thread and its own sums.
    """
    todo = list(todo)
    results = {settings: result for settings in todo if (result := store.get(settings)) is not None}
    missing = runner.stacks(settings for settings in todo if settings not in results)
    failures = []
    for settings, result in outcomes(missing, jobs, cluster):
        wrong = result["error"] if "error" in result else store.put(settings, result)
        if wrong:
            failures.append(f"{settings.label()}: {wrong}")
        else:
            results[settings] = result
        done(settings, bool(wrong))
    if failures:
        raise RunFailedError(f"{len(failures)} of {len(todo)} runs failed, the first: {failures[0]}")
    return {settings: results[settings] for settings in todo}


def outcomes(stacks: Sequence[Stack], jobs: int, cluster: Elsewhere | None) -> Iterator[Outcome]:
    """The outcome of every run, in the order in which they end."""
    if cluster is not None:
        yield from cluster.outcomes(stacks)
    elif jobs == 1 or len(stacks) < 2:
        yield from itertools.chain.from_iterable(map(guarded, stacks))
    else:
        yield from _in_processes(stacks, jobs)


def _in_processes(stacks: Sequence[Stack], jobs: int) -> Iterator[Outcome]:
    """Several processes at a time; where one dies, what was being done is done again alone, and the rest goes on."""
    waiting = list(stacks)
    while waiting:
        begun: list[Stack] = []
        ended: list[Stack] = []
        try:
            for stack, found in _parallel(waiting, jobs, begun):
                ended.append(stack)
                yield from found
            return
        except BrokenProcessPool:
            suspects = [stack for stack in begun if stack not in ended]
            waiting = [stack for stack in waiting if stack not in begun]
        for stack in suspects:
            yield from _alone(stack)


def _alone(stack: Stack) -> Iterator[Outcome]:
    """A stack in a process of its own, tried again where that dies; at last its runs are reported as failed."""
    for _ in range(RETRIES):
        try:
            for _, found in _parallel([stack], 1, []):
                yield from found
            return
        except BrokenProcessPool:
            continue
    for settings in stack:
        yield settings, {"error": f"its worker died {1 + RETRIES} times (killed, or out of memory)"}


def _parallel(stacks: Sequence[Stack], jobs: int, begun: list[Stack]) -> Iterator[tuple[Stack, list[Outcome]]]:
    """(stack, its outcomes) as they end; `begun` gets each stack as it is handed to a worker."""
    from joblib.externals.loky import get_reusable_executor

    waiting, running = iter(stacks), {}
    with _deaf_children():
        pool = get_reusable_executor(max_workers=min(jobs, len(stacks)))

    def begin(stack: Stack) -> None:
        begun.append(stack)
        with _deaf_children():  # this is what starts the processes
            running[pool.submit(in_worker, stack)] = stack

    try:
        for stack in itertools.islice(waiting, min(jobs, len(stacks))):
            begin(stack)
        while running:
            future = _first_done(running)
            stack = running.pop(future)
            found = future.result()
            following = next(waiting, None)
            if following is not None:
                begin(following)
            yield stack, found
    except BaseException:  # a worker died, or Ctrl-C, or nobody listens any more
        with _quiet_threads():
            pool.shutdown(wait=True, kill_workers=True)
        raise


@contextlib.contextmanager
def _quiet_threads():
    """The pool's own thread may look for the work that was submitted last, when killing has just thrown it away."""
    before = threading.excepthook
    threading.excepthook = lambda raised: None if raised.exc_type is KeyError else before(raised)
    try:
        yield
    finally:
        threading.excepthook = before


@contextlib.contextmanager
def _deaf_children():
    """Processes that begin inside do not hear Ctrl-C, which a terminal sends to all: this one ends them.

    A worker that hears it while it imports prints a traceback. Here Ctrl-C comes when the block is left, so that no
    semaphore is made that nobody removes.
    """
    from joblib.externals.loky.backend import resource_tracker as loky_tracker

    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    for tracker in (resource_tracker, loky_tracker):
        tracker.ensure_running()  # before, as starting one lets SIGINT through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _first_done(running):
    done, _ = wait(running, return_when=FIRST_COMPLETED)
    return next((one for one in running if one in done and one.exception() is None), next(iter(done)))


def in_worker(stack: Stack) -> list[Outcome]:
    """`guarded`, in a process that leaves Ctrl-C to the command, which stops its workers.

    They are killed. A semaphore that one has then is told on the terminal as leaked, and tqdm makes one for its first
    bar, even one that is not shown, unless it has another lock.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # not the command's own way of ending
        tqdm.set_lock(threading.RLock())
    with ONE_AT_A_TIME:
        return guarded(stack)


def guarded(stack: Stack) -> list[Outcome]:
    """Runs that raise are reported with their settings and do not take the others with them."""
    try:
        with one_blas_thread():
            return list(zip(stack, runner.execute(stack), strict=True))
    except Exception as error:
        return [(settings, {"error": f"{type(error).__name__}: {error}"}) for settings in stack]
