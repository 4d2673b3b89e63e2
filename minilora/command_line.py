"""What all commands share: exit statuses, errors in one line, Ctrl-C, output that nobody reads, what to install.

A command is `main`, decorated with `@command`, and at the end of its module

    if __name__ == "__main__":
        leave(main())
"""

import argparse
import contextlib
import functools
import io
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from minilora.files import check_writable, replace_file

DONE, FAILED, USAGE, INTERRUPTED, UNREAD = 0, 1, 2, 130, 141  # the last two are 128 + SIGINT, 128 + SIGPIPE
ENDING = 5.0  # seconds in which a command that was interrupted is gone, and a second Ctrl-C changes nothing


class UsageError(ValueError):
    """What was asked for makes no sense; the message names the option and says what would."""


class Interruption(KeyboardInterrupt):
    """Ctrl-C, or SIGTERM. After a plain KeyboardInterrupt within exec(), Python ends by the signal, not by a status."""


class Parser(argparse.ArgumentParser):
    """Options, whose errors are UsageErrors, and whose help ends with the exit statuses."""

    def __init__(self, prog: str, description: str, failed: str):
        """`failed` says in words what exit status 1 means."""
        super().__init__(
            prog=prog,
            description=description,
            epilog=f"Exit status: {DONE} done, {FAILED} {failed}, {USAGE} bad usage, {INTERRUPTED} interrupted, "
            f"{UNREAD} nobody read what was printed.",
        )

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message.removeprefix('argument ')} ({self.prog} --help says more)")


def integer(at_least: int, at_most: int = 10**9) -> Callable[[str], int]:
    """A type for options: an integer within bounds."""

    def convert(text: str) -> int:
        if not re.fullmatch("-?[0-9]+", text) or (len(text) < 20 and int(text) < at_least):
            raise argparse.ArgumentTypeError(f"got {text!r}, takes an integer of at least {at_least}")
        if len(text) >= 20 or int(text) > at_most:
            raise argparse.ArgumentTypeError(f"got {text!r}, takes an integer of at most {at_most}")
        return int(text)

    return convert


def install(extra: str, before: str = "") -> str:
    """How to get what an extra of minilora needs. minilora is on no index, so it is installed from its folder.

    >>> print(install("search"))
    in a clone of minilora, pip install -e ".[search]"
    """
    return f'in a clone of minilora, {before}pip install -e ".[{extra}]"'


def in_a_line(error: BaseException) -> str:
    """What an error says, in one line; an OSError's file before its reason.

    >>> in_a_line(FileNotFoundError(2, "No such file or directory", "a.csv")), in_a_line(TimeoutError())
    ('a.csv: No such file or directory', 'TimeoutError')
    """
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(text.split()) or type(error).__name__


def write_file(path: str | os.PathLike, content: bytes | str) -> None:
    """`replace_file`, with an OSError that names this file: on a full disk the system names none."""
    try:
        replace_file(path, content)
    except OSError as error:
        if error.errno is None:
            raise
        raise type(error)(error.errno, error.strerror, str(Path(path))) from None


def check_file(option: str, path: Path) -> None:
    """UsageError for a file to be written that cannot be; what is there and is no file, as /dev/stdout, stays."""
    if path.exists() and not path.is_file():
        raise UsageError(f"{option}: {path} is {'a folder' if path.is_dir() else 'a device'}, takes a file")
    check_folder(option, path.parent)


def check_folder(option: str, path: Path) -> None:
    """UsageError for a folder to be written to that cannot be."""
    try:
        check_writable(path)
    except OSError as error:
        raise UsageError(f"{option}: {error.strerror}") from error


def complain(text: str) -> None:
    """A line on stderr, if anybody is there to read it."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        _lead_nowhere(sys.stderr)


class Output:
    """stdout, which remembers why it took nothing more: a full disk, or a reader that is gone."""

    def __init__(self, stream: Any):
        self.stream = stream
        self.lost: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        return self._do(self.stream.write, text)

    def flush(self) -> None:
        self._do(self.stream.flush)

    def _do(self, function, *arguments) -> Any:
        try:
            return function(*arguments)
        except OSError as error:
            self.lost = self.lost or error
            raise


def command(main: Callable[[list[str]], int]) -> Callable[..., int]:
    """Make `main(arguments)` a command: it returns its exit status and raises nothing that a user can cause.

    Where the reader of its output is gone, as in `| head -1`, it stops without a word and with status 141.
    """

    @functools.wraps(main)
    def whole(arguments: Sequence[str] | None = None) -> int:
        _open_streams()
        output = Output(sys.stdout)
        with contextlib.redirect_stdout(output), _one_interruption() as heard:  # type: ignore[type-var]
            status = _status(main, list(sys.argv[1:] if arguments is None else arguments), output, heard)
        if output.lost is None:
            return status
        _lead_nowhere(output.stream)
        if isinstance(output.lost, BrokenPipeError):
            return UNREAD
        complain(f"error: standard output: {in_a_line(output.lost)}")
        return FAILED

    return whole


def _status(main: Callable[[list[str]], int], arguments: list[str], output: Output, heard: Callable[[], bool]) -> int:
    """What it returns, or what its error means, told in a line."""
    try:
        try:
            return main(arguments)
        except Exception as error:
            if heard():  # an import that Ctrl-C broke off, or what caught it
                raise Interruption from error
            raise
        finally:
            output.flush()
    except SystemExit as left:  # argparse, after --help
        return left.code if isinstance(left.code, int) else DONE
    except KeyboardInterrupt:
        complain("interrupted")
        return INTERRUPTED
    except (UsageError, ImportError) as error:
        complain(f"error: {in_a_line(error)}")
        return USAGE
    except (OSError, ValueError) as error:
        if output.lost is None:
            complain(f"error: {in_a_line(error)}")
        return FAILED


def _lead_nowhere(stream: Any) -> None:
    """What a stream still holds would be tried again at Python's end, and complained of there."""
    with contextlib.suppress(OSError):  # a stream without a file
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _open_streams() -> None:
    """Streams that whoever started the command has closed (`>&-`) lead nowhere; file names may have any bytes."""
    if None in (sys.stdin, sys.stdout, sys.stderr):
        while (handle := os.open(os.devnull, os.O_RDWR)) < 3:  # else the next file that is opened would be stdout
            os.set_inheritable(handle, True)
        os.close(handle)
        sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
        sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def _one_interruption():
    """SIGTERM ends a command as Ctrl-C does; those that follow while it ends do nothing. Yields whether one came."""
    last = float("-inf")

    def interrupt(*_) -> None:
        nonlocal last
        before, last = last, time.monotonic()
        if last - before >= ENDING:
            raise Interruption

    found = {}
    with contextlib.suppress(ValueError):  # not in the main thread
        for one in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(one) is not signal.SIG_IGN:  # as in the background, where Ctrl-C is for others
                found[one] = signal.signal(one, interrupt)
    try:
        yield lambda: time.monotonic() - last < ENDING
    finally:
        for one, handler in found.items():
            signal.signal(one, handler or signal.SIG_DFL)


def leave(status: int) -> NoReturn:
    """Leave the process; from here on Ctrl-C is too late."""
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, signal.SIG_IGN)
    sys.exit(status)
