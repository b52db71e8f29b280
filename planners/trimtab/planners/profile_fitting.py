"""Step profiles fitted to measured groups, and refined by them while training."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from statistics import median

import numpy as np
from numpy.typing import NDArray

from trimtab.core.errors import InputError
from trimtab.core.plan import StepPlan
from trimtab.core.profile import DegreeBandwidth, RingCosts, StepProfile
from trimtab.planners.costs import group_s
from trimtab.planners.group_fitting import (
    GroupSample,
    coefficients_of,
    group_columns,
    is_per_token,
    robust_fit,
    with_coefficients,
)

_SMALLEST_SHARE = 1e-3
"""A fitted linear or exchange time is at least this share of the time per token."""
_PRIOR_GROUPS = 1.0
"""As many measured groups each coefficient in force counts for when it is refined."""
_OVERLAPS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Overlaps of a ring that are tried."""
_RING_ROUNDS = 4
"""How often coefficients and the sequences whose transfer shows are told from one another."""
_ALONE = ("ulysses", 1)


def fit_profile(
    samples: Sequence[GroupSample],
    *,
    name: str,
    num_gpus: int,
    gpus_per_node: int,
    token_cap: int,
    alltoall_bytes_per_token: float,
    ring_bytes_per_token: float = 0.0,
    step_fixed_s: float = 0.0,
    source: str = "",
) -> StepProfile:
    """Fit the coefficients of `StepProfile` to measured group times.

    All coefficients, the all-to-all time per token of each degree among them, come from one
    non-negative least-squares fit of the relative error, reweighted against outliers: groups
    of one rank hold short sequences only, so on their own they do not tell `quadratic_s` from
    `linear_s`, which the long sequences of wide groups do. `linear_s` and the all-to-all times
    are kept at least `1e-3` of the median time per token, so that noise never makes them zero.
    Latencies are not told apart from bytes.

    What a ring hides is piecewise: the fit alternates with the choice of the sequences whose
    transfer shows, for several overlaps, and the one with the least median error is taken.

    Args:
        samples: At least three groups of degree 1, of two or more different sizes, and one or
            more of every further degree the profile shall have.
        name: Name of the profile.
        num_gpus: Ranks of the machine measured.
        gpus_per_node: Ranks of one node of it.
        token_cap: Most tokens one rank holds in a wave.
        alltoall_bytes_per_token: Bytes one token moves over all layers (`exchanges` computes
            it).
        ring_bytes_per_token: Bytes a hop moves for one token over all layers.
        step_fixed_s: Measured time of a step outside the waves.
        source: Where and how it was measured.

    Raises:
        InputError: The samples are too few to tell the coefficients apart.
    """
    _check_samples(samples)
    wide = sorted({(sample.attention, sample.degree) for sample in samples} - {_ALONE})
    blank = StepProfile(
        name=name,
        num_gpus=num_gpus,
        gpus_per_node=gpus_per_node,
        quadratic_s=0.0,
        linear_s=1.0,
        fixed_s=0.0,
        alltoall_bytes_per_token=alltoall_bytes_per_token,
        bandwidths=_bandwidths(degree for kind, degree in wide if kind == "ulysses"),
        token_cap=token_cap,
        step_fixed_s=step_fixed_s,
        evidence="measured",
        source=source,
    )
    rings = _bandwidths(degree for kind, degree in wide if kind == "ring")
    if not rings:
        return _fitted(blank, samples)
    ring = RingCosts(
        quadratic_s=0.0,
        bytes_per_token=ring_bytes_per_token,
        bandwidths=rings,
        overlap_fraction=0.0,
    )
    return _fitted_with_ring(blank, samples, ring=ring)


def wave_samples(
    plan: StepPlan, lengths: Sequence[int], waves_s: Mapping[int, Sequence[float]]
) -> Iterator[GroupSample]:
    """The groups of a measured step.

    A group's time is that of the rank that took least: the others waited for it to arrive.

    Args:
        plan: What ran.
        lengths: Tokens of every sequence of the batch.
        waves_s: Seconds by rank, then by wave; groups of ranks that it lacks are left out.
    """
    for index, wave in enumerate(plan.waves):
        for group in wave.groups:
            if all(rank in waves_s for rank in group.ranks):
                yield GroupSample(
                    degree=group.degree,
                    lengths=tuple(lengths[sequence] for sequence in group.sequences),
                    seconds=min(waves_s[rank][index] for rank in group.ranks),
                    attention=group.attention,
                )


