import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.core import serde
from trimtab.core.errors import InfeasibleError, InputError
from trimtab.core.pipeline import Pipeline
from trimtab.core.plan import StepPlan
from trimtab.core.profile import DegreeBandwidth, RingCosts, StepProfile
from trimtab.planners.costs import group_s
from trimtab.planners.pipelines.ordering import better_order, first_order, operations_of
from trimtab.planners.pipelines.pipelined import (
    best_uniform_pipelined_step,
    pipelined_step,
    uniform_pipelined_step,
)
from trimtab.planners.pipelines.stages import StageCosts
from trimtab.planners.steps.bounds import certified_bound_s
from trimtab.planners.steps.rank_blocks import placed_seconds
from trimtab.planners.steps.sequences import plan_step
from trimtab.planners.timeline import PipelineWork, timeline

TINY = StepProfile(
    name="tiny", num_gpus=2, gpus_per_node=2, quadratic_s=0.01, linear_s=0.1, fixed_s=1.0,
    alltoall_bytes_per_token=1.0, bandwidths=(DegreeBandwidth(degree=2, bytes_per_s=20.0),),
    token_cap=100, step_fixed_s=0.5,
)  # fmt: skip


def no_clock() -> float:
    return 0.0


def ticking() -> Callable[[], float]:
    """A clock that passes a millisecond whenever it is looked at."""
    ticks = itertools.count()
    return lambda: next(ticks) / 1_000


def check_plan(
    plan: StepPlan,
    lengths: Sequence[int],
    *,
    profile: StepProfile,
    pipeline: Pipeline,
    num_ranks: int,
) -> None:
    """Every sequence once, on ranks there are, within memory; times are the timeline's."""
    groups = [group for wave in plan.waves for group in wave.groups]
    assert sorted(i for group in groups for i in group.sequences) == list(range(len(lengths)))
    assert all(group.ranks[-1] < num_ranks for group in groups)
    assert plan.pipeline is not None
    costs = StageCosts(profile, pipeline)
    for wave, times in zip(plan.waves, plan.pipeline.micro_batches, strict=True):
        tokens = [sum(lengths[i] for i in group.sequences) for group in wave.groups]
        assert times.tokens == max(
            held / group.degree for held, group in zip(tokens, wave.groups, strict=True)
        )
        slowest_s = max(placed_seconds(wave, lengths, profile=profile))
        own_s = sum(times.forward_s) + sum(times.backward_s)
        assert own_s >= slowest_s * (1 - 1e-9)  # each stage waits for its own slowest group
        if not pipeline.output_layers:
            assert own_s == pytest.approx(slowest_s)
    for peak, limit in zip(plan.pipeline.peak_tokens, costs.limits, strict=True):
        assert peak <= limit * (1 + 1e-6)
    ends = operations_of(plan.pipeline.micro_batches, limits=costs.limits, vpp=costs.stages.vpp)
    assert plan.step_s == pytest.approx(max(o.end_s for o in ends) + profile.step_fixed_s)
    assert plan.lower_bound_s <= plan.step_s


