from collections.abc import Callable
from pathlib import Path

import pytest

from trimtab.core.errors import InputError
from trimtab.core.job import JobHandle, ScriptSpec
from trimtab.launch.slurm.allocation import SlurmAllocation
from trimtab.launch.slurm.scheduler import SlurmScheduler


@pytest.mark.parametrize(
    ("prefix", "environment", "missing"),
    [
        (("srun",), {"SLURMD_NODENAME": "n1"}, "SLURM_JOB_ID"),
        (("srun",), {"SLURM_JOB_ID": "1"}, "SLURMD_NODENAME"),
        (("srun",), {}, "SLURM_JOB_ID, SLURMD_NODENAME"),
        ((), {"SLURM_JOB_ID": "1", "SLURMD_NODENAME": "n1"}, "the srun command"),
    ],
)
def test_a_process_that_is_no_batch_script_is_told_so(
    scheduler: SlurmScheduler,
    script_job: Callable[..., ScriptSpec],
    monkeypatch: pytest.MonkeyPatch,
    prefix: tuple[str, ...],
    environment: dict[str, str],
    missing: str,
) -> None:
    for name in ("SLURM_JOB_ID", "SLURMD_NODENAME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    request = scheduler.prepare(script_job(), layout=None, run_dir=Path("/runs/a"))
    handle = JobHandle(scheduler="slurm", job_id="1")
    with pytest.raises(InputError) as refused:
        SlurmAllocation(prefix, request=request, handle=handle)
    assert str(refused.value) == (
        f"slurm: expected to run as the batch script of a job, but {missing} is missing; use "
        "`trimtab submit -s slurm`"
    )
