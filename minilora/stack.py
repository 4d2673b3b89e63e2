"""Many adapters trained at once on one frozen base, on a leading axis: what Python costs a step is paid once for all.

Each run keeps its own seed, data, rank, alpha, dropout and learning rate. Every product of a run is its own call of
BLAS, so that a run gives the same bits as `fit` whatever it is stacked with, as long as the runs of a stack have one
rank and see the same batches (one dataset, one seed). Else ranks are padded with zeros in both factors, where gradients
are zero and AdamW stays at zero, and batches with targets that do not count; then a run agrees with `fit` to rounding.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from tqdm.auto import tqdm

from minilora.adapter import Adapter, check_adapter, check_lora
from minilora.checks import check_kind
from minilora.conditions import working_conditions
from minilora.dataset import Dataset, batches
from minilora.evaluation import Evaluator
from minilora.lora import LoraConfig, init_adapter
from minilora.model import Model, check_model
from minilora.optim import scheduled
from minilora.train import (
    DivergedError,
    History,
    Recorder,
    Streams,
    Trainable,
    TrainConfig,
    check_fit,
    check_watch,
)

ALIKE = ("batch_size", "evaluate_every", "betas", "eps", "weight_decay")  # what the runs of a stack share


@dataclass(frozen=True)
class FineTuning:
    """The arguments of one `fit` without its base."""

    lora: LoraConfig
    train: Dataset
    validation: Dataset
    config: TrainConfig
    seed: int


@dataclass(frozen=True)
class AdapterStack(Adapter):
    """Adapters of one set of modules as one, every array with a leading axis for the adapters.

    Ranks are padded with zeros to the largest; `scaling` is (S, 1, 1) a module.
    """

    members: tuple[Adapter, ...] = ()

    def dropout_mask(self, x, draws):
        """Each run's own mask, drawn as for the run by itself: (S, N, d). Ones where it drops nothing."""
        if not any(member.config.lora_dropout for member in self.members):
            return None
        masks = [draw.mask(member, x) for member, draw in zip(self.members, draws, strict=True)]
        return _padded(masks).reshape(len(masks), -1, x.shape[-1])  # (S, B, T, d) -> (S, N, d)

    def check_rng(self, rng: Any) -> None:
        """TypeError unless it has a Draw for each adapter."""
        check_kind("rng", rng, list, "a list of a Draw for each adapter of the stack")

    def member(self, i: int) -> Adapter:
        """The i-th adapter, views without the padding."""
        one = self.members[i]
        own = {name: tuple(slice(n) for n in array.shape) for name, array in one.arrays().items()}
        return one.with_arrays({name: array[i][own[name]] for name, array in self.arrays().items()})


class Draw(NamedTuple):
    """What one run's dropout is drawn from, and for how many sequences and tokens (B, T) before padding."""

    rng: np.random.Generator
    shape: tuple[int, ...]

    def mask(self, member: Adapter, x) -> np.ndarray:
        """(B, T, d), for a module whose input has the features and dtype of x."""
        own = np.ones((math.prod(self.shape), x.shape[-1]), x.dtype)
        mask = member.dropout_mask(own, self.rng)
        return (own if mask is None else mask).reshape(*self.shape, -1)


def stack_adapters(adapters: Sequence[Adapter]) -> AdapterStack:
    """Adapters as one; ValueError unless they adapt the same modules, and train the same biases, of one base.

    >>> import minilora as ml
    >>> params = ml.init_params(ml.ModelConfig(), np.random.default_rng(0))
    >>> pair = [ml.init_adapter(params, ml.LoraConfig(r=r), np.random.default_rng(0)) for r in (2, 8)]
    >>> stack_adapters(pair).factors["layers.0.q_proj"]["lora_A"].shape
    (2, 8, 32)
    """
    if not adapters:
        raise ValueError("adapters: got none, takes at least one")
    for i, one in enumerate(adapters):
        check_adapter(f"adapters[{i}]", one)
    first = adapters[0]
    for other in adapters[1:]:
        if other.arrays().keys() != first.arrays().keys() or other.base != first.base:
            raise ValueError(
                "stack: adapters of different modules, biases or bases; takes one target_modules, "
                "layers_to_transform, exclude_modules and bias for all"
            )
    arrays = {name: _padded([one.arrays()[name] for one in adapters]) for name in first.arrays()}
    dtype = next(iter(arrays.values())).dtype
    scaling: dict[str, Any] = {
        path: np.array([one.scaling[path] for one in adapters], dtype).reshape(-1, 1, 1) for path in first.factors
    }
    config = dataclasses.replace(first.config, lora_dropout=max(one.config.lora_dropout for one in adapters))
    stack = AdapterStack(config, first.factors, first.biases, scaling, first.base, tuple(adapters))
    return stack.with_arrays(arrays)  # type: ignore[return-value]


