from dataclasses import replace

import numpy as np
import pytest

from trimtab.core.errors import InfeasibleError
from trimtab.core.profile import DegreeBandwidth, GroupOption, RingCosts, StepProfile
from trimtab.planners.attention_costs import sharing_costs
from trimtab.planners.costs import group_s


def with_ring(profile: StepProfile, *, overlap_fraction: float = 0.5) -> StepProfile:
    """`small_profile` and a ring of 2 to 4 ranks: 3 bytes a token and hop at 10 bytes/s."""
    ring = RingCosts(
        quadratic_s=0.02,
        bytes_per_token=3.0,
        bandwidths=tuple(
            DegreeBandwidth(degree=d, bytes_per_s=10.0, latency_s=0.25) for d in (2, 3, 4)
        ),
        overlap_fraction=overlap_fraction,
    )
    return replace(profile, ring=ring)


def test_a_ring_shows_what_attention_does_not_hide(small_profile: StepProfile) -> None:
    """Three ranks, 2 hops: 0.6 s a token, of which 0.01 s a token^2 is hidden."""
    profile = with_ring(small_profile)
    for length, exposed_s in ((10, 0.6 * 10 - 0.01 * 100), (60, 0.0), (100, 0.0)):
        work_s = 0.02 * length**2 + 0.1 * length + exposed_s
        found = group_s([length], 3, profile=profile, attention="ring")
        assert found == pytest.approx(5 + 0.25 + work_s / 3)


def test_costs_add_up_over_sequences_and_the_latency_is_paid_once(
    small_profile: StepProfile,
) -> None:
    profile = with_ring(small_profile)
    times = [
        group_s(lengths, 2, profile=profile, attention="ring")
        for lengths in ([10], [80], [10, 80])
    ]
    assert times[2] == pytest.approx(times[0] + times[1] - 5 - 0.25)


def test_without_overlap_every_byte_shows(small_profile: StepProfile) -> None:
    profile = with_ring(small_profile, overlap_fraction=0.0)
    work_s = 0.02 * 90**2 + 0.1 * 90 + 3 * 3.0 * 90 / 10
    found = group_s([90], 4, profile=profile, attention="ring")
    assert found == pytest.approx(5.25 + work_s / 4)


def test_many_lengths_at_once_cost_what_each_does(small_profile: StepProfile) -> None:
    for option in with_ring(small_profile).options:
        costs = sharing_costs(option, profile=with_ring(small_profile))
        each = [costs.work(length) for length in (1, 30, 61, 100)]
        assert costs.works(np.array([1.0, 30.0, 61.0, 100.0])).tolist() == each


def test_a_group_of_one_exchanges_nothing(small_profile: StepProfile) -> None:
    costs = sharing_costs(GroupOption(degree=1), profile=with_ring(small_profile))
    assert (costs.exchange_s, costs.opening_s, costs.token_s) == (0.0, 0.0, 0.1)


def test_a_kind_that_the_profile_lacks_at_a_degree_is_refused(
    small_profile: StepProfile,
) -> None:
    with pytest.raises(InfeasibleError, match=r"degree 2 .* for ring it has \[1\]"):
        group_s([5], 2, profile=small_profile, attention="ring")
    with pytest.raises(InfeasibleError, match=r"degree 3 .* for ulysses it has \[1, 2, 4\]"):
        group_s([5], 3, profile=with_ring(small_profile))


def test_options_are_ascending_and_heads_limit_ulysses_alone(
    small_profile: StepProfile,
) -> None:
    profile = with_ring(small_profile)
    assert [(o.degree, o.attention) for o in profile.options] == [
        (1, "ulysses"), (2, "ulysses"), (2, "ring"), (3, "ring"), (4, "ulysses"), (4, "ring"),
    ]  # fmt: skip
    three_heads = profile.for_heads(6)
    assert [(o.degree, o.attention) for o in three_heads.options] == [
        (1, "ulysses"), (2, "ulysses"), (2, "ring"), (3, "ring"), (4, "ring"),
    ]  # fmt: skip
    assert three_heads.degrees == (1, 2, 3, 4)