def refine_profile(profile: StepProfile, samples: Sequence[GroupSample]) -> StepProfile:
    """`profile` with coefficients moved towards what measured groups took.

    The same robust fit as `fit_profile`, with every coefficient of the profile as
    `_PRIOR_GROUPS` more groups that took just what it says: what the samples say nothing about,
    say a degree that no plan used, stays as it is, and few samples change little.

    Args:
        profile: The coefficients in force.
        samples: Measured groups, of any number and any degrees of the profile.
    """
    known = [sample for sample in samples if sample.option in profile.options]
    if not known:
        return profile
    before = coefficients_of(profile)
    prior = np.sqrt(_PRIOR_GROUPS) * np.eye(len(before))[before > 0]
    refined = profile
    for _ in range(_RING_ROUNDS if profile.ring else 1):
        columns = group_columns(known, profile=refined)
        shares = robust_fit(columns * before, _seconds(known, profile=profile), prior=prior)
        after = before * np.where(before > 0, np.maximum(shares, _SMALLEST_SHARE), 1.0)
        refined = with_coefficients(profile, after)
    return replace(refined, evidence="measured")


def predicted_s(sample: GroupSample, *, profile: StepProfile) -> float:
    """What `profile` says that a measured group takes."""
    return group_s(sample.lengths, sample.degree, profile=profile, attention=sample.attention)


def median_error(samples: Sequence[GroupSample], *, profile: StepProfile) -> float:
    """Median of |predicted - measured| / measured over groups."""
    return median(
        abs(predicted_s(sample, profile=profile) / sample.seconds - 1) for sample in samples
    )


def _fitted(profile: StepProfile, samples: Sequence[GroupSample]) -> StepProfile:
    """`profile` with all coefficients from `samples`, what its ring hides being given by it."""
    tokens = np.array([sum(sample.lengths) / sample.degree for sample in samples])
    seconds = _seconds(samples, profile=profile)
    least_s = _SMALLEST_SHARE * float(np.median(seconds / tokens))
    found = robust_fit(group_columns(samples, profile=profile), seconds)
    is_kept = is_per_token(profile)
    return with_coefficients(profile, np.where(is_kept, np.maximum(found, least_s), found))


def _fitted_with_ring(
    blank: StepProfile, samples: Sequence[GroupSample], *, ring: RingCosts
) -> StepProfile:
    """The best fit over overlaps, each settling which transfers show."""
    candidates = []
    for overlap_fraction in _OVERLAPS:
        profile = replace(blank, ring=replace(ring, overlap_fraction=overlap_fraction))
        for _ in range(_RING_ROUNDS if overlap_fraction else 1):
            profile = _fitted(profile, samples)
            candidates.append(profile)
    return min(candidates, key=lambda profile: median_error(samples, profile=profile))


def _seconds(samples: Sequence[GroupSample], *, profile: StepProfile) -> NDArray[np.float64]:
    """Measured times without the latencies that the profile knows."""
    return np.array([
        max(
            sample.seconds - profile.exchange(sample.degree, sample.attention).latency_s,
            _SMALLEST_SHARE * sample.seconds,
        )
        if sample.degree > 1
        else sample.seconds
        for sample in samples
    ])  # fmt: skip


def _bandwidths(degrees: Iterable[int]) -> tuple[DegreeBandwidth, ...]:
    """Degrees whose bandwidth is still to be fitted."""
    return tuple(DegreeBandwidth(degree=degree, bytes_per_s=1.0) for degree in degrees)


def _check_samples(samples: Sequence[GroupSample]) -> None:
    singles = [sample for sample in samples if sample.degree == 1]
    if len(singles) < 3 or len({sum(sample.lengths) for sample in singles}) < 2:
        raise InputError(
            "samples: expected at least 3 groups of degree 1 of 2 or more different token "
            f"counts, got {len(singles)}; measure more groups"
        )
