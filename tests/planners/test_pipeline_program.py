from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.planners.pipelines.pipeline_program import DivisibleProgram, DivisibleWork
from trimtab.planners.timeline import PipelineWork, timeline


def work(**fields: Any) -> DivisibleWork:
    usual: dict[str, Any] = {
        "shares": (0.5, 0.5), "forward_fraction": 1 / 3, "vpp": 1, "total_s": 6.0,
        "least_s": 0.0, "longest_s": 0.0,
    }  # fmt: skip
    return DivisibleWork(**(usual | fields))


def bound_s(described: DivisibleWork, num: int) -> float:
    program = DivisibleProgram(described, num_micro_batches=num)
    sharper_s = program.with_longest_s(is_over=lambda: False)
    assert program.bound_s <= sharper_s
    return sharper_s


def test_one_micro_batch_passes_all_stages_one_after_the_other() -> None:
    assert bound_s(work(), 1) == pytest.approx(6.0, rel=1e-5)


def test_two_micro_batches_are_split_where_it_helps_most() -> None:
    # of times a and 6 - a in two stages, the larger first, the critical path is either
    # F1 F1 B1 F2 B2 B2 = (3 a + a/3 + ...) or F1 F2 F2 ...: found by hand for a grid of a
    def step(a: float) -> float:
        pipeline = PipelineWork(
            forward_s=(1 / 6,) * 2, backward_s=(1 / 3,) * 2, weight_s=(0, 0)
        )
        return timeline("1f1b", pipeline, num_micro_batches=2, scales=[a, 6 - a]).step_s

    least = min(step(number / 100) for number in range(1, 600))
    assert bound_s(work(), 2) == pytest.approx(least, rel=2e-3)
    assert bound_s(work(), 2) <= least


def test_the_longest_sequence_has_to_be_in_some_micro_batch() -> None:
    free, bound = work(), work(longest_s=5.0)
    assert bound_s(bound, 3) > bound_s(free, 3)


@settings(max_examples=40, deadline=None)
@given(
    pp=st.integers(2, 4), vpp=st.integers(1, 2),
    parts=st.lists(st.floats(min_value=0.2, max_value=5.0), min_size=2, max_size=6),
)  # fmt: skip
def test_no_times_that_add_up_to_the_work_are_shorter(
    pp: int, vpp: int, parts: list[float]
) -> None:
    times = parts if vpp == 1 else (parts * pp)[: 2 * pp]
    shares = (1 / pp,) * pp
    pipeline = PipelineWork(
        forward_s=tuple(share / 3 for share in shares),
        backward_s=tuple(2 * share / 3 for share in shares), weight_s=(0.0,) * pp,
    )  # fmt: skip
    found = timeline("1f1b", pipeline, num_micro_batches=len(times), vpp=vpp, scales=times)
    described = work(
        shares=shares, vpp=vpp, total_s=sum(times), least_s=min(times), longest_s=max(times)
    )
    assert bound_s(described, len(times)) <= found.step_s


def test_out_of_time_the_bound_is_that_without_the_longest() -> None:
    program = DivisibleProgram(work(longest_s=5.0), num_micro_batches=3)
    assert program.with_longest_s(is_over=lambda: True) == program.bound_s
    assert program.bound_s == pytest.approx(bound_s(work(), 3))
