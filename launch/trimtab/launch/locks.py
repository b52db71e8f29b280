"""Locks that belong to a group of processes and are free once the last of them has ended.

The kernel's lock (flock) belongs to an open file: processes that inherit the file hold it
together, however they end. It holds within one machine.
"""

import contextlib
import fcntl
import hashlib
import os
import signal
import tempfile
import time
from pathlib import Path
from typing import BinaryIO, Final

_POLL_S: Final = 0.05
_KILLED_S: Final = 10.0
"""How long killed processes may take to end."""


def try_lock(descriptor: int, *, wait_s: float) -> bool:
    """Lock an open file, waiting up to `wait_s` for those that hold it."""
    deadline_s = time.monotonic() + wait_s
    while True:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        if time.monotonic() >= deadline_s:
            return False
        time.sleep(_POLL_S)


def take_over(file: BinaryIO, *, grace_s: float) -> bool:
    """Lock a file; processes that still hold it after `grace_s` are killed.

    Returns:
        False where they do not end even so, or belong to another user.
    """
    if try_lock(file.fileno(), wait_s=grace_s):
        return True
    for pid in holders(Path(file.name)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
    return try_lock(file.fileno(), wait_s=_KILLED_S)


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


def open_node_lock(run_dir: Path, node: str) -> BinaryIO:
    """The file whose lock the one agent of a run on a node holds; of this machine, not shared.

    Runs of two folders may have the same id, so the whole path counts.

    Raises:
        OSError: It cannot be made.
    """
    folder = Path(tempfile.gettempdir()) / f"trimtab-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    path = os.fsencode(run_dir.resolve())
    digest = hashlib.sha256(path).hexdigest()[:16]
    return (folder / f"{run_dir.name}.{digest}.{node}.lock").open("ab")


def _holds(process: Path, lock: str) -> bool:
    with contextlib.suppress(OSError):  # it has ended, or is another user's
        for descriptor in (process / "fd").iterdir():
            with contextlib.suppress(OSError):
                if str(descriptor.readlink()) == lock:
                    return "FLOCK" in (process / "fdinfo" / descriptor.name).read_text()
    return False
