"""The models, adapters and batches that every implementation starts from, and a step by minilora.

What these benchmarks know of minilora's inside is here, but for what `profile_step.py` takes apart.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

import minilora as ml
from minilora import dataset, train
from minilora.conditions import keep_freed_memory
from minilora.stack import FineTuning
from minilora.trees import cast

N_TOKENS, RANK, LEARNING_RATE, DECAY = 12, 8, 1e-3, 0.01
TARGETS = ["q_proj", "v_proj"]
N_TRAIN, BATCH, N_BATCHES = 200, 16, 50  # of the names, as the studies with scarce data have them
BASE = "surnames"


@dataclasses.dataclass(frozen=True)
class Setup:
    """What all start from; they step on its batches in turn."""

    model: ml.Model
    adapter: ml.Adapter
    batches: tuple[ml.Dataset, ...]

    def of_one_token(self) -> "Setup":
        """The same with a batch of one token."""
        one = ml.Dataset(*(part[:1, :1] for part in self.batches[0]))
        return dataclasses.replace(self, batches=(one,))


def setup(d_model: int, n_layers: int, batch: int, dtype: str) -> Setup:
    """A random model, an adapter away from its start, random names of 12 letters. Drawn in float64 for both dtypes."""
    config = ml.ModelConfig(27, 16, d_model, 4, n_layers, 4 * d_model, "float64")
    rng = np.random.default_rng(0)
    params = cast(ml.init_params(config, rng), dtype)
    adapter = ml.init_adapter(params, ml.LoraConfig(RANK, 2 * RANK, 0.0, TARGETS, init_lora_weights=False), rng)
    tokens = rng.integers(0, 27, (batch, N_TOKENS + 1))
    model = ml.Model(dataclasses.replace(config, dtype=dtype), params)
    return Setup(model, adapter, (ml.Dataset(tokens[:, :-1], tokens[:, 1:]),))


def base_of(dtype: str) -> ml.Model:
    """The base of the studies."""
    base = ml.load_base(BASE)
    return ml.Model(dataclasses.replace(base.config, dtype=dtype), cast(base.params, dtype))


def names(dtype: str) -> Setup:
    """The base of the studies, an adapter on all its modules away from its start, real names in batches.

    The batches are those that `fit` makes: each as long as its longest name, the last of every epoch smaller.
    """
    base, rng = base_of(dtype), np.random.default_rng(0)
    lora = ml.LoraConfig(RANK, 2 * RANK, 0.0, "all-linear", init_lora_weights=False)
    first_names, _ = ml.names_task("female", N_TRAIN, seed=0)
    batches = tuple(dataset.batches(first_names, BATCH, N_BATCHES, rng))
    return Setup(base, ml.init_adapter(base.params, lora, rng), batches)


class Minilora:
    """This package, as `fit` calls it."""

    def __init__(self, start: Setup):
        keep_freed_memory()  # as `fit` does
        self.batches, self.trainable = start.batches, train.Trainable(start.model, start.adapter)
        self.adamw = ml.AdamW(LEARNING_RATE, weight_decay=DECAY)
        self.vector = self.trainable.vector
        self.state = self.adamw.init(self.vector)

    def arrays(self, vector) -> dict:
        """{name: array} of what trains or of its gradient."""
        return self.trainable.arrays(vector)

    def loss_and_gradients(self, i: int):
        loss, gradient = self.trainable.loss_and_gradient(self.vector, self.batches[i], None)
        return loss, self.arrays(gradient)

    def update(self, gradient) -> None:
        self.state = self.adamw.update_in_place(self.vector, gradient, self.state, LEARNING_RATE)

    def step(self, i: int = 0) -> None:
        _, gradient = self.trainable.loss_and_gradient(self.vector, self.batches[i], None)
        self.update(gradient)


class Given(NamedTuple):
    """What a run starts from, steps on and is evaluated on, as `fit` has it."""

    adapter: ml.Adapter
    batches: Iterator[ml.Dataset]
    sets: list[list[ml.Dataset]]  # the training and the validation data, each in parts

    @classmethod
    def of(cls, base: ml.Model, run: FineTuning) -> "Given":
        config, streams = run.config, train.Streams.of(run.seed)
        return cls(
            ml.init_adapter(base.params, run.lora, streams.init),
            dataset.batches(run.train, config.batch_size, config.steps, streams.order),
            [dataset.evaluation_batches(data, config.evaluation_size) for data in (run.train, run.validation)],
        )


class Sweep:
    """Does fine-tuning runs on a base; each kind says how."""

    def __init__(self, base: ml.Model):
        self.base = base

    def prepare(self, runs: Sequence[FineTuning]) -> float:
        """What comes before runs are timed; the seconds of it that went into compiling."""
        self.fine_tune(runs[:1])
        return 0.0

    def fine_tune(self, runs: Sequence[FineTuning]) -> np.ndarray:
        """(runs, evaluations, 2): training and validation loss."""
        raise NotImplementedError


class FitStack(Sweep):
    """All runs at once."""

    def fine_tune(self, runs):
        return losses_of(ml.fit_stack(self.base, runs, progress=False))


class Fit(Sweep):
    """Run by run."""

    def fine_tune(self, runs):
        settings = [(run.lora, run.train, run.validation, run.config, run.seed) for run in runs]
        return losses_of([ml.fit(self.base, *one, progress=False) for one in settings])


def losses_of(histories) -> np.ndarray:
    return np.array([list(zip(one.train_loss, one.validation_loss, strict=True)) for one in histories])


class MatrixProducts:
    """Not an implementation: every matrix product that a step of `setup` needs, and nothing else."""

    def __init__(self, start: Setup):
        config, n = start.model.config, start.batches[0].inputs.size
        d, d_ff, heads, dtype = config.d_model, config.d_ff, config.n_heads, config.dtype
        n_batch, d_head = len(start.batches[0].inputs), config.d_model // config.n_heads
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

    def step(self, i: int = 0) -> None:
        for left, right in self.pairs:
            left @ right
