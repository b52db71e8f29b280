"""Step profiles: read from and written to JSON documents, and fitted to measured times.

Units of a document: milliseconds, GB/s (1e9), and `alltoall_mb_per_token`. FlexSP computes the
last one as bytes / 2**20, yet divides it by GB/s to get milliseconds, so in its cost one such
"MB" is 1e6 bytes. With 1e6 the area bound of its own Wikipedia lengths (7B, 64 GPUs, batches 0
and 2 of 512, padded to 128) is 2888.7 and 2918.5 ms, of Common Crawl's batch 0 19767 ms and of
GitHub's 15722 ms, as published; with 2**20 the latter two are 19903 and 15803 ms.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.core import checks
from trimtab.core.errors import InputError, unknown_name_message
from trimtab.core.plan import StepPlan
from trimtab.core.profile import DegreeBandwidth, StepProfile
from trimtab.core.units import GB, MB, MS
from trimtab.planners.costs import group_s

_REQUIRED = (
    "model",
    "num_gpus",
    "gpus_per_node",
    "quadratic_ms",
    "linear_ms",
    "fixed_ms",
    "alltoall_mb_per_token",
    "v_gb_per_s",
    "token_cap",
)
_OPTIONAL = (
    "step_fixed_ms",
    "evidence",
    "source",
    "activation_mb_per_token",
    "hidden",
    "num_layers",
)
_CHECKS: Mapping[str, Callable[[str, Any], None]] = {
    "num_gpus": checks.whole_number,
    "gpus_per_node": checks.whole_number,
    "token_cap": checks.whole_number,
    "hidden": checks.whole_number,
    "num_layers": checks.whole_number,
    "linear_ms": checks.positive,
    "activation_mb_per_token": checks.positive,
    "quadratic_ms": checks.not_negative,
    "fixed_ms": checks.not_negative,
    "alltoall_mb_per_token": checks.not_negative,
    "step_fixed_ms": checks.not_negative,
}
_SMALLEST_SHARE = 1e-3
"""A fitted linear or all-to-all time is at least this share of the time per token."""
_PRIOR_GROUPS = 1.0
"""As many measured groups each coefficient in force counts for when it is refined."""


def profile_from_document(document: Mapping[str, Any]) -> StepProfile:
    """Read a profile as FlexSP's coefficients are published.

    `activation_mb_per_token` says what `token_cap` was computed from; it is checked but not
    kept. `hidden` and `num_layers` are those of the model it was measured for.

    Args:
        document: Keys `model`, `num_gpus`, `gpus_per_node`, `quadratic_ms` (per token^2),
            `linear_ms` (per token), `fixed_ms` (per wave), `alltoall_mb_per_token`,
            `v_gb_per_s` (degree as text to GB/s), `token_cap`; optional `step_fixed_ms`,
            `evidence`, `source`, `activation_mb_per_token`, `hidden`, `num_layers`.

    Raises:
        InputError: A key is missing or unknown, or a value is not what it should be.

    Source: FlexSP, arXiv:2412.01523, section 4; the module docstring settles the units.
    """
    _check_keys(document)
    return StepProfile(
        name=_text(document, "model"),
        num_gpus=document["num_gpus"],
        gpus_per_node=document["gpus_per_node"],
        quadratic_s=document["quadratic_ms"] * MS,
        linear_s=document["linear_ms"] * MS,
        fixed_s=document["fixed_ms"] * MS,
        alltoall_bytes_per_token=document["alltoall_mb_per_token"] * MB,
        bandwidths=_bandwidths(document["v_gb_per_s"]),
        token_cap=document["token_cap"],
        step_fixed_s=document.get("step_fixed_ms", 0.0) * MS,
        evidence=document.get("evidence", "published"),
        source=_text(document, "source"),
        hidden=document.get("hidden", 0),
        num_layers=document.get("num_layers", 0),
    )


def profile_document(profile: StepProfile) -> dict[str, Any]:
    """The JSON document of `profile`; `profile_from_document` reads it back."""
    sizes = {"hidden": profile.hidden, "num_layers": profile.num_layers}
    return {
        "model": profile.name,
        "num_gpus": profile.num_gpus,
        "gpus_per_node": profile.gpus_per_node,
        "quadratic_ms": profile.quadratic_s / MS,
        "linear_ms": profile.linear_s / MS,
        "fixed_ms": profile.fixed_s / MS,
        "alltoall_mb_per_token": profile.alltoall_bytes_per_token / MB,
        "v_gb_per_s": {
            str(entry.degree): entry.bytes_per_s / GB for entry in profile.bandwidths
        },
        "token_cap": profile.token_cap,
        "step_fixed_ms": profile.step_fixed_s / MS,
        "evidence": profile.evidence,
        "source": profile.source,
        **{name: size for name, size in sizes.items() if size},
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSample:
    """One measured group: all its ranks took `seconds` for a wave, forward and backward."""

    degree: int
    lengths: tuple[int, ...]
    """Tokens of every sequence of the group."""
    seconds: float

    def __post_init__(self) -> None:
        checks.whole_number("sample.degree", self.degree)
        checks.not_empty("sample.lengths", self.lengths)
        for index, length in enumerate(self.lengths):
            checks.whole_number(f"sample.lengths[{index}]", length)
        checks.positive("sample.seconds", self.seconds)


def fit_profile(
    samples: Sequence[GroupSample],
    *,
    name: str,
    num_gpus: int,
    gpus_per_node: int,
    token_cap: int,
    alltoall_bytes_per_token: float,
    step_fixed_s: float = 0.0,
    source: str = "",
) -> StepProfile:
    """Fit the coefficients of `StepProfile` to measured group times.

    All coefficients, the all-to-all time per token of each degree among them, come from one
    non-negative least-squares fit of the relative error, reweighted against outliers: groups
    of one rank hold short sequences only, so on their own they do not tell `quadratic_s` from
    `linear_s`, which the long sequences of wide groups do. `linear_s` and the all-to-all times
    are kept at least `1e-3` of the median time per token, so that noise never makes them zero.

    Args:
        samples: At least three groups of degree 1, of two or more different sizes, and one or
            more of every further degree the profile shall have.
        name: Name of the profile.
        num_gpus: Ranks of the machine measured.
        gpus_per_node: Ranks of one node of it.
        token_cap: Most tokens one rank holds in a wave.
        alltoall_bytes_per_token: Bytes one token moves over all layers (`costs` computes it).
        step_fixed_s: Measured time of a step outside the waves.
        source: Where and how it was measured.

    Raises:
        InputError: The samples are too few to tell the coefficients apart.
    """
    _check_samples(samples)
    wide = sorted({sample.degree for sample in samples} - {1})
    columns, seconds = _columns(samples, wide=wide)
    shortest_s = _SMALLEST_SHARE * float(np.median(seconds / columns[:, 1]))
    quadratic_s, linear_s, fixed_s, *alltoall_s = _robust_fit(columns, seconds)
    linear_s = max(linear_s, shortest_s)
    bandwidths = [
        DegreeBandwidth(
            degree=degree, bytes_per_s=alltoall_bytes_per_token / max(per_token_s, shortest_s)
        )
        for degree, per_token_s in zip(wide, alltoall_s, strict=True)
    ]
    return StepProfile(
        name=name,
        num_gpus=num_gpus,
        gpus_per_node=gpus_per_node,
        quadratic_s=quadratic_s,
        linear_s=linear_s,
        fixed_s=fixed_s,
        alltoall_bytes_per_token=alltoall_bytes_per_token,
        bandwidths=tuple(bandwidths),
        token_cap=token_cap,
        step_fixed_s=step_fixed_s,
        evidence="measured",
        source=source,
    )


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
    wide = [entry.degree for entry in profile.bandwidths]
    known = [sample for sample in samples if sample.degree in profile.degrees]
    if not known:
        return profile
    columns, seconds = _columns(known, wide=wide)
    alltoall = profile.alltoall_bytes_per_token
    before = np.array([
        profile.quadratic_s, profile.linear_s, profile.fixed_s,
        *(alltoall / entry.bytes_per_s for entry in profile.bandwidths),
    ])  # fmt: skip
    prior = np.sqrt(_PRIOR_GROUPS) * np.eye(len(before))[before > 0]
    shares = _robust_fit(columns * before, seconds, prior=prior)
    after = before * np.where(before > 0, np.maximum(shares, _SMALLEST_SHARE), 1.0)
    return replace(
        profile,
        quadratic_s=float(after[0]),
        linear_s=float(after[1]),
        fixed_s=float(after[2]),
        bandwidths=tuple(
            DegreeBandwidth(degree=degree, bytes_per_s=alltoall / float(per_token_s))
            if per_token_s > 0
            else entry
            for degree, per_token_s, entry in zip(
                wide, after[3:], profile.bandwidths, strict=True
            )
        ),
        evidence="measured",
    )


def median_error(samples: Sequence[GroupSample], *, profile: StepProfile) -> float:
    """Median of |predicted - measured| / measured over groups."""
    return median(
        abs(group_s(sample.lengths, sample.degree, profile=profile) / sample.seconds - 1)
        for sample in samples
    )


def _check_samples(samples: Sequence[GroupSample]) -> None:
    singles = [sample for sample in samples if sample.degree == 1]
    if len(singles) < 3 or len({sum(sample.lengths) for sample in singles}) < 2:
        raise InputError(
            "samples: expected at least 3 groups of degree 1 of 2 or more different token "
            f"counts, got {len(singles)}; measure more groups"
        )


def _check_keys(document: Mapping[str, Any]) -> None:
    if not isinstance(document, Mapping):
        raise InputError(f"profile: expected a JSON object, got {type(document).__name__}")
    known = (*_REQUIRED, *_OPTIONAL)
    for key in document:
        if key not in known:
            raise InputError(f"profile: {unknown_name_message('key', str(key), known)}")
    for key in _REQUIRED:
        if key not in document:
            raise InputError(f"profile: the key {key!r} is missing")
    for key, value in document.items():
        check = _CHECKS.get(key)
        if check is not None:
            check(key, value)


def _text(document: Mapping[str, Any], key: str) -> str:
    value = document.get(key, "")
    if not isinstance(value, str):
        raise InputError(f"{key}: expected text, got {value!r}")
    return value


def _bandwidths(table: Any) -> tuple[DegreeBandwidth, ...]:
    if not isinstance(table, Mapping):
        raise InputError(f"v_gb_per_s: expected an object of degree: GB/s, got {table!r}")
    for degree, gb_per_s in table.items():
        if not re.fullmatch(r"[1-9][0-9]{0,6}", str(degree)) or str(degree) == "1":
            raise InputError(f"v_gb_per_s: expected whole degrees >= 2 as keys, got {degree!r}")
        checks.positive(f"v_gb_per_s[{degree}]", gb_per_s)
    return tuple(
        DegreeBandwidth(degree=degree, bytes_per_s=table_value * GB)
        for degree, table_value in sorted((int(key), value) for key, value in table.items())
    )


def _columns(
    samples: Sequence[GroupSample], *, wide: Sequence[int]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What each coefficient is multiplied with, by sample, and the measured seconds.

    The columns: tokens^2 a rank, tokens a rank, 1, and for each degree of `wide` the tokens a
    rank of the groups of that degree.
    """
    degrees = np.array([float(sample.degree) for sample in samples])
    tokens = np.array([float(sum(sample.lengths)) for sample in samples]) / degrees
    squares = np.array([float(sum(s * s for s in sample.lengths)) for sample in samples])
    alltoall = [tokens * (degrees == degree) for degree in wide]
    columns = np.stack([squares / degrees, tokens, np.ones_like(tokens), *alltoall], axis=1)
    return columns, np.array([sample.seconds for sample in samples])


