"""The questions: a file each, which defines `STUDY`. Nothing else has to know its name."""

import importlib
import pkgutil

from minilora.experiments.evidence.claims import ORDER
from minilora.experiments.evidence.study import Study, StudyError


def load_studies() -> dict[str, Study]:
    """{name: study}, one for each module of `studies/`, which defines STUDY; in the order of the article."""
    found = [_load(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    return {study.name: study for study in sorted(found, key=lambda study: ORDER.index(study.contrasts[0].claim))}


def _load(module: str) -> Study:
    """STUDY of a module; StudyError, naming the field, if it is not what a study has to be."""
    try:
        study = importlib.import_module(module).STUDY
        if not isinstance(study, Study):
            raise TypeError(f"STUDY: got {type(study).__name__}, takes a Study")
        if not study.contrasts:
            raise ValueError("contrasts: got none, takes at least one")
        return study
    except (TypeError, ValueError, AttributeError) as error:
        raise StudyError(f"{module.rpartition('.')[2]}.py: {error}") from error
