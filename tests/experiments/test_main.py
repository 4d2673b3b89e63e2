"""The command: what it prints, writes and returns, and that it can be stopped and started again."""

import contextlib
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minilora.experiments import __main__ as command
from minilora.experiments.engine import runner
from minilora.experiments.engine.store import Store
from minilora.experiments.studies import load_studies

from . import commands, tiny

TESTS = Path(__file__).parents[1]


@pytest.fixture
def executed(monkeypatch):
    """The settings of every run that is done from here on, in this process."""
    seen, execute = [], runner.execute
    monkeypatch.setattr(runner, "execute", lambda stack: seen.extend(stack) or execute(stack))
    return seen


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def run(monkeypatch, out):
    """Call the command on the tiny studies; its exit status."""
    monkeypatch.setattr(command, "load_studies", lambda: tiny.STUDIES)

    def call(*arguments, jobs=1):
        try:
            return command.main([*arguments, "--jobs", str(jobs), "--out", str(out)])
        except SystemExit as error:  # argparse leaves like this
            return error.code

    return call


def _files(out: Path, *, but=("provenance.json",)) -> dict[str, bytes]:
    """Everything below a folder, except what names the time it took."""
    return {str(path.relative_to(out)): path.read_bytes()
            for path in sorted(out.rglob("*")) if path.is_file() and path.name not in but}  # fmt: skip


# --- usage ---


