"""Tests of `minilora/experiments/evidence`."""
