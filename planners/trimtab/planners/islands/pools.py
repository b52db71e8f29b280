"""Pools of equal nodes and what joins them: what a layout over several islands is placed on.

A pool is one `NodeSpec` of the cluster. Pools of one island reach each other over their NICs;
others over the links of the cluster file, which all GPUs of an island share.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

from trimtab.core.cluster import ClusterSpec, Link, NodeSpec
from trimtab.planners.placement import Machine

Way = tuple[str, str]
"""From an island to another, over a link of the cluster file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """Where the dp replicas of a stage are: so many of them in each of some pools."""

    pools: tuple[int, ...]
    replicas: tuple[int, ...]

    @property
    def is_spread(self) -> bool:
        return len(self.pools) > 1

    @property
    def replica_pools(self) -> tuple[int, ...]:
        """The pool of every replica, in order."""
        pairs = zip(self.pools, self.replicas, strict=True)
        return tuple(pool for pool, count in pairs for _ in range(count))


class Network:
    """The pools of a cluster and the ways between them."""

    def __init__(self, cluster: ClusterSpec) -> None:
        self.cluster = cluster
        self.pools: tuple[NodeSpec, ...] = cluster.nodes

    def capacity(self, pool: int, *, tp: int, ranks: int) -> int:
        """How many replicas of a stage, `ranks` ranks each, a pool has room for.

        A replica smaller than a node stays in one; a larger one fills nodes. Its tp ranks
        divide a node's GPUs, as they must all be in one.
        """
        node = self.pools[pool]
        if node.gpus_per_node % tp:
            return 0
        if ranks <= node.gpus_per_node:
            return node.count * (node.gpus_per_node // ranks)
        return node.count // -(-ranks // node.gpus_per_node)

    def machine(self, pool: int, *, num_ranks: int) -> Machine:
        """A pool as a machine of its own."""
        node = self.pools[pool]
        return Machine(
            gpu=node.gpu,
            num_ranks=num_ranks,
            gpus_per_node=node.gpus_per_node,
            intra_node=node.intra_node,
            nic_per_gpu=node.nic_link_per_gpu,
            island_ends=(),
            between_islands=None,
        )

    @functools.cached_property
    def _ways(self) -> dict[tuple[int, int], tuple[Way, ...]]:
        islands = [node.island for node in self.pools]
        found = {}
        for source, start in enumerate(islands):
            for target, end in enumerate(islands):
                route = self.cluster.route(start, end)
                assert route is not None, "a cluster's islands reach each other"
                found[source, target] = route
        return found

    def ways(self, source: int, target: int) -> tuple[Way, ...]:
        """The links that lead from a pool to another; none within an island."""
        return self._ways[source, target]

    @functools.cached_property
    def links(self) -> dict[Way, Link]:
        """Every way between islands that the file gives."""
        return {way: entry.link for entry in self.cluster.links for way in entry.directions}

    def latency_s(self, source: int, target: int) -> float:
        """Of an empty message."""
        ways = self.ways(source, target)
        if ways:
            return sum(self.links[way].latency_s for way in ways)
        return max(self.pools[pool].nic_link_per_gpu.latency_s for pool in (source, target))

    def nic_bytes_per_s(self, pools: Sequence[int]) -> float:
        """What the slowest of some pools gives each of its GPUs."""
        return min(self.pools[pool].nic_link_per_gpu.bytes_per_s for pool in pools)

    def ring_ways(self, pools: Sequence[int]) -> list[Way]:
        """The links that a ring through some pools goes over, each as often as it does."""
        following = [*pools[1:], pools[0]]
        pairs = zip(pools, following, strict=True)
        return [way for source, target in pairs for way in self.ways(source, target)]
