"""Tests of `minilora/experiments/engine`."""
