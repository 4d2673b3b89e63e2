"""Comparing drawings, to the byte or, where another machine's rounding moves them, by what they show."""

import re

import numpy as np


def plotted(svg: str) -> np.ndarray:
    """All numbers of a drawing in their order."""
    return np.array([float(one) for one in re.findall(r"(?<![\w#-])-?\d+\.?\d*", svg)])


def assert_drawn_alike(new: str, old: str, points: float) -> None:
    """The same shapes and letters, each within that many points of the other's place."""
    new_numbers, old_numbers = plotted(new), plotted(old)
    assert new_numbers.shape == old_numbers.shape
    np.testing.assert_allclose(new_numbers, old_numbers, rtol=0, atol=points)