def _padded(arrays: Sequence[np.ndarray], fill=0) -> np.ndarray:
    """Arrays of one number of axes on a new leading one, each filled up at the ends to the largest."""
    shape = np.max([array.shape for array in arrays], axis=0)
    dtype = np.result_type(*arrays) if arrays[0].dtype.kind == "f" else np.int64  # which holds -1 and every token
    padded = np.full((len(arrays), *shape), fill, dtype)
    for row, array in zip(padded, arrays, strict=True):
        row[tuple(slice(n) for n in array.shape)] = array
    return padded


def fit_stack(
    base: Model,
    runs: Iterable[FineTuning],
    *,
    progress: bool = True,
    watch: Callable[[int, int, Any], None] | None = None,
) -> list[History | DivergedError]:
    """Each run as `fit` does it, all at once. A run that diverges gives its DivergedError, and the others go on.

    Runs may differ in all but the modules they adapt, the biases they train, and ALIKE. `watch(i, step, adapter)` is
    called at each evaluation of run i. ValueError for runs that cannot share a stack, and as `fit` raises it, naming
    the run; TypeError for arguments of another kind.

    >>> import minilora as ml
    >>> train, validation = ml.names_task("female", n_train=50, seed=0)
    >>> config = ml.TrainConfig(steps=4, evaluate_every=2, evaluation_size=20)
    >>> runs = [FineTuning(ml.LoraConfig(r=r), train, validation, config, seed=0) for r in (2, 8)]
    >>> [history.steps for history in fit_stack(ml.load_base("surnames"), runs)]
    [(0, 2, 4), (0, 2, 4)]
    """
    check_kind("runs", runs, Iterable, "a list of FineTuning")
    runs = list(runs)
    _check_runs(base, runs)
    check_watch(watch, "(i, step, adapter)")
    n_steps = _check_alike(runs)
    streams = [Streams.of(run.seed) for run in runs]
    adapters = [init_adapter(base.params, run.lora, s.init) for run, s in zip(runs, streams, strict=True)]
    evaluators = _evaluators(base, runs)
    lanes = [_Lane(run, evaluator, i, watch) for i, (run, evaluator) in enumerate(zip(runs, evaluators, strict=True))]
    trainable = Trainable(base, stack_adapters(adapters), stack=(len(runs),))
    bar = tqdm(total=n_steps, disable=None if progress else True, delay=2, unit="step")
    with working_conditions(), bar:
        configs = [run.config for run in runs]
        adamw, vector = configs[0].optimizer(), trainable.vector
        state = adamw.init(vector)
        for step, (batch, shapes) in enumerate(_stacked_batches(runs, n_steps, streams)):
            if step % configs[0].evaluate_every == 0 and not _evaluated(lanes, step, trainable.at(vector.copy())):
                break
            draws = [Draw(s.dropout, shape) for s, shape in zip(streams, shapes, strict=True)]
            losses, gradient = trainable.loss_and_gradient(vector, batch, draws)
            for lane, loss in zip(lanes, losses, strict=True):
                lane.check(step, loss)
            rates = [scheduled(c.schedule, c.learning_rate, step, n_steps, c.warmup_steps) for c in configs]
            state = adamw.update_in_place(vector, gradient, state, np.array(rates)[:, None])
            bar.update()
        else:
            _evaluated(lanes, n_steps, trainable.at(vector.copy()))
    return [lane.result(n_steps) for lane in lanes]


