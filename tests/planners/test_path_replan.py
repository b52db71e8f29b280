import pytest
from path_cases import arrangement, case, document, schedule_of, small_instance

from trimtab.core.errors import InfeasibleError, InputError
from trimtab.core.stage_paths import PathInstance, PathSchedule
from trimtab.planners.paths.path_replan import RUNGS, replan
from trimtab.planners.paths.path_times import schedule_problems


def _twenty() -> tuple[PathInstance, PathSchedule]:
    reference = document("n20_s6_skip33", "reference")
    instance = case("n20_s6_skip33")
    return instance, schedule_of(
        instance,
        reference["best_known_joint_partitions"],
        reference["best_known_joint_paths"],
    )


@pytest.mark.parametrize("lost", range(20))
def test_any_node_of_twenty_may_be_lost(lost: int) -> None:
    instance, schedule = _twenty()
    found = replan(instance, schedule, without=lost)
    assert schedule_problems(found.instance, found.schedule) == []
    assert lost not in {node for path in found.schedule.paths for node in path}
    names = [rung.name for rung in found.rungs]
    assert names == list(RUNGS[: len(names)])
    assert all(rung.reason for rung in found.rungs)


def test_a_lost_node_of_a_full_cluster_costs_micro_batches_in_flight() -> None:
    # 15 paths of 3 visits need 45 places, and 14 nodes hold 42; 10 paths need 30
    instance, schedule = _twenty()
    found = replan(instance, schedule, without=17)
    assert found.rungs[-1].name == "fewer micro-batches"
    assert found.instance.num_micro_batches == 20
    assert "hold" in found.rungs[0].reason


def test_a_lost_origin_goes_with_its_data() -> None:
    instance, schedule = _twenty()
    found = replan(instance, schedule, without=12)
    assert found.rungs[-1].name == "drop a replica"
    assert found.instance.num_micro_batches == 24
    assert "node 12 is an origin" in found.rungs[0].reason


def test_paths_are_rerouted_where_nodes_have_room() -> None:
    instance = small_instance(
        partition_sizes=(1, 3), paths_per_origin=2, memory=(2, 1, 1, 1), path_len=2
    )
    schedule = schedule_of(instance, [[0], [1, 2, 3]], [(0, 1), (0, 2)])
    found = replan(instance, schedule, without=2)
    assert found.rungs[-1].name == "reroute"
    assert sorted(found.schedule.paths) == [(0, 1), (0, 3)]
    assert found.kept_paths == 1


def test_more_skipping_comes_after_fewer_micro_batches() -> None:
    # one path at once cannot be fewer; of three stages it may leave out one more
    instance = small_instance(
        partition_sizes=(2, 1, 1), paths_per_origin=1, memory=(1, 1, 2, 2), path_len=3
    )
    schedule = schedule_of(instance, [[0, 1], [2], [3]], [(0, 2, 3), (1, 2, 3)])
    assert schedule_problems(instance, schedule) == []
    found = replan(instance, schedule, without=1)
    assert [rung.name for rung in found.rungs] == list(RUNGS)


def test_a_stage_without_a_node_takes_one_of_another() -> None:
    instance = case("n06_s4_skip50")
    partitions = arrangement("n06_s4_skip50")
    paths = [
        (origin, partitions[k + 1][0])
        for k, origin in enumerate(partitions[0])
        for _ in range(3)
    ]
    schedule = schedule_of(instance, partitions, paths)
    assert schedule_problems(instance, schedule) == []
    lost = partitions[2][0]
    found = replan(instance, schedule, without=lost)
    assert "serves stage 2" in found.rungs[-1].reason
    assert len(found.schedule.partitions[2]) == 1
    assert schedule_problems(found.instance, found.schedule) == []


def test_a_second_node_may_be_lost() -> None:
    instance, schedule = _twenty()
    once = replan(instance, schedule, without=17)
    twice = replan(once.instance, once.schedule, without=0)
    assert twice.instance.without == (0, 17)
    assert schedule_problems(twice.instance, twice.schedule) == []


def test_equal_losses_give_equal_plans() -> None:
    instance, schedule = _twenty()
    assert replan(instance, schedule, without=3) == replan(instance, schedule, without=3)


def test_a_node_that_serves_nothing_cannot_be_lost() -> None:
    instance, schedule = _twenty()
    once = replan(instance, schedule, without=17)
    with pytest.raises(InputError, match="node 17 serves no stage"):
        replan(once.instance, once.schedule, without=17)


def test_the_only_origin_cannot_be_replaced() -> None:
    instance = small_instance(partition_sizes=(1, 3), paths_per_origin=1, path_len=2)
    schedule = schedule_of(instance, [[0], [1, 2, 3]], [(0, 1)])
    found = replan(instance, schedule, without=0)
    assert found.rungs[-1].reason.startswith("node")
    alone = small_instance(partition_sizes=(4,), path_len=1, paths_per_origin=1)
    gone = schedule_of(alone, [[0, 1, 2, 3]], [(0,), (1,), (2,), (3,)])
    assert replan(alone, gone, without=2).instance.partition_sizes == (3,)
    single = small_instance(
        partition_sizes=(1, 1), paths_per_origin=1, path_len=2, memory=(1, 1),
        forward_s=(1.0, 1.0), delay_s=((0.0, 1.0), (1.0, 0.0)),
    )  # fmt: skip
    last = schedule_of(single, [[0], [1]], [(0, 1)])
    with pytest.raises(InfeasibleError, match="nothing can be planned"):
        replan(single, last, without=1)
