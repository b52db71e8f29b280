"""Constants of islands fitted to runs on one kind of island each, to forecast runs on several.

Three measured steps of the same model and layout tell three things: what the GPUs reach (the
run with the fastest NICs), how much of the gradients' exchange is not hidden (the run with the
slowest, whose NICs are taken at their datasheet's rate), and what the NICs between reach (any
other). Each is found by bisection on the forecast itself.
"""

import dataclasses
import math
from collections.abc import Callable

from trimtab.core.cluster import ClusterSpec
from trimtab.core.errors import InputError
from trimtab.core.rates import Rates

Forecaster = Callable[[ClusterSpec, Rates], float]
"""Seconds of the measured step on a cluster by some constants."""

_ROUNDS = 8
_HALVINGS = 60


def fitted_rates(
    fastest: ClusterSpec,
    slowest: ClusterSpec,
    *,
    step_s: Forecaster,
    fastest_s: float,
    slowest_s: float,
    start: Rates,
) -> Rates:
    """Constants by which both runs are forecast as they were.

    Args:
        fastest: The island of the run with the fastest NICs.
        slowest: That of the one with the slowest.
        step_s: Forecasts the step of both.
        fastest_s: Measured.
        slowest_s: Measured.
        start: All other constants; `matmul_efficiency` and `dp_factor` are fitted.

    Raises:
        InputError: No value of a constant explains a run.
    """
    rates = start
    for _ in range(_ROUNDS):
        rates = dataclasses.replace(
            rates,
            matmul_efficiency=_solved(
                lambda value, rates=rates: step_s(  # type: ignore[misc]  # bound at once
                    fastest, dataclasses.replace(rates, matmul_efficiency=value)
                ),
                fastest_s,
                low=1.0,
                high=0.05,
                what="matmul_efficiency",
            ),
        )
        rates = dataclasses.replace(
            rates,
            dp_factor=_solved(
                lambda value, rates=rates: step_s(  # type: ignore[misc]  # bound at once
                    slowest, dataclasses.replace(rates, dp_factor=value)
                ),
                slowest_s,
                low=1e-3,
                high=10.0,
                what="dp_factor",
            ),
        )
    return rates


def fitted_nics(
    cluster: ClusterSpec, rates: Rates, *, step_s: Forecaster, measured_s: float
) -> ClusterSpec:
    """The cluster with its NICs at the rate by which the run is forecast as it was.

    Raises:
        InputError: No rate between a thousandth and all of the datasheet's explains it.
    """

    def slowed(fraction: float) -> ClusterSpec:
        nodes = tuple(
            dataclasses.replace(
                node,
                nics=tuple(
                    dataclasses.replace(nic, bytes_per_s=fraction * nic.bytes_per_s)
                    for nic in node.nics
                ),
            )
            for node in cluster.nodes
        )
        return dataclasses.replace(cluster, nodes=nodes)

    fraction = _solved(
        lambda value: step_s(slowed(value), rates),
        measured_s,
        low=1.0,
        high=1e-3,
        what=f"the NICs' rate of {cluster.name!r}",
    )
    return slowed(fraction)


def _solved(
    step_s: Callable[[float], float], wanted_s: float, *, low: float, high: float, what: str
) -> float:
    """Where a forecast that grows from `low` to `high` is `wanted_s`."""
    if not step_s(low) <= wanted_s <= step_s(high):
        raise InputError(
            f"{what}: expected a step between {step_s(low):.4g} and {step_s(high):.4g} s for "
            f"any value, got a measured one of {wanted_s:.4g} s; is it of this model, layout "
            "and batch?"
        )
    for _ in range(_HALVINGS):
        middle = math.sqrt(low * high)
        if step_s(middle) < wanted_s:
            low = middle
        else:
            high = middle
    return math.sqrt(low * high)
