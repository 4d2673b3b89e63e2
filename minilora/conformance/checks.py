"""All checks, in the order in which they are shown."""

from minilora.conformance import checks_arithmetic, checks_config, checks_merging, checks_training
from minilora.conformance.checking import Check, Failed

CHECKS: list[Check] = [
    *checks_arithmetic.CHECKS,
    *checks_merging.CHECKS,
    *checks_training.CHECKS,
    *checks_config.CHECKS,
]

__all__ = ["CHECKS", "Check", "Failed"]
