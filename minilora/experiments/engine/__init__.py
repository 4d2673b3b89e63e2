"""Doing runs: what a run computes, where it is stored, who does it, how long it will be."""
