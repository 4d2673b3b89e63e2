"""What may happen to a long run: kills, a full disk, damaged files, two commands at once. Nothing finished is lost."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minilora.experiments import __main__ as command
from minilora.experiments.engine import workers
from minilora.experiments.engine.store import ASIDE, Store
from minilora.experiments.engine.workers import RETRIES, RunFailedError, run_all

from . import commands, tiny

linux = pytest.mark.skipif(not Path("/proc").exists(), reason="looks for processes in /proc")
TODO = [tiny.settings(r=r, seed=seed) for r in (1, 2, 4) for seed in (0, 1)]
ARGUMENTS = ["slow", "--seeds", "3", "--jobs", "2"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The folder of a command that nothing happened to."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    assert commands.whole(*ARGUMENTS, "--out", out).returncode == 0
    return out


@pytest.fixture
def dying(monkeypatch, tmp_path):
    """Make workers die at runs with r = 2 and seed 0, so many times; returns how often it was tried."""
    tries = tmp_path / "tries"

    def set_up(times: int):
        def in_worker(stack):
            if any((one.r, one.seed) == (2, 0) for one in stack):
                with open(tries, "a") as file:
                    file.write("x")
                if len(tries.read_text()) <= times:
                    os.kill(os.getpid(), signal.SIGKILL)
            return workers.guarded(stack)

        monkeypatch.setattr(workers, "in_worker", in_worker)
        return lambda: len(tries.read_text())

    return set_up


@pytest.mark.parametrize("times", [1, RETRIES])
def test_what_a_dead_worker_was_doing_is_done_again(tmp_path, dying, times):
    expected = run_all(TODO, Store(tmp_path / "one"), 1)
    n_tries = dying(times)
    told = []
    found = run_all(TODO, Store(tmp_path / "two"), 2, lambda settings, failed: told.append((settings, failed)))
    assert found == expected
    assert sorted((one.r, one.seed) for one, _ in told) == sorted((one.r, one.seed) for one in TODO), "each told once"
    assert not any(failed for _, failed in told)
    assert n_tries() == times + 1


def test_what_kills_its_worker_each_time_is_reported_and_the_others_go_on(tmp_path, dying):
    n_tries = dying(99)
    store, told = Store(tmp_path), {}
    with pytest.raises(RunFailedError, match="1 of 6 runs failed") as caught:
        run_all(TODO, store, 2, told.__setitem__)
    culprit = tiny.settings(r=2, seed=0)
    assert culprit.label() in str(caught.value)
    assert "worker died 3 times" in str(caught.value)
    assert {one for one, failed in told.items() if failed} == {culprit}
    assert {one for one in TODO if store.get(one) is None} == {culprit}
    assert n_tries() == 1 + RETRIES


@linux
def test_a_killed_worker_of_the_command_costs_nothing(tmp_path, undisturbed):
    for i in range(5):  # where much else runs, a command may be done before it is looked at again
        out = tmp_path / f"out{i}"
        process = commands.start(*ARGUMENTS, "--out", out)
        try:
            assert commands.wait_until(lambda out=out: len(commands.stored(out)) >= 2, 300)
            workers_now = commands.workers_of(process)
            if workers_now:
                os.kill(random.Random(0).choice(workers_now), signal.SIGKILL)
            _, error = process.communicate(timeout=300)
        finally:
            commands.kill_all(process)
        if workers_now:
            break
    assert workers_now, "a worker was killed"
    assert process.returncode == 0
    assert error == "", "nothing of semaphores that the dead worker left"
    assert commands.products(out) == commands.products(undisturbed)


@pytest.mark.parametrize("n_stored", [0, 1, 5, 11])
def test_a_killed_command_starts_where_it_was(tmp_path, undisturbed, n_stored):
    out = tmp_path / "out"
    process = commands.start(*ARGUMENTS, "--out", out)
    try:
        assert commands.wait_until(lambda: len(commands.stored(out)) >= n_stored, 300)
    finally:
        commands.kill_all(process)
    before = commands.stored(out)
    again = commands.whole(*ARGUMENTS, "--out", out)
    assert again.returncode == 0
    assert f"{len(before)} are stored already" in again.out
    assert commands.products(out) == commands.products(undisturbed)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_term_and_ctrl_c_end_it_in_two_seconds_without_orphans(tmp_path, how, jobs):
    out = tmp_path / "out"
    process = commands.start("slow", "--seeds", "24", "--jobs", jobs, "--out", out)  # more than is done by then
    try:
        assert commands.wait_until(lambda: len(commands.stored(out)) >= 2, 300)
        process.send_signal(how)  # to the command alone: it has to end its workers
        begin = time.monotonic()
        _, error = process.communicate(timeout=60)
        took = time.monotonic() - begin
        assert process.returncode == 130
        assert "the same command goes on from there" in error
        assert "Traceback" not in error
        assert commands.wait_until(lambda: not commands.alive(process.pid), 10), "workers outlive the command"
        assert took < 20  # two seconds where nothing else runs
    finally:
        commands.kill_all(process)


def test_two_commands_in_one_folder_both_end_right(tmp_path, undisturbed):
    out = tmp_path / "out"
    both = [commands.start(*ARGUMENTS, "--out", out), commands.start("tiny", "other", "--seeds", "3", "--out", out)]
    for process in both:
        _, error = process.communicate(timeout=300)
        assert (process.returncode, error) == (0, "")
    rows = json.loads((out / "claims.json").read_text())
    assert {one["study"] for row in rows for one in row["contrasts"]} == {"tiny", "other"}, "slow has no contrast"
    assert json.loads((out / "provenance.json").read_text()).keys() == {"slow", "tiny", "other"}
    assert (out / "slow.csv").read_bytes() == (undisturbed / "slow.csv").read_bytes()


def test_the_same_command_twice_at_once(tmp_path, undisturbed):
    out = tmp_path / "out"
    both = [commands.start(*ARGUMENTS, "--out", out) for _ in range(2)]
    for process in both:
        _, error = process.communicate(timeout=300)
        assert (process.returncode, error) == (0, "")
    assert commands.products(out) == commands.products(undisturbed)


def test_a_damaged_run_is_set_aside_with_a_warning_and_done_again(tmp_path, undisturbed):
    out = tmp_path / "out"
    (out / "runs").mkdir(parents=True)
    for name, content in commands.stored(undisturbed).items():
        (out / "runs" / name).write_bytes(content)
    damaged = sorted(out.glob("runs/*.json"))[3]
    damaged.write_bytes(damaged.read_bytes()[:-20])
    done = commands.whole(*ARGUMENTS, "--out", out)
    assert done.returncode == 0
    assert f"warning: {damaged}{ASIDE}: a stored run was set aside, and is done again (not valid JSON" in done.out
    assert "11 are stored already, 1 to do" in done.out
    assert Path(f"{damaged}{ASIDE}").exists()
    assert commands.products(out) == commands.products(undisturbed)


def test_numbers_changed_by_hand_are_seen_said_and_done_again(tmp_path, undisturbed):
    out = tmp_path / "out"
    (out / "runs").mkdir(parents=True)
    for name, content in commands.stored(undisturbed).items():
        (out / "runs" / name).write_bytes(content)
    changed = sorted(out.glob("runs/*.json"))[3]
    stored = json.loads(changed.read_text())
    stored["validation_loss"][-1] -= 0.1
    changed.write_text(json.dumps(stored))
    done = commands.whole(*ARGUMENTS, "--out", out)
    assert done.returncode == 0
    assert f"{changed}{ASIDE}: a stored run was set aside, and is done again (sha256: the numbers are not" in done.out
    assert commands.products(out) == commands.products(undisturbed)


FULL = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))\n"


@pytest.mark.skipif(sys.platform == "win32", reason="limits the size of files")
@pytest.mark.parametrize("limit", [300, 2500])
def test_a_disk_that_is_full_ends_with_one_line_and_spoils_nothing(tmp_path, undisturbed, limit):
    """No file may grow beyond the limit: at once, or when the CSV is written."""
    out = tmp_path / "out"
    done = commands.whole("slow", "--seeds", "3", "--jobs", "1", "--out", out, before=FULL.format(limit))
    assert done.returncode == 1
    assert len(done.err.splitlines()) == 1, done.err
    assert done.err.startswith("error: ")
    assert re.match(rf"error: {out}/(runs/\w+\.json|slow\.\w+): File too large\n", done.err), "the file is named"
    kept = commands.stored(out)
    assert all(commands.stored(undisturbed)[name] == content for name, content in kept.items())
    assert not [path for path in out.rglob(".*") if path.is_file()], "no half-written files"
    assert commands.whole(*ARGUMENTS, "--out", out).returncode == 0
    assert commands.products(out) == commands.products(undisturbed)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 64 kB, where the system lets one be made."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if (
        sys.platform != "linux"
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True).returncode
    ):
        pytest.skip("needs the right to mount a small disk")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_disk_with_no_room_left(small_disk, undisturbed):
    out = small_disk / "out"
    done = commands.whole(*ARGUMENTS, "--out", out)
    assert done.returncode == 1
    assert len(done.err.splitlines()) == 1, done.err
    assert re.match(rf"error: {out}/\S+: No space left on device\n", done.err), done.err
    kept = commands.stored(out)
    assert kept, "there was room for some"
    assert all(commands.stored(undisturbed)[name] == content for name, content in kept.items())
    assert not list(small_disk.rglob(".*.partial"))
    subprocess.run(["mount", "-o", "remount,size=4m", small_disk], check=True)
    again = commands.whole(*ARGUMENTS, "--out", out)
    assert again.returncode == 0
    assert f"{len(kept)} are stored already" in again.out
    assert commands.products(out) == commands.products(undisturbed)


def test_what_a_killed_command_was_writing_goes_with_the_next_but_for_what_is_young(tmp_path):
    out = tmp_path / "out"
    (out / "runs").mkdir(parents=True)
    young, old, others = (out / "runs" / name for name in (".a.json.x.partial", ".b.json.y.partial", ".hidden"))
    for path in (young, old, others):
        path.write_text("half")
    for path in (old, others):
        os.utime(path, (0, 0))
    assert commands.whole("tiny", "--seeds", "2", "--jobs", "1", "--out", out).returncode == 0
    assert (young.exists(), old.exists(), others.exists()) == (True, False, True)


def test_a_changed_formula_reuses_nothing(tmp_path, monkeypatch):
    store = Store(tmp_path)
    run_all(TODO[:1], store, 1)
    assert store.get(TODO[0]) is not None
    monkeypatch.setattr("minilora.experiments.engine.store.code_version", lambda: "another formula")
    assert store.get(TODO[0]) is None


def test_a_folder_that_turns_read_only_is_a_line(tmp_path, monkeypatch, capsys):
    """Root may write anywhere, so the error is made here as the system would raise it."""
    monkeypatch.setattr(command, "load_studies", lambda: tiny.STUDIES)
    out = tmp_path / "out"

    def read_only(path, content):
        raise OSError(30, "Read-only file system", f"{path}.partial")

    monkeypatch.setattr("minilora.command_line.replace_file", read_only)
    assert command.main(["tiny", "--seeds", "2", "--jobs", "1", "--out", str(out)]) == 1
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert re.match(rf"error: {out}/runs/\w+\.json: Read-only file system\n", error)
