"""One BLAS thread, and memory kept between steps."""

import platform
import subprocess
import sys

import pytest
from blas import blas_threads

from minilora import conditions

# Ten rounds of taking and giving back 24 MB in pieces of 1 MB, as steps of a larger model do. A round that has to ask
# the system for its pages again has some 6,000 faults. In a process of its own, as malloc learns for good.
ROUNDS = """
import resource, sys
import numpy as np
from minilora.conditions import working_conditions

def rounds():
    for _ in range(10):
        held = [np.ones(2**20, np.uint8) for _ in range(24)]
        del held
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

if sys.argv[1] == "kept":
    with working_conditions():
        before = rounds()
        print((rounds() - before) // 10)
else:
    before = rounds()
    print((rounds() - before) // 10)
"""


def faults_a_round(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", ROUNDS, how], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc's malloc that learns")
def test_freed_memory_is_kept_for_the_next_step():
    assert faults_a_round("not kept") > 1000, "else there was nothing to gain"
    assert faults_a_round("kept") < 100


@pytest.mark.usefixtures("two_blas_threads")
def test_one_blas_thread_holds_every_blas_and_lets_go():
    with conditions.one_blas_thread():
        assert blas_threads() == {1}
    assert blas_threads() == {2}
    assert conditions.blas_can_be_held()


def test_where_threadpoolctl_knows_no_blas_that_is_said(monkeypatch):
    """As of Accelerate, which NumPy for macOS has."""
    monkeypatch.setattr(conditions, "threadpool_info", lambda: [{"user_api": "openmp", "num_threads": 8}])
    assert not conditions.blas_can_be_held()
