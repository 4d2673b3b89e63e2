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
from autograd.core import VJPNode, toposort
from autograd.extend import defvjp_argnums, primitive
from autograd.tracer import isbox, new_box, trace_stack

Array = np.ndarray
Backward = Callable[[Array], tuple[Callable[[], Array] | None, ...]]


def operation(function: Callable[..., tuple[Any, Backward]]) -> Callable[..., Any]:
    """Make an autograd primitive of a function that returns (answer, backward).

    >>> import autograd
    >>> @operation
    ... def square(x):
    ...     return x * x, lambda g: (lambda: 2 * x * g,)
    >>> float(autograd.grad(square)(3.0))
    6.0
    """

    @primitive
    def taped(tape, *arguments):
        answer, tape["backward"] = function(*arguments)
        return answer

    def make_vjp(argnums, answer, arguments, kwargs):
        backward = arguments[0]["backward"]

        def vjp(g):
            thunks = backward(g)
            return tuple(thunks[i - 1]() for i in argnums)  # argument 0 is the tape

        return vjp

    defvjp_argnums(taped, make_vjp)

    @functools.wraps(function)
    def call(*arguments):
        return taped({}, *arguments)

    return call


def value_and_gradients(function: Callable[[Mapping[str, Any]], Any], arrays: Mapping[str, Array]):
    """(value, {name: gradient}) of a scalar function of named arrays.

    Only what depends on these arrays is recorded, so nothing is computed for arrays that are not among them.

    >>> arrays = {"x": np.array([1.0, 2.0]), "y": np.array([3.0, 4.0])}
    >>> value, gradients = value_and_gradients(lambda a: (a["x"] * a["y"]).sum(), arrays)
    >>> float(value), gradients["x"]
    (11.0, array([3., 4.]))
    """
    roots = {name: VJPNode.new_root() for name in arrays}
    with trace_stack.new_trace() as trace:
        answer = function({name: new_box(array, trace, roots[name]) for name, array in arrays.items()})
    gradients: dict[VJPNode, Array] = {}
    if isbox(answer):
        gradients[answer._node] = np.ones_like(answer._value)
        for node in toposort(answer._node):  # from the answer back: each node after all that use it
            if not node.parents:
                continue  # a root: its gradient is complete
            for parent, g in zip(node.parents, node.vjp(gradients.pop(node)), strict=True):
                gradients[parent] = gradients[parent] + g if parent in gradients else g
        answer = answer._value
    return answer, {
        name: gradients[root] if root in gradients else np.zeros_like(arrays[name]) for name, root in roots.items()
    }
