"""Writing files so that a reader never sees half of one: beside their target, then moved into place."""

import contextlib
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from minilora.checks import check_kind

PARTIAL = ".partial"  # ends the names of files that are being written
ABANDONED = 600.0  # seconds after which one of those is nobody's any more; writing takes milliseconds


def replace_file(path: str | os.PathLike, content: bytes | str) -> None:
    """Write the file whole or not at all. Its folder is made if need be; what was there stays until the move."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PARTIAL)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # so that the move never comes before the content
        os.chmod(beside, 0o666 & ~_umask())  # mkstemp's files are private
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):  # moved already
            os.unlink(beside)
        raise


def check_folder(name: str, folder: Any) -> Path:
    """The folder as a Path. TypeError for what is no path, NotADirectoryError for a file."""
    check_kind(name, folder, (str, os.PathLike), "the path of a folder")
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"{name}: got {str(path)!r}, which is a file, takes a folder")
    return path


def remove_abandoned(folder: str | os.PathLike) -> None:
    """Remove what a command that was killed while it wrote left beside its targets in a folder."""
    for path in Path(folder).glob(f".*{PARTIAL}"):
        with contextlib.suppress(OSError):  # another command removed it, or it cannot be removed
            if time.time() - path.stat().st_mtime > ABANDONED:
                path.unlink()


def _umask() -> int:
    """The bits that new files lack; it can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def to_json(value: Any) -> str:
    """JSON as minilora writes it: indented, with a final newline, NaN refused."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """A JSON object from a file; ValueError that names the file if it is anything else."""
    try:
        value = from_json(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: got a JSON {type(value).__name__}, takes an object")
    return value


def from_json(text: str) -> Any:
    """The value of a JSON text; ValueError if it is not valid, too deep, has NaN, infinities or a key twice."""

    def refuse(constant):
        raise ValueError(f"{constant} is not JSON")

    def once(pairs):
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a key stands twice in one object")
        return found

    try:
        return json.loads(text, parse_constant=refuse, object_pairs_hook=once)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not valid JSON ({error})") from None


def check_writable(folder: str | os.PathLike) -> None:
    """OSError unless the folder, or the nearest one above it that exists, takes new files. Makes no folder."""
    existing = Path(folder).absolute()
    while not existing.exists():
        existing = existing.parent
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise type(error)(error.errno, f"cannot write to {folder} ({error.strerror})") from None
