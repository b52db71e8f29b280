import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.core.errors import InputError
from trimtab.core.profile import DegreeBandwidth, RingCosts, StepProfile
from trimtab.planners.costs import group_s
from trimtab.planners.group_fitting import GroupSample
from trimtab.planners.profile_fitting import fit_profile, refine_profile, wave_samples
from trimtab.planners.steps.sequences import plan_step


def fitted(samples: list[GroupSample]) -> StepProfile:
    return fit_profile(
        samples,
        name="fit",
        num_gpus=4,
        gpus_per_node=4,
        token_cap=100,
        alltoall_bytes_per_token=1.0,
    )


def measured(profile: StepProfile, *, noise: float, outliers: int = 0) -> list[GroupSample]:
    """Made-up measurements of `profile`: 24 groups of each degree."""
    generator = random.Random(7)
    samples = []
    for degree in profile.degrees:
        for number in range(24):
            lengths = tuple(
                generator.randint(1, 40 * degree) for _ in range(generator.randint(1, 4))
            )
            seconds = group_s(lengths, degree, profile=profile)
            seconds *= 1 + noise * generator.uniform(-1, 1)
            if number < outliers:
                seconds *= 4
            samples.append(GroupSample(degree=degree, lengths=lengths, seconds=seconds))
    return samples


def test_exact_times_give_the_coefficients_back(small_profile: StepProfile) -> None:
    fit = fitted(measured(small_profile, noise=0.0))
    assert fit.quadratic_s == pytest.approx(small_profile.quadratic_s, rel=1e-6)
    assert fit.linear_s == pytest.approx(small_profile.linear_s, rel=1e-6)
    assert fit.fixed_s == pytest.approx(small_profile.fixed_s, rel=1e-6)
    assert fit.bytes_per_s(2) == pytest.approx(20.0, rel=1e-5)
    assert fit.bytes_per_s(4) == pytest.approx(10.0, rel=1e-5)
    assert fit.evidence == "measured"


def test_outliers_and_noise_hardly_move_the_predictions(small_profile: StepProfile) -> None:
    fit = fitted(measured(small_profile, noise=0.03, outliers=4))
    for lengths, degree in [((30,), 1), ((60, 60), 2), ((150, 20, 20), 4)]:
        truth = group_s(lengths, degree, profile=small_profile)
        assert group_s(lengths, degree, profile=fit) == pytest.approx(truth, rel=0.05)


@settings(deadline=None)
@given(
    times=st.lists(st.floats(min_value=1e-6, max_value=1e3), min_size=6, max_size=12),
    seed=st.integers(min_value=0, max_value=1000),
)
def test_any_times_give_a_valid_profile(times: list[float], seed: int) -> None:
    generator = random.Random(seed)
    samples = [
        GroupSample(
            degree=1 if index < 4 else 2,
            lengths=(index + 1, generator.randint(1, 5000)),
            seconds=seconds,
        )
        for index, seconds in enumerate(times)
    ]
    samples[1] = GroupSample(degree=1, lengths=(6000,), seconds=times[1])
    fit = fitted(samples)
    assert fit.linear_s > 0
    assert fit.quadratic_s >= 0
    assert fit.fixed_s >= 0
    assert fit.bytes_per_s(2) > 0


def test_too_few_samples_are_refused() -> None:
    single = GroupSample(degree=1, lengths=(10,), seconds=1.0)
    wide = GroupSample(degree=2, lengths=(10,), seconds=1.0)
    with pytest.raises(InputError, match="at least 3 groups of degree 1"):
        fitted([single, wide, wide, wide])
    with pytest.raises(InputError, match="2 or more different token counts"):
        fitted([single, single, single])


def test_a_sample_needs_a_positive_time_and_lengths() -> None:
    with pytest.raises(InputError, match=r"sample\.seconds"):
        GroupSample(degree=1, lengths=(10,), seconds=0.0)
    with pytest.raises(InputError, match=r"sample\.lengths\[1\]"):
        GroupSample(degree=1, lengths=(10, 0), seconds=1.0)


def test_what_was_not_measured_stays_as_it_is(small_profile: StepProfile) -> None:
    samples = [
        GroupSample(
            degree=2,
            lengths=(length, 30),
            seconds=1.5 * group_s([length, 30], 2, profile=small_profile),
        )
        for length in range(40, 160, 2)
    ]
    refined = refine_profile(small_profile, samples)
    assert refined.bytes_per_s(4) == pytest.approx(small_profile.bytes_per_s(4), rel=1e-3)
    for sample in samples:
        predicted_s = group_s(sample.lengths, 2, profile=refined)
        assert predicted_s == pytest.approx(sample.seconds, rel=0.12)