def _robust_fit(
    columns: NDArray[np.float64],
    seconds: NDArray[np.float64],
    *,
    prior: NDArray[np.float64] | None = None,
) -> list[float]:
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
        coefficients = _non_negative_fit(rows, target)
        errors = np.abs(columns @ coefficients / seconds - 1)
        spread = 1.4826 * float(np.median(errors)) + 1e-9
        weights = np.minimum(1.0, 1.345 * spread / np.maximum(errors, 1e-12))
    return [float(coefficient) for coefficient in coefficients]


def _non_negative_fit(
    columns: NDArray[np.float64], target: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Least squares with coefficients >= 0: the best of all subsets, each solved freely."""
    num_columns = columns.shape[1]
    lengths = np.maximum(np.linalg.norm(columns, axis=0), 1e-300)
    best, best_error = np.zeros(num_columns), float(target @ target)
    for mask in range(1, 2**num_columns):
        chosen = [column for column in range(num_columns) if mask >> column & 1]
        solution = np.linalg.lstsq(columns[:, chosen] / lengths[chosen], target)[0]
        if (solution < 0).any():
            continue
        error = float(np.sum((columns[:, chosen] / lengths[chosen] @ solution - target) ** 2))
        if error < best_error:
            best, best_error = np.zeros(num_columns), error
            best[chosen] = solution / lengths[chosen]
    return best
