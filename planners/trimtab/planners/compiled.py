"""Compiled loops: numba where it is installed (the extra `fast`), plain Python where not.

A module of kernels is written once, with nothing but indexing, arithmetic and loops. numba
compiles it at its first use on a machine, in about five seconds, and keeps the result beside
it; from then on its import takes half a second. Without numba the same code runs on lists,
thirty to fifty times slower.
"""

from collections.abc import Callable, Iterable, MutableSequence
from typing import TypeVar

import numpy as np

try:
    from numba import njit
except ImportError:
    IS_COMPILED = False
else:
    IS_COMPILED = True

Floats = MutableSequence[float]
Ints = MutableSequence[int]

_Kernel = TypeVar("_Kernel", bound=Callable[..., object])


def compiled(kernel: _Kernel) -> _Kernel:
    """Compile `kernel`, which may call other compiled kernels."""
    if not IS_COMPILED:
        return kernel
    fast: _Kernel = njit(cache=True, nogil=True, error_model="numpy")(kernel)
    return fast


def floats(values: Iterable[float]) -> Floats:
    """What kernels read and write as floats."""
    kept = list(values)
    return np.array(kept, dtype=np.float64) if IS_COMPILED else kept  # type: ignore[return-value]


def ints(values: Iterable[int]) -> Ints:
    """What kernels read and write as whole numbers."""
    kept = list(values)
    return np.array(kept, dtype=np.int64) if IS_COMPILED else kept  # type: ignore[return-value]


def zero_floats(number: int) -> Floats:
    """So many zeros, for kernels to write to."""
    return np.zeros(number) if IS_COMPILED else [0.0] * number  # type: ignore[return-value]


def zero_ints(number: int) -> Ints:
    """So many zeros, for kernels to write to."""
    zeros = np.zeros(number, dtype=np.int64)
    return zeros if IS_COMPILED else [0] * number  # type: ignore[return-value]