def all_steps_s(
    lengths: Sequence[int], *, pp: int, profile: StepProfile = TINY
) -> Iterator[float]:
    """Every packing and order of a tiny batch on two ranks a stage, on the exact timeline."""
    share = 1 / (3 * pp)
    work = PipelineWork(
        forward_s=(share,) * pp, backward_s=(2 * share,) * pp, weight_s=(0.0,) * pp
    )
    num = len(lengths)
    for waves in range(1, num + 1):
        for degrees in itertools.product((1, 2), repeat=waves):
            slots = [(w, slot) for w in range(waves) for slot in range(2 // degrees[w])]
            for places in itertools.product(slots, repeat=num):
                if {w for w, _ in places} != set(range(waves)):
                    continue
                times = [
                    max(
                        min(
                            group_s(
                                [lengths[i] for i in range(num) if places[i] == (w, k)],
                                option.degree,
                                profile=profile,
                                attention=option.attention,
                            )
                            for option in profile.options
                            if option.degree == degrees[w]
                        )
                        for k in range(2 // degrees[w])
                    )
                    for w in range(waves)
                ]  # fmt: skip
                found = timeline("1f1b", work, num_micro_batches=waves, scales=times)
                yield found.step_s + profile.step_fixed_s


@pytest.mark.parametrize("lengths", [(30, 20, 10), (25, 25, 4), (8, 7, 6)])
@pytest.mark.parametrize("pp", [2, 3])
def test_tiny_batches_are_planned_as_well_as_can_be(lengths: tuple[int, ...], pp: int) -> None:
    best_s = min(all_steps_s(lengths, pp=pp))
    plan = pipelined_step(
        lengths, profile=TINY, pipeline=Pipeline(pp=pp), num_ranks=2, clock=ticking(),
        time_limit_s=0.5,
    )  # fmt: skip
    assert plan.lower_bound_s <= best_s * (1 + 1e-9)
    assert plan.step_s == pytest.approx(best_s, rel=0.02)


PIPELINES = st.sampled_from(
    [Pipeline(pp=2), Pipeline(pp=3, output_layers=0.7), Pipeline(pp=2, vpp=2)]
)


RINGS = dataclasses.replace(
    TINY,
    bandwidths=(DegreeBandwidth(degree=2, bytes_per_s=20.0, latency_s=0.125),),
    ring=RingCosts(
        quadratic_s=0.011,
        bytes_per_token=2.0,
        bandwidths=tuple(
            DegreeBandwidth(degree=d, bytes_per_s=15.0, latency_s=0.25) for d in (2, 3, 5)
        ),
        overlap_fraction=0.9,
    ),
    gpus_per_node=4,
)
"""Groups of three and five straddle nodes of four now and then."""


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 150), min_size=3, max_size=25),
    num_ranks=st.integers(2, 8),
    pipeline=PIPELINES,
    profile=st.sampled_from([TINY, RINGS]),
)
def test_any_batch_keeps_every_promise(
    lengths: list[int], num_ranks: int, pipeline: Pipeline, profile: StepProfile
) -> None:
    first = pipelined_step(
        lengths, profile=profile, pipeline=pipeline, num_ranks=num_ranks, clock=no_clock
    )
    later = pipelined_step(
        lengths, profile=profile, pipeline=pipeline, num_ranks=num_ranks, clock=ticking(),
        time_limit_s=0.03,
    )  # fmt: skip
    for plan in (first, later):
        check_plan(plan, lengths, profile=profile, pipeline=pipeline, num_ranks=num_ranks)
    assert later.step_s <= first.step_s
    uniform = best_uniform_pipelined_step(
        lengths, profile=profile, pipeline=pipeline, num_ranks=num_ranks, clock=no_clock
    )
    plans = [first, later]
    if uniform is not None:
        check_plan(uniform, lengths, profile=profile, pipeline=pipeline, num_ranks=num_ranks)
        assert first.step_s <= uniform.step_s * (1 + 1e-9)
        plans.append(uniform)
    assert first.lower_bound_s <= min(plan.step_s for plan in plans)
    assert later.lower_bound_s <= min(plan.step_s for plan in plans)


def test_groups_take_the_cheaper_attention_kind_and_the_plan_says_which() -> None:
    # 90 tokens at degree 2: 0.125 + (81 + 9 + 4.5) / 2 = 47.375 s with all-to-alls, and with
    # a ring that hides all it passes on 0.25 + (89.1 + 9) / 2 = 49.3 s; with ten times as many
    # bytes in all-to-alls they take 67.625 s
    dear = dataclasses.replace(RINGS, alltoall_bytes_per_token=10.0, token_cap=60)
    for profile, kind in (
        (dataclasses.replace(RINGS, token_cap=60), "ulysses"),
        (dear, "ring"),
    ):
        plan = pipelined_step(
            [90, 90], profile=profile, pipeline=Pipeline(pp=2), num_ranks=2, degrees=[2],
            clock=no_clock,
        )  # fmt: skip
        assert {group.attention for wave in plan.waves for group in wave.groups} == {kind}
        check_plan(plan, [90, 90], profile=profile, pipeline=Pipeline(pp=2), num_ranks=2)


@pytest.mark.parametrize("lengths", [(30, 20, 10), (25, 25, 4)])
def test_the_bound_holds_for_every_plan_of_a_tiny_batch_with_rings(
    lengths: tuple[int, ...],
) -> None:
    best_s = min(all_steps_s(lengths, pp=2, profile=RINGS))
    plan = pipelined_step(
        lengths, profile=RINGS, pipeline=Pipeline(pp=2), num_ranks=2, clock=ticking(),
        time_limit_s=0.5,
    )  # fmt: skip
    assert plan.lower_bound_s <= best_s * (1 + 1e-9)
    assert plan.step_s == pytest.approx(best_s, rel=0.02)


