"""Step profiles read from and written to JSON documents.

Units of a document: milliseconds, GB/s (1e9), and `alltoall_mb_per_token`. FlexSP computes the
last one as bytes / 2**20, yet divides it by GB/s to get milliseconds, so in its cost one such
"MB" is 1e6 bytes. With 1e6 the area bound of its own Wikipedia lengths (7B, 64 GPUs, batches 0
and 2 of 512, padded to 128) is 2888.7 and 2918.5 ms, of Common Crawl's batch 0 19767 ms and of
GitHub's 15722 ms, as published; with 2**20 the latter two are 19903 and 15803 ms.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trimtab.core import checks
from trimtab.core.errors import InputError, shown, unknown_name_message
from trimtab.core.profile import DegreeBandwidth, RingCosts, StepProfile
from trimtab.core.units import GB, MB, MS

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
    "alltoall_latency_ms",
    "ring",
)
_RING_REQUIRED = ("quadratic_ms", "mb_per_token", "v_gb_per_s", "overlap")
_RING_OPTIONAL = ("latency_ms",)
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
    "ring.quadratic_ms": checks.not_negative,
    "ring.mb_per_token": checks.not_negative,
    "ring.overlap": checks.fraction,
}


def profile_from_document(document: Mapping[str, Any]) -> StepProfile:
    """Read a profile as FlexSP's coefficients are published.

    `activation_mb_per_token` says what `token_cap` was computed from; it is checked but not
    kept. `hidden` and `num_layers` are those of the model it was measured for.

    Args:
        document: Keys `model`, `num_gpus`, `gpus_per_node`, `quadratic_ms` (per token^2),
            `linear_ms` (per token), `fixed_ms` (per wave), `alltoall_mb_per_token`,
            `v_gb_per_s` (degree as text to GB/s), `token_cap`; optional `step_fixed_ms`,
            `evidence`, `source`, `activation_mb_per_token`, `hidden`, `num_layers`,
            `alltoall_latency_ms` (degree to ms a wave) and `ring`, an object of `quadratic_ms`,
            `mb_per_token` (of a hop), `v_gb_per_s`, `overlap` (0 to 1), optional `latency_ms`.

    Raises:
        InputError: A key is missing or unknown, or a value is not what it should be.

    Source: FlexSP, arXiv:2412.01523, section 4; the module docstring settles the units.
    """
    _check_keys(document, "profile", required=_REQUIRED, optional=_OPTIONAL)
    return StepProfile(
        name=_text(document, "model"),
        num_gpus=document["num_gpus"],
        gpus_per_node=document["gpus_per_node"],
        quadratic_s=document["quadratic_ms"] * MS,
        linear_s=document["linear_ms"] * MS,
        fixed_s=document["fixed_ms"] * MS,
        alltoall_bytes_per_token=document["alltoall_mb_per_token"] * MB,
        bandwidths=_bandwidths(document, latency="alltoall_latency_ms"),
        token_cap=document["token_cap"],
        step_fixed_s=document.get("step_fixed_ms", 0.0) * MS,
        evidence=document.get("evidence", "published"),
        source=_text(document, "source"),
        hidden=document.get("hidden", 0),
        num_layers=document.get("num_layers", 0),
        ring=_ring(document["ring"]) if "ring" in document else None,
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
        **_bandwidth_documents(profile.bandwidths, latency="alltoall_latency_ms"),
        "token_cap": profile.token_cap,
        "step_fixed_ms": profile.step_fixed_s / MS,
        "evidence": profile.evidence,
        "source": profile.source,
        **{name: size for name, size in sizes.items() if size},
        **({"ring": _ring_document(profile.ring)} if profile.ring else {}),
    }


def _check_keys(
    document: Any, path: str, *, required: Sequence[str], optional: Sequence[str]
) -> None:
    if not isinstance(document, Mapping):
        raise InputError(f"{path}: expected a JSON object, got {type(document).__name__}")
    known = (*required, *optional)
    for key in document:
        if key not in known:
            raise InputError(f"{path}: {unknown_name_message('key', str(key), known)}")
    for key in required:
        if key not in document:
            raise InputError(f"{path}: the key {key!r} is missing")
    prefix = "" if path == "profile" else f"{path}."
    for key, value in document.items():
        check = _CHECKS.get(f"{prefix}{key}")
        if check is not None:
            check(f"{prefix}{key}", value)


def _text(document: Mapping[str, Any], key: str) -> str:
    value = document.get(key, "")
    if not isinstance(value, str):
        raise InputError(f"{key}: expected text, got {shown(value)}")
    return value


def _bandwidths(
    document: Mapping[str, Any], *, latency: str, prefix: str = ""
) -> tuple[DegreeBandwidth, ...]:
    table = _by_degree(document["v_gb_per_s"], f"{prefix}v_gb_per_s", unit="GB/s")
    latencies = dict.fromkeys(table, 0.0)
    if latency in document:
        latencies = _by_degree(document[latency], f"{prefix}{latency}", unit="ms")
        if latencies.keys() != table.keys():
            raise InputError(
                f"{prefix}{latency}: expected the degrees of v_gb_per_s, {sorted(table)}, got "
                f"{sorted(latencies)}"
            )
    for degree, gb_per_s in table.items():
        checks.positive(f"{prefix}v_gb_per_s[{degree}]", gb_per_s)
        checks.not_negative(f"{prefix}{latency}[{degree}]", latencies[degree])
    return tuple(
        DegreeBandwidth(
            degree=degree, bytes_per_s=table[degree] * GB, latency_s=latencies[degree] * MS
        )
        for degree in sorted(table)
    )


def _by_degree(table: Any, field: str, *, unit: str) -> dict[int, Any]:
    if not isinstance(table, Mapping):
        raise InputError(f"{field}: expected an object of degree: {unit}, got {shown(table)}")
    for degree in table:
        if not re.fullmatch(r"[1-9][0-9]{0,6}", str(degree)) or str(degree) == "1":
            raise InputError(
                f"{field}: expected whole degrees >= 2 as keys, got {shown(degree)}"
            )
    return {int(degree): value for degree, value in table.items()}


def _ring(document: Any) -> RingCosts:
    _check_keys(document, "ring", required=_RING_REQUIRED, optional=_RING_OPTIONAL)
    return RingCosts(
        quadratic_s=document["quadratic_ms"] * MS,
        bytes_per_token=document["mb_per_token"] * MB,
        bandwidths=_bandwidths(document, latency="latency_ms", prefix="ring."),
        overlap_fraction=document["overlap"],
    )


def _ring_document(ring: RingCosts) -> dict[str, Any]:
    return {
        "quadratic_ms": ring.quadratic_s / MS,
        "mb_per_token": ring.bytes_per_token / MB,
        **_bandwidth_documents(ring.bandwidths, latency="latency_ms"),
        "overlap": ring.overlap_fraction,
    }


def _bandwidth_documents(
    bandwidths: Sequence[DegreeBandwidth], *, latency: str
) -> dict[str, Any]:
    latencies = {str(entry.degree): entry.latency_s / MS for entry in bandwidths}
    return {
        "v_gb_per_s": {str(entry.degree): entry.bytes_per_s / GB for entry in bandwidths},
        **({latency: latencies} if any(latencies.values()) else {}),
    }
