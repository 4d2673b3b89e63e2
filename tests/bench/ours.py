"""The model, adapter and batch that every implementation starts from, and a step by minilora."""

import dataclasses

import numpy as np

import minilora as ml
from minilora import train
from minilora.conditions import keep_freed_memory
from minilora.trees import cast

N_TOKENS, RANK, LEARNING_RATE, DECAY = 12, 8, 1e-3, 0.01
TARGETS = ["q_proj", "v_proj"]


@dataclasses.dataclass(frozen=True)
class Setup:
    """What all four start from."""

    model: ml.Model
    adapter: ml.Adapter
    batch: ml.Dataset

    def of_one_token(self) -> "Setup":
        """The same with a batch of one token."""
        return dataclasses.replace(self, batch=ml.Dataset(*(part[:1, :1] for part in self.batch)))


def setup(d_model: int, n_layers: int, batch: int, dtype: str) -> Setup:
    """A random model, an adapter away from its start, random names of 12 letters. Drawn in float64 for both dtypes."""
    config = ml.ModelConfig(27, 16, d_model, 4, n_layers, 4 * d_model, "float64")
    rng = np.random.default_rng(0)
    params = cast(ml.init_params(config, rng), dtype)
    adapter = ml.init_adapter(params, ml.LoraConfig(RANK, 2 * RANK, 0.0, TARGETS, init_lora_weights=False), rng)
    tokens = rng.integers(0, 27, (batch, N_TOKENS + 1))
    model = ml.Model(dataclasses.replace(config, dtype=dtype), params)
    return Setup(model, adapter, ml.Dataset(tokens[:, :-1], tokens[:, 1:]))


class Minilora:
    """This package, as `fit` calls it."""

    def __init__(self, start: Setup):
        keep_freed_memory()  # as `fit` does
        self.batch, self.trainable = start.batch, train.Trainable(start.model, start.adapter)
        self.adamw = ml.AdamW(LEARNING_RATE, weight_decay=DECAY)
        self.vector = self.trainable.vector
        self.state = self.adamw.init(self.vector)

    def loss_and_gradients(self):
        loss, gradient = self.trainable.loss_and_gradient(self.vector, self.batch, None)
        return loss, self.trainable.arrays(gradient)

    def step(self):
        _, gradient = self.trainable.loss_and_gradient(self.vector, self.batch, None)
        self.vector, self.state = self.adamw.update(self.vector, gradient, self.state)


class MatrixProducts:
    """Not an implementation: every matrix product that a step needs, and nothing else."""

    def __init__(self, start: Setup):
        config, n = start.model.config, start.batch.inputs.size
        d, d_ff, heads, dtype = config.d_model, config.d_ff, config.n_heads, config.dtype
        n_batch, d_head = len(start.batch.inputs), config.d_model // config.n_heads
        scores = ((n_batch, heads, N_TOKENS, d_head), (d_head, N_TOKENS))
        values = ((n_batch, heads, N_TOKENS, N_TOKENS), (N_TOKENS, d_head))
        adapter = [((n, d), (d, RANK)), ((n, RANK), (RANK, d))]
        through = [((n, d), (d, d))] * 4 + [((n, d), (d, d_ff)), ((n, d_ff), (d_ff, d))]
        forward = [*through, *adapter * 2, scores, values]
        factors = [((d, n), (n, RANK)), ((RANK, n), (n, d)), ((n, d), (d, RANK))] * 2
        backward = [
            *through[3:],
            *factors,
            values,
            values,
            scores,
            values,
        ]  # of the block; below, what reaches its input
        inputs = [*through[:3], *adapter[1:] * 2]
        shapes = [*(forward + backward) * config.n_layers, *inputs * (config.n_layers - 1)]
        shapes += [((n, d), (d, config.vocab_size)), ((n, config.vocab_size), (config.vocab_size, d))]
        rng = np.random.default_rng(0)
        self.pairs = []
        made = {}  # one array a shape, so that they stay in the cache as far as they do in a step
        for left, right in shapes:
            leading = left[:2] if len(left) == 4 else ()
            both = left, (*leading, *right)
            for shape in both:
                if shape not in made:
                    made[shape] = rng.random(shape).astype(dtype)
            self.pairs.append([made[shape] for shape in both])

    def step(self):
        for left, right in self.pairs:
            left @ right
