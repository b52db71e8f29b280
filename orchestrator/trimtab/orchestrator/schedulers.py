"""The three schedulers by name, starting Trimtab's own ranks and keepers."""

import sys
from typing import TYPE_CHECKING, Final

from trimtab.core.job import Request, SchedulerName

if TYPE_CHECKING:
    from trimtab.launch.api import Scheduler

RANK_COMMAND: Final = (sys.executable, "-P", "-m", "trimtab.orchestrator.rank")
KEEPER_COMMAND: Final = (sys.executable, "-P", "-m", "trimtab.orchestrator.keeper")


def scheduler_of(name: SchedulerName, *, address: str | None = None) -> "Scheduler":
    """A scheduler; Slurm's and Ray's modules are read only where they are used.

    Args:
        name: Which.
        address: Of a Ray cluster that jobs are looked after on; None: of the environment.
    """
    match name:
        case "local":
            from trimtab.launch.local import LocalScheduler

            return LocalScheduler(rank_argv=RANK_COMMAND, keeper_argv=KEEPER_COMMAND)
        case "slurm":
            from trimtab.launch.slurm.scheduler import SlurmScheduler

            return SlurmScheduler(rank_argv=RANK_COMMAND, keeper_argv=KEEPER_COMMAND)
        case "ray":
            from trimtab.launch.ray.scheduler import RayScheduler

            return RayScheduler(
                rank_argv=RANK_COMMAND, keeper_argv=KEEPER_COMMAND, address=address
            )


def scheduler_for(request: Request) -> "Scheduler":
    """The scheduler that a run was submitted to, on its own cluster."""
    return scheduler_of(request.scheduler, address=request.job.ray.address)
