"""What all commands do alike: exit statuses, errors in a line, output that nobody reads, Ctrl-C, files."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path

import pytest

from minilora.command_line import (
    DONE,
    FAILED,
    INTERRUPTED,
    UNREAD,
    USAGE,
    Parser,
    UsageError,
    check_file,
    command,
    in_a_line,
    install,
    integer,
    write_file,
)

ROOT = Path(__file__).parents[1]
COMMANDS = {
    "experiments": ["-m", "minilora.experiments"],
    "recipe": ["-m", "minilora.experiments", "recipe"],
    "conformance": ["-m", "minilora.conformance"],
    "make_vectors": ["-m", "minilora.conformance.make_vectors"],
    "pretrain": ["-m", "minilora.data.pretrain"],
    "book": [str(ROOT / "tutorials" / "book.py")],
}
PRINTING = {name: [*parts, "--help"] for name, parts in COMMANDS.items()} | {
    "experiments --list": [*COMMANDS["experiments"], "--list"],
    "conformance --list": [*COMMANDS["conformance"], "--list"],
    "recipe --n-train": [*COMMANDS["recipe"], "--n-train", "300"],
}
posix = pytest.mark.skipif(sys.platform == "win32", reason="closes and fills streams as a shell does")

CALL = "from minilora.command_line import command\nraise SystemExit(command(lambda arguments: {})([]))"


def shell(line: str, arguments=(), **more) -> subprocess.CompletedProcess:
    """Run a line of sh in which "$@" is Python with these arguments."""
    return subprocess.run(["sh", "-c", line, "sh", sys.executable, *arguments], capture_output=True, text=True,
                          timeout=120, **more)  # fmt: skip


# --- where the output goes ---


@posix
@pytest.mark.parametrize("buffered", ["", "1"], ids=["buffered", "unbuffered"])
@pytest.mark.parametrize("name", PRINTING)
def test_a_reader_that_is_gone_ends_a_command_without_a_word(name, buffered):
    """As in `| head -1`; `true` reads nothing at all. The status is that of a process that SIGPIPE ends."""
    env = os.environ | {"PYTHONUNBUFFERED": buffered}
    done = shell('{ sleep 0.2; "$@"; echo $? >&2; } | true', PRINTING[name], env=env)
    assert done.stderr == f"{UNREAD}\n"


@posix
@pytest.mark.parametrize("name", PRINTING)
def test_a_closed_output_is_nobody_s_fault(name):
    done = shell('"$@" >&-', PRINTING[name])
    assert (done.returncode, done.stderr) == (DONE, "")
    done = shell('"$@" >&- 2>&-', PRINTING[name])
    assert (done.returncode, done.stderr) == (DONE, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="writes to a device that is always full")
@pytest.mark.parametrize("name", PRINTING)
def test_a_full_disk_behind_the_output_is_a_line(name):
    done = shell('"$@" >/dev/full', PRINTING[name])
    assert (done.returncode, done.stderr) == (FAILED, "error: standard output: No space left on device\n")


@posix
def test_a_file_opened_by_a_command_is_not_its_closed_output(tmp_path):
    program = (
        "from minilora.command_line import command\nraise SystemExit(command(lambda _: open('f', 'w').fileno())([]))"
    )
    done = shell('"$@" >&-', ["-c", program], cwd=tmp_path)
    assert done.returncode > 2


# --- errors and statuses ---


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("option", ["--no-such-option", "--out"])
def test_bad_usage_is_one_line_and_status_2_in_every_command(name, option):
    done = subprocess.run([sys.executable, *COMMANDS[name], option], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (USAGE, "")
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert "--" in done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_names_the_statuses(name):
    done = subprocess.run([sys.executable, *COMMANDS[name], "--help"], capture_output=True, text=True, timeout=60)
    text = " ".join(done.stdout.split())
    assert done.returncode == DONE
    assert "Exit status: 0 done, 1 " in text
    assert "2 bad usage, 130 interrupted, 141 nobody read what was printed." in text


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UsageError("--n: no"), USAGE, "error: --n: no"),
        (ImportError("needs x"), USAGE, "error: needs x"),
        (ValueError("a\n  b"), FAILED, "error: a b"),
        (OSError(28, "No space left on device", "a.csv"), FAILED, "error: a.csv: No space left on device"),
        (OSError(28, "No space left on device"), FAILED, "error: No space left on device"),
        (BrokenPipeError(32, "Broken pipe"), FAILED, "error: Broken pipe"),  # a socket's: the output is whole
        (KeyboardInterrupt(), INTERRUPTED, "interrupted"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_each_error_has_its_status_and_one_line(error, status, line, capsys):
    @command
    def main(arguments):
        raise error

    assert main([]) == status
    assert capsys.readouterr().err == f"{line}\n"


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        command(lambda arguments: 1 / 0)([])


def test_names_of_files_may_have_any_bytes():
    env = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run([sys.executable, "-c", CALL.format("print('\\udcff') or 0")], capture_output=True, text=True,
                          timeout=60, env=env)  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (DONE, "\\udcff\n", "")


@pytest.mark.parametrize("text", ["0", "-1", "x", "1.5", "", "²", "1_0", " 1", "9" * 5000, "1000000001"])
def test_an_integer_is_checked_by_its_text(text):
    parser = Parser("prog", "", failed="it did")
    parser.add_argument("--n", type=integer(1))
    with pytest.raises(UsageError, match=r"^--n: got '.*', takes an integer of at (least 1|most 1000000000) "):
        parser.parse_args([f"--n={text}"])


@pytest.mark.parametrize("error", [TimeoutError(), ValueError(" \n"), KeyError()])
def test_an_error_that_says_nothing_is_named_by_its_kind(error):
    assert in_a_line(error) == type(error).__name__


def test_what_to_install_works_from_a_clone():
    """minilora is on no index, so that `pip install 'minilora[...]'` finds nothing, or somebody else's package."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert install("cluster") == 'in a clone of minilora, pip install -e ".[cluster]"'
    named = set()
    for source in [*(ROOT / "minilora").rglob("*.py"), ROOT / "tutorials" / "book.py"]:
        text = source.read_text(encoding="utf-8")
        named |= set(re.findall(r"\binstall\(['\"](\w+)['\"]", text))
        assert "'minilora[" not in text, source
    assert named <= extras.keys()
    assert named >= {"cluster", "peers", "search", "tutorials"}


