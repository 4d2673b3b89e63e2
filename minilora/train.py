"""Training: the same loop pretrains, fine-tunes every parameter, and trains LoRA on a frozen base."""

import itertools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from tqdm.auto import tqdm

from minilora.adapter import Adapter, check_lora
from minilora.autodiff import value_and_gradients
from minilora.checks import check_integer, check_kind, check_number, check_one_of, described, normalize
from minilora.conditions import working_conditions
from minilora.dataset import Dataset, batches, check_dataset, check_each_counts
from minilora.evaluation import Evaluator, loss_of
from minilora.lora import LoraConfig, init_adapter
from minilora.model import Model, check_model
from minilora.optim import SCHEDULES, AdamW, scheduled
from minilora.trees import leaves, nested


@dataclass(frozen=True)
class TrainConfig:
    """How to train. Give `steps` or `epochs`. Settings that leave each other without effect are an error.

    >>> TrainConfig(steps=100, epochs=3)
    Traceback (most recent call last):
    ValueError: steps, epochs: got 100 and 3, takes exactly one of them
    """

    steps: int | None = None  # updates
    epochs: int | None = None  # passes over the training data; the last batch of each may be smaller
    batch_size: int = 32  # sequences an update
    learning_rate: float = 1e-2  # at its peak
    schedule: str = "constant"  # "constant", "linear" or "cosine", down to 0 at the end
    warmup_steps: int = 0  # updates over which the learning rate rises to its peak, fewer than there are
    betas: tuple[float, float] = (0.9, 0.999)  # AdamW's
    eps: float = 1e-8  # AdamW's
    weight_decay: float = 0.0  # AdamW's, on everything that trains; below 1 / learning_rate
    evaluate_every: int = 50  # updates between evaluations; the start and the end are always evaluated
    evaluation_size: int | None = None  # sequences of each set to evaluate on (the first); None: all
    patience: int | None = None  # stop after so many evaluations without a better validation loss; None: never

    def __post_init__(self):
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(f"steps, epochs: got {self.steps} and {self.epochs}, takes exactly one of them")
        for name in ("steps", "epochs", "evaluation_size", "patience", "batch_size", "evaluate_every"):
            if getattr(self, name) is not None or name in ("batch_size", "evaluate_every"):
                normalize(self, **{name: check_integer(name, getattr(self, name), at_least=1)})
        rate = check_number("learning_rate", self.learning_rate, "a finite number above 0", lambda x: x > 0)
        normalize(self, warmup_steps=check_integer("warmup_steps", self.warmup_steps, at_least=0), learning_rate=rate)
        check_one_of("schedule", self.schedule, SCHEDULES)
        adamw = self.optimizer()
        normalize(self, betas=adamw.betas, eps=adamw.eps, weight_decay=adamw.weight_decay)
        if rate * self.weight_decay >= 1:
            takes = "a product below 1: an update keeps 1 - learning_rate * weight_decay of each parameter"
            raise ValueError(f"learning_rate, weight_decay: got {rate} and {self.weight_decay}, takes {takes}")
        if self.steps is not None:
            self._check_length(self.steps)

    def optimizer(self) -> AdamW:
        """The AdamW that these settings describe."""
        return AdamW(self.learning_rate, self.betas, self.eps, self.weight_decay)

    def total_steps(self, n_train: int) -> int:
        """Updates in all, on that many training sequences; ValueError if they are too few for the other settings."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        n_steps = self.epochs * math.ceil(n_train / self.batch_size)
        self._check_length(n_steps)
        return n_steps

    def _check_length(self, n_steps: int) -> None:
        """ValueError for a warm-up that never reaches the peak, and patience that cannot run out before the end."""
        if self.warmup_steps >= n_steps:
            raise ValueError(f"warmup_steps: got {self.warmup_steps}, takes fewer than the {n_steps} steps of the run")
        within = math.ceil(n_steps / self.evaluate_every) - 1  # evaluations that are neither the start nor the end
        if self.patience is not None and self.patience > within:
            why = f"evaluations before the last of {n_steps} steps, with evaluate_every={self.evaluate_every}"
            raise ValueError(f"patience: got {self.patience}, takes None or at most the {within} {why}")


@dataclass(frozen=True)
class History:
    """What a run measured, in evaluation mode (no dropout), in nats per token; and what it trained.

    `best` (the lowest validation loss) and `final` are Adapters, or Models after full fine-tuning.
    """

    steps: tuple[int, ...]
    train_loss: tuple[float, ...]
    validation_loss: tuple[float, ...]
    best_step: int
    best: Adapter | Model
    final: Adapter | Model
    stopped_early: bool

    @property
    def best_loss(self) -> float:
        """The lowest validation loss."""
        return min(self.validation_loss)

    @property
    def overfit(self) -> float:
        """Final minus best validation loss: what training on cost."""
        return self.validation_loss[-1] - self.best_loss


class DivergedError(FloatingPointError):
    """The loss is no longer a finite number. `step` says when, `measured` holds the evaluations until then."""

    def __init__(self, step: int, settings: str, measured: list[tuple[int, float, float]]):
        super().__init__(step, settings, measured)
        self.step, self.settings, self.measured = step, settings, measured

    def __str__(self) -> str:
        at_start = "nothing was trained yet: look at the base, and at lora_alpha"
        advice = "a lower learning_rate may help" if self.step else at_start
        return f"the loss is not finite at step {self.step}, with {self.settings}; {advice}"


class Streams(NamedTuple):
    """The random streams of a run, one for each use, so that runs that share a seed see the same batches."""

    init: np.random.Generator  # where the factors start
    order: np.random.Generator  # of the training data
    dropout: np.random.Generator

    @classmethod
    def of(cls, seed: int) -> "Streams":
        return cls(*(np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(3)))


def fit(
    base: Model,
    lora: LoraConfig | None,
    train: Dataset,
    validation: Dataset,
    config: TrainConfig,
    seed: int,
    *,
    progress: bool = True,
    watch: Callable[[int, Any], None] | None = None,
) -> History:
    """Train LoRA factors on a frozen base, or with `lora=None` a copy of every parameter. The base is never written to.

    `seed` fixes the factors' start, the order of the data and the dropout, each by a stream of its own: runs that
    share a seed see the same batches whatever their LoraConfig. `watch(step, trained)` is called at each evaluation.
    Raises DivergedError where the loss stops being finite, ValueError for data that does not fit the model and settings
    that do not fit each other, TypeError for arguments of another kind. Every training sequence needs something to
    predict: a batch without a target would be moved by AdamW's momentum alone.
    """
    check_model("base", base)
    if lora is not None:
        check_lora("lora", lora)
    check_fit(base, train, validation, config, seed)
    check_watch(watch, "(step, trained)")
    streams = Streams.of(seed)
    trainable = Trainable(base, base if lora is None else init_adapter(base.params, lora, streams.init))
    n_steps = config.total_steps(len(train.inputs))
    evaluator = Evaluator(base, train, validation, config.evaluation_size)
    recorder = Recorder(evaluator, config.patience, watch, f"{lora}, {config}, seed={seed}")
    bar = tqdm(total=n_steps, disable=None if progress else True, delay=2, unit="step")
    with working_conditions(), bar:
        adamw, vector = config.optimizer(), trainable.vector
        state = adamw.init(vector)
        for step, batch in enumerate(batches(train, config.batch_size, n_steps, streams.order)):
            if step % config.evaluate_every == 0 and recorder.should_stop(step, trainable.at(vector.copy())):
                break
            loss, gradient = trainable.loss_and_gradient(vector, batch, streams.dropout)
            if not math.isfinite(loss):
                raise DivergedError(step, recorder.settings, recorder.measured)
            lr = scheduled(config.schedule, config.learning_rate, step, n_steps, config.warmup_steps)
            state = adamw.update_in_place(vector, gradient, state, lr)
            bar.update()
        else:
            recorder.should_stop(n_steps, trainable.at(vector.copy()))
    return recorder.history(stopped_early=recorder.measured[-1][0] < n_steps)


def check_fit(base: Model, train: Dataset, validation: Dataset, config: TrainConfig, seed: int, of: str = "") -> None:
    """ValueError or TypeError unless the base can be trained on these; `of` says whose arguments they are."""
    check_kind(f"{of}config", config, TrainConfig, "a TrainConfig")
    check_integer(f"{of}seed", seed, at_least=0)
    check_dataset(f"{of}train", train, base.config)
    check_dataset(f"{of}validation", validation, base.config)
    check_each_counts(f"{of}train", train)


def check_watch(watch: Any, arguments: str) -> None:
    """TypeError unless it can be called."""
    if watch is not None and not callable(watch):
        raise TypeError(f"watch: got {described(watch)}, takes a function of {arguments}, or None")


class Trainable:
    """What trains, as one flat vector, so that AdamW updates one array; the rest is out of the gradient's reach.

    The arrays of the model and the adapter are parted into those that train and those that do not: each is on
    exactly one side. All that trains may have leading axes `stack` = (S,), for S runs at once; then so has the vector.
    """

    def __init__(self, base: Model, start: Adapter | Model, stack: tuple[int, ...] = ()):
        self.base, self.start = base, start
        arrays = leaves(start.params) if isinstance(start, Model) else start.arrays()
        self.frozen = {} if isinstance(start, Model) else leaves(base.params)
        assert not any(np.shares_memory(a, b) for a in arrays.values() for b in self.frozen.values()), (
            "trained and frozen"
        )
        self.shapes = {name: array.shape for name, array in arrays.items()}
        self.stack = stack
        self.vector = self.flat(arrays)
        ends = np.cumsum([math.prod(shape[len(stack) :]) for shape in self.shapes.values()]).tolist()
        self.places = {name: slice(*ends) for name, ends in zip(arrays, itertools.pairwise([0, *ends]), strict=True)}

    def flat(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """{name: array} -> (P,), or (S, P) for S stacked runs."""
        return np.concatenate([arrays[name].reshape(*self.stack, -1) for name in self.shapes], axis=-1)

    def arrays(self, vector: np.ndarray) -> dict[str, np.ndarray]:
        """{name: array}, views of the vector."""
        return {name: vector[..., place].reshape(self.shapes[name]) for name, place in self.places.items()}

    def assemble(self, arrays: Mapping[str, Any]) -> Adapter | Model:
        """The Adapter or Model with these arrays."""
        if isinstance(self.start, Model):
            return Model(self.base.config, nested(dict(arrays)))
        return self.start.with_arrays(arrays)

    def at(self, vector: np.ndarray) -> Adapter | Model:
        """The Adapter or Model whose trained arrays are views of that vector."""
        return self.assemble(self.arrays(vector))

    def loss_and_gradient(self, vector: np.ndarray, batch: Dataset, rng: Any):
        """Mean cross-entropy of the batch, and its gradient as a vector; `rng` is the dropout's, None for none."""
        loss, gradients = value_and_gradients(
            lambda arrays: self._loss(self.assemble(arrays), batch, rng), self.arrays(vector)
        )
        return loss, self.flat(gradients)

    def _loss(self, trained: Adapter | Model, batch: Dataset, rng: Any):
        if isinstance(trained, Model):
            return loss_of(trained, batch)
        return loss_of(self.base, batch, trained, rng)


class Recorder:
    """Evaluates, keeps the best, and says when patience has run out."""

    def __init__(self, evaluator: Evaluator, patience: int | None, watch: Callable | None, settings: str):
        self.evaluator, self.patience, self.watch, self.settings = evaluator, patience, watch, settings
        self.measured: list[tuple[int, float, float]] = []
        self.best: Any = None
        self.final: Any = None
        self.since_best = 0

    def should_stop(self, step: int, trained) -> bool:
        train_loss, validation_loss = self.evaluator.losses(trained)
        if not math.isfinite(train_loss + validation_loss):
            raise DivergedError(step, self.settings, self.measured)
        better = all(validation_loss < past for _, _, past in self.measured)
        self.measured.append((step, train_loss, validation_loss))
        self.final = trained
        if better:
            self.best, self.best_step, self.since_best = trained, step, 0
        else:
            self.since_best += 1
        if self.watch is not None:
            self.watch(step, trained)
        return self.patience is not None and self.since_best >= self.patience

    def history(self, stopped_early: bool) -> History:
        steps, train_loss, validation_loss = zip(*self.measured, strict=True)
        return History(steps, train_loss, validation_loss, self.best_step, self.best, self.final, stopped_early)
