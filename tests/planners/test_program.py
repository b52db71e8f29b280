"""The certificate against brute force, against any prices, and on real lengths."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.core.certificate import BoundCertificate, BoundLeaf, GroupPrice, WaveSplit
from trimtab.core.errors import InputError
from trimtab.core.profile import StepProfile
from trimtab.planners.costs import group_s
from trimtab.planners.steps.bounds import BoundTerms, area_bound_s, certified_bound_s
from trimtab.planners.steps.program import solve_bound
from trimtab.planners.steps.sequences import plan_step

_Item = TypeVar("_Item")


def never() -> bool:
    return False


def certificate_of(
    lengths: Sequence[int], *, profile: StepProfile, num_ranks: int
) -> tuple[BoundCertificate, float]:
    """A certificate made after the first plan, and that plan's step time."""
    plan = plan_step(lengths, profile=profile, num_ranks=num_ranks, clock=lambda: 0.0)
    degrees = [degree for degree in profile.degrees if degree <= num_ranks]
    waves_s = [
        max(
            group_s([lengths[i] for i in group.sequences], group.degree, profile=profile)
            for group in wave.groups
        )
        - profile.fixed_s
        for wave in plan.waves
    ]
    terms = BoundTerms(
        lengths, profile=profile, num_ranks=num_ranks, degrees=degrees,
        step_s=plan.step_s - profile.step_fixed_s,
    )  # fmt: skip
    return solve_bound(terms, waves_s, is_over=never), plan.step_s


def best_step_s(lengths: Sequence[int], *, profile: StepProfile, num_ranks: int) -> float:
    """The shortest step of all, by trying every partition into groups, and those into waves."""
    degrees = [degree for degree in profile.degrees if degree <= num_ranks]
    best = float("inf")
    for parts in partitions(list(lengths)):
        for chosen in itertools.product(degrees, repeat=len(parts)):
            groups = list(zip(parts, chosen, strict=True))
            if any(sum(part) > d * profile.token_cap for part, d in groups):
                continue
            for waves in partitions(groups):
                if any(sum(d for _, d in wave) > num_ranks for wave in waves):
                    continue
                step_s = profile.step_fixed_s + sum(
                    max(group_s(part, d, profile=profile) for part, d in wave) for wave in waves
                )
                best = min(best, step_s)
    return best


def partitions(items: list[_Item]) -> list[list[list[_Item]]]:
    if not items:
        return [[]]
    head, rest = items[0], items[1:]
    found = []
    for part in partitions(rest):
        found.append([[head], *part])
        found += [[*part[:i], [head, *part[i]], *part[i + 1 :]] for i in range(len(part))]
    return found


@pytest.mark.parametrize(
    "lengths",
    [
        [90, 80, 10],
        [150, 60, 60, 20],
        [399, 90],
        [60, 60, 60, 60],
        [120, 85, 85, 30],
        [5],
    ],
)
def test_no_plan_of_all_is_shorter_than_the_bound(
    lengths: list[int], small_profile: StepProfile
) -> None:
    certificate, _ = certificate_of(lengths, profile=small_profile, num_ranks=4)
    bound_s = certified_bound_s(certificate, lengths, profile=small_profile, num_ranks=4)
    best_s = best_step_s(lengths, profile=small_profile, num_ranks=4)
    area_s = area_bound_s(lengths, profile=small_profile, num_ranks=4)
    assert area_s <= bound_s <= best_s * (1 + 1e-9)


prices = st.floats(min_value=0.0, max_value=3.0)


@settings(deadline=None, max_examples=200)
@given(data=st.data(), lengths=st.lists(st.integers(1, 390), min_size=1, max_size=5))
def test_any_prices_at_all_prove_something_true(
    data: st.DataObject, lengths: list[int], small_profile: StepProfile
) -> None:
    plan = plan_step(lengths, profile=small_profile, num_ranks=4, clock=lambda: 0.0)
    waves_s = plan.step_s - small_profile.step_fixed_s
    edges_s = (
        0.0,
        *sorted(data.draw(st.sets(st.floats(1, 0.9 * waves_s), max_size=3))),
        waves_s,
    )
    classes = range(len(edges_s) - 1)
    splits = data.draw(st.integers(0, 2))
    leaf = BoundLeaf(
        splits=(),
        edges_s=edges_s,
        wave_prices_s=tuple(data.draw(st.floats(-20, 20)) for _ in classes),
        group_prices=tuple(
            GroupPrice(
                wave_class=k,
                degree=degree,
                token_s=data.draw(prices),
                work=data.draw(prices),
                big_tokens_s=data.draw(prices),
                big_work_s=data.draw(prices),
            )
            for k in classes
            for degree in (1, 2, 4)
        ),
    )
    few = WaveSplit(longer_than_s=edges_s[-2], at_most=splits)
    many = WaveSplit(longer_than_s=edges_s[-2], at_least=splits + 1)
    for leaves in ([leaf], [dataclasses.replace(leaf, splits=(case,)) for case in (few, many)]):
        certificate = BoundCertificate(
            leaves=tuple(leaves), shorter_than_s=waves_s, bucket_edges=()
        )
        bound_s = certified_bound_s(certificate, lengths, profile=small_profile, num_ranks=4)
        assert bound_s <= plan.step_s * (1 + 1e-9)


