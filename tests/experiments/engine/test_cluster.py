"""Runs on a real Dask scheduler with two real workers on loopback, one of which is killed midway."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from minilora.command_line import install
from minilora.experiments import __main__ as command
from minilora.experiments.engine import cluster, provenance
from minilora.experiments.engine.store import Store
from minilora.experiments.engine.workers import RunFailedError, run_all

from .. import commands, tiny

distributed = pytest.importorskip("distributed")
WORKER = [
    "-m",
    "distributed.cli.dask_worker",
    "--nthreads",
    "1",
    "--no-nanny",
    "--no-dashboard",
    "--death-timeout",
    "300",
]


def _start(*arguments, cwd):
    return subprocess.Popen([sys.executable, *map(str, arguments)], cwd=cwd, stdout=subprocess.DEVNULL,
                            stderr=subprocess.DEVNULL, start_new_session=True)  # fmt: skip


@pytest.fixture
def dask(tmp_path):
    """(address of the scheduler, the processes of its two workers)."""
    file = tmp_path / "scheduler.json"
    scheduler = _start("-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard",
                       "--scheduler-file", file, cwd=tmp_path)  # fmt: skip
    processes = [scheduler]
    try:
        assert commands.wait_until(file.exists, 300)
        address = ""
        while not address:
            with contextlib.suppress(ValueError):
                address = json.loads(file.read_text())["address"]
        workers = [_start(*WORKER, address, "--local-directory", tmp_path / f"w{i}", cwd=tmp_path) for i in range(2)]
        processes += workers
        with distributed.Client(address, set_as_default=False) as client:
            client.wait_for_workers(2, timeout=300)
        yield address, workers
    finally:
        for process in processes:
            commands.kill_all(process)


def test_a_cluster_gives_the_same_bits_and_a_dead_worker_costs_nothing(dask, tmp_path):
    address, processes = dask
    todo = [tiny.settings(r=r, seed=seed, steps=80) for r in (1, 2, 4) for seed in range(4)]
    expected = run_all(todo, Store(tmp_path / "local"), 1)
    told = []

    def done(settings, failed):
        told.append(settings)
        if len(told) == 2:
            os.kill(processes[0].pid, signal.SIGKILL)

    with cluster.Cluster(address) as both:
        assert both.n_workers() == 2
        found = run_all(todo, Store(tmp_path / "cluster"), 2, done, both)
        assert both.n_workers() == 1
    assert found == expected
    assert sorted(told, key=todo.index) == todo, "each once"
    local, far = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("local", "cluster")
    )
    assert local == far


def test_a_run_that_raises_is_reported_and_the_others_are_stored(dask, tmp_path):
    address, _ = dask
    bad = tiny.settings(target_modules="no_such_module", seed=5)
    store = Store(tmp_path / "runs")
    with (
        cluster.Cluster(address) as workers,
        pytest.raises(RunFailedError, match=r"1 of 2 runs failed.*no_such_module"),
    ):
        run_all([tiny.settings(), bad], store, 1, cluster=workers)
    assert store.get(tiny.settings()) is not None


def test_dask_gives_up_on_what_killed_four_workers():
    """As `cluster` says of it; a cluster whose own configuration says otherwise goes by that."""
    import dask
    from distributed.scheduler import KilledWorker

    allowed = dask.config.get("distributed.scheduler.allowed-failures")
    died = KilledWorker("stack", SimpleNamespace(address="tcp://there"), allowed)  # type: ignore[arg-type]
    assert "on 4 different workers, but all those workers died" in str(died)
    assert "gives up on what killed four" in cluster.__doc__


def test_workers_with_other_code_are_refused():
    own = provenance.code_version()
    cluster.check_workers({"tcp://here": own})
    with pytest.raises(cluster.ClusterError, match="tcp://there: has another version of minilora"):
        cluster.check_workers({"tcp://here": own, "tcp://there": "another"})
    with pytest.raises(cluster.ClusterError, match="no workers"):
        cluster.check_workers({})


def test_a_worker_that_came_later_with_other_code_does_nothing(dask, tmp_path, monkeypatch):
    address, _ = dask
    store = Store(tmp_path)
    with cluster.Cluster(address) as workers:
        monkeypatch.setattr(
            provenance, "code_version", lambda: "changed meanwhile"
        )  # here, so the workers have another
        with pytest.raises(RunFailedError, match="a worker has another version of minilora"):
            run_all([tiny.settings()], store, 1, cluster=workers)


def test_the_command_takes_the_address(dask, tmp_path, monkeypatch, capsys):
    address, _ = dask
    monkeypatch.setattr(command, "load_studies", lambda: tiny.STUDIES)
    assert command.main(["tiny", "--seeds", "2", "--out", str(tmp_path / "far"), "--dask", address]) == 0
    assert command.main(["tiny", "--seeds", "2", "--out", str(tmp_path / "near"), "--jobs", "1"]) == 0
    assert commands.products(tmp_path / "far") == commands.products(tmp_path / "near")
    assert "4 to do, on 2 workers" in capsys.readouterr().out


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:9", "nonsense", "", "127.0.0.1", "tcp://:x"])
def test_no_scheduler_is_a_line(address, tmp_path, monkeypatch, capsys):
    """At once where the address has no port: over that, Dask waits for long and ends with a traceback."""
    monkeypatch.setattr(command, "load_studies", lambda: tiny.STUDIES)
    monkeypatch.setattr(cluster, "SECONDS", 1)
    assert command.main(["tiny", "--seeds", "2", "--out", str(tmp_path / "out"), "--dask", address]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --dask: no scheduler answers at")
    assert len(error.splitlines()) == 1


def test_an_error_that_says_nothing_is_told_by_its_kind(monkeypatch):
    """As a timeout or a cancelled future; hours of other runs are not lost for the lack of a first line."""

    class Future:
        status = "error"

        def exception(self):
            return TimeoutError()

        def release(self):
            pass

    future, stack = Future(), [tiny.settings()]
    made = object.__new__(cluster.Cluster)
    made.client = SimpleNamespace(submit=lambda *a, **k: future, cancel=lambda futures: None, loop=None)
    monkeypatch.setattr(distributed, "as_completed", lambda futures, loop: iter(futures))
    assert list(made.outcomes([stack])) == [(stack[0], {"error": "TimeoutError: TimeoutError"})]


def test_without_dask_a_line_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "load_studies", lambda: tiny.STUDIES)
    monkeypatch.setitem(sys.modules, "distributed", None)
    out = tmp_path / "out"
    assert command.main(["tiny", "--seeds", "2", "--out", str(out), "--dask", "tcp://127.0.0.1:9"]) == 2
    assert capsys.readouterr().err == f"error: --dask needs Dask: {install('cluster')}\n"
    assert not list(Path(out).glob("runs/*.json"))
