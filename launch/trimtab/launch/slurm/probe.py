"""Whether the slurmds of nodes answer, before a job step is started on them.

Slurm takes a node for lost only after `SlurmdTimeout` (300 s by default). A step that includes
one which has died since then is ended on all its nodes.
"""

import socket
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from trimtab.launch.slurm.topology import NodeInfo

_CONNECT_S: Final = 3.0
_TRIES: Final = 3
"""Tries that must fail: a slurmd that is restarted is back after less."""
_PAUSE_S: Final = 1.0
_MOST_AT_ONCE: Final = 64


def silent_nodes(nodes: Sequence[NodeInfo]) -> dict[str, str]:
    """Nodes whose slurmd cannot be connected to, by name, with what became of the last try."""
    if not nodes:
        return {}
    with ThreadPoolExecutor(min(len(nodes), _MOST_AT_ONCE)) as pool:
        answers = pool.map(_silence, nodes)
        return {
            node.name: silence
            for node, silence in zip(nodes, answers, strict=True)
            if silence is not None
        }


def _silence(node: NodeInfo) -> str | None:
    silence = None
    for number in range(_TRIES if node.port else 0):
        if number:
            time.sleep(_PAUSE_S)
        try:
            socket.create_connection((node.address, node.port), timeout=_CONNECT_S).close()
        except OSError as error:
            silence = f"its slurmd does not answer at {node.address}:{node.port}: {error}"
        else:
            return None
    return silence
