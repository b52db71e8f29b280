"""The processes of a node's ranks: started, watched and ended by its agent."""

import contextlib
import datetime
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trimtab.core.errors import JobFailedError
from trimtab.launch import tether
from trimtab.launch.api import RankExit
from trimtab.launch.logs import attempt_line, last_words

FROZEN_AFTER_S: Final = 3.0
"""A rank that has been stopped for this long is told; a debugger's short stop is not."""

_STOPPED_STATES: Final = {"T": "stopped by a signal", "t": "stopped by a debugger"}
"""Source: proc_pid_stat(5), field 3."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankOrder:
    """One rank to start."""

    rank: int
    argv: tuple[str, ...]
    folder: Path
    environment: Mapping[str, str]
    """The whole environment of the process."""
    log: Path
    attempt: int
    inherited_fds: tuple[int, ...] = ()
    """Open files that the rank keeps: locks, and rank 0's store socket."""


class RankProcesses:
    """Running ranks of one attempt; each leads a process group of its own."""

    def __init__(self) -> None:
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._orders: dict[int, RankOrder] = {}
        self._frozen_since_s: dict[int, float] = {}
        self._told_frozen: set[int] = set()

    @property
    def running(self) -> tuple[int, ...]:
        """Ranks whose end `poll` has not told yet, ascending."""
        return tuple(sorted(self._processes))

    def start(self, order: RankOrder) -> None:
        """Start a rank, tied to this process: it is asked to end (SIGTERM) when that dies.

        Raises:
            JobFailedError: Its process could not be started.
        """
        begin_log(order)
        try:
            with order.log.open("ab") as log:
                process = subprocess.Popen(
                    tether.command(order.argv),
                    env=order.environment,
                    cwd=order.folder,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    process_group=0,
                    pass_fds=order.inherited_fds,
                )
        except OSError as error:
            raise JobFailedError(f"rank {order.rank} could not be started: {error}") from error
        self.adopt(order, process)

    def adopt(self, order: RankOrder, process: subprocess.Popen[bytes]) -> None:
        """Watch a process that carries out `order` already."""
        self._processes[order.rank] = process
        self._orders[order.rank] = order

    def poll(self) -> tuple[RankExit, ...]:
        """The ranks that ended since the last call; what they had started is ended too."""
        exits = []
        for rank, process in sorted(self._processes.items()):
            if process.poll() is not None:
                signal_group(process.pid, signal.SIGKILL)
                exits.append(self._exit(rank, process.returncode))
        for ended in exits:
            del self._processes[ended.rank]
        return tuple(exits)

    def frozen(self) -> dict[int, str]:
        """Ranks found stopped for `FROZEN_AFTER_S`, each told once, with what stopped them."""
        now_s = time.monotonic()
        found = {}
        for rank, process in self._processes.items():
            reason = _STOPPED_STATES.get(_state(process.pid))
            if reason is None:
                self._frozen_since_s.pop(rank, None)
                continue
            since_s = self._frozen_since_s.setdefault(rank, now_s)
            if now_s - since_s >= FROZEN_AFTER_S and rank not in self._told_frozen:
                self._told_frozen.add(rank)
                found[rank] = f"{reason} (process {process.pid})"
        return found

    def stop(self) -> None:
        """SIGTERM to every running rank, not to what it has started."""
        for process in self._processes.values():
            process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to every running rank and all it has started."""
        for process in self._processes.values():
            signal_group(process.pid, signal.SIGKILL)

    def wait(self) -> None:
        """Return when every running rank has ended; `poll` still tells how."""
        for process in self._processes.values():
            process.wait()

    def _exit(self, rank: int, return_code: int) -> RankExit:
        """`return_code` as `subprocess` gives it: minus the signal's number if one ended it."""
        order = self._orders[rank]
        if return_code == 0:
            return RankExit(rank=rank, exit_code=0)
        words = last_words(order.log, attempt=order.attempt)
        if return_code > 0:
            return RankExit(rank=rank, exit_code=return_code, last_words=words)
        return RankExit(rank=rank, signal=_signal_name(-return_code), last_words=words)


def begin_log(order: RankOrder) -> None:
    """Open the part of a rank's log that belongs to an attempt."""
    order.log.parent.mkdir(parents=True, exist_ok=True)
    with order.log.open("ab") as log:
        now = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        log.write(f"{attempt_line(order.attempt)} {now}\n".encode())


def usable_cores() -> int:
    """Cores this process may run on: those of its CPU set, where the system tells."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def signal_group(pid: int, number: signal.Signals) -> None:
    """Signal a process group, if it is still there."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, number)


def python(*arguments: str) -> Sequence[str]:
    """This interpreter, without the working directory on its path."""
    return (sys.executable, "-P", *arguments)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have no name in Python
        return f"signal {number}"


def _state(pid: int) -> str:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return ""
    # The second field, the command's name in brackets, may itself hold spaces and brackets.
    return stat[stat.rindex(")") + 2 :][:1]
