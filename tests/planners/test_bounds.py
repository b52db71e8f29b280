import itertools
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.core.errors import InfeasibleError, InputError
from trimtab.core.profile import StepProfile
from trimtab.planners.costs import group_s
from trimtab.planners.steps.bounds import area_bound_s, num_waves_at_least, usable_degrees


def partitions(items: list[int]) -> Iterator[list[list[int]]]:
    """Every way to split `items` into non-empty blocks."""
    if not items:
        yield []
        return
    first, *rest = items
    for partition in partitions(rest):
        yield [[first], *partition]
        for index, block in enumerate(partition):
            yield [*partition[:index], [first, *block], *partition[index + 1 :]]


def best_step_s(lengths: list[int], *, profile: StepProfile, num_ranks: int) -> float:
    """The shortest step by trying every grouping, every degree and every set of waves."""
    degrees = usable_degrees(profile=profile, num_ranks=num_ranks)
    best = float("inf")
    for groups in partitions(lengths):
        for chosen in itertools.product(degrees, repeat=len(groups)):
            if any(
                sum(group) > degree * profile.token_cap
                for group, degree in zip(groups, chosen, strict=True)
            ):
                continue
            times = [
                group_s(group, degree, profile=profile)
                for group, degree in zip(groups, chosen, strict=True)
            ]
            for waves in partitions(list(range(len(groups)))):
                if all(sum(chosen[g] for g in wave) <= num_ranks for wave in waves):
                    best = min(best, sum(max(times[g] for g in wave) for wave in waves))
    return best + profile.step_fixed_s


@settings(deadline=None, max_examples=40)
@given(
    lengths=st.lists(st.integers(min_value=1, max_value=250), min_size=1, max_size=4),
    num_ranks=st.integers(min_value=3, max_value=4),
)
def test_no_plan_of_a_small_batch_beats_the_bound(
    small_profile: StepProfile, lengths: list[int], num_ranks: int
) -> None:
    if max(lengths) > 200 and num_ranks < 4:
        lengths = [min(length, 200) for length in lengths]
    bound_s = area_bound_s(lengths, profile=small_profile, num_ranks=num_ranks)
    best_s = best_step_s(lengths, profile=small_profile, num_ranks=num_ranks)
    assert bound_s <= best_s * (1 + 1e-12)


def test_one_short_sequence_on_one_rank_meets_the_bound(small_profile: StepProfile) -> None:
    expected = 2 + group_s([40], 1, profile=small_profile)
    assert area_bound_s([40], profile=small_profile, num_ranks=1) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("dataset", "number", "published_ms"),
    [
        ("wikipedia", 0, 2889),
        ("wikipedia", 2, 2918),
        ("common_crawl", 0, 19767),
        ("github", 0, 15721),
    ],
)
def test_the_published_bounds_come_out(
    flexsp_7b: StepProfile,
    real_batch: Callable[[str, int], list[int]],
    dataset: str,
    number: int,
    published_ms: int,
) -> None:
    lengths = real_batch(dataset, number)
    assert len(lengths) == 512
    bound_s = area_bound_s(lengths, profile=flexsp_7b, num_ranks=64)
    assert 1e3 * bound_s == pytest.approx(published_ms, abs=1)


def test_sequences_over_half_a_wave_need_a_wave_each() -> None:
    assert num_waves_at_least([60, 60, 60], wave_tokens=100) == 3
    assert num_waves_at_least([50, 50, 50], wave_tokens=100) == 2
    assert num_waves_at_least([1], wave_tokens=100) == 1


def test_degrees_are_those_of_the_profile_that_fit(small_profile: StepProfile) -> None:
    assert usable_degrees(profile=small_profile, num_ranks=3) == (1, 2)
    assert usable_degrees(profile=small_profile, num_ranks=8, degrees=[4, 2, 16]) == (2, 4)


def test_no_degree_is_refused(small_profile: StepProfile) -> None:
    with pytest.raises(InputError, match=r"degrees: expected one or more of \[1, 2, 4\]"):
        usable_degrees(profile=small_profile, num_ranks=8, degrees=[3])
    with pytest.raises(InputError, match="num_ranks: expected a whole number >= 1, got 0"):
        usable_degrees(profile=small_profile, num_ranks=0)


def test_a_sequence_that_fits_no_group_is_named(small_profile: StepProfile) -> None:
    with pytest.raises(
        InfeasibleError,
        match=r"lengths\[1\]: a sequence of 500 tokens fits in no group: "
        r"the largest degree, 4, holds 4 x 100 = 400 tokens",
    ):
        area_bound_s([10, 500], profile=small_profile, num_ranks=4)
