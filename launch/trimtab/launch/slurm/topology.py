"""The nodes of a job in an order in which neighbours are near each other. Pure."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from trimtab.launch.slurm.hostlist import expanded

_FIELD: Final = re.compile(r"(\w+)=(\S*)")
_LOST_STATES: Final = ("DOWN", "FAIL", "NOT_RESPONDING", "POWERED_DOWN")
"""Parts of a node's state in which it runs nothing; `*` marks one that does not respond.

Source: scontrol(1) and sinfo(1), node state codes.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeInfo:
    """What Slurm knows of a node."""

    name: str
    address: str
    state: str
    features: tuple[str, ...] = ()

    @property
    def is_lost(self) -> bool:
        return self.state.endswith("*") or any(lost in self.state for lost in _LOST_STATES)

    @property
    def is_leaving(self) -> bool:
        """Whether an administrator takes it out as soon as its jobs have ended."""
        return "DRAIN" in self.state


def parsed_nodes(text: str) -> tuple[NodeInfo, ...]:
    """Nodes from `scontrol show node --oneliner`."""
    nodes = []
    for line in text.splitlines():
        fields = _fields(line)
        if "NodeName" not in fields:
            continue
        features = fields.get("ActiveFeatures", "(null)")
        nodes.append(
            NodeInfo(
                name=fields["NodeName"],
                address=fields.get("NodeAddr", fields["NodeName"]),
                state=fields.get("State", "UNKNOWN"),
                features=() if features == "(null)" else tuple(features.split(",")),
            )
        )
    return tuple(nodes)


def parsed_leaf_switches(text: str) -> dict[str, str]:
    """The leaf switch of every node, from `scontrol show topology`; empty without topology.

    A leaf switch is a line without `Switches=`: nodes hang directly on it (topology.conf(5)).
    """
    leaves: dict[str, str] = {}
    for line in text.splitlines():
        fields = _fields(line)
        if "SwitchName" in fields and not fields.get("Switches"):
            leaves |= dict.fromkeys(expanded(fields.get("Nodes", "")), fields["SwitchName"])
    return leaves


def ordered(
    nodes: Iterable[NodeInfo], *, switches: dict[str, str], islands: Sequence[str] = ()
) -> tuple[NodeInfo, ...]:
    """Nodes in the order in which ranks are numbered, whatever order they are given in.

    First by island, in the plan's order, where a feature of the node is an island's name; then
    by leaf switch; then by name, numbers as numbers. Nodes about to be taken out come last.
    """
    rank_of = {island: place for place, island in enumerate(islands)}

    def key(node: NodeInfo) -> tuple[bool, int, tuple[str, ...], tuple[str, ...]]:
        places = [rank_of[feature] for feature in node.features if feature in rank_of]
        place = min(places, default=len(islands))
        switch = natural(switches.get(node.name, ""))
        return node.is_leaving, place, switch, natural(node.name)

    return tuple(sorted(nodes, key=key))


def _fields(line: str) -> dict[str, str]:
    return {match[1]: match[2] for match in _FIELD.finditer(line)}


def natural(name: str) -> tuple[str, ...]:
    """A sort key that puts `n2` before `n10`."""
    return tuple(
        part.zfill(12) if part.isdigit() else part for part in re.split(r"(\d+)", name)
    )
