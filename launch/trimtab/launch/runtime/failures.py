"""Failures of a rank that would repeat, told apart from those that may not."""

import contextlib
from collections.abc import Iterator
from typing import Final

import torch

from trimtab.core.errors import NoRestartError

_MEMORY_WORDS: Final = (
    "out of memory",
    "can't allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
"""What CUDA, its libraries and torch's CPU allocator say inside a plain RuntimeError."""


@contextlib.contextmanager
def memory_failures_told(*, rank: int) -> Iterator[None]:
    """Tell that a rank has run out of memory, as it would again with the same plans.

    Raises:
        NoRestartError: It has, inside.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _is_of_memory(error):
            raise
        said = str(error).strip().partition("\n")[0]
        reason = f" ({said})" if said else ""
        raise NoRestartError(
            f"rank {rank} ran out of memory{reason}; lower step_planning.token_cap, use more "
            "ranks, or set layout.recompute=full"
        ) from error


def _is_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return any(words in str(error) for words in _MEMORY_WORDS)
