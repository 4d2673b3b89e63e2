"""minilora with one bug each put in: what every check has to find. The bugs are those of other implementations."""

from minilora.conformance import mutants_arithmetic, mutants_config, mutants_merging, mutants_training
from minilora.conformance.mutating import MUTANTS

__all__ = ["MUTANTS", "mutants_arithmetic", "mutants_config", "mutants_merging", "mutants_training"]