@pytest.mark.parametrize(
    ("dataset", "number", "at_least"),
    [
        ("wikipedia", 0, 2.888),
        ("wikipedia", 1, 5.1),
        ("wikipedia", 2, 3.01),
        ("common_crawl", 0, 19.9),
    ],
)
def test_whole_numbers_of_waves_raise_the_bound_of_real_batches(
    dataset: str,
    number: int,
    at_least: float,
    flexsp_7b: StepProfile,
    real_batch: Callable[[str, int], list[int]],
) -> None:
    lengths = real_batch(dataset, number)
    certificate, step_s = certificate_of(lengths, profile=flexsp_7b, num_ranks=64)
    bound_s = certified_bound_s(certificate, lengths, profile=flexsp_7b, num_ranks=64)
    assert at_least <= bound_s <= step_s


def test_the_program_and_its_prices_say_the_same(
    flexsp_7b: StepProfile, real_batch: Callable[[str, int], list[int]]
) -> None:
    """Strong duality: the prices of the root prove what the program's optimum is."""
    lengths = real_batch("wikipedia", 0)
    plan = plan_step(lengths, profile=flexsp_7b, num_ranks=64, clock=lambda: 0.0)
    terms = BoundTerms(
        lengths, profile=flexsp_7b, num_ranks=64, degrees=flexsp_7b.degrees, step_s=plan.step_s
    )
    certificate = solve_bound(terms, [0.4, 1.3], is_over=lambda: True)
    assert len(certificate.leaves) == 1
    bound_s = certified_bound_s(certificate, lengths, profile=flexsp_7b, num_ranks=64)
    area_s = area_bound_s(lengths, profile=flexsp_7b, num_ranks=64)
    assert bound_s == pytest.approx(area_s, rel=2e-3)


class TestIncompleteCertificates:
    @pytest.fixture
    def certificate(self, small_profile: StepProfile) -> BoundCertificate:
        lengths = [350, 170, 120, *range(5, 100, 5), *range(5, 60)]
        certificate, _ = certificate_of(lengths, profile=small_profile, num_ranks=4)
        assert len(certificate.leaves) > 1
        return certificate

    def check(self, certificate: BoundCertificate, profile: StepProfile) -> None:
        lengths = [350, 170, 120, *range(5, 100, 5), *range(5, 60)]
        certified_bound_s(certificate, lengths, profile=profile, num_ranks=4)

    def test_the_whole_one_is_accepted(
        self, certificate: BoundCertificate, small_profile: StepProfile
    ) -> None:
        self.check(certificate, small_profile)

    def test_a_missing_leaf_is_noticed(
        self, certificate: BoundCertificate, small_profile: StepProfile
    ) -> None:
        for left_out in certificate.leaves:
            leaves = tuple(leaf for leaf in certificate.leaves if leaf is not left_out)
            with pytest.raises(InputError, match="one is missing"):
                self.check(dataclasses.replace(certificate, leaves=leaves), small_profile)

    def test_classes_must_reach_the_longest_wave(
        self, certificate: BoundCertificate, small_profile: StepProfile
    ) -> None:
        longer = dataclasses.replace(certificate, shorter_than_s=1e6)
        with pytest.raises(InputError, match="expected classes from 0 to"):
            self.check(longer, small_profile)

    def test_prices_below_zero_are_refused(
        self, certificate: BoundCertificate, small_profile: StepProfile
    ) -> None:
        leaf = certificate.leaves[0]
        price = dataclasses.replace(leaf.group_prices[0], token_s=-1.0)
        leaf = dataclasses.replace(leaf, group_prices=(price,))
        leaves = (leaf, *certificate.leaves[1:])
        with pytest.raises(InputError, match="none below 0"):
            self.check(dataclasses.replace(certificate, leaves=leaves), small_profile)
