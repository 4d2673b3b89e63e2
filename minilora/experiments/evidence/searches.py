"""Searches that look losses up where every setting was run already, so that many can be tried for nothing.

Each gives the lowest loss after each of its runs, from one loss a point of a space: (points,) -> (runs,).
"""

import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from minilora.command_line import install


def grid_search(losses: np.ndarray, seed: int, points: Sequence[int]) -> np.ndarray:
    """These points, tried in random order."""
    return np.minimum.accumulate(losses[np.random.default_rng(seed).permutation(points)])


def random_search(losses: np.ndarray, seed: int, n: int) -> np.ndarray:
    """So many random points of the space, none twice."""
    return np.minimum.accumulate(losses[np.random.default_rng(seed).permutation(len(losses))[:n]])


def bayesian_search(losses: np.ndarray, seed: int, n: int, sizes: Mapping[str, int]) -> np.ndarray:
    """What Optuna's TPE sampler asks for (Bergstra et al. 2011), five random ones first; `sizes` is the space's shape.

    Each setting is sampled by itself, as in that paper. Where the sampler asks again for what was run already it gets
    that loss, and no run is counted.
    """
    try:
        import optuna
    except ImportError:
        raise ImportError(f"the study 'search' needs Optuna: {install('search')}") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Optuna 5 samples settings jointly unless told; told, 4.9.0 and 5.0.0 asked for the same points in every search.
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=5, multivariate=False)
    search = optuna.create_study(sampler=sampler)
    tried: dict[int, float] = {}
    while len(tried) < n:
        trial = search.ask()
        places = tuple(trial.suggest_int(name, 0, size - 1) for name, size in sizes.items())
        point = int(np.ravel_multi_index(places, list(sizes.values())))
        tried[point] = losses[point]
        search.tell(trial, tried[point])
    return np.minimum.accumulate(list(tried.values()))


def regrets(search: Callable[[np.ndarray, int], np.ndarray], losses: np.ndarray, repeats: int) -> np.ndarray:
    """How far above the lowest loss a search is after each run, over its repeats: (points, seeds) -> (runs, seeds)."""
    return _regrets(search, losses.tobytes(), losses.shape[1], repeats)


@functools.lru_cache(maxsize=16)  # contrasts and the figure ask for the same
def _regrets(search, losses: bytes, n_seeds: int, repeats: int) -> np.ndarray:
    by_seed = np.frombuffer(losses).reshape(-1, n_seeds).T
    found = [[search(one, seed * repeats + i) for i in range(repeats)] for seed, one in enumerate(by_seed)]
    return (np.mean(found, axis=1) - by_seed.min(1, keepdims=True)).T
