"""What numerical work on small arrays wants of its process: one BLAS thread, and memory that stays at hand."""

import contextlib
import functools

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits


def one_blas_thread():
    """Hold BLAS to one thread inside a `with`: on these sizes two are slower, and results depend on their number.

    Without a word it does nothing where there is no BLAS that threadpoolctl knows: a user of `fit` can do nothing about
    that, and what comes out is right all the same. Who runs many asks `blas_can_be_held` and says so once.
    """
    return threadpool_limits(limits=1, user_api="blas")


def blas_can_be_held() -> bool:
    """Whether there is a BLAS that threadpoolctl knows. Apple's Accelerate is none, nor are NumPy's own loops."""
    return any(found["user_api"] == "blas" for found in threadpool_info())


@contextlib.contextmanager
def working_conditions():
    """What training runs under: one BLAS thread, freed memory kept, no warnings of overflow, which is reported."""
    keep_freed_memory()
    with one_blas_thread(), np.errstate(all="ignore"):  # what overflows ends as DivergedError
        yield


@functools.cache
def keep_freed_memory() -> None:
    """Make glibc keep the memory that a step frees for the next one; elsewhere, nothing.

    Its malloc learns from the largest block it has had to free: after one of nearly 32 MB, it returns nothing to the
    system before 64 MB lie free (mallopt(3), M_MMAP_THRESHOLD). Else each step of a larger model returns and asks again
    for thousands of pages, which took up to a fifth of it.
    """
    np.empty(2**25 - 2**16, np.uint8)
