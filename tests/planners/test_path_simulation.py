import math
from collections.abc import Iterator
from typing import Any

import pytest
from path_cases import CASES, case, document, line_instance, schedule_of, small_instance

from trimtab.core.errors import InputError
from trimtab.core.stage_paths import PathInstance, PathSchedule, SharedLink
from trimtab.planners.paths.path_times import path_times


def _stored() -> Iterator[Any]:
    """Every schedule of the published cases with the time somebody else's simulator gave it."""
    for path in sorted(CASES.glob("*.json")):
        name, kind, _ = path.name.split(".")
        if kind == "instance":
            continue
        for key, value in document(name, kind).items():
            if isinstance(value, dict) and value.get("paths"):
                copies = value.get("microbatches_per_path_per_wave", 1)
                yield pytest.param(
                    name, value["paths"], copies, value["event_sim_s"], id=f"{name}-{key}"
                )
            elif key.endswith("_paths"):
                time_s = document(name, kind)[key.replace("_paths", "_event_sim_s")]
                yield pytest.param(name, value, 1, time_s, id=f"{name}-{key}")


STORED = list(_stored())


def test_there_are_thirty_stored_schedules() -> None:
    assert len(STORED) == 30


@pytest.mark.parametrize(("name", "paths", "copies", "time_s"), STORED)
def test_stored_schedules_take_their_stored_times(
    name: str, paths: list[list[int]], copies: int, time_s: float
) -> None:
    instance = case(name)
    if copies == 3:  # jobs of a path start at 0, 1 and 2 s
        jobs = tuple(tuple(path) for path in paths for _ in range(3))
        schedule = PathSchedule(
            partitions=((0,),), paths=jobs, release_s=(0.0, 1.0, 2.0) * len(paths)
        )
    else:
        schedule = schedule_of(instance, [[0]], paths)
    assert path_times(instance, schedule).iteration_s == pytest.approx(time_s, rel=1e-6)


def _times(instance: PathInstance, *paths: tuple[int, ...], release_s: Any = None) -> Any:
    partitions = ((0,), *((n,) for n in range(1, instance.num_nodes)))
    schedule = schedule_of(instance, partitions, paths)
    if release_s is not None:
        schedule = PathSchedule(partitions=partitions, paths=paths, release_s=release_s)
    return path_times(instance, schedule)


def test_one_micro_batch_goes_there_and_back() -> None:
    # forward 0-2, over at 3, forward 3-5, back at 6, loss 6-6.5, over at 7.5,
    # backward 7.5-10.5, back at 11.5, backward 11.5-14.5
    times = _times(line_instance(), (0, 1))
    assert times.starts_s == (((0.0, 3.0, 6.0, 7.5, 11.5),),)
    assert times.iteration_s == times.step_s == 14.5


def test_a_wave_starts_when_the_one_before_is_back_and_the_node_has_paused() -> None:
    times = _times(line_instance(num_waves=2), (0, 1))
    assert times.starts_s[0][1][0] == 14.63
    assert times.iteration_s == pytest.approx(29.13)


def test_a_pause_follows_every_operation() -> None:
    # the second forward of the origin waits for 2 + 0.09; on node 1 it then comes at 5.09,
    # before the node is free at 3 + 2 + 0.13
    times = _times(line_instance(), (0, 1), (0, 1), release_s=(0.0, 0.0))
    assert times.starts_s[1][0][:2] == pytest.approx((2.09, 5.13))


def test_links_may_differ_in_direction() -> None:
    instance = line_instance(delay_s=((0.0, 1.0), (5.0, 0.0)))
    # 0-2, 3-5, loss 10-10.5, 11.5-14.5, 19.5-22.5
    assert _times(instance, (0, 1)).iteration_s == 22.5


def test_nodes_may_differ_in_speed() -> None:
    # forward 2 and 4, backward 3 and 6, loss 0.5, four delays of 1
    assert _times(line_instance(forward_s=(2.0, 4.0)), (0, 1)).iteration_s == 19.5


def test_transfers_pass_a_shared_link_in_turn() -> None:
    link = SharedLink(pairs=((0, 1),), transfer_s=10.0)
    times = _times(line_instance(shared_links=(link,)), (0, 1), (0, 1), release_s=(0.0, 0.0))
    # forwards end at 2 and 4.09; the wire is taken until 12, and the delay is 1
    assert times.starts_s[0][0][1] == 3.0
    assert times.starts_s[1][0][1] == 13.0


def test_a_forward_waits_for_memory_and_blocks_no_backward() -> None:
    instance = line_instance(memory=(3, 1))
    times = _times(instance, (0, 1), (0, 1), release_s=(0.0, 0.0))
    # node 1 holds the first from 3 to the end of its backward
    backward_s = times.starts_s[0][0][3]
    assert times.starts_s[1][0][1] == pytest.approx(backward_s + 3 + 0.13)


def test_waiting_for_one_anothers_memory_never_ends() -> None:
    instance = line_instance(3, memory=(2, 1, 1))
    times = _times(instance, (0, 1, 2), (0, 2, 1), release_s=(0.0, 0.0))
    assert times.iteration_s == math.inf


def test_a_path_of_the_origin_alone_runs_without_transfers() -> None:
    # 0-2, loss from 2.09, backward from 2.09 + 0.5 + 0.13
    assert _times(line_instance(1), (0,)).iteration_s == pytest.approx(5.72)


def test_gradients_are_reduced_when_all_nodes_of_a_stage_are_done() -> None:
    pair = ((0.0, 0.5), (0.5, 0.0))
    instance = PathInstance(
        name="pair", partition_sizes=(2,), path_len=1, paths_per_origin=1, num_waves=1,
        memory=(1, 1), forward_s=(2.0, 4.0), delay_s=pair, gradient_bytes=40.0,
        latency_s=pair, bytes_per_s=((0.0, 10.0), (10.0, 0.0)),
    )  # fmt: skip
    times = path_times(instance, schedule_of(instance, [[0, 1]], [[0], [1]]))
    # node 1: 4 + 0.09 + 1 + 0.13 + 6; a ring of two: 2 steps of 0.5 + 20 / 10 s
    assert times.iteration_s == pytest.approx(11.22)
    assert times.step_s == pytest.approx(11.22 + 5.0)


def test_paths_of_several_lengths_are_refused() -> None:
    instance = small_instance()
    with pytest.raises(InputError, match="one length"):
        path_times(instance, schedule_of(instance, [[0]], [[0, 1], [0]]))
