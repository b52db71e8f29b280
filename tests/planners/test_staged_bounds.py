import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.core import serde
from trimtab.core.errors import InputError
from trimtab.core.profile import DegreeBandwidth, StepProfile
from trimtab.core.staged import DegreeCost, StagedLayout, StagedPrices, StageReplica
from trimtab.planners.staged.staged_bounds import priced_bound_s
from trimtab.planners.staged.staged_planning import plan_staged_step
from trimtab.planners.staged.staged_program import solve
from trimtab.planners.staged.staged_schedule import Tables, draft_of, simulate
from trimtab.planners.steps.bounds import area_bound_s

Case = Callable[..., StagedLayout]


def _bound_s(lengths: list[int], staged: StagedLayout) -> float:
    return priced_bound_s(solve(lengths, Tables(staged)).prices, lengths, staged=staged)


def _ticks() -> Callable[[], float]:
    return itertools.count(0.0, 1e-3).__next__


def test_one_sequence_takes_its_latency(staged_case: Case) -> None:
    # at degree 2, as worked out in test_staged_schedule
    assert _bound_s([10], staged_case()) == pytest.approx(2 * 9.5 + 1.02)


def test_the_busiest_replica_bounds_equal_sequences_at_degree_one(staged_case: Case) -> None:
    # 40 sequences of 10 tokens on one rank a stage: 12 rank-seconds each at speed 1, of which
    # none goes elsewhere, and 3 * 10 / 100 of the fixed time
    staged = staged_case([(0, 1, 2.0), (1, 1, 1.0)])
    assert _bound_s([10] * 40, staged) >= 40 * 12
    spread = staged_case([(0, 1, 2.0), (1, 1, 1.0), (1, 1, 1.0)])
    assert 40 * 12 / 2 <= _bound_s([10] * 40, spread) < 40 * 12


def test_a_slow_channel_bounds_the_step(staged_case: Case) -> None:
    # 400 tokens of a byte each, half a byte a second; before the first message a forward of
    # degree 2 (9.5 / 3 s), after the last 0.5 s, both passes of the other stage, a message
    # back (20.5 s) and a backward (19 / 3 s)
    staged = staged_case(bytes_per_s=0.5)
    ends_s = 9.5 / 3 + 0.5 + 9.5 + 20.5 + 19 / 3
    assert _bound_s([10] * 40, staged) == pytest.approx(400 / 0.5 + ends_s)


@settings(max_examples=20, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 150), min_size=1, max_size=12),
    fixed_s=st.sampled_from([0.0, 2.0]),
    num_ranks=st.sampled_from([1, 2, 4]),
)
def test_on_one_stage_it_is_no_lower_than_the_area(
    lengths: list[int], fixed_s: float, num_ranks: int
) -> None:
    # The step planner's simple bound charges whole waves; a rank here goes on without waiting
    # for a wave, so what is compared is the area with the fixed time of the fullest groups.
    profile = StepProfile(
        name="one", num_gpus=4, gpus_per_node=4, quadratic_s=0.02, linear_s=1.0,
        fixed_s=fixed_s, alltoall_bytes_per_token=1.0,
        bandwidths=(
            DegreeBandwidth(degree=2, bytes_per_s=10.0),
            DegreeBandwidth(degree=4, bytes_per_s=10.0),
        ),
        token_cap=150, step_fixed_s=5.0,
    )  # fmt: skip
    staged = _one_stage(profile, num_ranks=num_ranks)
    free = replace(profile, fixed_s=0.0)
    area_s = area_bound_s(lengths, profile=free, num_ranks=num_ranks)
    area_s += fixed_s * sum(lengths) / (num_ranks * profile.token_cap)
    assert _bound_s(lengths, staged) >= min(area_s, _latest(lengths, staged)) * (1 - 1e-3)


def _latest(lengths: list[int], staged: StagedLayout) -> float:
    plan = plan_staged_step(lengths, staged=staged, clock=_ticks(), time_limit_s=0.0)
    return plan.step_s


def _one_stage(profile: StepProfile, *, num_ranks: int) -> StagedLayout:
    degrees = [d for d in profile.degrees if d <= num_ranks]
    return StagedLayout(
        stage_layers=(8,),
        replicas=(
            StageReplica(
                name="all", stage=0, node="n", num_nodes=1, num_ranks=num_ranks,
                quadratic_s=profile.quadratic_s,
                degree_costs=tuple(
                    DegreeCost(degree=d, token_s=1.0 + (0.1 if d > 1 else 0.0)) for d in degrees
                ),
                fixed_s=profile.fixed_s, token_cap=profile.token_cap,
            ),
        ),
        channels=(), routes=(), token_bytes=1.0, closing_s=(profile.step_fixed_s,),
        forward_fraction=1 / 3,
    )  # fmt: skip


