import itertools

import pytest

from trimtab.launch.slurm.topology import (
    NodeInfo,
    chosen,
    host_field,
    natural,
    ordered,
    parsed_nodes,
    parsed_places,
)

# What Slurm 22.05 prints for four nodes of which one has died, shortened.
NODES = """\
NodeName=n1 Arch=x86_64 CoresPerSocket=1  CPUAlloc=0 CPUTot=16 AvailableFeatures=west,ib ActiveFeatures=west,ib Gres=gpu:8 NodeAddr=127.0.0.1 NodeHostName=vm Port=44077 Version=22.05.8 OS=Linux 6.1 #1 SMP PREEMPT_DYNAMIC @0  RealMemory=64000 State=MIXED ThreadsPerCore=1 Partitions=main
NodeName=n2 Arch=x86_64 CoresPerSocket=1  CPUAlloc=0 CPUTot=16 AvailableFeatures=(null) ActiveFeatures=(null) Gres=gpu:8 NodeAddr=10.0.0.2 NodeHostName=vm Port=45391 State=DOWN*+NOT_RESPONDING ThreadsPerCore=1 Reason=Not responding [slurm@2026-11-24T01:04:00]
"""  # noqa: E501  Slurm's lines are long
TREE = """\
SwitchName=leaf10 Level=0 LinkSpeed=1 Nodes=n[1,3]
SwitchName=leaf2 Level=0 LinkSpeed=1 Nodes=n[2,4]
SwitchName=spine Level=1 LinkSpeed=1 Nodes=n[1-4] Switches=leaf[2,10]
"""
BLOCKS = """\
BlockName=b1 BlockIndex=0 Nodes=n[1-2] BlockSize=2
BlockName=b2 BlockIndex=1 Nodes=n[3-4] BlockSize=2
AggregatedBlock=b[1-2] BlockIndex=2 Nodes=n[1-4] BlockSize=4
"""


def node(name: str, state: str = "MIXED", *features: str) -> NodeInfo:
    return NodeInfo(name=name, address="10.0.0.1", state=state, features=features)


def names(nodes: tuple[NodeInfo, ...]) -> list[str]:
    return [each.name for each in nodes]


def test_a_node_has_name_address_state_and_features() -> None:
    assert parsed_nodes(NODES) == (
        NodeInfo(
            name="n1", address="127.0.0.1", state="MIXED", port=44077, features=("west", "ib")
        ),
        NodeInfo(name="n2", address="10.0.0.2", state="DOWN*+NOT_RESPONDING", port=45391),
    )


def test_host_lists_of_a_job() -> None:
    job = "JobId=7 ReqNodeList=n[1-2],m1 ExcNodeList=(null) NodeList= BatchHost=n1"
    assert host_field(job, "ReqNodeList") == ("n1", "n2", "m1")
    assert host_field(job, "ExcNodeList") == ()
    assert host_field(job, "NodeList") == ()
    assert host_field(job, "SchedNodeList") == ()


def test_a_message_instead_of_nodes_is_none() -> None:
    assert parsed_nodes("No nodes in the system\n") == ()


@pytest.mark.parametrize(
    ("state", "is_lost", "is_leaving"),
    [
        ("IDLE", False, False),
        ("ALLOCATED+COMPLETING", False, False),
        ("MIXED*", True, False),
        ("DOWN", True, False),
        ("DOWN*+DRAIN", True, True),
        ("MIXED+NOT_RESPONDING", True, False),
        ("ALLOCATED+FAIL", True, False),
        ("IDLE+POWERED_DOWN", True, False),
        ("ALLOCATED+DRAIN", False, True),
        ("MIXED+MAINTENANCE", False, False),
    ],
)
def test_states_in_which_a_node_is_lost_or_leaving(
    state: str, is_lost: bool, is_leaving: bool
) -> None:
    assert (node("n1", state).is_lost, node("n1", state).is_leaving) == (is_lost, is_leaving)


def test_a_place_is_the_way_down_through_the_switches() -> None:
    assert parsed_places(TREE) == {
        "n1": ("spine", "leaf10"),
        "n3": ("spine", "leaf10"),
        "n2": ("spine", "leaf2"),
        "n4": ("spine", "leaf2"),
    }


def test_blocks_are_places_without_anything_above() -> None:
    assert parsed_places(BLOCKS) == {"n1": ("b1",), "n2": ("b1",), "n3": ("b2",), "n4": ("b2",)}


def test_no_topology_is_no_place() -> None:
    said = "slurm_load_topo error: Requested topology configuration is not available"
    assert parsed_places(said) == {}


def test_a_loop_of_switches_is_followed_once() -> None:
    loop = "SwitchName=a Switches=b\nSwitchName=b Switches=a\nSwitchName=c Nodes=n1\n"
    assert parsed_places(loop + "SwitchName=b Switches=c") == {"n1": ("a", "b", "c")}


def test_numbers_in_names_are_numbers() -> None:
    assert sorted(["n10", "n2", "rack2-n1", "n1", "rack10-n1"], key=natural) == [
        "n1",
        "n2",
        "n10",
        "rack2-n1",
        "rack10-n1",
    ]


def test_nodes_of_one_switch_stay_together_whatever_order_slurm_lists_them_in() -> None:
    nodes = [node(name) for name in ("n1", "n2", "n3", "n4")]
    for given in itertools.permutations(nodes):
        assert names(ordered(given, places=parsed_places(TREE))) == ["n2", "n4", "n1", "n3"]
        assert names(ordered(given, places={})) == ["n1", "n2", "n3", "n4"]


def test_leaves_of_one_spine_stay_together() -> None:
    tree = (
        "SwitchName=s1 Nodes=n1\nSwitchName=s2 Nodes=n2\nSwitchName=s3 Nodes=n3\n"
        "SwitchName=east Switches=s[1,3]\nSwitchName=west Switches=s2\n"
        "SwitchName=core Switches=east,west\n"
    )
    nodes = [node("n1"), node("n2"), node("n3")]
    assert names(ordered(nodes, places=parsed_places(tree))) == ["n1", "n3", "n2"]


def test_islands_come_in_the_order_of_the_plan_and_before_switches() -> None:
    nodes = [
        node("n1", "MIXED", "ib", "east"),
        node("n2", "MIXED", "west"),
        node("n3", "MIXED", "east"),
        node("n4", "MIXED", "west"),
        node("n5"),
    ]
    islands = ("west", "east")
    expected = ["n2", "n4", "n1", "n3", "n5"]
    assert names(ordered(nodes, places=parsed_places(TREE), islands=islands)) == expected


def test_a_node_that_is_drained_is_the_last_choice() -> None:
    nodes = [node("n1", "ALLOCATED+DRAIN"), node("n2"), node("n3")]
    assert names(ordered(nodes, places={})) == ["n2", "n3", "n1"]


def test_the_controllers_own_node_is_among_the_chosen() -> None:
    nodes = [node("n1"), node("n2"), node("n3")]
    assert names(chosen(nodes, 2, own="n1")) == ["n1", "n2"]
    assert names(chosen(nodes, 2, own="n3")) == ["n1", "n3"]
    assert names(chosen(nodes, 1, own="n3")) == ["n3"]
    assert names(chosen(nodes, 9, own="n3")) == ["n1", "n2", "n3"]


def test_without_the_controllers_own_node_the_first_are_chosen() -> None:
    nodes = [node("n1"), node("n2"), node("n3")]
    assert names(chosen(nodes, 2, own="n9")) == ["n1", "n2"]
    assert chosen(nodes, 0, own="n1") == ()
    assert chosen([], 2, own="n1") == ()