# --- Ctrl-C ---


def _send(signals, pauses):
    for one, pause in zip(signals, pauses, strict=True):
        time.sleep(pause)
        os.kill(os.getpid(), one)


@posix
@pytest.mark.parametrize("one", [signal.SIGINT, signal.SIGTERM])
def test_a_second_ctrl_c_while_it_ends_changes_nothing(one, capsys):
    before = [signal.getsignal(sent) for sent in (signal.SIGINT, signal.SIGTERM)]
    cleaned = []

    @command
    def main(arguments):
        try:
            time.sleep(30)
        finally:
            time.sleep(0.3)
            cleaned.append(True)
        return DONE

    signal.signal(signal.SIGINT, signal.default_int_handler)  # where the tests run in the background it is ignored
    threading.Thread(target=_send, args=([one, one], [0.1, 0.1])).start()
    assert main([]) == INTERRUPTED
    assert cleaned == [True]
    assert capsys.readouterr().err == "interrupted\n"
    signal.signal(signal.SIGINT, before[0])
    assert [signal.getsignal(sent) for sent in (signal.SIGINT, signal.SIGTERM)] == before


@posix
def test_what_ctrl_c_broke_off_is_an_interruption_and_no_error(capsys):
    """As an import that turns it into an ImportError."""

    @command
    def main(arguments):
        try:
            time.sleep(30)
        except KeyboardInterrupt:
            raise ImportError("numpy: initialization failed") from None

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_send, args=([signal.SIGINT], [0.1])).start()
    assert main([]) == INTERRUPTED
    assert capsys.readouterr().err == "interrupted\n"
    signal.signal(signal.SIGINT, before)


# --- files ---


def test_a_file_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    """A full disk names no file, a folder that may not be written to names the one beside the target."""
    for filename in (None, "beside.partial"):

        def full(path, content, filename=filename):
            raise OSError(28, "No space left on device", filename)

        monkeypatch.setattr("minilora.command_line.replace_file", full)
        with pytest.raises(OSError, match="No space left") as caught:
            write_file(tmp_path / "a.csv", "")
        assert in_a_line(caught.value) == f"{tmp_path / 'a.csv'}: No space left on device"


def test_what_is_no_file_is_not_replaced_by_one(tmp_path):
    check_file("--json", tmp_path / "new" / "table.json")
    with pytest.raises(UsageError, match=f"--json: {tmp_path} is a folder, takes a file"):
        check_file("--json", tmp_path)
    if Path("/dev/null").exists():
        with pytest.raises(UsageError, match="--json: /dev/null is a device, takes a file"):
            check_file("--json", Path("/dev/null"))
