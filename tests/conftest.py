"""Settings of the whole suite."""

import re

import numpy as np
import pytest
from blas import blas_threads
from hypothesis import HealthCheck, settings
from threadpoolctl import threadpool_limits

pytest.register_assert_rewrite("plain")

# The same examples at every run and on every machine, however slow it is.
settings.register_profile(
    "minilora",
    deadline=None,
    derandomize=True,
    database=None,
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("minilora")

collect_ignore = ["bench"]  # benchmarks need PyTorch, PEFT and JAX, and assert nothing


@pytest.fixture
def two_blas_threads():
    """BLAS with two threads, for tests that ask whether it has one inside of what they test.

    Where NumPy has one of the usual kinds that is not seen, nothing would be held: that is a failure, not a skip.
    """
    kind = np.show_config(mode="dicts")["Build Dependencies"]["blas"]["name"]
    with threadpool_limits(limits=2, user_api="blas"):
        if not re.search("openblas|mkl|blis", kind):
            pytest.skip(f"NumPy's BLAS is {kind!r}, which nothing can hold to one thread")
        assert blas_threads() == {2}
        yield
