"""The command: `python -m minilora.conformance [--peer minilora|peft|loralib] [--list] [--json FILE]`."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from minilora.conformance.checks import CHECKS
from minilora.conformance.interface import Implementation
from minilora.conformance.running import NOT_OFFERED, PASS, Result, result
from minilora.files import check_writable, replace_file, to_json

PEERS = {
    "minilora": ("minilora.conformance.peers.ours", "Minilora"),
    "peft": ("minilora.conformance.peers.peft", "Peft"),
    "loralib": ("minilora.conformance.peers.loralib", "Loralib"),
}
DONE, FAILED, USAGE = 0, 1, 2
MARKS = {"pass": "ok", "fail": "FAIL", "error": "ERROR", "not offered": "-"}


def load_peer(name: str) -> Implementation:
    """A peer by name; ImportError in a line if its library is not there."""
    module, kind = PEERS[name]
    try:
        return getattr(importlib.import_module(module), kind)()
    except ImportError as error:
        raise ImportError(
            f"--peer {name} needs {error.name}: pip install torch==2.13.0, then pip install 'minilora[peers]'"
        ) from None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks and print the table; 0 only where none failed."""
    parser = argparse.ArgumentParser(
        prog="python -m minilora.conformance",
        description="Check an implementation of LoRA against the reference vectors and the bugs that others had.",
        epilog="Exit status: 0 all that is offered holds, 1 something does not, 2 bad usage.",
    )
    parser.add_argument("--peer", choices=list(PEERS), default="minilora", help="what to check (default: minilora)")
    parser.add_argument("--list", action="store_true", help="list the checks and stop")
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="write the table there too")
    options = parser.parse_args(arguments)
    if options.list:
        for one in CHECKS:
            print(f"{one.id:38}{one.title} [{one.source}]")
        return DONE
    try:
        if options.json is not None:
            if options.json.is_dir():
                raise IsADirectoryError(f"--json: {options.json} is a folder, takes a file")
            check_writable(options.json.parent)
        peer = load_peer(options.peer)
    except (OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return USAGE
    results = show(peer)
    if options.json is not None:
        rows = [vars(one) for one in results]
        try:
            replace_file(options.json, to_json({"peer": options.peer, "version": peer.version, "checks": rows}))
        except OSError as error:
            print(f"error: --json: {error}", file=sys.stderr)
            return FAILED
    return DONE if all(one.status in (PASS, NOT_OFFERED) for one in results) else FAILED


def show(peer: Implementation) -> list[Result]:
    """Run all checks and print a row each as it is done."""
    print(f"{peer.name} {peer.version}\n")
    results = []
    for one in CHECKS:
        found = result(one, peer)
        results.append(found)
        print(f"{MARKS[found.status]:6}{found.id:38}{found.title}", flush=True)
        if found.detail:
            print(f"{'':6}{found.detail}")
        if found.status not in (PASS, NOT_OFFERED):
            print(f"{'':6}seen in: {found.source}")
    counts = {status: sum(one.status == status for one in results) for status in MARKS}
    print("\n" + ", ".join(f"{n} {status}" for status, n in counts.items() if n))
    return results


if __name__ == "__main__":
    sys.exit(main())
