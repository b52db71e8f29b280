import math

import pytest

from trimtab.core import checks
from trimtab.core.errors import InputError


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, 0, True, "3", None, 10**400])
def test_what_is_no_positive_number_is_refused_by_name(value: object) -> None:
    with pytest.raises(
        InputError, match=r"^nic\.gbit_per_s: expected a finite number > 0, got"
    ):
        checks.positive("nic.gbit_per_s", value)


@pytest.mark.parametrize("value", [0, -1, 1.0, True, "1", 2**63, 10**400])
def test_what_is_no_count_is_refused(value: object) -> None:
    with pytest.raises(InputError, match="expected a whole number >= 1"):
        checks.whole_number("num_ranks", value)


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_what_is_no_fraction_is_refused(value: float) -> None:
    with pytest.raises(InputError, match="expected a number from 0 to 1"):
        checks.fraction("held_out_fraction", value)


@pytest.mark.parametrize("value", [-0.1, 1, 1.0, math.nan, 10**400, "0.9"])
def test_what_is_not_below_one_is_refused(value: object) -> None:
    with pytest.raises(InputError, match="beta1: expected a number >= 0 and < 1, got"):
        checks.fraction_below_one("beta1", value)


def test_limits_themselves_pass() -> None:
    checks.fraction("held_out_fraction", 0)
    checks.fraction("held_out_fraction", 1)
    checks.fraction_below_one("beta1", 0)
    checks.not_negative("latency_us", 0)
    checks.whole_number("num_ranks", 1)


def test_a_value_near_a_known_one_is_suggested() -> None:
    with pytest.raises(InputError, match="did you mean 'roce'"):
        checks.one_of("nic.kind", "rocee", ["roce", "ethernet"])
