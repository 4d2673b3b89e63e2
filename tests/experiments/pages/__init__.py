"""Tests of `minilora/experiments/pages`."""