def test_whole_waves_are_no_bound_where_ranks_do_not_wait() -> None:
    # two ranks of 10 tokens: 20 short sequences in two micro-batches on one, a long one with a
    # quadratic cost on the other. Waves charge both ranks two fixed times; here one pays one.
    profile = StepProfile(
        name="two", num_gpus=2, gpus_per_node=2, quadratic_s=0.2, linear_s=1.0, fixed_s=10.0,
        alltoall_bytes_per_token=0.0, bandwidths=(), token_cap=10,
    )  # fmt: skip
    lengths = [10] + [1] * 20
    staged = _one_stage(profile, num_ranks=2)
    groups = [(1, (0,), [0]), (1, (0,), list(range(1, 11))), (1, (0,), list(range(11, 21)))]
    step_s, _ = simulate(draft_of(groups, lengths), Tables(staged))
    assert (
        _bound_s(lengths, staged)
        <= step_s
        < area_bound_s(lengths, profile=profile, num_ranks=2)
    )


price = st.floats(0, 10)


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 100), min_size=1, max_size=12),
    replicas=st.tuples(price, price, price),
    channels=st.lists(price, min_size=4, max_size=4),
    longest=price,
    held=st.tuples(price, price),
)
def test_any_prices_give_a_true_bound(
    lengths: list[int],
    replicas: tuple[float, float, float],
    channels: list[float],
    longest: float,
    held: tuple[float, float],
    staged_case: Case,
) -> None:
    staged = staged_case([(0, 2, 1.0), (0, 2, 2.0), (1, 4, 1.5)], closing_s=4.0)
    prices = StagedPrices(
        replicas=replicas, channels=tuple(channels), longest=longest, held=held,
        skipped_more=(0.0, 0.0), skipped_less=(0.0, 0.0),
    )  # fmt: skip
    if not any((*replicas, *channels, longest, *held)):
        return
    plan = plan_staged_step(lengths, staged=staged, clock=_ticks(), time_limit_s=0.01)
    assert priced_bound_s(prices, lengths, staged=staged) <= plan.step_s * (1 + 1e-9)


@settings(max_examples=30, deadline=None)
@given(
    more=price, less=price, replicas=st.tuples(price, price, price),
    lengths=st.lists(st.integers(5, 15), min_size=30, max_size=40),
)  # fmt: skip
def test_any_prices_of_stages_left_out_give_a_true_bound(
    more: float,
    less: float,
    replicas: tuple[float, float, float],
    lengths: list[int],
    staged_case: Case,
) -> None:
    staged = staged_case(
        [(0, 2, 1.0), (1, 2, 2.0), (2, 2, 1.5)], skip_fractions=(0.0, 0.3, 0.0),
        skip_tolerance=0.06,
    )  # fmt: skip
    prices = StagedPrices(
        replicas=tuple(p + 0.01 for p in replicas), channels=(0.0,) * 6, longest=0.0,
        held=(0.0,) * 3, skipped_more=(0.0, more, 0.0), skipped_less=(0.0, less, 0.0),
    )  # fmt: skip
    plan = plan_staged_step(lengths, staged=staged, clock=_ticks(), time_limit_s=0.0)
    assert priced_bound_s(prices, lengths, staged=staged) <= plan.step_s * (1 + 1e-9)


def test_the_programs_prices_prove_more_than_equal_ones(staged_case: Case) -> None:
    lengths = [60, 40, *[10] * 30]
    staged = staged_case([(0, 2, 1.0), (0, 2, 3.0), (1, 4, 1.0)])
    solved = solve(lengths, Tables(staged))
    equal = replace(
        solved.prices, replicas=(1.0, 1.0, 1.0), channels=(0.0,) * 4, longest=0.0,
        held=(0.0, 0.0),
    )  # fmt: skip
    bound_s = priced_bound_s(solved.prices, lengths, staged=staged)
    assert bound_s > priced_bound_s(equal, lengths, staged=staged)
    assert bound_s == pytest.approx(solved.step_s, rel=0.02)


def test_prices_survive_json(staged_case: Case) -> None:
    lengths = [60, 40, *[10] * 30]
    staged = staged_case([(0, 2, 1.0), (1, 2, 3.0)], closing_s=2.0)
    prices = solve(lengths, Tables(staged)).prices
    again = serde.from_json(StagedPrices, serde.to_json(prices))
    layout = serde.from_json(StagedLayout, serde.to_json(staged))
    assert priced_bound_s(again, lengths, staged=layout) == priced_bound_s(
        prices, lengths, staged=staged
    )


def test_prices_that_prove_nothing_are_refused(staged_case: Case) -> None:
    staged = staged_case()
    nothing = StagedPrices(
        replicas=(0.0, 0.0), channels=(0.0, 0.0), longest=0.0, held=(0.0, 0.0),
        skipped_more=(0.0, 0.0), skipped_less=(0.0, 0.0),
    )  # fmt: skip
    with pytest.raises(InputError, match="expected one above 0"):
        priced_bound_s(nothing, [10], staged=staged)
    with pytest.raises(InputError, match=r"prices.replicas: expected 2 numbers"):
        priced_bound_s(replace(nothing, replicas=(1.0,)), [10], staged=staged)
    with pytest.raises(InputError, match=r"prices.replicas\[0\]"):
        replace(nothing, replicas=(float("nan"), 0.0))
