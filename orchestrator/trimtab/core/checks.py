"""Checks of single fields: each raises `InputError` naming field, rule and value."""

import math
import re
from collections.abc import Collection
from typing import Any

from trimtab.core.errors import InputError, shown, unknown_name_message

_LARGEST = 2**63 - 1
"""Of whole numbers: what NumPy holds, and a product of several of which a float still does."""


def whole_number(field: str, value: Any, *, at_least: int = 1) -> None:
    """Raise unless `value` is an int (not a bool) of at least `at_least`, in 64 bits."""
    is_int = isinstance(value, int) and not isinstance(value, bool)
    if not is_int or not at_least <= value <= _LARGEST:
        most = " and < 2**63" if is_int and value > _LARGEST else ""
        raise InputError(
            f"{field}: expected a whole number >= {at_least}{most}, got {shown(value)}"
        )


def positive(field: str, value: Any) -> None:
    """Raise unless `value` is a finite number above zero."""
    if not _is_finite_number(value) or value <= 0:
        raise InputError(f"{field}: expected a finite number > 0, got {shown(value)}")


def not_negative(field: str, value: Any) -> None:
    """Raise unless `value` is a finite number of at least zero."""
    if not _is_finite_number(value) or value < 0:
        raise InputError(f"{field}: expected a finite number >= 0, got {shown(value)}")


def between(field: str, value: Any, least: float, most: float) -> None:
    """Raise unless `value` is a number from `least` to `most`."""
    if not _is_finite_number(value) or not least <= value <= most:
        raise InputError(
            f"{field}: expected a number from {least:g} to {most:g}, got {shown(value)}"
        )


def fraction(field: str, value: Any) -> None:
    """Raise unless `value` is a number from 0 to 1."""
    if not _is_finite_number(value) or not 0 <= value <= 1:
        raise InputError(f"{field}: expected a number from 0 to 1, got {shown(value)}")


def fraction_below_one(field: str, value: Any) -> None:
    """Raise unless `value` is a number >= 0 and < 1."""
    if not _is_finite_number(value) or not 0 <= value < 1:
        raise InputError(f"{field}: expected a number >= 0 and < 1, got {shown(value)}")


def not_empty(field: str, value: Collection[Any]) -> None:
    """Raise unless `value` has at least one element (or, for text, one character)."""
    if not value:
        expected = "some text" if isinstance(value, str) else "at least one entry"
        raise InputError(f"{field}: expected {expected}, got none")


def one_of(field: str, value: Any, allowed: Collection[str]) -> None:
    """Raise unless `value` is among `allowed`; the message suggests the nearest."""
    if value not in allowed:
        raise InputError(f"{field}: {unknown_name_message('value', str(value), allowed)}")


def device_name(field: str, value: Any) -> None:
    """Raise unless `value` can be the name of a network device: it goes into environments."""
    if not isinstance(value, str) or not re.fullmatch(
        r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,63}", value
    ):
        raise InputError(
            f"{field}: expected the name of a network device such as eth0 or mlx5_0, "
            f"got {shown(value)}"
        )


def address(field: str, value: str) -> None:
    """Raise where it is no address, or holds a secret, without repeating that."""
    protocol, separator, rest = value.partition("://")
    if not (protocol and separator and rest):
        raise InputError(
            f"{field}: expected an fsspec address such as s3://bucket/folder or "
            f"file:///shared/folder, got {shown(value)}"
        )
    if ":" in rest.partition("/")[0].rpartition("@")[0]:
        raise InputError(
            f"{field}: there is a password in it, which would be written into the run's files; "
            "leave it out and set the credentials in the environment"
        )
    if protocol == "file" and not rest.startswith("/"):
        raise InputError(
            f"{field}: expected an absolute path after file://, as in file:///shared/folder, "
            f"got {shown(value)}"
        )


def _is_finite_number(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond every float
        return False
