"""Least squares behind measured profiles: what groups took, told by non-negative coefficients.

The columns of a fit, in this order: tokens^2 a rank of Ulysses groups, tokens a rank, 1, tokens
a rank of the groups of every Ulysses degree, and with rings tokens^2 a rank of ring groups and
tokens a rank of those of every ring degree. A ring hides the transfer of long sequences, which
then count in its tokens^2 only; which ones do depends on the profile there is so far.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from trimtab.core import checks
from trimtab.core.profile import (
    AttentionKind,
    DegreeBandwidth,
    GroupOption,
    RingCosts,
    StepProfile,
)
from trimtab.planners.attention_costs import sharing_costs

_Array = NDArray[np.float64]

_NUM_SHARED = 3
"""Columns before those of the Ulysses degrees."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSample:
    """One measured group: all its ranks took `seconds` for a wave, forward and backward."""

    degree: int
    lengths: tuple[int, ...]
    """Tokens of every sequence of the group."""
    seconds: float
    attention: AttentionKind = "ulysses"

    def __post_init__(self) -> None:
        checks.whole_number("sample.degree", self.degree)
        checks.not_empty("sample.lengths", self.lengths)
        for index, length in enumerate(self.lengths):
            checks.whole_number(f"sample.lengths[{index}]", length)
        checks.positive("sample.seconds", self.seconds)

    @property
    def option(self) -> GroupOption:
        return GroupOption(degree=self.degree, attention=self.attention)


def coefficients_of(profile: StepProfile) -> _Array:
    """What of a profile is fitted, in the order of the columns, in seconds."""
    alltoall_s = [
        profile.alltoall_bytes_per_token / entry.bytes_per_s for entry in profile.bandwidths
    ]
    ring_s: list[float] = []
    if profile.ring is not None:
        ring_s = [profile.ring.quadratic_s]
        ring_s += [
            _passed_bytes(profile.ring, entry) / entry.bytes_per_s
            for entry in profile.ring.bandwidths
        ]
    shared = [profile.quadratic_s, profile.linear_s, profile.fixed_s]
    return np.array([*shared, *alltoall_s, *ring_s])


def is_per_token(profile: StepProfile) -> NDArray[np.bool_]:
    """Which of `coefficients_of` are times of a token: linear work, and every exchange."""
    alltoall = [True] * len(profile.bandwidths)
    ring = [False, *[True] * len(profile.ring.bandwidths)] if profile.ring else []
    return np.array([False, True, False, *alltoall, *ring])


def with_coefficients(profile: StepProfile, coefficients: _Array) -> StepProfile:
    """`profile` with what `coefficients_of` gives; an exchange of no time stays as it is."""
    values = [float(value) for value in coefficients]
    quadratic_s, linear_s, fixed_s = values[:_NUM_SHARED]
    after = _NUM_SHARED + len(profile.bandwidths)
    bandwidths = tuple(
        _taking(entry, found_s, num_bytes=profile.alltoall_bytes_per_token)
        for entry, found_s in zip(profile.bandwidths, values[_NUM_SHARED:after], strict=True)
    )
    ring = profile.ring
    if ring is not None:
        found = tuple(
            _taking(entry, found_s, num_bytes=_passed_bytes(ring, entry))
            for entry, found_s in zip(ring.bandwidths, values[after + 1 :], strict=True)
        )
        ring = replace(ring, quadratic_s=values[after], bandwidths=found)
    return replace(
        profile, quadratic_s=quadratic_s, linear_s=linear_s, fixed_s=fixed_s,
        bandwidths=bandwidths, ring=ring,
    )  # fmt: skip


def _passed_bytes(ring: RingCosts, entry: DegreeBandwidth) -> float:
    return (entry.degree - 1) * ring.bytes_per_token


def _taking(entry: DegreeBandwidth, seconds: float, *, num_bytes: float) -> DegreeBandwidth:
    """`entry` with the bandwidth that takes `seconds` a token."""
    if seconds <= 0 or num_bytes <= 0:
        return entry
    return replace(entry, bytes_per_s=num_bytes / seconds)


