from collections.abc import Callable

import pytest

from trimtab.core.cluster import ClusterSpec
from trimtab.core.errors import InputError
from trimtab.core.plan import Layout
from trimtab.planners.placement import machine, placement, stage_layers

ClusterMaker = Callable[..., ClusterSpec]


def test_surplus_layers_go_to_the_middle_stages() -> None:
    assert stage_layers(32, 4) == (8, 8, 8, 8)
    assert stage_layers(126, 16) == (7, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 7)
    assert stage_layers(6, 4) == (1, 2, 2, 1)
    assert stage_layers(7, 3) == (2, 3, 2)


def test_ranks_fill_the_nodes_in_turn(a100s: ClusterMaker) -> None:
    place = placement(a100s(num_nodes=2), Layout(tp=4, dp=3), num_layers=4)
    assert place.rank_nodes == ("a-0",) * 8 + ("a-1",) * 4
    assert place.stage_layers == (4,)


def test_more_ranks_than_gpus_are_refused(a100s: ClusterMaker) -> None:
    with pytest.raises(InputError, match="num_ranks: the cluster 'a100' has 8 GPUs, got 9"):
        machine(a100s(), 9, precision="bf16")


def test_a_group_inside_a_node_uses_nvlink(a100s: ClusterMaker) -> None:
    used = machine(a100s(num_nodes=4), 32, precision="bf16")
    assert used.ring_link(8, stride=1).bytes_per_s == 300e9
    assert used.ring_link(2, stride=4).bytes_per_s == 300e9
    assert used.exchange_link(8, stride=1).bytes_per_s == 300e9


def test_a_ring_over_nodes_uses_the_nics_of_its_members(a100s: ClusterMaker) -> None:
    used = machine(a100s(num_nodes=4), 32, precision="bf16")
    assert used.ring_link(4, stride=8).bytes_per_s == 25e9
    assert used.ring_link(8, stride=4).bytes_per_s == 50e9
    assert used.ring_link(32, stride=1).bytes_per_s == 200e9


def test_an_exchange_charges_the_nics_with_what_leaves_the_node(a100s: ClusterMaker) -> None:
    used = machine(a100s(num_nodes=4), 32, precision="bf16")
    assert used.exchange_link(16, stride=1).bytes_per_s == pytest.approx(25e9 * 15 / 8)
    assert used.exchange_link(4, stride=8).bytes_per_s == pytest.approx(25e9)


def test_groups_across_islands_share_the_link_between_them(two_islands: ClusterSpec) -> None:
    used = machine(two_islands, 32, precision="bf16")
    assert used.ring_link(16, stride=1).bytes_per_s == 200e9
    assert used.ring_link(2, stride=16).bytes_per_s == pytest.approx(25e9 * 2 / 32)
    assert machine(two_islands, 16, precision="bf16").between_islands is None
