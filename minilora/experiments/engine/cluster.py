"""The same runs on a Dask cluster: `--dask ADDRESS`, an extra.

Dask moves the work of a worker that dies to another, and gives up on what killed four. Stacks are what is sent, and
results, which are small; every worker has minilora installed, in the very version that asks.
"""

from collections.abc import Iterator, Mapping, Sequence

from minilora.command_line import UsageError, in_a_line, install
from minilora.experiments.engine import provenance, workers
from minilora.experiments.engine.runner import Stack

SECONDS = 10  # to wait for a scheduler that does not answer


class ClusterError(UsageError):
    """The cluster cannot be used; the message says why."""


class Cluster:
    """A scheduler and its workers, to be used in a `with`."""

    def __init__(self, address: str):
        """ClusterError where no scheduler answers or a worker has other code, ImportError without Dask."""
        try:
            import distributed
            from distributed.comm.addressing import get_address_host_port, normalize_address
        except ImportError:
            raise ImportError(f"--dask needs Dask: {install('cluster')}") from None
        try:
            get_address_host_port(normalize_address(address))  # Client waits long over what lacks a port
            self.client = distributed.Client(address, timeout=SECONDS, set_as_default=False)
        except (OSError, ValueError, TypeError) as error:
            raise ClusterError(f"--dask: no scheduler answers at {address!r} ({in_a_line(error)})") from None
        try:
            check_workers(self.client.run(provenance.code_version))
        except ClusterError:
            self.client.close()
            raise

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *exception) -> None:
        self.client.close()

    def n_workers(self) -> int:
        """How many workers there are now."""
        return len(self.client.nthreads())

    def outcomes(self, stacks: Sequence[Stack]) -> Iterator[workers.Outcome]:
        """The outcome of every run, in the order in which they end."""
        from distributed import as_completed

        futures: dict = {}
        try:
            version = provenance.code_version()
            futures = {self.client.submit(on_worker, stack, version, pure=False): stack for stack in stacks}
            for future in as_completed(list(futures), loop=self.client.loop):
                stack = futures.pop(future)
                if future.status == "finished":
                    yield from future.result()
                else:
                    error = future.exception()
                    for settings in stack:
                        yield settings, {"error": f"{type(error).__name__}: {in_a_line(error)}"}
                future.release()
        finally:
            self.client.cancel(list(futures))


def on_worker(stack: Stack, version: str) -> list[workers.Outcome]:
    """The outcomes of a stack; ClusterError on a worker with other code, which may have come after the others."""
    if provenance.code_version() != version:
        raise ClusterError("a worker has another version of minilora, NumPy or the processor's kernels")
    return workers.in_worker(stack)


def check_workers(versions: Mapping[str, str]) -> None:
    """ClusterError unless there are workers, and each has the code that this process has; {address: code version}."""
    if not versions:
        raise ClusterError("--dask: the scheduler has no workers")
    others = [worker for worker, version in versions.items() if version != provenance.code_version()]
    if others:
        raise ClusterError(
            f"--dask: {', '.join(others)}: has another version of minilora, NumPy or the processor's kernels than this "
            "machine, so that its results would be others"
        )
