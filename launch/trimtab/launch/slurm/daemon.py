"""Whether Slurm's daemon still runs on this node.

Slurm itself takes a node for lost only after `SlurmdTimeout` (300 s by default) and then ends
what runs there. An agent sees within a second that nobody listens on slurmd's port any more,
while the ranks still live and can write a checkpoint.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final, Self

_LISTEN: Final = "0A"
_TABLES: Final = ("/proc/net/tcp", "/proc/net/tcp6")
_LOOKS_NEEDED: Final = 3
"""Looks in a row that find nobody: a restart of slurmd takes less."""
_COMMAND_TIMEOUT_S: Final = 20.0


class SlurmdWatch:
    """Looks for slurmd's listening socket."""

    def __init__(self, node: str, port: int) -> None:
        self._node = node
        self._port = port
        self._missed = 0

    @classmethod
    def of_this_node(cls) -> Self | None:
        """For the node this process runs on; None outside Slurm, or where it cannot be told.

        slurmd must be seen to listen first: in a container with its own network, say, it never
        is.
        """
        node = os.environ.get("SLURMD_NODENAME")
        if node is None or shutil.which("scontrol") is None:
            return None
        port = _slurmd_port(node)
        if port is None or not is_listening(port):
            return None
        return cls(node, port)

    def failure(self) -> str | None:
        """Why the node is about to be lost, or None while slurmd listens."""
        self._missed = 0 if is_listening(self._port) else self._missed + 1
        if self._missed < _LOOKS_NEEDED:
            return None
        return f"slurmd of {self._node} no longer listens on port {self._port}"


def is_listening(port: int) -> bool:
    """Whether any process of this machine listens on a TCP port.

    Source: proc_pid_net(5), `/proc/net/tcp`: local address and state in hexadecimal.
    """
    suffix = f":{port:04X}"
    for table in _TABLES:
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split(maxsplit=4)
            if fields[1].endswith(suffix) and fields[3] == _LISTEN:
                return True
    return False


def _slurmd_port(node: str) -> int | None:
    """Slurmd's port on `node`: its own, or the cluster's."""
    for argv in (["scontrol", "show", "node", node], ["scontrol", "show", "config"]):
        try:
            answer = subprocess.run(
                argv, capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        found = re.search(r"\b(?:Port|SlurmdPort)\s*=\s*(\d+)", answer.stdout)
        if found:
            return int(found[1])
    return None