def _evaluators(base: Model, runs: Sequence[FineTuning]) -> list[Evaluator]:
    """One for each run, the same for runs that are evaluated on the same sequences."""
    made: dict[tuple, Evaluator] = {}
    for run in runs:
        key = id(run.train), id(run.validation), run.config.evaluation_size
        if key not in made:
            made[key] = Evaluator(base, run.train, run.validation, run.config.evaluation_size)
    return [made[id(run.train), id(run.validation), run.config.evaluation_size] for run in runs]


class _Lane:
    """One run of a stack: what it measured, and whether it still goes on."""

    def __init__(self, run: FineTuning, evaluator: Evaluator, i: int, watch):
        own_watch = None if watch is None else lambda step, trained: watch(i, step, trained)
        settings = f"{run.lora}, {run.config}, seed={run.seed}"
        self.recorder = Recorder(evaluator, run.config.patience, own_watch, settings)
        self.going = True
        self.error: DivergedError | None = None

    def evaluate(self, step: int, adapter: Adapter) -> None:
        if self.going:
            try:
                self.going = not self.recorder.should_stop(step, adapter)
            except DivergedError as error:
                self.going, self.error = False, error

    def check(self, step: int, loss: float) -> None:
        if self.going and not math.isfinite(loss):
            self.going, self.error = False, DivergedError(step, self.recorder.settings, self.recorder.measured)

    def result(self, n_steps: int) -> History | DivergedError:
        return self.error or self.recorder.history(stopped_early=self.recorder.measured[-1][0] < n_steps)


def _evaluated(lanes: Sequence[_Lane], step: int, stack: Any) -> bool:
    """Evaluate the runs that go on; whether there are any left."""
    for i, lane in enumerate(lanes):
        lane.evaluate(step, stack.member(i))
    return any(lane.going for lane in lanes)


def _check_runs(base: Model, runs: Sequence[FineTuning]) -> None:
    """ValueError or TypeError for a run that could not be done singly either."""
    check_model("base", base)
    if not runs:
        raise ValueError("runs: got none, takes at least one")
    for i, run in enumerate(runs):
        check_kind(f"runs[{i}]", run, FineTuning, "a FineTuning")
        check_lora(f"runs[{i}].lora", run.lora)
        check_fit(base, run.train, run.validation, run.config, run.seed, of=f"runs[{i}].")


def _check_alike(runs: Sequence[FineTuning]) -> int:
    """How many steps all runs take; ValueError for what a stack cannot hold."""
    for name in ALIKE:
        found = {getattr(run.config, name) for run in runs}
        if len(found) > 1:
            raise ValueError(f"{name}: got {sorted(found)}, takes one for all runs of a stack")
    lengths = {run.config.total_steps(len(run.train.inputs)) for run in runs}
    if len(lengths) > 1:
        raise ValueError(f"steps: got {sorted(lengths)}, takes one for all runs of a stack")
    if len({run.train.targets.dtype.kind == "f" for run in runs}) > 1:
        raise ValueError("train: got targets both as integers and as probabilities, takes one kind for a stack")
    return lengths.pop()


def _stacked_batches(runs: Sequence[FineTuning], n_steps: int, streams: Sequence[Streams]):
    """(batch, the shape that each run has by itself): inputs (S, B, T), padded.

    Where all runs see the same, (B, T) for all: it passes what is frozen below the first adapter once.
    """
    size = runs[0].config.batch_size
    if all(run.train is runs[0].train and run.seed == runs[0].seed for run in runs):
        for batch in batches(runs[0].train, size, n_steps, streams[0].order):
            yield batch, [batch.inputs.shape] * len(runs)
        return
    own = [batches(run.train, size, n_steps, s.order) for run, s in zip(runs, streams, strict=True)]
    for parts in zip(*own, strict=True):
        inputs, targets = zip(*parts, strict=True)
        padding = -1 if targets[0].dtype.kind in "iu" else 0
        yield Dataset(_padded(inputs), _padded(targets, padding)), [part.shape for part in inputs]
