"""Doing runs: each once, in several processes, stored as soon as it is done."""

import dataclasses
import functools
import hashlib
import inspect
import itertools
import json
import platform
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from minilora import autodiff, conditions, generate, lora, model, ops, optim, stack, train, trees
from minilora.conditions import one_blas_thread
from minilora.data import names, planted
from minilora.data.base import BASES, load_base
from minilora.experiments.runs import CONSTANT, MEASURED, Run
from minilora.experiments.study import Settings
from minilora.files import read_json, replace_file, to_json
from minilora.lora import Adapter, LoraConfig, count_parameters, weight_changes
from minilora.stack import FineTuning, fit_stack
from minilora.train import Dataset, DivergedError, History, TrainConfig, evaluate, fit
from minilora.trees import fingerprint, leaves

N_SAMPLES = 12  # names that each run writes at its end
Stack = list[Settings]  # runs done at once
STACKED = ("learning_rate", "lora_alpha", "lora_dropout", "init_lora_weights")  # what runs done at once may differ in
MAX_STACK = 8  # more at once gains little: see tests/bench
COMPUTED_BY = (
    autodiff,
    conditions,
    ops,
    trees,
    model,
    sys.modules[LoraConfig.__module__],
    lora,
    optim,
    train,
    stack,
    generate,
    names,
    planted,
)

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
    train_set, validation, teacher = task(settings)
    sets = {"floor": validation, "train_floor": train_set}
    first = {name: Dataset(*(part[: settings.evaluation_size] for part in dataset)) for name, dataset in sets.items()}
    return {name: 0.0 if teacher is None else evaluate(teacher, dataset) for name, dataset in first.items()}


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
        diverged_at, samples = -1, write_names(base(settings.base), outcome.final, settings.seed)
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


@functools.cache
def code_version() -> str:
    """Hash of what a result depends on besides its settings: the code that computes it, NumPy, the base, the data."""
    digest = hashlib.sha256()
    for module in (*COMPUTED_BY, sys.modules[__name__]):
        digest.update(inspect.getsource(module).encode())
    bases = [fingerprint(base(name).params) for name in BASES]
    digest.update(json.dumps([np.__version__, version("autograd"), machine(), *bases]).encode())
    digest.update(" ".join([*names.load_names("female"), *names.load_names("male")]).encode())
    return digest.hexdigest()


@functools.cache
def machine() -> dict[str, Any]:
    """What decides the last bits of a result: processor features that NumPy uses, and the BLAS with its kernels."""
    from numpy._core._multiarray_umath import __cpu_features__  # NumPy has no public name for it
    from threadpoolctl import threadpool_info

    features = sorted(name for name, found in __cpu_features__.items() if found)
    found = [one for one in threadpool_info() if one["user_api"] == "blas"]
    numpys = [one for one in found if "numpy" in one["filepath"]] or found  # SciPy may bring a BLAS of its own
    blas = {f"{one['internal_api']} {one['version']} {one.get('architecture')}" for one in numpys}
    system = f"{platform.system()} {platform.machine()}"
    return {"system": system, "cpu_features": " ".join(features), "blas": "; ".join(sorted(blas))}


def run_key(settings: Settings) -> str:
    """The name under which a run is stored: equal for equal settings and code, and only then."""
    text = json.dumps([dataclasses.asdict(settings), code_version()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Store:
    """Finished runs, one JSON file each."""

    def __init__(self, folder: Path, fresh: bool = False):
        self.folder, self.fresh = folder, fresh
        self.renewed: set[Settings] = set()

    def path(self, settings: Settings) -> Path:
        return self.folder / f"{run_key(settings)}.json"

    def get(self, settings: Settings) -> dict[str, Any] | None:
        """The stored result, or None. A file that cannot be read counts as none: the run is done again.

        With `fresh`, so does every result that was not put here by this very store.
        """
        if self.fresh and settings not in self.renewed:
            return None
        try:
            result = read_json(self.path(settings))
            as_run(settings, result)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return result

    def put(self, settings: Settings, result: dict[str, Any]) -> None:
        self.renewed.add(settings)
        replace_file(self.path(settings), to_json({"settings": dataclasses.asdict(settings), **result}))


def as_run(settings: Settings, result: dict[str, Any]) -> Run:
    """A stored result as a `Run`."""
    values: dict[str, Any] = {name: tuple(result[name]) for name in MEASURED} | {
        name: result[name] for name in CONSTANT
    }
    return Run(settings, **values)


class RunFailedError(RuntimeError):
    """Runs that raised; the others are done and stored."""


def run_all(
    todo: Iterable[Settings], store: Store, jobs: int, done: Callable[[Settings], None] = lambda settings: None
) -> dict[Settings, dict[str, Any]]:
    """{settings: result} for every run, from the store where it is there, else done now and stored at once.

    Results do not depend on `jobs` or on what was stored: each run seeds itself, has one BLAS thread and its own sums.
    """
    todo = list(todo)
    results = {settings: result for settings in todo if (result := store.get(settings)) is not None}
    missing = stacks(settings for settings in todo if settings not in results)
    failures = []
    try:
        for settings, result in _in_processes(missing, jobs):
            if "error" in result:
                failures.append(f"{settings.label()}: {result['error']}")
            else:
                store.put(settings, result)
                results[settings] = result
            done(settings)
    except BrokenProcessPool:
        raise RunFailedError("a worker was killed, or memory ran out; finished runs are stored") from None
    if failures:
        raise RunFailedError(f"{len(failures)} of {len(todo)} runs failed, the first: {failures[0]}")
    return {settings: results[settings] for settings in todo}


def _in_processes(todo: Sequence[Stack], jobs: int) -> Iterator[tuple[Settings, dict[str, Any]]]:
    if jobs == 1 or len(todo) < 2:
        yield from itertools.chain.from_iterable(map(_guarded, todo))
        return
    import joblib
    from joblib.externals.loky import get_reusable_executor

    parallel = joblib.Parallel(n_jobs=min(jobs, len(todo)), return_as="generator_unordered", batch_size=1)
    try:
        yield from itertools.chain.from_iterable(parallel(joblib.delayed(_in_worker)(one) for one in todo))
    except BaseException:
        get_reusable_executor().shutdown(wait=True, kill_workers=True)
        raise


def _in_worker(stack: Stack) -> list[tuple[Settings, dict[str, Any]]]:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the command, which stops its workers
    return _guarded(stack)


def _guarded(stack: Stack) -> list[tuple[Settings, dict[str, Any]]]:
    """Runs that raise are reported with their settings and do not take the others with them."""
    try:
        with one_blas_thread():
            return list(zip(stack, execute(stack), strict=True))
    except Exception as error:
        return [(settings, {"error": f"{type(error).__name__}: {error}"}) for settings in stack]
