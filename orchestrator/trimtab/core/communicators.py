"""What a group of ranks is told about its network, decided when the job is planned.

A rank has a network (`RankNetwork`): the NICs of its node. A group whose ranks are all in one
island with RDMA talks over that; any other over sockets, which reach everywhere.

What PyTorch 2.13 with NCCL can bind to one communicator is the transport alone: the `net_name`
of `ProcessGroupNCCL.Options.config`, "IB" or "Socket" (ncclConfig_t.netName, NVIDIA NCCL user
guide, "Creating a communicator with options"). HCAs, GID index and socket interface are read
from a process's environment once, when NCCL first needs them, so that they are a node's:
NCCL_IB_HCA, NCCL_IB_GID_INDEX, NCCL_SOCKET_IFNAME. With gloo each group has a device of its
own, made for one interface.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from trimtab.core import checks
from trimtab.core.cluster import ClusterSpec, NicSpec, NodeSpec
from trimtab.core.errors import InputError

Transport = Literal["IB", "Socket"]
"""As NCCL names them; InfiniBand and RoCE are both `IB`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankNetwork:
    """What a run of ranks, numbered one after the other, reaches others with."""

    first_rank: int
    num_ranks: int
    island: str
    rdma: bool
    devices: tuple[str, ...] = ()
    """HCAs; none: all that there are."""
    gid_index: int | None = None
    interface: str | None = None
    """Of sockets within the island; None: that of the node's address."""
    far_interface: str | None = None
    """Of sockets to other islands, which Ethernet reaches; None: that of the node's address."""

    def __post_init__(self) -> None:
        checks.whole_number("networks.first_rank", self.first_rank, at_least=0)
        checks.whole_number("networks.num_ranks", self.num_ranks)
        for device in self.devices:
            checks.device_name("networks.devices", device)
        for interface in (self.interface, self.far_interface):
            if interface is not None:
                checks.device_name("networks.interface", interface)

    def environment(self) -> dict[str, str]:
        """Variables of these ranks' processes; sockets are those that reach everyone.

        Source: NVIDIA NCCL user guide, environment variables; PyTorch, torch.distributed.
        """
        found = {}
        if self.devices:
            found["NCCL_IB_HCA"] = "=" + ",".join(self.devices)
        if self.gid_index is not None:
            found["NCCL_IB_GID_INDEX"] = str(self.gid_index)
        if self.far_interface is not None:
            found["NCCL_SOCKET_IFNAME"] = f"={self.far_interface}"
            found["GLOO_SOCKET_IFNAME"] = self.far_interface
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class CommunicatorSettings:
    """What the communicator of a group is bound to when it is made."""

    group: str
    """`tp`, `cp`, `dp` or `pp`, and which of them: `dp of stage 1`."""
    ranks: tuple[int, ...]
    transport: Transport
    interface: str | None
    """Of sockets and of gloo, where its nodes agree; None: what each finds."""
    reason: str


def settings_of(
    ranks: Sequence[int], networks: Sequence[RankNetwork], *, group: str = ""
) -> CommunicatorSettings:
    """The settings of a group of ranks.

    Raises:
        InputError: A rank has no network.
    """
    used = [network_of(rank, networks) for rank in ranks]
    islands = tuple(dict.fromkeys(network.island for network in used))
    interfaces = {
        network.interface if len(islands) == 1 else network.far_interface for network in used
    }
    interface = interfaces.pop() if len(interfaces) == 1 else None
    transport: Transport = "Socket"
    if len(islands) > 1:
        reason = f"spans the islands {', '.join(islands)}, which sockets alone join"
    elif all(network.rdma for network in used):
        transport, reason = "IB", f"inside the island {islands[0]}, over its RDMA NICs"
    else:
        reason = f"inside the island {islands[0]}, which has no RDMA"
    return CommunicatorSettings(
        group=group, ranks=tuple(ranks), transport=transport, interface=interface, reason=reason
    )


def node_network(node: NodeSpec, *, first_rank: int, num_ranks: int) -> RankNetwork:
    """The network of ranks on one node: its fastest NICs, and the interfaces of its sockets."""
    fast = node.fastest_nic
    return RankNetwork(
        first_rank=first_rank,
        num_ranks=num_ranks,
        island=node.island,
        rdma=fast.is_rdma,
        devices=fast.devices if fast.is_rdma else (),
        gid_index=fast.gid_index if fast.is_rdma else None,
        interface=_first_named((fast, *node.nics)),
        far_interface=_first_named((*_of_kind(node.nics, "ethernet"), fast, *node.nics)),
    )


def cluster_networks(cluster: ClusterSpec, num_ranks: int) -> tuple[RankNetwork, ...]:
    """The networks of the first ranks of a cluster, whose GPUs are numbered node by node.

    None where there is nothing to tell them: one island whose NICs have no names.
    """
    nics = [nic for node in cluster.nodes for nic in node.nics]
    named = any(nic.devices or nic.interface or nic.gid_index is not None for nic in nics)
    if len(cluster.islands) == 1 and not named:
        return ()
    networks, first = [], 0
    for node in cluster.nodes:
        count = min(node.num_gpus, num_ranks - first)
        if count > 0:
            networks.append(node_network(node, first_rank=first, num_ranks=count))
            first += count
    return tuple(networks)


def _of_kind(nics: Sequence[NicSpec], kind: str) -> list[NicSpec]:
    return [nic for nic in nics if nic.kind == kind]


def _first_named(nics: Sequence[NicSpec]) -> str | None:
    """The interface of the first NIC that has one: an HCA need not."""
    return next((nic.interface for nic in nics if nic.interface is not None), None)


def network_of(rank: int, networks: Sequence[RankNetwork]) -> RankNetwork:
    """The network of a rank.

    Raises:
        InputError: It has none.
    """
    for network in networks:
        if network.first_rank <= rank < network.first_rank + network.num_ranks:
            return network
    raise InputError(f"networks: expected a network for every rank, got none for {rank}")
