"""Finished runs on disk: one JSON file each, whole or not at all, under a key made from all that determines it."""

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minilora.command_line import in_a_line, write_file
from minilora.experiments.engine.provenance import code_version
from minilora.experiments.engine.runner import as_run
from minilora.experiments.evidence.settings import Settings
from minilora.files import read_json, to_json

ASIDE = ".damaged"  # what is added to the name of a file that could not be used


def run_key(settings: Settings) -> str:
    """The name under which a run is stored: equal for equal settings and code, and only then."""
    text = json.dumps([dataclasses.asdict(settings), code_version()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def checksum(settings: Settings, result: Mapping[str, Any]) -> str:
    """Of the values of a result and what they belong to, however the file is laid out."""
    text = json.dumps([dataclasses.asdict(settings), result], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class Store:
    """Results by settings. `damaged` has the files that were set aside since it was made, and why."""

    def __init__(self, folder: Path, fresh: bool = False):
        self.folder, self.fresh = folder, fresh
        self.renewed: set[Settings] = set()
        self.damaged: dict[Path, str] = {}

    def path(self, settings: Settings) -> Path:
        """Where the result of a run is, or would be."""
        return self.folder / f"{run_key(settings)}.json"

    def get(self, settings: Settings) -> dict[str, Any] | None:
        """The stored result, or None. A file that holds anything else is set aside, and the run is done again.

        With `fresh`, every result that was not put here by this very store counts as none.
        """
        if self.fresh and settings not in self.renewed:
            return None
        path = self.path(settings)
        try:
            return _result(settings, read_json(path))
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            lacks = "lacks " if isinstance(error, KeyError) else ""
            self._set_aside(path, lacks + in_a_line(error).removeprefix(f"{path}: "))
            return None

    def _set_aside(self, path: Path, why: str) -> None:
        aside = path.with_name(path.name + ASIDE)
        with contextlib.suppress(FileNotFoundError):  # another command was faster
            os.replace(path, aside)
            self.damaged[aside] = why

    def put(self, settings: Settings, result: Mapping[str, Any]) -> str:
        """Store a result; what was there under its key goes. What is no result is not stored: why, else ""."""
        try:
            as_run(settings, json.loads(json.dumps(result)))  # lists for tuples, as they come back
        except (ValueError, KeyError, TypeError) as error:
            return f"no result: {in_a_line(error)}"
        self.renewed.add(settings)
        stored = {"settings": dataclasses.asdict(settings), **result, "sha256": checksum(settings, result)}
        write_file(self.path(settings), to_json(stored))
        return ""


def _result(settings: Settings, stored: dict[str, Any]) -> dict[str, Any]:
    """The result in a file's content, which has to be that of these settings, whole, and as it was stored."""
    of, written = stored.pop("settings"), stored.pop("sha256")
    if of != dataclasses.asdict(settings):
        raise ValueError("settings: not those of this run")
    as_run(settings, stored)
    if written != checksum(settings, stored):
        raise ValueError("sha256: the numbers are not those that were stored")
    return stored