def test_few_groups_and_outliers_move_coefficients_little(small_profile: StepProfile) -> None:
    exact = [
        GroupSample(degree=1, lengths=(s,), seconds=group_s([s], 1, profile=small_profile))
        for s in range(10, 100, 2)
    ]
    wild = [GroupSample(degree=1, lengths=(50,), seconds=1e4)] * 3
    for samples in (wild[:1], exact + wild):
        refined = refine_profile(small_profile, samples)
        for length in (10, 50, 90):
            before_s = group_s([length], 1, profile=small_profile)
            assert group_s([length], 1, profile=refined) == pytest.approx(before_s, rel=0.3)


def test_no_group_of_a_known_degree_changes_nothing(small_profile: StepProfile) -> None:
    strange = GroupSample(degree=3, lengths=(9,), seconds=1.0)
    assert refine_profile(small_profile, [strange]) == small_profile
    assert refine_profile(small_profile, []) == small_profile


def test_a_group_takes_as_long_as_its_fastest_rank(small_profile: StepProfile) -> None:
    plan = plan_step([150, 90], profile=small_profile, num_ranks=3, clock=lambda: 0.0)
    (wave,) = plan.waves
    waves_s: dict[int, tuple[float, ...]] = {}
    for group in wave.groups:
        for number, rank in enumerate(group.ranks):
            waves_s[rank] = (7.0 + number,)
    samples = list(wave_samples(plan, [150, 90], waves_s))
    assert {sample.seconds for sample in samples} == {7.0}
    assert sorted(sample.lengths for sample in samples) == [(90,), (150,)]
    del waves_s[0]
    assert len(list(wave_samples(plan, [150, 90], waves_s))) == len(samples) - 1


def ring_samples(profile: StepProfile) -> list[GroupSample]:
    """Groups of both kinds, of short and of long sequences, exactly as the profile says."""
    generator = random.Random(3)
    samples = []
    for option in profile.options:
        for _ in range(12):
            lengths = tuple(
                generator.randint(1, most) for most in (12, 40, option.degree * 100)
            )
            seconds = group_s(
                lengths, option.degree, profile=profile, attention=option.attention
            )
            samples.append(
                GroupSample(
                    degree=option.degree, lengths=lengths, seconds=seconds,
                    attention=option.attention,
                )
            )  # fmt: skip
    return samples


@pytest.fixture
def ringed(small_profile: StepProfile) -> StepProfile:
    """`small_profile` and rings; that of two hides the transfer of over 133 tokens."""
    ring = RingCosts(
        quadratic_s=0.02,
        bytes_per_token=3.0,
        bandwidths=tuple(
            DegreeBandwidth(degree=d, bytes_per_s=rate) for d, rate in ((2, 1.5), (3, 1.2))
        ),
        overlap_fraction=0.75,
    )
    return replace(small_profile, ring=ring)


def test_a_ring_is_told_from_its_groups(ringed: StepProfile) -> None:
    fit = fit_profile(
        ring_samples(ringed), name="fit", num_gpus=4, gpus_per_node=4, token_cap=100,
        alltoall_bytes_per_token=1.0, ring_bytes_per_token=3.0,
    )  # fmt: skip
    assert fit.ring is not None
    assert fit.options == ringed.options
    assert fit.ring.overlap_fraction == 0.75
    assert fit.ring.quadratic_s == pytest.approx(0.02, rel=1e-3)
    assert fit.quadratic_s == pytest.approx(0.01, rel=1e-3)
    assert fit.bytes_per_s(2, "ring") == pytest.approx(1.5, rel=1e-2)
    assert fit.bytes_per_s(3, "ring") == pytest.approx(1.2, rel=1e-2)
    assert fit.bytes_per_s(4) == pytest.approx(10.0, rel=1e-3)


def test_rings_that_ran_refine_the_ring_and_leave_ulysses(ringed: StepProfile) -> None:
    assert ringed.ring is not None
    slower = replace(
        ringed,
        ring=replace(
            ringed.ring,
            bandwidths=tuple(
                replace(entry, bytes_per_s=entry.bytes_per_s / 2)
                for entry in ringed.ring.bandwidths
            ),
        ),
    )
    samples = [each for each in ring_samples(slower) if each.attention == "ring"]
    refined = refine_profile(ringed, samples * 3)
    assert refined.bytes_per_s(2, "ring") < 0.7 * 1.5
    assert refined.bytes_per_s(4) == pytest.approx(ringed.bytes_per_s(4), rel=1e-3)
    for sample in samples:
        found = group_s(sample.lengths, sample.degree, profile=refined, attention="ring")
        assert found == pytest.approx(sample.seconds, rel=0.1)


def test_latencies_that_are_known_are_not_counted_as_bytes(
    small_profile: StepProfile,
) -> None:
    late = replace(
        small_profile,
        bandwidths=tuple(replace(e, latency_s=2.0) for e in small_profile.bandwidths),
    )
    samples = [
        GroupSample(degree=2, lengths=(s,), seconds=group_s([s], 2, profile=late))
        for s in (20, 90, 150)
    ]
    assert refine_profile(late, samples).bytes_per_s(2) == pytest.approx(20.0, rel=1e-3)
