"""The peers do what the committed tables say; the page's own example of an implementation passes."""

import re
import subprocess
import sys
import time

import pytest

torch = pytest.importorskip("torch")

from conformance import tables  # noqa: E402

from minilora import conformance  # noqa: E402
from minilora.conformance.__main__ import PEERS, load_peer  # noqa: E402

TEXT = tables.PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", tables.PEERS)
def test_a_peer_does_what_the_table_says_within_a_minute(name):
    pytest.importorskip(name)
    stored, begin = tables.read(name), time.monotonic()
    found = conformance.run(load_peer(name))
    took = time.monotonic() - begin
    if stored["version"] != load_peer(name).version:
        pytest.skip(f"the table is of {stored['version']}")
    assert {row.id: row.status for row in found} == {row["id"]: row["status"] for row in stored["checks"]}
    print(f"{name}: {took:.0f} s")  # no test asserts a time


@pytest.mark.parametrize("name", list(PEERS))
def test_the_command_runs_on_every_peer(name, tmp_path):
    if name != "minilora":
        pytest.importorskip(name)
    command = [sys.executable, "-m", "minilora.conformance", "--peer", name, "--json", str(tmp_path / "t.json")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "Traceback" not in done.stderr
    assert done.returncode == (0 if name == "minilora" else 1)
    assert (tmp_path / "t.json").exists()


def test_the_implementation_of_the_five_steps_passes_what_it_offers(tmp_path):
    first, suite = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    (tmp_path / "test_mine.py").write_text(first + "\n\n" + suite)
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)],
                          capture_output=True, text=True, cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    passed, skipped = (int(re.search(rf"(\d+) {what}", done.stdout).group(1)) for what in ("passed", "skipped"))
    assert passed + skipped == len(conformance.CHECKS)
    assert passed >= 10