@pytest.mark.parametrize("dataset", ["wikipedia", "github"])
def test_real_batches_are_never_slower_than_one_stages_waves_in_any_order_tried(
    dataset: str, flexsp_7b: StepProfile, real_batch: Callable[[str, int], list[int]]
) -> None:
    lengths, pipeline = real_batch(dataset, 1), Pipeline(pp=4)
    costs = StageCosts(flexsp_7b, pipeline)
    plain = plan_step(lengths, profile=flexsp_7b, num_ranks=64, clock=no_clock)
    times = [costs.placed_times(wave, lengths) for wave in plain.waves]
    order, _ = first_order(times, costs)
    _, ordered_s = better_order(times, costs, order=order, trials=200)
    plan = pipelined_step(
        lengths, profile=flexsp_7b, pipeline=pipeline, num_ranks=64, clock=no_clock
    )
    check_plan(plan, lengths, profile=flexsp_7b, pipeline=pipeline, num_ranks=64)
    assert plan.step_s <= ordered_s
    assert plan.step_s < 0.97 * max(
        o.end_s for o in operations_of(times, limits=costs.limits, vpp=costs.stages.vpp)
    )


def test_equal_input_gives_an_equal_plan(
    flexsp_7b: StepProfile, real_batch: Callable[[str, int], list[int]]
) -> None:
    lengths = real_batch("github", 0)[:200]
    first, second = (
        pipelined_step(
            lengths, profile=flexsp_7b, pipeline=Pipeline(pp=2), num_ranks=16, clock=ticking(),
            time_limit_s=0.1,
        )
        for _ in range(2)
    )  # fmt: skip
    assert first == second


def test_a_sequence_too_long_for_every_wave_alike_fits_where_its_neighbours_are_short() -> None:
    # two ranks hold 200 tokens of each of two equal waves, or 400 at once
    plan = pipelined_step(
        [300, 5, 5], profile=TINY, pipeline=Pipeline(pp=2), num_ranks=2, clock=no_clock
    )
    check_plan(plan, [300, 5, 5], profile=TINY, pipeline=Pipeline(pp=2), num_ranks=2)
    with pytest.raises(InfeasibleError, match="401 tokens fits in no group"):
        pipelined_step(
            [401, 5, 5], profile=TINY, pipeline=Pipeline(pp=2), num_ranks=2, clock=no_clock
        )


def test_interleaving_has_a_multiple_of_the_stages() -> None:
    plan = pipelined_step(
        [10, 9, 8, 7, 6], profile=TINY, pipeline=Pipeline(pp=3, vpp=2), num_ranks=2,
        clock=no_clock,
    )  # fmt: skip
    assert len(plan.waves) == 3
    assert {path.stages for path in plan.paths} == {(0, 1, 2, 3, 4, 5)}
    with pytest.raises(InputError, match=r"pipeline\.vpp: .* the batch has 2 sequences"):
        pipelined_step(
            [10, 9], profile=TINY, pipeline=Pipeline(pp=3, vpp=2), num_ranks=2, clock=no_clock
        )


def test_the_certificate_can_be_priced_by_a_stranger(flexsp_7b: StepProfile) -> None:
    lengths = [9_000] * 20 + [500] * 300
    plan = pipelined_step(
        lengths, profile=flexsp_7b, pipeline=Pipeline(pp=2), num_ranks=16, clock=ticking(),
        time_limit_s=0.4,
    )  # fmt: skip
    read = serde.from_json(StepPlan, serde.to_json(plan))
    assert read == plan
    assert read.certificate is not None
    assert read.pipeline is not None
    profile = dataclasses.replace(flexsp_7b, token_cap=read.pipeline.wave_cap)
    total_s = certified_bound_s(
        read.certificate, lengths, profile=profile, num_ranks=16,
        num_waves=read.pipeline.least_waves,
    )  # fmt: skip
    times = read.pipeline.micro_batches
    assert total_s <= sum(sum(each.forward_s) + sum(each.backward_s) for each in times)
    assert plan.lower_bound_s >= total_s / 2


@pytest.mark.parametrize(
    ("lengths", "error", "named"),
    [
        ([], InputError, "the batch is empty"),
        ([5, 0, 5], InputError, r"lengths\[1\]"),
        ([5, -1], InputError, r"lengths\[1\]"),
        ([5, 1.5], InputError, r"lengths\[1\]"),
    ],
)
def test_bad_batches_are_refused(
    lengths: list[int], error: type[Exception], named: str
) -> None:
    with pytest.raises(error, match=named):
        pipelined_step(
            lengths, profile=TINY, pipeline=Pipeline(pp=2), num_ranks=2, clock=no_clock
        )


def test_a_degree_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match="degrees"):
        uniform_pipelined_step(
            [5, 5], profile=TINY, pipeline=Pipeline(pp=2), num_ranks=2, degree=7, clock=no_clock
        )
