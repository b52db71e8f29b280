import random
from typing import Any

from trimtab.launch.api import AllocatedNode
from trimtab.launch.ray.cluster_nodes import ClusterNode, chosen, live_nodes, ordered


def node(last: int, *, island: str = "", node_id: str = "") -> ClusterNode:
    return ClusterNode(
        node_id=node_id or f"{last:02x}cdef0123", address=f"10.0.0.{last}", island=island
    )


def lasts(nodes: tuple[ClusterNode, ...]) -> list[int]:
    return [int(each.address.rpartition(".")[2]) for each in nodes]


def test_a_name_tells_nodes_at_one_address_apart() -> None:
    first, second = node(4, node_id="aaaaaaaa11"), node(4, node_id="bbbbbbbb11")
    assert (first.name, second.name) == ("10.0.0.4-aaaaaaaa", "10.0.0.4-bbbbbbbb")


def test_the_controllers_node_is_known_by_its_id() -> None:
    assert node(4).allocated(own_id=node(4).node_id) == AllocatedNode(
        name="10.0.0.4-04cdef01", address="10.0.0.4", hosts_controller=True
    )
    assert not node(4).allocated(own_id=node(5).node_id).hosts_controller


def test_dead_nodes_are_left_out_and_islands_are_read_from_labels() -> None:
    row: dict[str, Any] = {"NodeManagerAddress": "10.0.0.4", "Resources": {"CPU": 4.0}}
    zone = {"ray.io/availability-zone": "us-1a"}
    table = [
        {**row, "NodeID": "aa", "Alive": True, "Labels": {**zone, "trimtab.io/island": "pod"}},
        {**row, "NodeID": "bb", "Alive": True, "Labels": zone},
        {**row, "NodeID": "cc", "Alive": True, "Labels": None},
        {**row, "NodeID": "dd", "Alive": False, "Labels": zone},
    ]
    assert [(each.node_id, each.island) for each in live_nodes(table)] == [
        ("aa", "pod"),
        ("bb", "us-1a"),
        ("cc", ""),
    ]


def test_ranks_are_numbered_by_island_and_address_whatever_order_ray_gives() -> None:
    nodes = [
        node(10, island="west"),
        node(9, island="west"),
        node(30, island="east2"),
        node(20, island="east10"),
        node(1, island="elsewhere"),
    ]
    for seed in range(10):
        random.Random(seed).shuffle(nodes)
        assert lasts(ordered(nodes, islands=["west"])) == [9, 10, 30, 20, 1]


def test_the_smallest_island_that_holds_all_is_taken() -> None:
    large = [node(last, island="large") for last in (1, 2, 3)]
    small = [node(last, island="small") for last in (4, 5)]
    assert lasts(chosen([*large, *small], 2, islands=[])) == [4, 5]
    assert lasts(chosen([*large, *small], 3, islands=[])) == [1, 2, 3]


def test_where_no_island_holds_all_the_largest_are_taken() -> None:
    nodes = [
        node(1, island="a"),
        *(node(last, island="b") for last in (2, 3, 4)),
        *(node(last, island="c") for last in (5, 6)),
    ]
    assert lasts(chosen(nodes, 4, islands=[])) == [2, 3, 4, 5]
    assert lasts(chosen(nodes, 4, islands=["c"])) == [5, 2, 3, 4]


def test_fewer_nodes_are_all_that_there_are() -> None:
    assert lasts(chosen([node(2), node(1)], 3, islands=[])) == [1, 2]
    assert chosen([], 3, islands=[]) == ()
