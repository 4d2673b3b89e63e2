"""What a run computes, what it may be computed together with, and the key of its result."""

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from minilora import generate, model
from minilora.data import names, planted
from minilora.data.base import load_base
from minilora.evaluation import evaluate
from minilora.experiments.evidence.runs import CONSTANT, MEASURED, Run, check_run
from minilora.experiments.evidence.settings import Settings
from minilora.lora import Adapter, LoraConfig, count_parameters, weight_changes
from minilora.stack import FineTuning, fit_stack
from minilora.train import Dataset, DivergedError, History, TrainConfig, fit
from minilora.trees import leaves

N_SAMPLES = 12  # names that a run of the first seed writes at its end; no others are shown
Stack = list[Settings]  # runs done at once
STACKED = ("learning_rate", "lora_alpha", "lora_dropout", "init_lora_weights")  # what runs done at once may differ in
MAX_STACK = 8  # more at once gains little: see tests/bench

base = functools.cache(load_base)


def task(of: Settings):
    """(train, validation, teacher) of a run; no teacher for real names."""
    return _task(of.task, of.base, of.n_train, of.planted_rank, of.seed)


@functools.lru_cache(maxsize=8)
def _task(name: str, base_name: str, n_train: int, planted_rank: int, seed: int):
    if name == "planted":
        made = planted.planted_task(base(base_name), planted_rank, n_train, seed)
        return made.train, made.validation, made.teacher
    return *names.names_task({"names": "female"}.get(name, name), n_train, seed), None


def floors(settings: Settings) -> dict[str, float]:
    """The teacher's own losses on the names that a run is evaluated on; 0 where there is no teacher."""
    of_task = settings.task, settings.base, settings.n_train, settings.planted_rank, settings.seed
    return dict(zip(("floor", "train_floor"), _floors(*of_task, settings.evaluation_size), strict=True))


@functools.lru_cache(maxsize=8)
def _floors(name: str, base_name: str, n_train: int, planted_rank: int, seed: int, size: int) -> tuple[float, float]:
    train_set, validation, teacher = _task(name, base_name, n_train, planted_rank, seed)
    if teacher is None:
        return 0.0, 0.0
    first = [Dataset(*(part[:size] for part in dataset)) for dataset in (validation, train_set)]
    return evaluate(teacher, first[0]), evaluate(teacher, first[1])


def lora_config(settings: Settings) -> LoraConfig | None:
    """The LoraConfig of a run; None for full fine-tuning."""
    if settings.method == "full":
        return None
    targets = settings.target_modules
    parts = [
        part.partition(":") for part in targets.split("+")
    ]  # "q_proj:10+up_proj:4": modules with ranks of their own
    ranks = {name: int(rank) for name, _, rank in parts if rank}
    return LoraConfig(
        r=settings.r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=targets if targets == "all-linear" else [name for name, _, _ in parts],
        layers_to_transform=None if settings.layers == "all" else [int(layer) for layer in settings.layers.split("+")],
        rank_pattern=ranks,
        alpha_pattern={name: settings.lora_alpha / settings.r * rank for name, rank in ranks.items()},
        bias=settings.bias,
        init_lora_weights={"True": True, "False": False}.get(settings.init_lora_weights, settings.init_lora_weights),
    )


def stacks(todo: Iterable[Settings]) -> list[Stack]:
    """Runs in groups to be done at once: those that differ in nothing but what may differ within a stack.

    Such runs have one rank and see the same batches, so that a result is the same to the bit in every stack.
    """
    groups: dict[tuple[Any, ...], list[Settings]] = {}
    for settings in todo:
        free = STACKED if settings.method == "lora" else ()  # full fine-tuning is done by itself
        alike = tuple(value for name, value in dataclasses.asdict(settings).items() if name not in free)
        groups.setdefault(alike, []).append(settings)
    return [group[i : i + MAX_STACK] for group in groups.values() for i in range(0, len(group), MAX_STACK)]


def execute(stack: Stack) -> list[dict[str, Any]]:
    """Do the runs of a stack. A result is plain JSON: what `Run` holds, and a few names that the final model writes."""
    first = stack[0]
    train_set, validation, _ = task(first)
    start = base(first.base)
    norms: list[list[float]] = [[] for _ in stack]
    outcomes: list[History | DivergedError]
    if first.method == "full":
        try:
            outcomes = [
                fit(
                    start, None, train_set, validation, train_config(first), first.seed,
                    progress=False, watch=lambda step, trained: norms[0].append(change_norm(start, trained)),
                )
            ]  # fmt: skip
        except DivergedError as error:
            outcomes = [error]
    else:
        runs = [
            FineTuning(config, train_set, validation, train_config(one), one.seed)
            for one in stack
            if (config := lora_config(one))
        ]
        outcomes = fit_stack(
            start, runs, progress=False, watch=lambda i, step, trained: norms[i].append(change_norm(start, trained))
        )
    return [result(*of_run) for of_run in zip(stack, outcomes, norms, strict=True)]


def result(settings: Settings, outcome: History | DivergedError, norms: list[float]) -> dict[str, Any]:
    """What is stored of a run."""
    measured: Sequence[tuple[int, float, float]]
    if isinstance(outcome, DivergedError):
        diverged_at, measured, samples = outcome.step, outcome.measured, []
    else:
        diverged_at = -1
        samples = [] if settings.seed else write_names(base(settings.base), outcome.final, settings.seed)
        measured = list(zip(outcome.steps, outcome.train_loss, outcome.validation_loss, strict=True))
    step, train_loss, validation_loss = zip(*measured, strict=True)
    return {
        "step": step,
        "train_loss": train_loss,
        "validation_loss": validation_loss,
        "change_norm": norms,
        **floors(settings),
        "trainable": count_parameters(base(settings.base).params, lora_config(settings)).trainable,
        "diverged_at": diverged_at,
        "samples": samples,
    }


def train_config(settings: Settings) -> TrainConfig:
    """The TrainConfig of a run."""
    shared = {field.name for field in dataclasses.fields(TrainConfig)} & set(vars(settings))
    return TrainConfig(**{name: getattr(settings, name) for name in shared})


def change_norm(start: model.Model, trained: Adapter | model.Model) -> float:
    """Frobenius norm of the change of all linear weights of the blocks, taken as one vector."""
    if isinstance(trained, Adapter):
        changes = weight_changes(trained)
    else:
        before, after = leaves(start.params), leaves(trained.params)
        paths = [f"{path}.weight" for path in model.linear_paths(start.params)]
        changes = {path: after[path].astype("float64") - before[path] for path in paths}
    return float(np.sqrt(sum(np.sum(change**2) for change in changes.values())))


def write_names(start: model.Model, trained: Adapter | model.Model, seed: int) -> list[str]:
    """A few names from a trained model."""
    rng = np.random.default_rng(seed)
    if isinstance(trained, Adapter):
        return generate.sample_names(start, N_SAMPLES, rng, adapter=trained)
    return generate.sample_names(trained, N_SAMPLES, rng)


def as_run(settings: Settings, result: Mapping[str, Any]) -> Run:
    """A stored result as a `Run`; ValueError, KeyError or TypeError for what is none of a run with these settings."""
    measured: dict[str, Any] = {name: tuple(result[name]) for name in MEASURED}
    run = Run(settings, **measured, **{name: result[name] for name in CONSTANT})
    check_run(run)
    samples, n = result["samples"], 0 if run.diverged or run.settings.seed else N_SAMPLES
    if not isinstance(samples, list) or len(samples) != n or not all(isinstance(one, str) for one in samples):
        raise ValueError(f"samples: got {samples!r}, takes a list of {n} names")
    return run
