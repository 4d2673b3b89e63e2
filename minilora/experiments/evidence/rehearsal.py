"""Runs that were never done, so that a study's contrasts and figure can be tried before hours of real ones."""

import math
import zlib

import numpy as np

from minilora.experiments.evidence.runs import MissingRunsError, Run, Runs, evaluated
from minilora.experiments.evidence.settings import Settings
from minilora.experiments.evidence.study import Study, StudyError


def made_up(of: Settings, diverged: bool = False) -> Run:
    """A run that might have been: losses that fall, then rise, with noise that the settings decide."""
    steps = evaluated(of)
    if diverged:
        steps = steps[: 1 + of.seed % (len(steps) - 1)]
    noise = np.random.default_rng(zlib.crc32(repr(of).encode())).normal(0, 0.01, len(steps))
    done = np.array(steps) / of.steps
    far = abs(math.log10(of.learning_rate) + 2.5)
    planted = of.task == "planted"
    return Run(
        of,
        steps,
        train_loss=tuple(map(float, 2.4 - 0.5 * done / (1 + far) + noise)),
        validation_loss=tuple(map(float, 2.5 - 1.2 * done / (1 + far) + 0.3 * done**2 + noise)),
        change_norm=tuple(map(float, done * (1 + of.lora_alpha))),
        floor=0.5 * planted,
        train_floor=0.4 * planted,
        trainable=100 * of.r,
        diverged_at=steps[-1] + 1 if diverged else -1,
    )


def rehearse(study: Study) -> None:
    """Try each contrast on made-up runs of two seeds; StudyError for one that cannot be measured on this grid."""
    runs = Runs([made_up(one) for one in study.runs(range(2))])
    for contrast in study.contrasts:
        for label, measure in {"measure": contrast.measure, **contrast.variants}.items():
            try:
                with np.errstate(all="ignore"):  # numbers that were never measured may be anything
                    found = np.shape(measure(runs))
            except (MissingRunsError, ValueError, AttributeError, KeyError, TypeError) as error:
                raise StudyError(f"study {study.name}: {contrast.claim}: {label}: {error}") from error
            if found != (2,):
                raise StudyError(
                    f"study {study.name}: {contrast.claim}: {label}: got an array {found} from two seeds, takes one "
                    "number a seed"
                )
