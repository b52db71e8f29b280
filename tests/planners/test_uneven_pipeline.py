"""One-forward-one-backward with messages, against the timeline that knows one send time."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.planners.islands.uneven_pipeline import Boundary, stage_ends
from trimtab.planners.timeline import PipelineWork, timeline

FREE = Boundary(forward_s=0.0, forward_latency_s=0.0, backward_s=0.0, backward_latency_s=0.0)


def boundary(wire_s: float, latency_s: float = 0.0) -> Boundary:
    return Boundary(
        forward_s=wire_s,
        forward_latency_s=latency_s,
        backward_s=wire_s,
        backward_latency_s=latency_s,
    )


def test_equal_stages_take_micro_batches_and_stages_less_one() -> None:
    ends = stage_ends([1.0] * 4, [2.0] * 4, [FREE] * 3, num_micro_batches=8)
    assert ends[0] == (8 + 3) * 3.0
    assert ends[3] == (8 + 3) * 3.0 - 3 * 2.0


def test_a_message_on_its_way_holds_two_stages_up_once_for_each_micro_batch() -> None:
    ends = stage_ends([1.0] * 2, [2.0] * 2, [boundary(0.5)], num_micro_batches=4)
    assert ends[0] == pytest.approx(5 * 3.0 + 4 * 0.5)


def test_a_wire_slower_than_the_stages_is_the_bottleneck() -> None:
    ends = stage_ends([0.1] * 2, [0.1] * 2, [boundary(5.0)], num_micro_batches=10)
    assert ends[0] >= 10 * 5.0


@settings(max_examples=60, deadline=None)
@given(
    stages=st.lists(
        st.tuples(st.floats(0.1, 3.0), st.floats(0.1, 3.0)), min_size=1, max_size=5
    ),
    send_s=st.floats(0.0, 2.0),
    num_micro_batches=st.integers(1, 9),
)
def test_with_latencies_alone_it_is_the_timeline(
    stages: list[tuple[float, float]], send_s: float, num_micro_batches: int
) -> None:
    forward, backward = [f for f, _ in stages], [b for _, b in stages]
    work = PipelineWork(
        forward_s=tuple(forward),
        backward_s=tuple(backward),
        weight_s=(0.0,) * len(stages),
        send_s=send_s,
    )
    expected = timeline("1f1b", work, num_micro_batches=num_micro_batches)
    last = {operation.rank: operation.end_s for operation in expected.operations}
    ends = stage_ends(
        forward,
        backward,
        [boundary(0.0, send_s)] * (len(stages) - 1),
        num_micro_batches=num_micro_batches,
    )
    assert ends == pytest.approx([last[rank] for rank in range(len(stages))])
