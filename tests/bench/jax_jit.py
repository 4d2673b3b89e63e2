"""A step of the model under jax.jit."""

import jax
import jax.numpy as jnp
import numpy as np
from ours import DECAY, LEARNING_RATE, Setup
from written_out import plain_loss

from minilora.trees import leaves

jax.config.update("jax_enable_x64", True)


class JaxJit:
    """The plain model under jax.jit: loss, gradient and AdamW compiled together, its state donated."""

    def __init__(self, start: Setup):
        scaling = next(iter(start.adapter.scaling.values()))
        frozen = {path: jnp.asarray(array) for path, array in leaves(start.model.params).items()}

        def loss(trained, frozen, tokens, targets):
            return plain_loss(jnp, trained, frozen, tokens, targets, start.model.config.n_heads, scaling)

        def step(trained, first, second, t, *constant):
            value, gradient = jax.value_and_grad(loss)(trained, *constant)
            first = {name: 0.9 * m + 0.1 * gradient[name] for name, m in first.items()}
            second = {name: 0.999 * v + 0.001 * gradient[name] ** 2 for name, v in second.items()}
            moved = {
                name: (1 - LEARNING_RATE * DECAY) * p
                - LEARNING_RATE / (1 - 0.9**t) * first[name] / (jnp.sqrt(second[name] / (1 - 0.999**t)) + 1e-8)
                for name, p in trained.items()
            }
            return value, moved, first, second, t + 1

        self.constant = (frozen, *(jnp.asarray(part) for part in start.batch))
        self.jitted = jax.jit(step, donate_argnums=(0, 1, 2))
        self.gradient = jax.jit(jax.value_and_grad(loss))
        self.trained = {name: jnp.asarray(array) for name, array in start.adapter.arrays().items()}
        zeros = [{name: jnp.zeros_like(array) for name, array in self.trained.items()} for _ in range(2)]
        self.state = (*zeros, jnp.asarray(1, next(iter(self.trained.values())).dtype))

    def loss_and_gradients(self):
        loss, gradients = self.gradient(self.trained, *self.constant)
        return float(loss), {name: np.asarray(g) for name, g in gradients.items()}

    def step(self):
        loss, self.trained, *self.state = self.jitted(self.trained, *self.state, *self.constant)
        loss.block_until_ready()
