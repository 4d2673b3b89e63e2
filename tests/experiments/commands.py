"""The command on the tiny studies in a process of its own, to be killed, stopped and raced."""

import hashlib
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

TESTS = Path(__file__).parents[1]
PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # where the tests run in the background it is ignored
from experiments import tiny
from minilora.command_line import leave
from minilora.experiments import __main__ as command
command.load_studies = lambda: tiny.STUDIES
leave(command.main(sys.argv[1:]))
"""


def start(*arguments, before: str = "", **more) -> subprocess.Popen:
    """Begin the command; `before` is Python to run first."""
    return subprocess.Popen([sys.executable, "-c", before + PROGRAM, *map(str, arguments)], cwd=TESTS, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, **more)  # fmt: skip


def at_a_terminal(*arguments, when, press=b"\x03") -> tuple[int, str]:
    """Run the command at a terminal, and press Ctrl-C once `when()` holds: (exit status, what is shown after).

    The terminal sends SIGINT to the command and all its workers. A shell keeps it open for those that outlive it.
    """
    import pty

    process, terminal = pty.fork()
    if process == 0:
        os.chdir(TESTS)
        shell = 'trap : INT; "$@"; status=$?; sleep 0.7; exit $status'
        os.execvp("sh", ["sh", "-c", shell, "sh", sys.executable, "-c", PROGRAM, *map(str, arguments)])
    shown, pressed, begin = b"", -1, time.monotonic()
    while time.monotonic() - begin < 120:
        if select.select([terminal], [], [], 0.01)[0]:
            try:
                shown += os.read(terminal, 65536)
            except OSError:  # nobody has it open any more
                break
        if pressed < 0 and when():
            pressed = len(shown)
            for i in range(len(press)):
                time.sleep(0.05 * bool(i))
                os.write(terminal, press[i : i + 1])
    os.close(terminal)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return status, shown[pressed:].decode().replace("\r\n", "\n")


def whole(*arguments, **more) -> subprocess.Popen:
    """Run the command to its end; stdout and stderr are in `.out` and `.err`."""
    process = start(*arguments, **more)
    process.out, process.err = process.communicate(timeout=300)  # type: ignore[attr-defined]
    return process


def stored(out: Path) -> dict[str, bytes]:
    """Finished runs by file name."""
    return {path.name: path.read_bytes() for path in sorted(out.glob("runs/*.json"))}


def products(out: Path) -> dict[str, str]:
    """Hashes of all that a command leaves but what holds the time it took."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.iterdir())
        if path.is_file() and path.name != "provenance.json"
    } | {name: hashlib.sha256(content).hexdigest() for name, content in stored(out).items()}


def alive(group: int) -> bool:
    """Whether any process of that group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(condition, seconds: float) -> bool:
    """Whether it came to hold in that time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def workers_of(process: subprocess.Popen) -> list[int]:
    """Process ids of the group but for its first."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            _, _, rest = path.read_text().rpartition(")")
        except OSError:
            continue
        fields = rest.split()  # state, parent, group, ...
        command = (path.parent / "cmdline").read_bytes() if path.parent.exists() else b""
        if int(fields[2]) == process.pid and int(path.parent.name) != process.pid and b"popen_loky" in command:
            found.append(int(path.parent.name))
    return found


def kill_all(process: subprocess.Popen) -> None:
    """kill -9 to the whole group."""
    if alive(process.pid):
        os.killpg(process.pid, signal.SIGKILL)
    if process.returncode is None:
        process.communicate()  # waits, and closes the pipes
