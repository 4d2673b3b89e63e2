"""What is collected, and how it is spread over processes (`pytest -n 0` for one, as a debugger wants it)."""

import os
import re
from importlib.util import find_spec

# What needs a library that is not there is left out of the collection of doctests.
NEEDS = {
    "torch": ["minilora/conformance/peers/twin.py", "minilora/conformance/peers/pytorch.py"],
    "peft": ["minilora/conformance/peers/peft.py"],
    "loralib": ["minilora/conformance/peers/loralib.py"],
}
collect_ignore = [path for library, paths in NEEDS.items() if find_spec(library) is None for path in paths]

# BLAS has, in each process of the suite and in what it starts, its share of the processor; NumPy is not imported yet.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    share = max(1, (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))
    os.environ.setdefault("OMP_NUM_THREADS", str(share))

# Tests that start, stop and kill processes or wait for them: one process does them, one by one.
ALONE = r"test_faults|test_cluster|test_ctrl_c_in_a_terminal|test_a_check_that_hangs|test_a_bad_cell_is_named"
# Then what takes longest, so that no process ends with it; the rest follows as it is collected.
LONG = [
    r"test_a_chapter_runs.*\[(06|10)",
    r"test_committed.*-search\]|test_bayes_learns",
    r"test_a_chapter_runs.*\[(11|08|09|12)",
    r"test_the_(book|teacher)",
]


def group(name: str) -> str:
    """Tests of one group go to one process, as they share what they compute: a file's do, but for what takes long."""
    if re.search(ALONE, name):
        return "alone"
    if "test_committed" in name and "-search]" in name:
        return "full searches" if "[full" in name else "quick searches"
    return name if "test_tutorials" in name else name.split("::")[0]


def place(name: str) -> int:
    """Where a test stands in the queue."""
    if group(name) == "alone":
        return -1
    return next((i for i, pattern in enumerate(LONG) if re.search(pattern, name)), len(LONG))


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: place(item.nodeid))


def pytest_xdist_make_scheduler(config, log):
    """By `group`; the marks of `--dist loadgroup` would say the same, but xdist 3.8 loses them under pytest 9.2."""
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return group(nodeid)

    return ByGroup(config, log)
