import itertools
from collections.abc import Callable, Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.core.errors import InfeasibleError, InputError
from trimtab.core.staged import StagedLayout
from trimtab.planners.staged.staged_apart import apart_drafts
from trimtab.planners.staged.staged_check import checked_step_s
from trimtab.planners.staged.staged_planning import plan_staged_step
from trimtab.planners.staged.staged_schedule import Tables, draft_of, simulate

Case = Callable[..., StagedLayout]
_Group = tuple[int, tuple[int, ...], list[int]]


def _ticks() -> Callable[[], float]:
    """A clock that only its own calls move on, so that plans repeat."""
    return itertools.count(0.0, 1e-3).__next__


def _partitions(items: Sequence[int]) -> Iterator[list[list[int]]]:
    if not items:
        yield []
        return
    for rest in _partitions(items[1:]):
        yield [[items[0]], *rest]
        for at, group in enumerate(rest):
            yield [*rest[:at], [items[0], *group], *rest[at + 1 :]]


def _best_s(lengths: Sequence[int], staged: StagedLayout) -> float:
    """Every partition, degree, path and order."""
    tables = Tables(staged)
    stages = [staged.of_stage(stage) for stage in range(staged.num_stages)]
    paths = list(itertools.product(*stages))
    best_s = float("inf")
    for partition in _partitions(range(len(lengths))):
        kinds = itertools.product(itertools.product((1, 2), paths), repeat=len(partition))
        for kind in kinds:
            groups: list[_Group] = [
                (degree, path, members)
                for (degree, path), members in zip(kind, partition, strict=True)
            ]
            for order in itertools.permutations(groups):
                best_s = min(best_s, simulate(draft_of(order, lengths), tables)[0])
    return best_s


@pytest.mark.parametrize(
    ("lengths", "replicas"),
    [
        ([30, 10, 5], [(0, 2, 1.0), (1, 2, 1.0)]),
        ([40, 20, 20], [(0, 2, 1.0), (1, 2, 2.0)]),
        ([12, 11, 10], [(0, 2, 1.0)]),
        ([30, 10], [(0, 2, 1.0), (0, 2, 3.0), (1, 2, 2.0)]),
        ([50, 3, 3], [(0, 2, 2.0), (1, 2, 1.0)]),
    ],
)
def test_the_plan_of_a_tiny_batch_is_the_best_there_is(
    lengths: list[int], replicas: list[tuple[int, int, float]], staged_case: Case
) -> None:
    staged = staged_case(replicas, token_cap=60)
    plan = plan_staged_step(lengths, staged=staged, clock=_ticks(), time_limit_s=1.0)
    best_s = _best_s(lengths, staged)
    assert plan.step_s == pytest.approx(best_s)
    assert plan.lower_bound_s <= best_s


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 180), min_size=1, max_size=30),
    ranks=st.tuples(st.sampled_from([2, 3, 4]), st.sampled_from([2, 4])),
    speeds=st.tuples(st.floats(0.2, 5), st.floats(0.2, 5), st.floats(0.2, 5)),
    closing_s=st.floats(0, 50),
)
def test_plans_keep_every_rule_their_bound_and_are_no_worse_than_apart(
    lengths: list[int],
    ranks: tuple[int, int],
    speeds: tuple[float, float, float],
    closing_s: float,
    staged_case: Case,
) -> None:
    replicas = [(0, ranks[0], speeds[0]), (0, 2, speeds[1]), (1, ranks[1], speeds[2])]
    staged = staged_case(replicas, closing_s=closing_s)
    apart = apart_drafts(lengths, staged, clock=_ticks())
    plan = plan_staged_step(
        lengths, staged=staged, clock=_ticks(), time_limit_s=0.05, apart=apart
    )
    assert checked_step_s(plan.micro_batches, lengths, staged=staged) == pytest.approx(
        plan.step_s
    )
    assert plan.lower_bound_s <= plan.step_s <= plan.first_step_s
    tables = Tables(staged)
    assert all(plan.step_s <= simulate(draft, tables)[0] for draft in apart)


def test_stages_are_left_out_as_often_as_the_budget_says(staged_case: Case) -> None:
    lengths = [10] * 40
    replicas = [(0, 2, 1.0), (1, 2, 1.0), (2, 2, 1.0)]
    full = staged_case(replicas)
    part = staged_case(replicas, skip_fractions=(0.0, 0.25, 0.0), skip_tolerance=0.02)
    whole = plan_staged_step(lengths, staged=full, clock=_ticks(), time_limit_s=0.1)
    plan = plan_staged_step(lengths, staged=part, clock=_ticks(), time_limit_s=0.1)
    short = sum(len(one.sequences) for one in plan.micro_batches if len(one.visits) == 2)
    assert short == 10
    assert all(len(one.visits) == 3 for one in whole.micro_batches)


def test_a_budget_that_no_batch_meets_is_refused(staged_case: Case) -> None:
    replicas = [(0, 2, 1.0), (1, 2, 1.0), (2, 2, 1.0)]
    staged = staged_case(replicas, skip_fractions=(0.0, 0.25, 0.0))
    with pytest.raises(InfeasibleError, match="nearest"):
        plan_staged_step([50, 50], staged=staged, clock=_ticks(), time_limit_s=0.01)


def test_equal_input_gives_an_equal_plan(staged_case: Case) -> None:
    lengths = [60, 40, 30, 20, 10, 10, 5, 5, 5, 3]
    staged = staged_case()
    plans = [
        plan_staged_step(lengths, staged=staged, clock=_ticks(), time_limit_s=0.1)
        for _ in range(2)
    ]
    assert plans[0].micro_batches == plans[1].micro_batches


def test_more_time_never_gives_a_longer_step(staged_case: Case) -> None:
    lengths = [90, 40, 30, 20, 10, 10, 5, 5, 5, 3, 70, 22, 21]
    staged = staged_case()
    steps = [
        plan_staged_step(lengths, staged=staged, clock=_ticks(), time_limit_s=limit_s).step_s
        for limit_s in (0.0, 0.02, 0.2, 1.0)
    ]
    assert steps == sorted(steps, reverse=True)


@pytest.mark.parametrize(
    ("lengths", "error", "message"),
    [
        ([], InputError, "the batch is empty"),
        ([10, 0], InputError, r"lengths\[1\]: expected a whole number >= 1, got 0"),
        (
            [10, 500],
            InfeasibleError,
            r"lengths\[1\]: a sequence of 500 tokens fits in no group",
        ),
    ],
)
def test_a_batch_that_cannot_be_planned_is_named(
    lengths: list[int], error: type[Exception], message: str, staged_case: Case
) -> None:
    with pytest.raises(error, match=message):
        plan_staged_step(lengths, staged=staged_case(), clock=_ticks())
