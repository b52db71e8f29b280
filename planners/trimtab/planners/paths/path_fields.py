"""Single fields of stage-path documents: each is read or refused by name.

All raise `InputError`.
"""

from typing import Any, Final

from trimtab.core import checks
from trimtab.core.errors import InputError, shown

LONGEST_S: Final = 1e5
"""Of one operation, transfer or pause: beyond it, sums of them tell nothing apart."""
_SHORTEST_S = 1e-9
_SLOWEST_GIBPS, _FASTEST_GIBPS = 1e-9, 1e9


def needed(fields: dict[str, Any], name: str) -> Any:
    """The value of a field that must be there."""
    if name not in fields:
        raise InputError(f"{name}: missing")
    return fields[name]


def whole(fields: dict[str, Any], name: str) -> int:
    """The value of a field, a whole number >= 1."""
    value = needed(fields, name)
    checks.whole_number(name, value)
    return int(value)


def number(field: str, value: Any, least: float, most: float) -> float:
    """The number as a float, from `least` >= 0 to `most`."""
    checks.not_negative(field, value)
    checks.between(field, value, least, most)
    return float(value)


def positive_time(field: str, value: Any) -> float:
    """Seconds of something that takes time."""
    checks.positive(field, value)
    return number(field, value, _SHORTEST_S, LONGEST_S)


def check_time(field: str, value: Any) -> None:
    """Raise unless `value` is a time in seconds, perhaps 0."""
    number(field, value, 0.0, LONGEST_S)


def check_latency_ms(field: str, value: Any) -> None:
    """Raise unless `value` is a time in milliseconds, perhaps 0."""
    number(field, value, 0.0, LONGEST_S * 1e3)


def check_gibps(field: str, value: Any) -> None:
    """Raise unless `value` is a bandwidth in GiB/s."""
    checks.positive(field, value)
    number(field, value, _SLOWEST_GIBPS, _FASTEST_GIBPS)


def text(field: str, value: Any) -> str:
    """The value, a text that is not empty."""
    if not isinstance(value, str) or not value:
        raise InputError(f"{field}: expected some text, got {shown(value)}")
    return value


def mapping(field: str, value: Any) -> dict[str, Any]:
    """The value, an object."""
    if not isinstance(value, dict):
        raise InputError(f"{field}: expected an object, got {shown(value)}")
    return value


def entries(field: str, value: Any, length: int | None) -> list[Any]:
    """The value, a list; of this length unless None."""
    if not isinstance(value, list):
        raise InputError(f"{field}: expected a list, got {shown(value)}")
    if length is not None and len(value) != length:
        raise InputError(f"{field}: expected {length} entries, got {len(value)}")
    return value
