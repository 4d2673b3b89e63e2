"""Tests of minilora.experiments; a package, so that its modules may be called like others elsewhere in the tests."""
