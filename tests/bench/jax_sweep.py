"""Fine-tuning runs by JAX: all runs of a part as one compiled program, side by side or one after the other.

A run is a `lax.scan` over the steps between evaluations, in a `lax.scan` over these. Batches are padded to the longest
name and the full batch, each part of an evaluation to the longest of its names, so that all runs have the same shapes.
"""

import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree
from jax_jit import adamw, adamw_start, loss_of, together
from ours import Given, Sweep

import minilora as ml
from minilora.stack import FineTuning


def run_of(base: ml.Model, adapter: ml.Adapter, config: ml.TrainConfig):
    """(vector, batches, sets) -> (evaluations, sets) losses, as `ml.fit` does it for such an adapter."""
    _, _, loss = loss_of(base, adapter)

    def mean_loss(vector, parts):
        counts = [jnp.sum(targets >= 0) for _, targets in parts]
        return sum(n * loss(vector, *part) for n, part in zip(counts, parts, strict=True)) / sum(counts)

    def step(carry, batch):
        vector, state = carry
        return adamw(vector, jax.grad(loss)(vector, *batch), state, config.learning_rate, config.weight_decay), None

    def run(vector, batches, sets):
        def evaluate(vector):
            return jnp.stack([mean_loss(vector, parts) for parts in sets])

        def until_next(carry, some):
            return lax.scan(step, carry, some)[0], evaluate(carry[0])

        (vector, _), measured = lax.scan(until_next, (vector, adamw_start(vector)), batches)
        return jnp.concatenate([measured, evaluate(vector)[None]])

    return run


def inputs_of(base: ml.Model, runs: Sequence[FineTuning]):
    """What the program takes: (vectors, batches, (training parts, validation parts)), with a first axis for runs."""
    config, given = runs[0].config, [Given.of(base, run) for run in runs]
    vectors = np.stack([ravel_pytree(one.adapter.arrays())[0] for one in given])
    n_evaluations = config.steps // config.evaluate_every
    batches = tuple(
        array.reshape(len(runs), n_evaluations, config.evaluate_every, *array.shape[1:])
        for array in together([batch for one in given for batch in one.batches])
    )
    sets = [
        [tuple(together(parts)) for parts in zip(*parts_of_runs, strict=True)]
        for parts_of_runs in zip(*(one.sets for one in given), strict=True)
    ]
    return vectors, batches, sets


class JaxSweep(Sweep):
    """Runs of one rank and config; each kind says how the program of one run becomes that of all."""

    def of_all(self, run):
        raise NotImplementedError

    def prepare(self, runs):
        adapter = ml.init_adapter(self.base.params, runs[0].lora, np.random.default_rng(0))
        program = jax.jit(self.of_all(run_of(self.base, adapter, runs[0].config)))
        inputs = inputs_of(self.base, runs)
        begin = time.perf_counter()
        self.program = program.lower(*inputs).compile()
        seconds = time.perf_counter() - begin
        self.program(*inputs).block_until_ready()
        return seconds

    def fine_tune(self, runs):
        return np.asarray(self.program(*inputs_of(self.base, runs)))


class SideBySide(JaxSweep):
    """jit(vmap(scan))"""

    def of_all(self, run):
        return jax.vmap(run)


class OneByOne(JaxSweep):
    """jit(map(scan))"""

    def of_all(self, run):
        return lambda *runs: lax.map(lambda one: run(*one), runs)
