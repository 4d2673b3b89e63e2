"""Finished runs on disk: one JSON file each, whole or not at all, under a key made from all that determines it."""

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from minilora.experiments.engine.provenance import code_version
from minilora.experiments.engine.runner import as_run
from minilora.experiments.evidence.settings import Settings
from minilora.files import read_json, replace_file, to_json

ASIDE = ".damaged"  # what is added to the name of a file that could not be read


def run_key(settings: Settings) -> str:
    """The name under which a run is stored: equal for equal settings and code, and only then."""
    text = json.dumps([dataclasses.asdict(settings), code_version()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Store:
    """Results by settings. `damaged` are the files that were set aside since it was made."""

    def __init__(self, folder: Path, fresh: bool = False):
        self.folder, self.fresh = folder, fresh
        self.renewed: set[Settings] = set()
        self.damaged: list[Path] = []

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
            result = read_json(path)
            if result.get("settings") != dataclasses.asdict(settings):
                raise ValueError("settings: not those of this run")
            as_run(settings, result)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, RecursionError):
            self._set_aside(path)
            return None
        return result

    def _set_aside(self, path: Path) -> None:
        aside = path.with_name(path.name + ASIDE)
        os.replace(path, aside)
        self.damaged.append(aside)

    def put(self, settings: Settings, result: dict[str, Any]) -> None:
        """Store a result; what was there under its key goes."""
        self.renewed.add(settings)
        replace_file(self.path(settings), to_json({"settings": dataclasses.asdict(settings), **result}))
