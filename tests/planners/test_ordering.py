import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.core.pipeline import MicroBatchTimes, Pipeline
from trimtab.core.profile import StepProfile
from trimtab.planners.pipelines.ordering import (
    better_order,
    first_order,
    operations_of,
    peak_tokens,
    plain_orders,
)
from trimtab.planners.pipelines.stages import StageCosts
from trimtab.planners.timeline import PipelineWork, timeline

PROFILE = StepProfile(
    name="round", num_gpus=4, gpus_per_node=4, quadratic_s=0.0, linear_s=0.1, fixed_s=6.0,
    alltoall_bytes_per_token=0.0, bandwidths=(), token_cap=100,
)  # fmt: skip


def micro_batch(
    forward_s: Sequence[float], *, tokens: float = 1.0, send_s: float = 0.0
) -> MicroBatchTimes:
    """Backward takes twice as long."""
    return MicroBatchTimes(
        forward_s=tuple(forward_s), backward_s=tuple(2 * seconds for seconds in forward_s),
        send_s=send_s, tokens=tokens,
    )  # fmt: skip


def step_s(times: Sequence[MicroBatchTimes], costs: StageCosts) -> float:
    return max(
        operation.end_s
        for operation in operations_of(times, limits=costs.limits, vpp=costs.stages.vpp)
    )


SECONDS = st.floats(min_value=0.1, max_value=10.0)


@settings(max_examples=60, deadline=None)
@given(
    pp=st.integers(2, 5), vpp=st.integers(1, 3), rounds=st.integers(1, 3), send_s=SECONDS,
    data=st.data(),
)  # fmt: skip
def test_unequal_micro_batches_go_as_the_timeline_says(
    pp: int, vpp: int, rounds: int, send_s: float, data: st.DataObject
) -> None:
    num = pp * rounds if vpp > 1 else rounds + 2
    forward = data.draw(st.lists(SECONDS, min_size=pp, max_size=pp))
    scales = data.draw(st.lists(SECONDS, min_size=num, max_size=num))
    work = PipelineWork(
        forward_s=tuple(forward), backward_s=tuple(2 * each for each in forward),
        weight_s=(0.0,) * pp, send_s=send_s,
    )  # fmt: skip
    expected = timeline("1f1b", work, num_micro_batches=num, vpp=vpp, scales=scales)
    costs = StageCosts(PROFILE, Pipeline(pp=pp, vpp=vpp))
    times = [micro_batch([scale * each for each in forward], send_s=send_s) for scale in scales]
    found = operations_of(times, limits=costs.limits, vpp=costs.stages.vpp)
    keys = {(o.kind, o.micro_batch, o.stage): (o.rank, o.start_s, o.end_s) for o in found}
    assert len(keys) == len(expected.operations)
    for operation in expected.operations:
        rank, start_s, end_s = keys[operation.kind, operation.micro_batch, operation.stage]
        assert rank == operation.rank
        assert (start_s, end_s) == pytest.approx((operation.start_s, operation.end_s))
    held = peak_tokens(found, [1.0] * num, pp=pp, vpp=vpp)
    assert held == pytest.approx([peak / vpp for peak in expected.peaks])


def test_a_forward_pass_waits_until_its_tokens_fit() -> None:
    costs = StageCosts(PROFILE, Pipeline(pp=2))  # each stage holds 200 tokens
    together = [micro_batch((1, 1), tokens=100) for _ in range(2)]
    # F1 F2 . B1 B2 on the first stage: 1 + 1, the last ends B1 at 4
    assert step_s(together, costs) == pytest.approx(9.0)
    apart = [micro_batch((1, 1), tokens=101) for _ in range(2)]
    assert step_s(apart, costs) == pytest.approx(12.0)  # one after the other


@settings(max_examples=60, deadline=None)
@given(
    pp=st.integers(2, 4),
    sizes=st.lists(st.floats(min_value=1.0, max_value=200.0), min_size=1, max_size=8),
)
def test_no_stage_ever_holds_more_than_fits(pp: int, sizes: list[float]) -> None:
    costs = StageCosts(PROFILE, Pipeline(pp=pp))
    times = [micro_batch([size / 100] * pp, tokens=size) for size in sizes]
    operations = operations_of(times, limits=costs.limits, vpp=costs.stages.vpp)
    assert len(operations) == 2 * pp * len(sizes)
    for peak, limit in zip(
        peak_tokens(operations, sizes, pp=pp, vpp=1), costs.limits, strict=True
    ):
        assert peak <= limit * (1 + 1e-6)
    ends = [0.0] * pp
    for operation in operations:
        assert operation.start_s >= ends[operation.rank] - 1e-9
        ends[operation.rank] = operation.end_s


def test_long_micro_batches_go_into_the_middle_of_the_hill() -> None:
    assert plain_orders([3.0, 1.0, 2.0, 5.0]) == [
        [0, 1, 2, 3],
        [1, 0, 3, 2],
        [1, 2, 0, 3],
        [3, 0, 2, 1],
    ]


@pytest.mark.parametrize("pp", [2, 3])
def test_five_micro_batches_get_the_best_of_all_orders(pp: int) -> None:
    costs = StageCosts(PROFILE, Pipeline(pp=pp))
    times = [micro_batch([size] * pp) for size in (4.0, 1.0, 7.0, 2.0, 5.0)]
    best = min(
        step_s([times[m] for m in order], costs) for order in itertools.permutations(range(5))
    )
    order, first_s = first_order(times, costs)
    found, found_s = better_order(times, costs, order=order, trials=500)
    assert sorted(found) == [0, 1, 2, 3, 4]
    assert found_s <= first_s
    assert found_s == pytest.approx(step_s([times[m] for m in found], costs))
    assert found_s == pytest.approx(best)
