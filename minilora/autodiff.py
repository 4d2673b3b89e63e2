"""Reverse-mode differentiation: `autograd` keeps the tape, and this module walks it backwards.

`autograd` records which operation made which array from which others, for every array that depends on something
that trains. The walk below visits the record from the loss back to the parameters and applies the chain rule. It does
what `autograd.value_and_grad` does for one array, for many named ones at once and with less overhead.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import autograd.numpy  # noqa: F401  (registers arrays with autograd, so that `x + y` works on traced arrays)
import numpy as np
from autograd.core import VJPNode
from autograd.tracer import Box, new_box, trace_stack

Array = np.ndarray
Gradient = Callable[[Array], Array]


def operation(function: Callable[..., tuple[Any, tuple[Gradient | None, ...]]]) -> Callable[..., Any]:
    """Make a differentiable operation of a function that returns its answer and one gradient function per argument.

    Each takes `g`, the gradient of the loss with respect to the answer, and returns the gradient with respect to its
    argument. Only those of traced arguments are kept, so what the others alone would need is freed at once. A gradient
    with leading axes that its argument lacks, which was broadcast along them, is summed over them here.

    >>> import autograd
    >>> @operation
    ... def square(x):
    ...     return x * x, (lambda g: 2 * x * g,)
    >>> float(autograd.grad(square)(3.0))
    6.0
    """

    @functools.wraps(function)
    def call(*arguments):
        values = [argument._value if isinstance(argument, Box) else argument for argument in arguments]
        answer, gradients = function(*values)
        traced = [i for i, argument in enumerate(arguments) if isinstance(argument, Box)]
        if not traced:
            return answer
        kept = [(gradients[i], np.ndim(values[i])) for i in traced]
        node = arguments[traced[0]]._node.new_root()
        node.parents = [arguments[i]._node for i in traced]
        node.vjp = lambda g: [_summed(gradient(g), n_axes) for gradient, n_axes in kept]
        if isinstance(node, Entry):
            node.enter(node.parents[0].tape)
        return new_box(answer, arguments[traced[0]]._trace, node)

    return call


class Entry(VJPNode):
    """A node of autograd's graph that also stands on a list, in the order in which nodes are made.

    That is an order in which each comes after all that it was made from, so that the way back needs no sorting.
    """

    __slots__ = ("g", "tape")

    def __init__(self, *arguments):  # autograd's own operations make their nodes so
        super().__init__(*arguments)
        self.enter(self.parents[0].tape)

    def enter(self, tape: list["Entry"]) -> None:
        """Stand on the tape, with no gradient yet."""
        self.tape, self.g = tape, None
        tape.append(self)


def _summed(gradient: Array, n_axes: int) -> Array:
    extra = gradient.ndim - n_axes
    return gradient.sum(tuple(range(extra))) if extra > 0 else gradient


def once(function: Gradient) -> Gradient:
    """What the gradients of several arguments share: computed for the first that asks, remembered for the others."""
    last: list[Array] = []

    def remembered(g):
        if not last or last[0] is not g:
            last[:] = g, function(g)
        return last[1]

    return remembered


def value_and_gradients(function: Callable[[Mapping[str, Any]], Any], arrays: Mapping[str, Array]):
    """(value, {name: gradient}) of a scalar function of named arrays.

    Where the function gives several values, as for stacked runs, the gradient is that of their sum.

    Only what depends on these arrays is recorded, so nothing is computed for arrays that are not among them.

    >>> arrays = {"x": np.array([1.0, 2.0]), "y": np.array([3.0, 4.0])}
    >>> value, gradients = value_and_gradients(lambda a: (a["x"] * a["y"]).sum(), arrays)
    >>> float(value), gradients["x"]
    (11.0, array([3., 4.]))
    """
    tape: list[Entry] = []
    roots = {}
    for name in arrays:
        roots[name] = Entry.new_root()
        roots[name].enter(tape)
    n_roots = len(tape)
    try:
        with trace_stack.new_trace() as trace:
            answer = function({name: new_box(array, trace, roots[name]) for name, array in arrays.items()})
        if isinstance(answer, Box):
            answer._node.g = np.ones_like(answer._value)
            answer = answer._value
        for node in reversed(tape[n_roots:]):  # from the answer back: each after all that use it
            if node.g is not None:
                for parent, g in zip(node.parents, node.vjp(node.g), strict=True):
                    parent.g = g if parent.g is None else parent.g + g
                node.g = node.vjp = None  # and with it what only this operation kept for its backward pass
    finally:
        tape.clear()  # nodes and tape hold each other
    return answer, {name: np.zeros_like(arrays[name]) if root.g is None else root.g for name, root in roots.items()}
