"""The command: `python -m minilora.conformance [--peer minilora|peft|loralib] [--list] [--json FILE]`."""

import importlib
from pathlib import Path

from minilora.command_line import (
    DONE,
    FAILED,
    Parser,
    UsageError,
    check_file,
    command,
    in_a_line,
    install,
    leave,
    write_file,
)
from minilora.conformance.checks import CHECKS
from minilora.conformance.interface import Implementation
from minilora.conformance.running import NOT_OFFERED, PASS, Result, as_implementation, result
from minilora.files import to_json

PEERS = {
    "minilora": ("minilora.conformance.peers.ours", "Minilora"),
    "peft": ("minilora.conformance.peers.peft", "Peft"),
    "loralib": ("minilora.conformance.peers.loralib", "Loralib"),
}
MARKS = {"pass": "ok", "fail": "FAIL", "error": "ERROR", "not offered": "-"}


def load_peer(name: str) -> Implementation:
    """A peer by name; UsageError in a line if its library is not there, or does not work."""
    module, kind = PEERS[name]
    try:
        return as_implementation(getattr(importlib.import_module(module), kind))
    except ModuleNotFoundError as error:
        how = install("peers", before="pip install torch==2.13.0 && ")
        raise UsageError(f"--peer {name} needs {error.name}: {how}") from None
    except Exception as error:
        raise UsageError(f"--peer {name}: cannot be loaded: {type(error).__name__}: {in_a_line(error)}") from error


def parser() -> Parser:
    """The command line's options."""
    made = Parser(
        "python -m minilora.conformance",
        "Check an implementation of LoRA against the reference vectors and the bugs that others had.",
        failed="something that is offered does not hold",
    )
    made.add_argument("--peer", choices=list(PEERS), default="minilora", help="what to check (default: minilora)")
    made.add_argument("--list", action="store_true", help="list the checks and stop")
    made.add_argument("--json", type=Path, default=None, metavar="FILE", help="write the table there too")
    return made


@command
def main(arguments: list[str]) -> int:
    """Run the checks and print the table; 0 only where none failed."""
    options = parser().parse_args(arguments)
    if options.list:
        for one in CHECKS:
            print(f"{one.id:38}{one.title} [{one.source}]")
        return DONE
    if options.json is not None:
        check_file("--json", options.json)
    peer = load_peer(options.peer)
    results = show(peer)
    if options.json is not None:
        rows = [vars(one) for one in results]
        write_file(options.json, to_json({"peer": options.peer, "version": peer.version, "checks": rows}))
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
    leave(main())
