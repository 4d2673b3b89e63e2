"""Settings of the whole suite."""

import pytest
from hypothesis import HealthCheck, settings

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
