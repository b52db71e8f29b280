import pytest
import torch

from trimtab.core.errors import ExitCode, NoRestartError
from trimtab.launch.runtime.failures import memory_failures_told


def test_memory_that_torch_does_not_get_ends_the_job_with_advice() -> None:
    with pytest.raises(NoRestartError) as caught, memory_failures_told(rank=3):
        torch.empty(2**45)
    line = str(caught.value)
    assert line.startswith("rank 3 ran out of memory (")
    assert "can't allocate memory: you tried to allocate 140737488355328 bytes" in line
    assert line.endswith(
        "lower step_planning.token_cap, use more ranks, or set layout.recompute=full"
    )
    assert caught.value.exit_code == ExitCode.DO_NOT_RESTART


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA`"),
        RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_every_way_of_saying_so_counts(error: Exception) -> None:
    with pytest.raises(NoRestartError) as caught, memory_failures_told(rank=0):
        raise error
    assert "\n" not in str(caught.value)


def test_other_failures_stay_what_they_are() -> None:
    error = RuntimeError("Connection closed by peer [127.0.0.1]:4711")
    with pytest.raises(RuntimeError, match="closed by peer"), memory_failures_told(rank=0):
        raise error
