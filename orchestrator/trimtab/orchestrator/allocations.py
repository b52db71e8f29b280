"""Which allocation a controller finds itself in."""

import os

from trimtab.core.job import JobHandle, Request
from trimtab.launch.api import Allocation
from trimtab.orchestrator.rundir import RunDir


def allocation_of(
    run: RunDir, *, lock_fd: int | None, step_prefix: tuple[str, ...]
) -> Allocation:
    """The nodes of the job that this process controls.

    Args:
        run: The run.
        lock_fd: Its locked file, on a machine of its own.
        step_prefix: Command that starts processes on the nodes of a Slurm job.

    Raises:
        TrimtabError: The scheduler cannot be reached from here.
    """
    request = run.request()
    match request.scheduler:
        case "local":
            from trimtab.launch.local import LocalAllocation

            return LocalAllocation(run_dir=run.path, lock_fd=lock_fd)
        case "slurm":
            from trimtab.launch.slurm.allocation import SlurmAllocation

            return SlurmAllocation(step_prefix, request=request, handle=run.handle)
        case "ray":
            from trimtab.launch.ray.allocation import RayAllocation

            return RayAllocation(request)


def is_superseded(run: RunDir) -> bool:
    """Whether this job has gone elsewhere under another handle, so that it must not run on.

    Slurm may put a job back into its queue by itself although its successor runs already.
    """
    own = own_handle(run.request())
    if own is None or own.scheduler != "slurm":
        return False
    handles = run.handles
    if own not in handles:
        run.add_handle(own)
        return False
    return handles[-1] != own


def own_handle(request: Request) -> JobHandle | None:
    """The name that its scheduler has given the job in which this process runs.

    Of a Ray job it is known where the request tells it, as that of a staged one does.
    """
    match request.scheduler:
        case "slurm" if job_id := os.environ.get("SLURM_JOB_ID"):
            array, task = (os.environ.get(f"SLURM_ARRAY_{name}_ID") for name in ("JOB", "TASK"))
            return JobHandle(scheduler="slurm", job_id=f"{array}_{task}" if array else job_id)
        case "ray" if submission_id := request.job.ray.submission_id:
            return JobHandle(scheduler="ray", job_id=submission_id)
        case _:
            return None
