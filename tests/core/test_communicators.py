"""Which network a group of ranks is bound to."""

import pytest

from trimtab.core.cluster import ClusterSpec, GpuSpec, Link, NicKind, NicSpec, NodeSpec
from trimtab.core.communicators import RankNetwork, cluster_networks, settings_of
from trimtab.core.errors import InputError


def _nic(kind: NicKind, rate: float, **names: object) -> NicSpec:
    return NicSpec(kind=kind, count=1, bytes_per_s=rate, latency_s=0.0, **names)  # type: ignore[arg-type]  # as the test names them


def _node(name: str, *nics: NicSpec) -> NodeSpec:
    return NodeSpec(
        name=name,
        count=2,
        gpu=GpuSpec(name="gpu", memory_bytes=1, memory_bytes_per_s=1.0),
        gpus_per_node=2,
        intra_node=Link(bytes_per_s=1e9, latency_s=0.0),
        nics=nics,
        island=name,
    )


ETHERNET = _nic("ethernet", 1e9, interface="bond0")
CLUSTER = ClusterSpec(
    name="c",
    nodes=(
        _node("ib", _nic("infiniband", 9e9, devices=("mlx5_0",), interface="ib0"), ETHERNET),
        _node("roce", _nic("roce", 8e9, devices=("mlx5_1",), gid_index=3), ETHERNET),
        _node("eth", ETHERNET),
    ),
)


def test_every_rank_is_told_the_nics_of_its_node() -> None:
    infiniband, roce, ethernet = cluster_networks(CLUSTER, 12)
    assert (infiniband.first_rank, infiniband.num_ranks) == (0, 4)
    assert infiniband.environment() == {
        "NCCL_IB_HCA": "=mlx5_0",
        "NCCL_SOCKET_IFNAME": "=bond0",
        "GLOO_SOCKET_IFNAME": "bond0",
    }
    assert roce.environment()["NCCL_IB_GID_INDEX"] == "3"
    assert (ethernet.rdma, ethernet.devices) == (False, ())


def test_only_the_first_ranks_have_networks() -> None:
    assert [network.num_ranks for network in cluster_networks(CLUSTER, 6)] == [4, 2]


def test_a_group_inside_a_fast_island_uses_rdma_and_its_own_interface() -> None:
    settings = settings_of((0, 3), cluster_networks(CLUSTER, 12))
    assert (settings.transport, settings.interface) == ("IB", "ib0")


def test_a_group_across_islands_uses_sockets_that_reach_both() -> None:
    settings = settings_of((3, 4), cluster_networks(CLUSTER, 12))
    assert (settings.transport, settings.interface) == ("Socket", "bond0")
    assert settings.reason == "spans the islands ib, roce, which sockets alone join"


def test_a_group_on_ethernet_uses_sockets() -> None:
    settings = settings_of((8, 9), cluster_networks(CLUSTER, 12))
    assert (settings.transport, settings.interface) == ("Socket", "bond0")


def test_one_island_without_names_is_left_to_itself() -> None:
    plain = ClusterSpec(name="c", nodes=(_node("a", _nic("infiniband", 1e9)),))
    assert cluster_networks(plain, 4) == ()


def test_a_rank_without_a_network_is_refused() -> None:
    network = RankNetwork(first_rank=0, num_ranks=2, island="a", rdma=False)
    with pytest.raises(InputError, match="a network for every rank, got none for 2"):
        settings_of((0, 2), (network,))
