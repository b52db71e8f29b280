"""Why a plan chose its layout: what others would gain and lose, and what rules them out."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trimtab.core.errors import InputError

_LEAST_SHARE = 0.002
"""Differences below this share of the step are left out."""
_NETWORK_PARTS = (
    "tp communication",
    "cp communication",
    "ep communication",
    "pp communication",
    "dp communication",
)
_COMPUTE_PARTS = ("matrix products", "attention", "output matrix", "compute")
_FASTER = 1.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What a part of the step takes more or less than in the chosen layout."""

    part: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """A layout that runs, against the chosen one."""

    layout: str
    slower_s: float
    slower_fraction: float
    differences: tuple[Difference, ...]
    """The largest first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Constraint:
    """What rules layouts out, and the one that misses least."""

    name: str
    num_layouts: int
    nearest: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """Why this and not that."""

    layout: str
    reason: str
    step_s: float
    largest_part: str
    largest_fraction: float
    faster_network_fraction: float
    """Of the step, what links a tenth faster would save at most."""
    faster_compute_fraction: float
    """What a GPU that computes a tenth faster would."""
    alternatives: tuple[Alternative, ...]
    constraints: tuple[Constraint, ...]


def explain(plan: Mapping[str, Any]) -> Explanation:
    """Read what `trimtab plan --json` prints.

    Raises:
        InputError: It is no such document.
    """
    try:
        parts = _parts(plan["forecast"])
        step_s = float(plan["forecast"]["step_s"])
        largest = max(parts, key=lambda name: parts[name])
        return Explanation(
            layout=_layout_text(plan["layout"]),
            reason=str(plan["reason"]),
            step_s=step_s,
            largest_part=largest,
            largest_fraction=parts[largest] / step_s,
            faster_network_fraction=_saved(parts, _NETWORK_PARTS) / step_s,
            faster_compute_fraction=_saved(parts, _COMPUTE_PARTS) / step_s,
            alternatives=tuple(
                _alternative(entry, parts, step_s) for entry in plan["alternatives"]
            ),
            constraints=tuple(_constraints(plan["rejected"])),
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError, AttributeError) as error:
        raise InputError(
            "expected what `trimtab plan JOB --json` prints, "
            f"but it lacks or breaks {error.args[0] if error.args else 'a field'!r}"
        ) from error


def _alternative(
    entry: Mapping[str, Any], chosen: Mapping[str, float], step_s: float
) -> Alternative:
    other = _parts(entry["forecast"])
    slower_s = float(entry["forecast"]["step_s"]) - step_s
    differences = [
        Difference(part=name, seconds=other.get(name, 0.0) - chosen.get(name, 0.0))
        for name in dict.fromkeys([*chosen, *other])
    ]
    shown = [each for each in differences if abs(each.seconds) >= _LEAST_SHARE * step_s]
    return Alternative(
        layout=_layout_text(entry["layout"]),
        slower_s=slower_s,
        slower_fraction=slower_s / step_s,
        differences=tuple(sorted(shown, key=lambda each: -abs(each.seconds))),
    )


def _constraints(rejected: Sequence[Mapping[str, Any]]) -> list[Constraint]:
    """Grouped by what binds; the plan lists the nearest miss first."""
    names = [_constraint(str(entry["reason"])) for entry in rejected]
    found = []
    for name, count in Counter(names).most_common():
        nearest = rejected[names.index(name)]
        found.append(
            Constraint(
                name=name,
                num_layouts=count,
                nearest=_layout_text(nearest["layout"]),
                reason=str(nearest["reason"]),
            )
        )
    return found


def _constraint(reason: str) -> str:
    if re.search(r"\bGiB|\bMiB|\bTiB|memory", reason):
        return "memory"
    if "divide" in reason:
        return "the batch does not divide"
    return "tokens of a rank" if "token" in reason else "other"


def _parts(forecast: Mapping[str, Any]) -> dict[str, float]:
    return {str(part["name"]): float(part["seconds"]) for part in forecast["parts"]}


def _saved(parts: Mapping[str, float], names: Sequence[str]) -> float:
    return sum(parts.get(name, 0.0) for name in names) * (1 - 1 / _FASTER)


def _layout_text(layout: Mapping[str, Any]) -> str:
    degrees = [f"{name}{layout[name]}" for name in ("tp", "pp", "dp")]
    degrees += [f"{name}{layout[name]}" for name in ("cp", "ep", "vpp") if layout[name] > 1]
    return " ".join([*degrees, f"b{layout['micro_batch_seqs']}", str(layout["recompute"])])
