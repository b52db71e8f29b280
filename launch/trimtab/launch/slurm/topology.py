"""The nodes of a job in an order in which neighbours are near each other. Pure."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from trimtab.launch.slurm.hostlist import expanded

_FIELD: Final = re.compile(r"(\w+)=(\S*)")
_LOST_STATES: Final = ("DOWN", "FAIL", "NOT_RESPONDING", "POWERED_DOWN")
"""Parts of a node's state in which it runs nothing; `*` marks one that does not respond.

Source: scontrol(1) and sinfo(1), node state codes.
"""

Place = tuple[str, ...]
"""Where a node is: the switches above it, from the root down to its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeInfo:
    """What Slurm knows of a node."""

    name: str
    address: str
    state: str
    port: int = 0
    """Of its slurmd; 0 where Slurm does not tell."""
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
                port=int(fields.get("Port", "0")),
                features=() if features == "(null)" else tuple(features.split(",")),
            )
        )
    return tuple(nodes)


def host_field(text: str, name: str) -> tuple[str, ...]:
    """Names in a field of `scontrol show job`, such as `ExcNodeList`; often there are none."""
    found = re.search(rf"\b{name}=(\S*)", text)  # the first: a comment may repeat it
    hosts = "" if found is None else found[1]
    return () if hosts == "(null)" else expanded(hosts)


def parsed_places(text: str) -> dict[str, Place]:
    """The place of every node, from `scontrol show topology`; empty without a topology.

    Of a tree of switches, nodes hang on those without switches below. Blocks, of nodes that
    share one NVLink switch for instance, are alike: a level with nothing above.

    Source: topology.conf(5); the lines are those of Slurm's plugins topology/tree
    (`SwitchName=s0 Level=0 LinkSpeed=1 Nodes=n[1-2]`) and topology/block
    (`BlockName=b1 BlockIndex=0 Nodes=n[1-18] BlockSize=18`).
    """
    parents: dict[str, str] = {}
    leaves: dict[str, str] = {}
    for line in text.splitlines():
        fields = _fields(line)
        name = fields.get("SwitchName") or fields.get("BlockName")
        if name is None:
            continue
        if below := fields.get("Switches"):
            parents |= dict.fromkeys(expanded(below), name)
        else:
            leaves |= dict.fromkeys(expanded(fields.get("Nodes", "")), name)
    return {node: _way_down(leaf, parents) for node, leaf in leaves.items()}


def ordered(
    nodes: Iterable[NodeInfo], *, places: Mapping[str, Place], islands: Sequence[str] = ()
) -> tuple[NodeInfo, ...]:
    """Nodes in the order in which ranks are numbered, whatever order they are given in.

    First by island, in the plan's order, where a feature of the node is an island's name; then
    by the switches above, from the root down; then by name, numbers as numbers. Nodes about to
    be taken out come last.
    """
    turn_of = {island: turn for turn, island in enumerate(islands)}

    def key(node: NodeInfo) -> tuple[bool, int, tuple[Place, ...], Place]:
        turns = [turn_of[feature] for feature in node.features if feature in turn_of]
        turn = min(turns, default=len(islands))
        place = tuple(natural(switch) for switch in places.get(node.name, ()))
        return node.is_leaving, turn, place, natural(node.name)

    return tuple(sorted(nodes, key=key))


def chosen(nodes: Sequence[NodeInfo], num_nodes: int, *, own: str) -> tuple[NodeInfo, ...]:
    """The first `num_nodes` of `nodes`, the controller's own node among them where it is there.

    The job needs its controller's node in any case: with ranks on it, it needs one node less.
    """
    first = tuple(nodes[:num_nodes])
    if not first or any(node.name == own for node in first):
        return first
    held = [node for node in nodes if node.name == own]
    return (*first[: num_nodes - len(held)], *held)


def natural(name: str) -> tuple[str, ...]:
    """A sort key that puts `n2` before `n10`."""
    return tuple(
        part.zfill(12) if part.isdigit() else part for part in re.split(r"(\d+)", name)
    )


def _fields(line: str) -> dict[str, str]:
    return {match[1]: match[2] for match in _FIELD.finditer(line)}


def _way_down(leaf: str, parents: Mapping[str, str]) -> Place:
    """The switches from the root to `leaf`; a loop, which Slurm would refuse, ends it."""
    way = [leaf]
    while (above := parents.get(way[0])) is not None and above not in way:
        way.insert(0, above)
    return tuple(way)
