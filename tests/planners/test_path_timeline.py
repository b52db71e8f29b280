import itertools

import pytest
from path_cases import line_instance, schedule_of, small_instance

from trimtab.core.timeline import Span
from trimtab.planners.paths.path_timeline import schedule_timeline
from trimtab.planners.paths.path_times import path_times


def test_spans_say_who_does_what_when() -> None:
    instance = line_instance()
    timeline = schedule_timeline(instance, schedule_of(instance, [[0], [1]], [(0, 1)]))
    assert timeline.lanes == ("node 0 (stage 0)", "node 1 (stage 1)")
    assert [(s.lane, s.kind, s.start_s, s.end_s) for s in timeline.spans] == [
        (0, "forward", 0.0, 2.0),
        (0, "transfer", 2.0, 3.0),
        (0, "loss", 6.0, 6.5),
        (0, "transfer", 6.5, 7.5),
        (0, "backward", 11.5, 14.5),
        (1, "forward", 3.0, 5.0),
        (1, "transfer", 5.0, 6.0),
        (1, "backward", 7.5, 10.5),
        (1, "transfer", 10.5, 11.5),
    ]
    assert {span.label for span in timeline.spans} == {"0.0", "0.0 to node 0", "0.0 to node 1"}


def test_waits_lie_between_arrival_and_start() -> None:
    instance = line_instance(paths_per_origin=2, memory=(3, 1))
    timeline = schedule_timeline(instance, schedule_of(instance, [[0], [1]], [(0, 1), (0, 1)]))
    # the second's forward ends at 4.09, arrives at 5.09, and waits for memory until 10.63
    wait = next(span for span in timeline.spans if (span.kind, span.lane) == ("wait", 1))
    assert wait.label == "1.0"
    assert (wait.start_s, wait.end_s) == pytest.approx((5.09, 10.63))


def test_skipped_stages_are_marked() -> None:
    instance = small_instance()
    paths = [(0, 2), (0, 2), (1, 3), (1, 3)]
    timeline = schedule_timeline(instance, schedule_of(instance, [[0, 1], [2], [3]], paths))
    skips = [span for span in timeline.spans if span.kind == "skip"]
    assert len(skips) == instance.num_micro_batches
    assert {span.label.partition(" ")[2] for span in skips} == {"skips 1", "skips 2"}


def test_nodes_never_do_two_things_at_once() -> None:
    instance = small_instance(3)
    paths = [(0, 2), (0, 3), (1, 3), (1, 2)]
    schedule = schedule_of(instance, [[0, 1], [2], [3]], paths)
    timeline = schedule_timeline(instance, schedule)
    working = ("forward", "loss", "backward")
    for lane in range(4):
        runs: list[Span] = [
            span for span in timeline.spans if span.lane == lane and span.kind in working
        ]
        for before, after in itertools.pairwise(runs):
            assert after.start_s >= before.end_s
    assert timeline.end_s == path_times(instance, schedule).iteration_s
