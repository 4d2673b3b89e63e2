"""The same runs on a Dask cluster: `--dask ADDRESS`, an extra.

Dask moves the work of a worker that dies to another, and gives up on what killed three. Stacks are what is sent, and
results, which are small; every worker has minilora installed, in the very version that asks.
"""

from collections.abc import Iterator, Sequence

from minilora.experiments import runner, workers
from minilora.experiments.runner import Stack

SECONDS = 10  # to wait for a scheduler that does not answer


class ClusterError(OSError):
    """The cluster cannot be used; the message says why."""


def connect(address: str):
    """A client of the scheduler there; ClusterError where there is none, ImportError where Dask is not installed."""
    try:
        import distributed
    except ImportError:
        raise ImportError("--dask needs Dask: pip install 'minilora[cluster]'") from None
    try:
        client = distributed.Client(address, timeout=SECONDS, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise ClusterError(f"--dask: no scheduler answers at {address!r} ({str(error).splitlines()[0]})") from None
    return client


def check_workers(client) -> None:
    """ClusterError unless there are workers, and each computes with the code that this process has."""
    found = client.run(runner.code_version)
    if not found:
        client.close()
        raise ClusterError("--dask: the scheduler has no workers")
    others = [worker for worker, version in found.items() if version != runner.code_version()]
    if others:
        client.close()
        raise ClusterError(
            f"--dask: {', '.join(others)}: has another version of minilora, NumPy or the processor's kernels than this "
            "machine, so that its results would be others"
        )


def outcomes(stacks: Sequence[Stack], address: str) -> Iterator[workers.Outcome]:
    """The outcome of every run, in the order in which they end."""
    client = connect(address)
    from distributed import as_completed

    check_workers(client)
    futures: dict = {}
    try:
        futures = {client.submit(workers.in_worker, stack, pure=False): stack for stack in stacks}
        for future in as_completed(list(futures), loop=client.loop):
            stack = futures.pop(future)
            if future.status == "finished":
                yield from future.result()
            else:
                error = future.exception()
                for settings in stack:
                    yield settings, {"error": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
            future.release()
    finally:
        client.cancel(list(futures))
        client.close()
