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
from trimtab.core.cluster import NicSpec, NodeSpec
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
    """Of sockets; None: that of the node's address."""

    def __post_init__(self) -> None:
        checks.whole_number("networks.first_rank", self.first_rank, at_least=0)
        checks.whole_number("networks.num_ranks", self.num_ranks)
        for device in self.devices:
            checks.device_name("networks.devices", device)
        if self.interface is not None:
            checks.device_name("networks.interface", self.interface)

    def environment(self) -> dict[str, str]:
        """Variables of these ranks' processes.

        Source: NVIDIA NCCL user guide, environment variables; PyTorch, torch.distributed.
        """
        found = {}
        if self.devices:
            found["NCCL_IB_HCA"] = "=" + ",".join(self.devices)
        if self.gid_index is not None:
            found["NCCL_IB_GID_INDEX"] = str(self.gid_index)
        if self.interface is not None:
            found["NCCL_SOCKET_IFNAME"] = f"={self.interface}"
            found["GLOO_SOCKET_IFNAME"] = self.interface
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class CommunicatorSettings:
    """What the communicator of a group is bound to when it is made."""

    group: str
    """`tp`, `cp`, `dp` or `pp`, and which of them: `dp of stage 1`."""
    ranks: tuple[int, ...]
    transport: Transport
    interface: str | None
    """Of sockets and of gloo, where all of its nodes agree; None: each node's own."""
    reason: str


def settings_of(
    ranks: Sequence[int], networks: Sequence[RankNetwork], *, group: str = ""
) -> CommunicatorSettings:
    """The settings of a group of ranks.

    Raises:
        InputError: A rank has no network.
    """
    used = [_network_of(rank, networks) for rank in ranks]
    islands = tuple(dict.fromkeys(network.island for network in used))
    interfaces = {network.interface for network in used}
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
    """The network of ranks on one node: its fastest NICs, and the interface of its sockets."""
    fast = node.fastest_nic
    return RankNetwork(
        first_rank=first_rank,
        num_ranks=num_ranks,
        island=node.island,
        rdma=fast.is_rdma,
        devices=fast.devices if fast.is_rdma else (),
        gid_index=fast.gid_index if fast.is_rdma else None,
        interface=_interface(node.nics, fast),
    )


def _interface(nics: Sequence[NicSpec], fast: NicSpec) -> str | None:
    """The fastest NICs' own, or else that of another: an HCA need not have one."""
    named = [nic.interface for nic in (fast, *nics) if nic.interface is not None]
    return named[0] if named else None


def _network_of(rank: int, networks: Sequence[RankNetwork]) -> RankNetwork:
    for network in networks:
        if network.first_rank <= rank < network.first_rank + network.num_ranks:
            return network
    raise InputError(f"networks: expected a network for every rank, got none for {rank}")
