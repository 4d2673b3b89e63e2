"""Asking BLAS for its threads."""

from threadpoolctl import threadpool_info


def blas_threads() -> set[int]:
    """How many threads each BLAS would use now; empty where there is none that threadpoolctl knows."""
    return {found["num_threads"] for found in threadpool_info() if found["user_api"] == "blas"}
