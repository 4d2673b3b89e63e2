"""All checks, in the order in which they are shown."""

from minilora.conformance.checks import arithmetic as checks_arithmetic
from minilora.conformance.checks import config as checks_config
from minilora.conformance.checks import merging as checks_merging
from minilora.conformance.checks import training as checks_training
from minilora.conformance.checks.subject import Check, Failed

CHECKS: list[Check] = [
    *checks_arithmetic.CHECKS,
    *checks_merging.CHECKS,
    *checks_training.CHECKS,
    *checks_config.CHECKS,
]

__all__ = ["CHECKS", "Check", "Failed"]
