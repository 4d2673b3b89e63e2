"""Tests of `minilora/experiments/studies`."""
