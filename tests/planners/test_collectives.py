import pytest

from trimtab.core.cluster import Link
from trimtab.planners.collectives import (
    all_gather_s,
    all_reduce_s,
    all_to_all_s,
    reduce_scatter_s,
    send_s,
)

LINK = Link(bytes_per_s=100.0, latency_s=1.0)


def test_a_group_of_one_communicates_nothing() -> None:
    for collective in (all_gather_s, reduce_scatter_s, all_reduce_s, all_to_all_s):
        assert collective(1e9, 1, link=LINK) == 0


def test_a_ring_all_gather_takes_one_hop_less_than_ranks() -> None:
    assert all_gather_s(400, 4, link=LINK) == 3 * (1 + 1)


def test_an_all_reduce_is_a_reduce_scatter_and_an_all_gather() -> None:
    both = reduce_scatter_s(400, 4, link=LINK) + all_gather_s(400, 4, link=LINK)
    assert all_reduce_s(400, 4, link=LINK) == both == 12


def test_an_all_to_all_keeps_its_own_share() -> None:
    assert all_to_all_s(200, 2, link=LINK) == 1 + 1


def test_a_send_is_latency_and_transfer() -> None:
    assert send_s(250, link=LINK) == pytest.approx(3.5)
