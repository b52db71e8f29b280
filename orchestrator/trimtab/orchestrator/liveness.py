"""Which process a pid means: a pid alone may be a later, unrelated process."""

import os
import socket
from dataclasses import dataclass
from pathlib import Path

from trimtab.core import checks

_STATE_FIELD = 3
_START_TIME_FIELD = 22
_DEAD_STATES = ("Z", "X")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessId:
    """A process that no later one can be mistaken for."""

    host: str
    pid: int
    started: str
    """Boot and start time as the kernel counts them; empty where it does not tell."""

    def __post_init__(self) -> None:
        checks.whole_number("pid", self.pid)

    @classmethod
    def own(cls) -> "ProcessId":
        """This process."""
        return cls.of(os.getpid())

    @classmethod
    def of(cls, pid: int) -> "ProcessId":
        """A process of this machine."""
        return cls(host=socket.gethostname(), pid=pid, started=_started(pid) or "")

    @property
    def is_here(self) -> bool:
        """Whether it runs, or ran, on this machine."""
        return self.host == socket.gethostname()

    @property
    def is_alive(self) -> bool:
        """Whether it still runs; a process of another machine is taken to."""
        if not self.is_here:
            return True
        if self.started:
            return _started(self.pid) == self.started
        return _accepts_signals(self.pid)


def _started(pid: int) -> str | None:
    """When the process began, or None where it does not run (a zombie does not).

    Source: proc_pid_stat(5), fields 3 (state) and 22 (start time in clock ticks since boot); a
    tick count may repeat after a reboot, hence the boot id of proc_sys_kernel(5).
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    # The second field, the command's name in brackets, may itself hold spaces and brackets.
    fields = stat[stat.rindex(")") + 1 :].split()
    if fields[_STATE_FIELD - 3] in _DEAD_STATES:
        return None
    return f"{boot}:{fields[_START_TIME_FIELD - 3]}"


def _accepts_signals(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
