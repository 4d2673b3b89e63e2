"""minilora with one bug each put in: what every check has to find. The bugs are those of other implementations."""

from minilora.conformance.mutants import arithmetic as mutants_arithmetic
from minilora.conformance.mutants import config as mutants_config
from minilora.conformance.mutants import merging as mutants_merging
from minilora.conformance.mutants import training as mutants_training
from minilora.conformance.mutants.planting import MUTANTS

__all__ = ["MUTANTS", "mutants_arithmetic", "mutants_config", "mutants_merging", "mutants_training"]
