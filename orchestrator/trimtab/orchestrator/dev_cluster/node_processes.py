"""What runs on a node of a Slurm whose nodes are all this machine.

A node's processes are its slurmstepds, found by their sockets in the node's spool folder, all
that descends from them, and what has left them but still has the node's variables.

Source: slurmd's `NODE_JOB.STEP` sockets; proc_pid_fd(5), proc_pid_environ(5), unix(7).
"""

import contextlib
import os
import signal
from collections import defaultdict
from pathlib import Path

_PROC = Path("/proc")


def processes_of(spool: Path, *, config: Path, node: str) -> frozenset[int]:
    """Pids of what jobs of a cluster run on a node.

    Args:
        spool: The node's SlurmdSpoolDir.
        config: The cluster's slurm.conf, which everything of it has in its environment.
        node: The node's name.
    """
    sockets = _sockets_below(spool)
    ours = {f"SLURM_CONF={config}".encode(), f"SLURMD_NODENAME={node}".encode()}
    children: dict[int, list[int]] = defaultdict(list)
    found: list[int] = []
    for pid in (int(path.name) for path in _PROC.glob("[0-9]*")):
        with contextlib.suppress(OSError):  # it has ended, or is another user's
            children[_parent(pid)].append(pid)
            if ours <= _variables(pid) or _holds(pid, sockets):
                found.append(pid)
    processes: set[int] = set()
    while found:
        pid = found.pop()
        if pid not in processes:
            processes.add(pid)
            found += children[pid]
    return frozenset(processes - {os.getpid()})


def kill_all(pids: frozenset[int]) -> None:
    """SIGKILL to every process; parents first, so that none can act on a child's end."""
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in sorted(pids):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def _sockets_below(folder: Path) -> frozenset[str]:
    """Sockets that are bound to paths in a folder, as the links in `/proc/PID/fd` show them."""
    links = set()
    for line in (_PROC / "net" / "unix").read_text(errors="replace").splitlines()[1:]:
        fields = line.split(maxsplit=7)
        if len(fields) > 7 and Path(fields[7]).parent == folder:
            links.add(f"socket:[{fields[6]}]")
    return frozenset(links)


def _holds(pid: int, sockets: frozenset[str]) -> bool:
    for link in (_PROC / str(pid) / "fd").iterdir() if sockets else ():
        with contextlib.suppress(FileNotFoundError):  # it was closed just now
            if str(link.readlink()) in sockets:
                return True
    return False


def _variables(pid: int) -> set[bytes]:
    return set((_PROC / str(pid) / "environ").read_bytes().split(b"\0"))


def _parent(pid: int) -> int:
    stat = (_PROC / str(pid) / "stat").read_text(errors="replace")
    # The second field, the command's name in brackets, may itself hold spaces and brackets.
    return int(stat[stat.rindex(")") + 2 :].split()[1])
