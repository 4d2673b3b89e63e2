"""Writing files so that a reader never sees half of one: beside their target, then moved into place."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any


def replace_file(path: str | os.PathLike, content: bytes | str) -> None:
    """Write the file whole or not at all. Its folder is made if need be; what was there stays until the move."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(beside, 0o644)  # mkstemp's files are private
        os.replace(beside, path)
    except BaseException:
        os.unlink(beside)
        raise


def to_json(value: Any) -> str:
    """JSON as minilora writes it: indented, with a final newline, NaN refused."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """A JSON object from a file; ValueError that names the file if it is anything else."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path}: got a JSON {type(value).__name__}, takes an object")
    return value
