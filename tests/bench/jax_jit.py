"""A step of the model under jax.jit.

What trains is one vector, as minilora has it, and softmax is `jax.nn`'s, which does not differentiate the maximum that
it takes off: a step takes up to a quarter less so than with a dictionary of factors and softmax written out.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from ours import DECAY, LEARNING_RATE, Setup
from written_out import plain_loss

import minilora as ml
from minilora.trees import leaves

jax.config.update("jax_enable_x64", True)


def loss_of(base: ml.Model, adapter: ml.Adapter):
    """(its factors as one vector, the way back, loss of vector, tokens and targets)."""
    scaling = next(iter(adapter.scaling.values()))
    frozen = {path: jnp.asarray(array) for path, array in leaves(base.params).items()}
    vector, arrays = ravel_pytree(adapter.arrays())

    def loss(vector, tokens, targets):
        return plain_loss(jnp, jax.nn, arrays(vector), frozen, tokens, targets, base.config.n_heads, scaling)

    return vector, arrays, loss


def adamw_start(vector):
    """What AdamW remembers before the first step."""
    return jnp.zeros_like(vector), jnp.zeros_like(vector), jnp.asarray(1, vector.dtype)


def adamw(vector, gradient, state, learning_rate: float, decay: float):
    """The vector and the state after a step."""
    first, second, t = state
    first = 0.9 * first + 0.1 * gradient
    second = 0.999 * second + 0.001 * gradient**2
    direction = first / (jnp.sqrt(second / (1 - 0.999**t)) + 1e-8)
    moved = (1 - learning_rate * decay) * vector - learning_rate / (1 - 0.9**t) * direction
    return moved, (first, second, t + 1)


def together(batches: Sequence[ml.Dataset]) -> ml.Dataset:
    """(N, rows, tokens): each padded to the largest of them with what has nothing to predict."""
    inputs = np.zeros((len(batches), *np.max([batch.inputs.shape for batch in batches], axis=0)), np.int32)
    targets = np.full_like(inputs, -1)
    for i, batch in enumerate(batches):
        place = i, *map(slice, batch.inputs.shape)
        inputs[place], targets[place] = batch
    return ml.Dataset(inputs, targets)


class JaxJit:
    """Loss, gradient and AdamW compiled together, their state donated; once for each shape of a batch."""

    def __init__(self, start: Setup):
        self.vector, self.arrays, loss = loss_of(start.model, start.adapter)
        self.state = adamw_start(self.vector)

        def step(vector, state, tokens, targets):
            value, gradient = jax.value_and_grad(loss)(vector, tokens, targets)
            return value, *adamw(vector, gradient, state, LEARNING_RATE, DECAY)

        self.jitted = jax.jit(step, donate_argnums=(0, 1))
        self.gradient = jax.jit(jax.value_and_grad(loss))
        self.batches = [tuple(map(jnp.asarray, batch)) for batch in self.shaped(start.batches)]

    def shaped(self, batches):
        return batches

    def loss_and_gradients(self, i: int):
        loss, gradient = self.gradient(self.vector, *self.batches[i])
        return float(loss), {name: np.asarray(g) for name, g in self.arrays(gradient).items()}

    def step(self, i: int = 0) -> None:
        loss, self.vector, self.state = self.jitted(self.vector, self.state, *self.batches[i])
        loss.block_until_ready()


class JaxJitPadded(JaxJit):
    """Every batch padded to the largest, so that one shape is compiled."""

    def shaped(self, batches):
        return list(zip(*together(batches), strict=True))