def group_columns(samples: Sequence[GroupSample], *, profile: StepProfile) -> _Array:
    """What each coefficient is multiplied with, by sample; shape [samples, columns].

    Args:
        samples: Groups of the profile's options.
        profile: Says which options there are, and which transfers its ring hides.
    """
    ring = profile.ring
    alltoall = [GroupOption(degree=entry.degree) for entry in profile.bandwidths]
    rows = []
    for sample in samples:
        tokens = sum(sample.lengths) / sample.degree
        squares = sum(s * s for s in sample.lengths) / sample.degree
        is_ring = sample.attention == "ring"
        row = [0.0 if is_ring else squares, tokens, 1.0]
        row += [tokens * (sample.option == option) for option in alltoall]
        if ring is not None:
            shown = _shown(sample, profile=profile) if is_ring else []
            hidden = sum(s * s for s in shown) / sample.degree * ring.overlap_fraction
            row.append(squares - hidden if is_ring else 0.0)
            passed = sum(shown) / sample.degree
            row += [passed * (sample.degree == entry.degree) for entry in ring.bandwidths]
        rows.append(row)
    return np.array(rows)


def _shown(sample: GroupSample, *, profile: StepProfile) -> list[int]:
    """The sequences whose passing round is longer than what attention hides of it."""
    costs = sharing_costs(sample.option, profile=profile)
    return [s for s in sample.lengths if costs.exchange_s > costs.hidden_s * s]


def robust_fit(columns: _Array, seconds: _Array, *, prior: _Array | None = None) -> _Array:
    """Coefficients >= 0 of relative least squares, reweighted by Huber's rule.

    Rows of `prior` are further equations, never reweighted, whose right side is their sum: met
    where every coefficient is 1.

    Source: Huber (1964), threshold 1.345 standard deviations, scale from the median deviation.
    """
    weights = np.ones_like(seconds)
    coefficients = np.zeros(columns.shape[1])
    for _ in range(10):
        scale = np.sqrt(weights) / seconds
        rows, target = columns * scale[:, None], seconds * scale
        if prior is not None:
            rows = np.concatenate([rows, prior])
            target = np.concatenate([target, prior.sum(axis=1)])
        coefficients = non_negative_fit(rows, target)
        errors = np.abs(columns @ coefficients / seconds - 1)
        spread = 1.4826 * float(np.median(errors)) + 1e-9
        weights = np.minimum(1.0, 1.345 * spread / np.maximum(errors, 1e-12))
    return coefficients


def non_negative_fit(columns: _Array, target: _Array) -> _Array:
    """Least squares with coefficients >= 0, by active sets.

    Source: Lawson & Hanson (1974), Solving Least Squares Problems, chapter 23.
    """
    lengths = np.maximum(np.linalg.norm(columns, axis=0), 1e-300)
    scaled = columns / lengths
    solution = np.zeros(columns.shape[1])
    is_free = np.zeros(columns.shape[1], dtype=bool)
    tolerance = 1e-12 * float(np.linalg.norm(target))
    for _ in range(3 * columns.shape[1]):
        slopes = np.where(is_free, -np.inf, scaled.T @ (target - scaled @ solution))
        if slopes.max() <= tolerance:
            break
        is_free[slopes.argmax()] = True
        while True:
            wanted = np.zeros_like(solution)
            wanted[is_free] = np.linalg.lstsq(scaled[:, is_free], target)[0]
            falling = is_free & (wanted <= 0)
            if not falling.any():
                break
            steps = solution[falling] / np.maximum(solution[falling] - wanted[falling], 1e-300)
            solution = solution + steps.min() * (wanted - solution)
            is_free &= solution > 1e-15 * solution.max()
            solution[~is_free] = 0.0
        solution = wanted
    found: _Array = solution / lengths
    return found
