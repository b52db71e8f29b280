"""Which nodes of a Ray cluster a job takes, and their order. Pure."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from trimtab.launch.api import AllocatedNode

ISLAND_LABELS: Final = ("trimtab.io/island", "ray.io/availability-zone")
"""Labels of a node that name its island; the first one that it has counts."""
_ID_DIGITS: Final = 8
"""So many of a node's id tell it from other nodes at the same address."""

_Key = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterNode:
    """A live node of the cluster."""

    node_id: str
    address: str
    resources: Mapping[str, float] = field(default_factory=dict)
    """All it has, in use or not."""
    island: str = ""

    @property
    def name(self) -> str:
        return node_name(self.address, self.node_id)

    def allocated(self, *, own_id: str) -> AllocatedNode:
        """As a node of the job, whose controller runs on node `own_id`."""
        return AllocatedNode(
            name=self.name,
            address=self.address,
            hosts_controller=self.node_id == own_id,
        )


def node_name(address: str, node_id: str) -> str:
    """A node's name: readable, and never that of another node, also of one started again."""
    return f"{address}-{node_id[:_ID_DIGITS]}"


def live_nodes(table: Iterable[Mapping[str, Any]]) -> tuple[ClusterNode, ...]:
    """The nodes that Ray believes alive, from `ray.nodes()`."""
    return tuple(
        ClusterNode(
            node_id=row["NodeID"],
            address=row["NodeManagerAddress"],
            resources=row["Resources"],
            island=_island(row.get("Labels") or {}),
        )
        for row in table
        if row["Alive"]
    )


def ordered(nodes: Iterable[ClusterNode], *, islands: Sequence[str]) -> tuple[ClusterNode, ...]:
    """Nodes in the order in which ranks are numbered, whatever order they are given in.

    By island, the plan's in its own order before others, then by address and id; numbers are
    compared as numbers.
    """
    turns = {island: turn for turn, island in enumerate(islands)}

    def key(node: ClusterNode) -> tuple[int, _Key, _Key, str]:
        turn = turns.get(node.island, len(turns))
        return turn, _natural(node.island), _natural(node.address), node.node_id

    return tuple(sorted(nodes, key=key))


def chosen(
    nodes: Sequence[ClusterNode], num_nodes: int, *, islands: Sequence[str]
) -> tuple[ClusterNode, ...]:
    """Up to `num_nodes` of `nodes`, on as few islands as can be, in rank order.

    The smallest island that holds all is taken; where none does, the largest ones.
    """
    by_island: dict[str, list[ClusterNode]] = defaultdict(list)
    for node in ordered(nodes, islands=islands):
        by_island[node.island].append(node)
    sufficient = [held for held in by_island.values() if len(held) >= num_nodes]
    if sufficient:
        return tuple(min(sufficient, key=len)[:num_nodes])
    largest_first = sorted(by_island.values(), key=len, reverse=True)
    taken = [node for held in largest_first for node in held][:num_nodes]
    return ordered(taken, islands=islands)


def _island(labels: Mapping[str, str]) -> str:
    return next((labels[name] for name in ISLAND_LABELS if labels.get(name)), "")


def _natural(text: str) -> _Key:
    return tuple(
        part.zfill(12) if part.isdigit() else part for part in re.split(r"(\d+)", text)
    )
