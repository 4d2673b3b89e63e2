"""What needs a library that is not there is left out of the collection of doctests."""

from importlib.util import find_spec

NEEDS = {
    "torch": ["minilora/conformance/peers/twin.py", "minilora/conformance/peers/pytorch.py"],
    "peft": ["minilora/conformance/peers/peft.py"],
    "loralib": ["minilora/conformance/peers/loralib.py"],
}
collect_ignore = [path for library, paths in NEEDS.items() if find_spec(library) is None for path in paths]