def test_the_list_names_every_shipped_study(capsys):
    assert command.main(["--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for line, (name, study) in zip(lines, load_studies().items(), strict=True):
        assert line.split()[0] == name
        assert f"{len(study.runs(range(8)))} runs" in line
        assert study.question in line
        assert all(contrast.claim in line for contrast in study.contrasts)


def test_the_list_counts_what_was_asked_for(run, capsys, out):
    assert run("--list", "tiny", "--seeds", "3") == 0
    assert "6 runs" in capsys.readouterr().out
    assert run("--list", "tiny", "--seeds", "3", "--quick") == 0
    assert "3 runs" in capsys.readouterr().out
    assert not out.exists()


def test_no_names_are_the_headline_studies_and_all_is_all():
    assert [study.name for study in command.choose([])] == ["rank", "planted_rank", "alpha", "dropout"]
    assert [study.name for study in command.choose(["all", "rank"])] == list(load_studies())
    assert [study.name for study in command.choose(["alpha", "rank", "alpha"])] == ["alpha", "rank"]


@pytest.mark.parametrize("arguments", [["tinny"], ["tiny", "tinny"], ["all", "tinny"], ["--list", "tinny"]], ids=str)
def test_an_unknown_study_is_bad_usage_and_the_nearest_is_named(run, capsys, arguments, out):
    assert run(*arguments) == 2
    shown = capsys.readouterr()
    assert "unknown study 'tinny' (did you mean 'tiny'?)" in shown.err
    assert "other" in shown.err, "and what there is"
    assert len(shown.err.splitlines()) == 1
    assert shown.out == ""
    assert not out.exists()


@pytest.mark.parametrize("option", ["--seeds", "--jobs"])
@pytest.mark.parametrize("value", ["0", "-1", "x", "1.5", "", "²"])
def test_counts_are_at_least_one(run, capsys, option, value, out):
    assert run("tiny", f"{option}={value}") == 2
    error = capsys.readouterr().err
    assert option in error
    assert repr(value) in error
    assert "at least 1" in error
    assert not out.exists()


@pytest.mark.parametrize("below", ["", "/folder", "/a/b"])
def test_a_folder_that_cannot_be_written_is_bad_usage(run, capsys, out, below):
    out.write_text("a file")
    assert command.main(["tiny", "--out", f"{out}{below}"]) == 2
    shown = capsys.readouterr()
    assert len(shown.err.splitlines()) == 1
    assert f"--out: cannot write to {out}{below}" in shown.err
    assert shown.out == ""
    assert out.read_text() == "a file"


def test_a_check_needs_something_to_compare_with(run, capsys, out):
    assert run("tiny", "--check") == 2
    assert "nothing to compare with" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("arguments", [["--list"], ["rank", "--quick"], ["rank", "--check"]], ids=str)
def test_an_unknown_backend_of_matplotlib_is_named_as_what_it_is(tmp_path, arguments):
    done = subprocess.run([sys.executable, "-m", "minilora.experiments", *arguments, "--out", str(tmp_path / "out")],
                          capture_output=True, text=True, env=os.environ | {"MPLBACKEND": "zzz"})  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: MPLBACKEND: got 'zzz', takes a backend of matplotlib, or nothing: figures are drawn without one\n"
    )
    assert not (tmp_path / "out").exists()


def test_a_matplotlib_that_does_not_load_is_not_a_study_s_fault(run, capsys, monkeypatch):
    class Broken:
        def find_spec(self, name, path=None, target=None):
            if name == "matplotlib":
                raise OSError("libfreetype.so: cannot open shared object file")

    monkeypatch.delitem(sys.modules, "matplotlib")
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    assert run("tiny") == 2
    assert capsys.readouterr().err == (
        "error: matplotlib cannot be imported: libfreetype.so: cannot open shared object file\n"
    )


@pytest.mark.parametrize("raised", [OSError(2, "No such file", "names.txt"), ValueError("names.txt: empty")])
def test_what_fails_while_studies_are_prepared_is_not_said_of_out(run, capsys, monkeypatch, raised):
    def broken():
        raise raised

    monkeypatch.setattr(command, "load_studies", broken)
    assert run("tiny") == 1
    error = capsys.readouterr().err
    assert error.startswith("error: names.txt: ")
    assert "--out" not in error


# --- running ---


def test_a_run_writes_its_files_and_says_what_it_found(run, out, capsys):
    assert run("tiny", "other", "--seeds", "2") == 0
    assert {path.name for path in out.iterdir()} == {
        "tiny.svg", "tiny.csv", "other.svg", "other.csv", "claims.json", "CLAIMS.md", "provenance.json",
        "samples.json", "overview.svg", "runs",
    }  # fmt: skip
    assert len(list((out / "runs").glob("*.json"))) == 6
    rows = json.loads((out / "claims.json").read_text())
    assert [row["id"] for row in rows] == ["R1", "R2", "A1"]
    assert all(row["command"].endswith(f"{row['study']} --seeds 2") for row in rows)
    shown = capsys.readouterr()
    assert "6 runs in 2 studies; 0 are stored already, 6 to do" in shown.out
    for row in rows:
        assert row["statement"] in shown.out
        assert row["verdict"] in shown.out
    assert str(out / "tiny.svg") in shown.out
    assert shown.err == ""


def test_a_quick_version_says_so_in_its_command(run, out):
    assert run("tiny", "--seeds", "1", "--quick") == 0
    (row,) = json.loads((out / "claims.json").read_text())
    assert row["command"].endswith("tiny --quick --seeds 1")


def test_a_second_run_does_nothing_again_and_leaves_the_same_bytes(run, out, capsys, executed):
    assert run("tiny", "--seeds", "2") == 0
    assert len(executed) == 4
    before = _files(out)
    capsys.readouterr()
    assert run("tiny", "--seeds", "2") == 0
    assert len(executed) == 4
    assert "4 are stored already, 0 to do" in capsys.readouterr().out
    assert _files(out) == before


def test_more_seeds_do_only_the_new_ones(run, executed):
    run("tiny", "--seeds", "1")
    run("tiny", "--seeds", "2")
    assert [settings.seed for settings in executed] == [0, 0, 1, 1]


def test_fresh_does_the_asked_for_runs_again(run, out, executed):
    run("tiny", "other", "--seeds", "1")
    before = _files(out)
    assert run("tiny", "--seeds", "1", "--fresh") == 0
    assert [settings.r for settings in executed] == [1, 2, 3, 1, 2], "those of the other study stay"
    assert _files(out) == before


def test_the_number_of_processes_does_not_change_a_byte(run, out, monkeypatch):
    """Two processes in another folder; what they write differs in the seconds it took alone."""
    assert run("tiny", "other", "--seeds", "2") == 0
    one, provenance = _files(out), json.loads((out / "provenance.json").read_text())
    out.rename(out.with_name("one"))
    assert run("tiny", "other", "--seeds", "2", jobs=2) == 0
    assert _files(out) == one
    for name, other in json.loads((out / "provenance.json").read_text()).items():
        assert other | {"seconds": 0} == provenance[name] | {"seconds": 0}


def test_a_failing_run_fails_its_study_and_not_the_others(run, out, capsys):
    assert run("bad", "tiny", "--seeds", "1") == 1
    shown = capsys.readouterr()
    assert "no_such_module" in shown.out + shown.err
    assert "1 of 2 runs failed" in shown.out + shown.err
    assert "Traceback" not in shown.out + shown.err
    names = {path.name for path in out.iterdir()}
    assert names >= {"tiny.svg", "tiny.csv", "claims.json"}
    assert not names & {"bad.svg", "bad.csv"}
    assert len(list((out / "runs").glob("*.json"))) == 3, "the study's other run is stored"


def _broken(*arguments):
    raise RuntimeError("no such\naxes")


@pytest.mark.parametrize("part", ["draw", "measure"])
def test_a_study_s_own_functions_fail_it_by_its_name_and_not_the_others(run, out, capsys, monkeypatch, part):
    """Found when its runs are done: they are stored, none of its files is written, and the next study has its turn."""
    if part == "draw":
        broken, says = dataclasses.replace(tiny.TINY, draw=_broken), "study tiny: draw: RuntimeError: no such axes;"
    else:
        contrast = dataclasses.replace(tiny.EXACT, measure=_broken)
        broken = dataclasses.replace(tiny.TINY, contrasts=[contrast])
        says = "study tiny: R1: measure: RuntimeError: no such axes;"
        monkeypatch.setattr(command, "rehearse", lambda study: None)
    monkeypatch.setattr(command, "load_studies", lambda: tiny.STUDIES | {"tiny": broken})
    assert run("tiny", "other", "--seeds", "2") == 1
    shown = capsys.readouterr()
    assert f"{says} its runs are stored, its files as they were" in shown.out
    assert "Traceback" not in shown.out + shown.err
    assert {path.name for path in out.iterdir() if path.name.startswith(("tiny", "other"))} == {
        "other.csv",
        "other.svg",
    }
    assert len(list((out / "runs").glob("*.json"))) == 6


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of the runs that overflow; the command ignores them too
def test_a_diverging_run_is_told_and_its_study_is_drawn(run, out, capsys):
    assert run("diverging", "--seeds", "8") == 0
    assert "16 runs, 8 diverged" in capsys.readouterr().out
    (row,) = json.loads((out / "claims.json").read_text())
    assert (row["effect"], row["interval"], row["verdict"]) == (None, [None, None], "inconclusive")
    assert len(json.loads((out / "provenance.json").read_text())["diverging"]["diverged"]) == 8
    assert (out / "diverging.svg").exists()


def test_a_ledger_that_cannot_be_read_is_told_in_a_line(run, out, capsys):
    out.mkdir()
    (out / "claims.json").write_text("[")
    assert run("tiny", "--seeds", "1") == 1
    assert "claims.json: not valid JSON" in capsys.readouterr().err


# --- --check ---


def test_a_check_of_the_same_numbers_is_0_and_writes_nothing(run, out, capsys, executed):
    run("tiny", "--seeds", "2")
    before = _files(out, but=())
    assert run("tiny", "--seeds", "2", "--check") == 0
    assert len(executed) == 8, "from scratch"
    assert "same   tiny: identical bit for bit" in capsys.readouterr().out
    assert _files(out, but=()) == before


def test_a_check_of_other_numbers_is_1_and_writes_nothing(run, out, capsys):
    run("tiny", "other", "--seeds", "2")
    text = (out / "tiny.csv").read_text()
    (out / "tiny.csv").write_text(text.replace("2.3", "2.4", 1))
    before = _files(out, but=())
    assert run("tiny", "other", "--seeds", "2", "--check") == 1
    shown = capsys.readouterr().out
    assert "DIFFERS tiny: differs: by up to 0.1 nats" in shown
    assert "same   other" in shown
    assert _files(out, but=()) == before


def test_a_check_of_other_seeds_says_that_runs_are_missing(run, capsys):
    run("tiny", "--seeds", "2")
    assert run("tiny", "--seeds", "1", "--check") == 1
    assert "2 stored runs were not done again" in capsys.readouterr().out


# --- stopping and starting again ---


def _interrupt_at(monkeypatch, place: int):
    """Ctrl-C during the run at this place."""
    done, execute = [], runner.execute

    def interrupted(stack):
        done.extend(stack)
        if len(done) > place:
            raise KeyboardInterrupt
        return execute(stack)

    monkeypatch.setattr(runner, "execute", interrupted)


@pytest.mark.parametrize("place", [0, 1, 3])
def test_interrupted_and_started_again(run, out, monkeypatch, capsys, place, executed):
    with monkeypatch.context() as patch:
        _interrupt_at(patch, place)
        assert run("tiny", "--seeds", "2") == 130
    error = capsys.readouterr().err
    assert str(out / "runs") in error
    assert "the same command goes on from there" in error
    assert len(executed) == place
    assert run("tiny", "--seeds", "2") == 0
    assert len(executed) == 4
    assert f"{place} are stored already, {4 - place} to do" in capsys.readouterr().out
    files = _files(out)
    assert {"tiny.svg", "tiny.csv", "claims.json"} <= files.keys()
    assert not [name for name in files if Path(name).name.startswith(".")], "no half-written files"


def test_interrupted_while_doing_runs_anew(run, monkeypatch, capsys, executed):
    """--fresh replaces a stored run when its new result is there, so that nothing is lost on the way."""
    run("tiny", "--seeds", "2")
    with monkeypatch.context() as patch:
        _interrupt_at(patch, 2)
        assert run("tiny", "--seeds", "2", "--fresh") == 130
    n_before, error = len(executed), capsys.readouterr().err
    assert "interrupted" in error
    assert "without --fresh" in error
    assert run("tiny", "--seeds", "2") == 0
    assert len(executed) == n_before


def test_an_interrupted_check_says_that_it_starts_again(run, out, monkeypatch, capsys):
    run("tiny", "--seeds", "1")
    before = _files(out, but=())
    _interrupt_at(monkeypatch, 1)
    assert run("tiny", "--seeds", "1", "--check") == 130
    assert "the same command starts again" in capsys.readouterr().err
    assert _files(out, but=()) == before


SLOW_COMMAND = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # where the tests run in the background it is ignored
from experiments import tiny
from minilora.experiments import __main__ as command
command.load_studies = lambda: tiny.STUDIES
sys.exit(command.main(sys.argv[1:]))
"""


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _wait_until(condition, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.parametrize("jobs", [1, 2])
def test_ctrl_c_in_a_terminal(run, out, capsys, executed, jobs):
    """As a terminal sends it: to the command and its workers alike. It has more to do than it can have done by then."""
    arguments = ["slow", "--seeds", "24", "--jobs", str(jobs), "--out", str(out)]
    process = subprocess.Popen([sys.executable, "-c", SLOW_COMMAND, *arguments], cwd=TESTS, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)  # fmt: skip
    try:
        assert _wait_until(lambda: len(list(out.glob("runs/[!.]*"))) >= 3, seconds=300)
        os.killpg(process.pid, signal.SIGINT)
        _, error = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "the same command goes on from there" in error
        assert "Traceback" not in error
        assert _wait_until(lambda: not _alive(process.pid), seconds=10), "workers outlive the command"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert 3 <= len(list(out.glob("runs/*.json"))) < 96
    assert not (out / "slow.csv").exists()
    missing = [one for one in tiny.SLOW.runs(range(4)) if Store(out / "runs").get(one) is None]
    assert run("slow", "--seeds", "4") == 0
    assert sorted(executed, key=str) == sorted(missing, key=str), "only what was missing"
    assert {"slow.svg", "slow.csv", "claims.json", "CLAIMS.md", "provenance.json"} <= {p.name for p in out.iterdir()}


@pytest.mark.parametrize("held", [True, False])
def test_a_blas_that_cannot_be_held_is_a_line(run, capsys, monkeypatch, held):
    monkeypatch.setattr(command, "blas_can_be_held", lambda: held)
    assert run("tiny", "--seeds", "2") == 0
    expected = "warning: no BLAS that can be held to one thread: slower, and the last bits may be others"
    assert [line for line in capsys.readouterr().out.splitlines() if "BLAS" in line] == [expected] * (not held)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a terminal of its own")
@pytest.mark.parametrize(
    ("n_files", "press"),
    [
        pytest.param(
            -1, b"\x03", marks=pytest.mark.xfail(strict=False, reason="seldom, loky's tracker warns as it starts")
        ),
        (0, b"\x03"),
        (1, b"\x03"),
        (4, b"\x03\x03\x03"),
    ],
    ids=["at once", "before the first run", "after it", "three times"],
)
def test_ctrl_c_at_a_terminal_is_one_line(out, n_files, press):
    """Whatever the workers do then, as importing; and nothing of semaphores that they leave."""
    begin = time.monotonic()

    def when():
        if n_files <= 0:
            return (out / "runs").exists() and time.monotonic() - begin > 0.4 * (n_files + 1)
        return len(commands.stored(out)) >= n_files

    status, shown = commands.at_a_terminal("slow", "--seeds", "4", "--jobs", "2", "--out", out, when=when, press=press)
    assert status == 130
    lines = [line for line in re.sub(r"(\^C|\x1b\[\w)", "", shown).split("\n") if line.strip() and "\r" not in line]
    assert lines == [
        f"interrupted: every finished run is stored in {out / 'runs'}; the same command goes on from there"
    ]


@pytest.mark.skipif(sys.platform == "win32", reason="closes a pipe")
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_reader_that_goes_away_ends_a_long_command_and_its_workers_without_a_word(out, jobs):
    process = commands.start("slow", "tiny", "other", "--seeds", "2", "--jobs", jobs, "--out", out)
    try:
        assert process.stdout.readline().startswith("14 runs in 3 studies")
        process.stdout.close()  # as `head -1` does
        assert process.wait(timeout=60) == 141
        assert process.stderr.read() == ""
        assert _wait_until(lambda: not _alive(process.pid), seconds=10), "workers outlive the command"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.stderr.close()
    assert len(commands.stored(out)) >= 8, "what was done is kept"


def test_the_command_itself(tmp_path):
    """As one types it: seven short runs."""
    arguments = ["rank", "--quick", "--seeds", "1", "--jobs", "1", "--out", str(tmp_path)]
    done = subprocess.run([sys.executable, "-m", "minilora.experiments", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert {path.name for path in tmp_path.iterdir()} >= {"rank.svg", "rank.csv", "claims.json", "CLAIMS.md"}
    for row in json.loads((tmp_path / "claims.json").read_text()):
        assert row["command"] == "python -m minilora.experiments rank --quick --seeds 1"
        assert row["verdict"] == ("supported" if row["exact"] else "inconclusive")
    assert "Below 8 seeds" in done.stdout
