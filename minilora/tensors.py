"""Arrays in safetensors files, checked the same when they are written and when they are read. Never pickle."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from minilora.adapter import FLOATS
from minilora.checks import check_stored

HALVES = ("float16", *FLOATS)  # what others store; bfloat16 is none of NumPy's
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def to_bytes(arrays: Mapping[str, np.ndarray], metadata: dict[str, str]) -> bytes:
    """A safetensors file."""
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return safetensors.numpy.save(contiguous, metadata=metadata)


def read_arrays(path: Path, dtypes: tuple[str, ...] = FLOATS) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Arrays and metadata of a safetensors file; ValueError if it is damaged or holds anything but finite floats."""
    if path.is_dir():
        raise IsADirectoryError(f"{path}: a folder, takes a safetensors file")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with safetensors.safe_open(path, framework="np") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            metadata = file.metadata() or {}
    except TypeError as error:  # bfloat16
        raise ValueError(f"{path}: stored in a dtype that NumPy lacks, takes {' or '.join(dtypes)} ({error})") from None
    except (safetensors.SafetensorError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error})") from None
    check_stored(str(path), arrays, dtypes)
    return arrays, metadata


def widest(arrays: Mapping[str, np.ndarray]) -> np.dtype:
    """The dtype in which none of them loses anything, float32 at least: float16 is for storing alone."""
    return np.result_type(np.float32, *{array.dtype for array in arrays.values()})


def refuse_pickle_for(path: Path) -> None:
    """ValueError where a file is missing that is there in the pickled form of old checkpoints."""
    if not path.is_file():
        for other in sorted(path.parent.iterdir()):
            if "model" in other.name:  # not the optimizer's state, nor the arguments of a training
                refuse_pickle(str(other), other.name)


def refuse_pickle(where: str, name: Any) -> None:
    """ValueError for the name of a pickled file: reading one runs whatever code is in it."""
    if isinstance(name, str) and name.endswith(PICKLED):
        raise ValueError(f"{where}: pickle is not read; convert to safetensors")
