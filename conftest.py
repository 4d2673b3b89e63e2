"""What needs a library that is not there is left out of the collection of doctests."""

from importlib.util import find_spec

NEEDS = {
    "torch": ["minilora/conformance/twin.py", "minilora/conformance/torch_peer.py"],
    "peft": ["minilora/conformance/peft_peer.py"],
    "loralib": ["minilora/conformance/loralib_peer.py"],
}
collect_ignore = [path for library, paths in NEEDS.items() if find_spec(library) is None for path in paths]
