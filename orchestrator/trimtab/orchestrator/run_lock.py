"""The lock of a run: held by all who may write to it, from its submitter to its last rank.

A submitter hands the locked file to the keeper, that to the controller, that to the agent and
its ranks: so there is no moment in which another attempt could begin. It guards runs of this
machine; those of Slurm and Ray exist once by their scheduler's doing.
"""

import contextlib
from collections.abc import Iterator
from typing import Final

from trimtab.core.errors import RunDirError
from trimtab.launch import locks
from trimtab.orchestrator.rundir import RunDir

WAIT_S: Final = 15.0
"""How long a new attempt waits for the processes of the last one to end."""


@contextlib.contextmanager
def held(run: RunDir) -> Iterator[int]:
    """The locked file's descriptor, to be handed on; waits up to `WAIT_S` for the lock.

    Raises:
        RunDirError: Processes of an earlier attempt still hold it; the message says which.
    """
    with run.lock.open("a") as file:
        if not locks.try_lock(file.fileno(), wait_s=WAIT_S):
            raise RunDirError(_refusal(run))
        yield file.fileno()


def is_free(run: RunDir) -> bool:
    """Whether no process of the run lives any more on this machine."""
    with run.lock.open("a") as file:
        return locks.try_lock(file.fileno(), wait_s=0.0)


def _refusal(run: RunDir) -> str:
    pids = " ".join(str(pid) for pid in locks.holders(run.lock))
    who = f"the processes {pids}" if pids else "processes that cannot be seen from here"
    way_out = f"; to end them at once: kill -9 {pids}" if pids else ""
    return (
        f"{run.handle} is still held by {who} of its last attempt, which may be writing a "
        f"checkpoint; try again when they have ended{way_out}"
    )
