"""Implementations in processes of their own that take turns on one core."""

import contextlib
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence


def _serve(pipe, name: str, make: Callable) -> None:
    """Answer each request, until it is None."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one core, before any library counts them
    answer = make(name)
    pipe.send("ready")
    while (request := pipe.recv()) is not None:
        pipe.send(answer(*request))


@contextlib.contextmanager
def processes(names: Sequence[str], make: Callable) -> Iterator[Callable]:
    """Within it, `ask(name, *request)` is `make(name)(*request)` in that name's process; all are ready then."""
    context = multiprocessing.get_context("spawn")
    pipes, started = {}, []
    for name in names:
        pipes[name], theirs = context.Pipe()
        started.append(context.Process(target=_serve, args=(theirs, name, make), daemon=True))
        started[-1].start()
        theirs.close()
    for pipe in pipes.values():
        pipe.recv()

    def ask(name, *request):
        pipes[name].send(request)
        return pipes[name].recv()

    try:
        yield ask
    finally:
        for name, process in zip(names, started, strict=True):
            with contextlib.suppress(BrokenPipeError):
                pipes[name].send(None)
            process.join(timeout=5)
            process.terminate()
