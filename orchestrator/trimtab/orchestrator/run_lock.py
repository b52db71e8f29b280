"""The lock of a run: held by all who may write to it, from its submitter to its last rank.

The kernel's lock (flock) belongs to an open file. Processes that inherit the file hold it
together, and it is free once the last of them has ended, in whatever way. A submitter hands it
to the controller, the controller to its ranks: so there is no moment in which another attempt
could begin.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from trimtab.core.errors import RunDirError
from trimtab.orchestrator.rundir import RunDir

WAIT_S: Final = 15.0
"""How long a new attempt waits for the processes of the last one to end."""

_POLL_S: Final = 0.05


@contextlib.contextmanager
def held(run: RunDir) -> Iterator[int]:
    """The locked file's descriptor, to be handed on; waits up to `WAIT_S` for the lock.

    Raises:
        RunDirError: Processes of an earlier attempt still hold it; the message says which.
    """
    deadline_s = time.monotonic() + WAIT_S
    with run.lock.open("a") as file:
        while not _try(file.fileno()):
            if time.monotonic() >= deadline_s:
                raise RunDirError(_refusal(run))
            time.sleep(_POLL_S)
        yield file.fileno()


def holders(path: Path) -> tuple[int, ...]:
    """Processes that hold the lock on `path`, as far as this one may look; ascending.

    Source: proc_pid_fd(5) and proc_pid_fdinfo(5), whose `lock:` lines tell a holder from a
    process that waits with the file open. Empty where there is no `/proc`.
    """
    lock = os.path.realpath(path)
    return tuple(
        sorted(
            int(process.name)
            for process in Path("/proc").glob("[0-9]*")
            if _holds(process, lock)
        )
    )


def _try(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holds(process: Path, lock: str) -> bool:
    with contextlib.suppress(OSError):  # it has ended, or is another user's
        for descriptor in (process / "fd").iterdir():
            with contextlib.suppress(OSError):
                if str(descriptor.readlink()) == lock:
                    return "FLOCK" in (process / "fdinfo" / descriptor.name).read_text()
    return False


def _refusal(run: RunDir) -> str:
    pids = " ".join(str(pid) for pid in holders(run.lock))
    who = f"the processes {pids}" if pids else "processes that cannot be seen from here"
    way_out = f"; to end them at once: kill -9 {pids}" if pids else ""
    return (
        f"{run.handle} is still held by {who} of its last attempt, which may be writing a "
        f"checkpoint; try again when they have ended{way_out}"
    )
