"""What numbers were made from, on what: code, versions, machine, data, and where tuned learning rates lie."""

import contextlib
import dataclasses
import functools
import hashlib
import inspect
import json
import math
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from minilora import (
    adapter,
    autodiff,
    conditions,
    dataset,
    evaluation,
    generate,
    lora,
    lora_config,
    model,
    ops,
    optim,
    stack,
    train,
    trees,
)
from minilora.data import names, planted
from minilora.data.base import BASES
from minilora.data.names import TABLES, load_names
from minilora.experiments.engine import runner
from minilora.experiments.engine.runner import base
from minilora.experiments.evidence.runs import BEST, Runs, tuned_rates
from minilora.experiments.evidence.study import Study
from minilora.trees import fingerprint

COMPUTED_BY = (  # what a run's numbers hang on; a test holds it to what the runner imports
    adapter,
    autodiff,
    conditions,
    dataset,
    evaluation,
    generate,
    lora,
    lora_config,
    model,
    ops,
    optim,
    stack,
    train,
    trees,
    names,
    planted,
    runner,
)


def provenance(study: Study, runs: Runs, options: str, seconds: float | None) -> dict[str, Any]:
    """What these numbers were made from, on what, and in what time (None: all runs were stored already)."""
    return {
        "command": f"python -m minilora.experiments {study.name}{options}",
        "versions": versions(study.packages),
        "machine": machine(),
        "platform": f"{platform.system()} {platform.machine()}",
        "code": code_version(),
        "bases": {name: fingerprint(base(name).params) for name in BASES},
        "data": {table: hashlib.sha256("\n".join(load_names(table)).encode()).hexdigest() for table in TABLES},
        "seeds": runs.values("seed"),
        "runs": len(runs),
        "diverged": [run.settings.label() + f" at step {run.diverged_at}" for run in runs if run.diverged],
        "seconds": seconds and round(seconds, 1),
        "settings": {f.name: runs.values(f.name) for f in dataclasses.fields(runs[0].settings) if f.name != "seed"},
        "tuned_learning_rates": [_tuning(runs, group) for group in study.tuned if len(runs.where(**group))],
    }


def versions(packages: Sequence[str] = ()) -> dict[str, str]:
    """Of Python, of what computes and draws, and of these."""
    found = {"python": platform.python_version()}
    for name in ("minilora", "numpy", "autograd", "scipy", "matplotlib", "joblib", *packages):
        with contextlib.suppress(PackageNotFoundError):  # minilora may run from a clone, and others are extras
            found[name] = version(name)
    return found


def _tuning(runs: Runs, group: Mapping[str, Any]) -> dict[str, Any]:
    """The learning rates tried for a group of runs, the one with the lowest mean loss, and whether it lies inside."""
    cell = runs.where(**group)
    rates = cell.values("learning_rate")
    means = [float(np.mean(cell.per_seed(BEST, learning_rate=rate))) for rate in rates]
    chosen = tuned_rates(cell)
    inside = rates[0] < min(chosen) and max(chosen) < rates[-1]
    return {"group": dict(group), "tried": rates, "mean_best_loss": [m if math.isfinite(m) else None for m in means],
            "chosen_by_seed": chosen, "inside": inside}  # fmt: skip


@functools.cache
def code_version() -> str:
    """Hash of what a result depends on besides its settings: the code that computes it, NumPy, the base, the data."""
    digest = hashlib.sha256()
    for module in COMPUTED_BY:
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
