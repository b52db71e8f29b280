import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.core.errors import InputError
from trimtab.core.profile import StepProfile
from trimtab.planners.calibration import (
    GroupSample,
    fit_profile,
    profile_document,
    profile_from_document,
    refine_profile,
    wave_samples,
)
from trimtab.planners.costs import group_s
from trimtab.planners.sequences import plan_step

PROFILES = Path(__file__).parents[1] / "data" / "profiles"

DOCUMENT: dict[str, Any] = {
    "model": "7b",
    "num_gpus": 64,
    "gpus_per_node": 8,
    "quadratic_ms": 5e-6,
    "linear_ms": 0.2,
    "fixed_ms": 600.0,
    "activation_mb_per_token": 4.5,
    "alltoall_mb_per_token": 2.0,
    "v_gb_per_s": {"2": 100.0, "4": 50.0},
    "hidden": 4096,
    "num_layers": 32,
    "token_cap": 6000,
}


def test_units_become_seconds_and_bytes() -> None:
    profile = profile_from_document(DOCUMENT)
    assert profile.quadratic_s == pytest.approx(5e-9)
    assert profile.linear_s == pytest.approx(2e-4)
    assert profile.fixed_s == pytest.approx(0.6)
    assert profile.alltoall_bytes_per_token == 2e6
    assert profile.bytes_per_s(2) == 100e9
    assert profile.degrees == (1, 2, 4)
    assert (profile.evidence, profile.step_fixed_s) == ("published", 0.0)


@pytest.mark.parametrize("name", ["flexsp_7b_a100", "flexsp_13b_a100", "flexsp_30b_a100"])
def test_published_profiles_survive_a_round_trip(name: str) -> None:
    document = json.loads((PROFILES / f"{name}.json").read_text())
    profile = profile_from_document(document)
    again = profile_from_document(json.loads(json.dumps(profile_document(profile))))
    assert again.degrees == profile.degrees == (1, 2, 4, 8, 16, 32, 64)
    assert again.token_cap == profile.token_cap
    assert (again.hidden, again.num_layers) == (document["hidden"], document["num_layers"])
    for field in ("quadratic_s", "linear_s", "fixed_s", "alltoall_bytes_per_token"):
        assert getattr(again, field) == pytest.approx(getattr(profile, field), rel=1e-15)


def test_degrees_may_come_in_any_order() -> None:
    document = DOCUMENT | {"v_gb_per_s": {"16": 10.0, "2": 100.0, "4": 50.0}}
    assert profile_from_document(document).degrees == (1, 2, 4, 16)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("quadratic_ms", float("nan"), "quadratic_ms: expected a finite number >= 0, got nan"),
        ("linear_ms", -0.2, "linear_ms: expected a finite number > 0, got -0.2"),
        ("linear_ms", 0, "linear_ms: expected a finite number > 0, got 0"),
        ("fixed_ms", "600", "fixed_ms: expected a finite number >= 0, got '600'"),
        ("alltoall_mb_per_token", float("inf"), "alltoall_mb_per_token: expected a finite"),
        ("token_cap", 0, "token_cap: expected a whole number >= 1, got 0"),
        ("token_cap", 6000.5, "token_cap: expected a whole number >= 1, got 6000.5"),
        ("num_gpus", True, "num_gpus: expected a whole number >= 1, got True"),
        ("model", 7, "model: expected text, got 7"),
        ("evidence", "guessed", "evidence: unknown value 'guessed'"),
        ("v_gb_per_s", [1, 2], "v_gb_per_s: expected an object"),
        (
            "v_gb_per_s",
            {"two": 1.0},
            "v_gb_per_s: expected whole degrees >= 2 as keys, got 'two'",
        ),
        ("v_gb_per_s", {"1": 1.0}, "v_gb_per_s: expected whole degrees >= 2 as keys, got '1'"),
        ("v_gb_per_s", {"2.5": 1.0}, "v_gb_per_s: expected whole degrees"),
        ("v_gb_per_s", {"2": float("nan")}, r"v_gb_per_s\[2\]: expected a finite number > 0"),
        ("v_gb_per_s", {"2": -1}, r"v_gb_per_s\[2\]: expected a finite number > 0, got -1"),
    ],
)
def test_a_bad_value_is_named(key: str, value: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        profile_from_document(DOCUMENT | {key: value})


def test_an_unknown_key_is_answered_with_the_nearest() -> None:
    with pytest.raises(InputError, match="unknown key 'token_caps'; did you mean 'token_cap'"):
        profile_from_document(DOCUMENT | {"token_caps": 1})


@pytest.mark.parametrize("key", ["quadratic_ms", "v_gb_per_s", "token_cap", "model"])
def test_a_missing_key_is_named(key: str) -> None:
    document = {name: value for name, value in DOCUMENT.items() if name != key}
    with pytest.raises(InputError, match=f"the key '{key}' is missing"):
        profile_from_document(document)


def test_a_list_is_no_profile() -> None:
    with pytest.raises(InputError, match="expected a JSON object, got list"):
        profile_from_document([])  # type: ignore[arg-type]  # what a user may give


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
