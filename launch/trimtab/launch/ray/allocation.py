"""The nodes of a Ray job, seen from its driver.

A placement group reserves them together, one bundle a node. Ray does not replace a lost node:
the controller asks for another one, which a further group then reserves, so that agents on the
other nodes go on.
"""

import time
from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Any, Final

from trimtab.core.errors import JobFailedError
from trimtab.core.job import JobSpec, Request
from trimtab.launch.api import AgentOrder, AgentStep, AllocatedNode, Move
from trimtab.launch.ray.actors import RayStep
from trimtab.launch.ray.cluster_nodes import ClusterNode, chosen, ordered
from trimtab.launch.ray.connection import RayConnection
from trimtab.launch.ray.demand import fits, node_demand

_WAIT_S: Final = 5.0
"""How long to wait for resources that are in use: those of what has just been ended are free
after a moment."""
_POLL_S: Final = 0.2


class RayAllocation:
    """Nodes of the Ray cluster that this process is a driver of."""

    def __init__(self, request: Request) -> None:
        """`request`: what runs. Ray is asked only when something is needed."""
        self._demand = node_demand(request)
        self._run_dir = request.run_dir
        self._islands = request.job.cluster.islands if isinstance(request.job, JobSpec) else ()
        self._bundles: dict[str, tuple[Any, int]] = {}
        """Placement group and bundle of every node that was ever reserved, by node id."""
        self._ids: dict[str, str] = {}
        """Ids of those nodes by name."""

    @property
    def controller_host(self) -> str:
        return self._ray.own_address

    @property
    def can_move(self) -> bool:
        return False

    def acquire(self, num_nodes: int, *, exclude: Collection[str]) -> tuple[AllocatedNode, ...]:
        """Nodes that are reserved already, and others where they are too few.

        Raises:
            InputError: No Ray runs here.
        """
        usable = [node for node in self._ray.live_nodes() if node.name not in exclude]
        held = [node for node in usable if node.node_id in self._bundles]
        if len(held) < num_nodes:
            held += self._reserve(num_nodes - len(held), exclude=exclude)
        nodes = ordered(held, islands=self._islands)[:num_nodes]
        own_id = self._ray.own_node_id
        return tuple(node.allocated(own_id=own_id) for node in nodes)

    def num_free_nodes(self, *, exclude: Collection[str]) -> int:
        return len(self._free(exclude))

    def start_agents(self, nodes: Sequence[AllocatedNode], *, order: AgentOrder) -> AgentStep:
        """Start an actor on each node's bundle, and the agent as its child.

        An agent that does not start is missed by who waits for it to report.
        """
        step = RayStep(order, run_dir=self._run_dir)
        for node in nodes:
            group, bundle = self._bundles[self._ids[node.name]]
            step.start(node, group=group, bundle=bundle, demand=self._demand)
        return step

    def release(self, node: str) -> None:
        """Ray frees what it has reserved on a node when the job ends, or the node has died."""

    def go_elsewhere(self, *, exclude: Collection[str], reason: str) -> Move:
        """There is no queue to go back to: `can_move` says so."""
        without = f" without {', '.join(sorted(exclude))}" if exclude else ""
        raise JobFailedError(f"a Ray job cannot be put on other nodes{without}: {reason}")

    def leave(self) -> None:
        """It has no other handle."""

    @cached_property
    def _ray(self) -> RayConnection:
        return RayConnection()

    def _reserve(self, num_nodes: int, *, exclude: Collection[str]) -> list[ClusterNode]:
        """Reserve up to `num_nodes` further nodes, in one placement group."""
        deadline_s = time.monotonic() + _WAIT_S
        while True:
            nodes = chosen(self._free(exclude), num_nodes, islands=self._islands)
            is_last = time.monotonic() >= deadline_s or not self._could_be_more(exclude, nodes)
            if len(nodes) == num_nodes or (nodes and is_last):
                group = self._ray.place(nodes, self._demand, wait_s=_WAIT_S)
                if group is not None:
                    self._note(nodes, group)
                    return list(nodes)
            if is_last:
                return []
            time.sleep(_POLL_S)

    def _free(self, exclude: Collection[str]) -> list[ClusterNode]:
        """Nodes not held that have all that is needed, and nobody uses it."""
        available = self._ray.available()
        return [
            node
            for node in self._others(exclude)
            if fits(self._demand, available.get(node.node_id, {}))
        ]

    def _could_be_more(self, exclude: Collection[str], nodes: Collection[ClusterNode]) -> bool:
        """Whether nodes beyond `nodes` have what is needed, although it is in use."""
        able = [n for n in self._others(exclude) if fits(self._demand, n.resources)]
        return len(able) > len(nodes)

    def _others(self, exclude: Collection[str]) -> list[ClusterNode]:
        return [
            node
            for node in self._ray.live_nodes()
            if node.name not in exclude and node.node_id not in self._bundles
        ]

    def _note(self, nodes: Sequence[ClusterNode], group: Any) -> None:
        for bundle, node in enumerate(nodes):
            self._bundles[node.node_id] = (group, bundle)
            self._ids[node.name] = node.node_id
