"""Rates fitted to measured steps: robust, few constants, each held near a general value.

The constants are found in logarithms: ln(forecast / measured) is made small by damped
Gauss-Newton steps (Levenberg 1944, Marquardt 1963) under a Student-t loss, with a Gaussian
prior around the constants of a more general group of rows. So a group of five rows moves only
what they tell.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trimtab.core.rates import Rates
from trimtab.planners.costs import step_s
from trimtab.planners.counts import StepCounts, stacked

Array = NDArray[np.float64]

PRIOR_SPREAD: dict[str, float] = {
    "matmul_efficiency": 0.15,
    "fp8_efficiency": 0.25,
    "fp4_efficiency": 0.3,
    "idle_factor": 0.6,
    "attention_efficiency": 0.4,
    "unfused_attention_efficiency": 0.4,
    "traffic_factor": 0.5,
    "elementwise_factor": 0.5,
    "launch_s": 1.0,
    "tp_factor": 0.6,
    "tp_latency_s": 1.2,
    "cp_factor": 0.6,
    "ep_factor": 0.6,
    "pp_factor": 0.6,
    "pp_latency_s": 0.7,
    "dp_factor": 0.5,
    "dp_latency_s": 0.8,
    "dp_hidden": 0.6,
    "gather_factor": 0.6,
    "expert_factor": 0.3,
    "expert_launch_factor": 0.5,
    "unaligned_factor": 0.7,
    "step_s": 0.8,
    "scale_slowdown": 0.8,
}
"""How far a constant may be from the general one: standard deviation of its logarithm.

Efficiencies of arithmetic differ least between stacks, latencies and overlap most; assumptions.
"""
_MOST: dict[str, float] = {
    "matmul_efficiency": 0.92,
    "fp8_efficiency": 0.92,
    "fp4_efficiency": 0.92,
    "attention_efficiency": 0.9,
    "unfused_attention_efficiency": 0.9,
    "dp_hidden": 1.0,
}
"""No device reaches its peak; only the last backward pass hides gradients."""
_NOISE = 0.04
"""Measurements of one layout differ by this much (BigScience repeats: 3 %)."""
_TAIL = 3.0
"""Degrees of freedom: rows that nothing explains pull hardly at all."""
_STEPS = 60


def fit_rates(
    counts: StepCounts,
    measured_s: Sequence[float] | Array,
    *,
    prior: Rates,
    weights: Sequence[float] | Array | None = None,
    spread: float = 1.0,
) -> Rates:
    """The rates that make forecasts come near measured steps.

    Args:
        counts: Of the rows, stacked, n of them.
        measured_s: Shape (n,).
        prior: What the constants are where the rows do not tell.
        weights: Of the rows, shape (n,); None: all 1.
        spread: Multiplies `PRIOR_SPREAD`.
    """
    names = [field.name for field in dataclasses.fields(Rates)]
    target = np.log(np.asarray(measured_s, dtype=float))
    row_weights = np.ones(len(target)) if weights is None else np.asarray(weights, dtype=float)
    center = np.log([getattr(prior, name) for name in names])
    width = spread * np.array([PRIOR_SPREAD[name] for name in names])
    most = np.log([_MOST.get(name, math.inf) for name in names])

    def residuals(point: Array) -> Array:
        forecast = np.asarray(step_s(counts, _rates(names, point)), dtype=float)
        return np.asarray(np.log(forecast) - target)

    def loss(point: Array) -> float:
        scaled = residuals(point) / _NOISE
        bent = _TAIL * np.log1p(scaled**2 / _TAIL)
        return float(row_weights @ bent + np.sum(((point - center) / width) ** 2))

    point = np.minimum(center, most)
    best, damping = loss(point), 1e-2
    for _ in range(_STEPS):
        current = residuals(point)
        slopes = np.column_stack(
            [(residuals(point + shift) - current) / 1e-4 for shift in 1e-4 * np.eye(len(names))]
        )
        pull = row_weights / (1 + (current / _NOISE) ** 2 / _TAIL) / _NOISE**2
        curvature = slopes.T @ (slopes * pull[:, None]) + np.diag(width**-2)
        slope = slopes.T @ (pull * current) + (point - center) / width**2
        damped = curvature + damping * np.diag(np.diag(curvature))
        move = np.clip(-np.linalg.solve(damped, slope), -0.5, 0.5)
        candidate = np.minimum(point + move, most)
        value = loss(candidate)
        if value >= best:
            damping *= 8
            if damping > 1e6:
                break
            continue
        is_settled = best - value < 1e-6 * best
        point, best, damping = candidate, value, damping / 4
        if is_settled:
            break
    return _rates(names, point)


def log_errors(
    counts: Sequence[StepCounts], measured_s: Sequence[float], *, rates: Rates
) -> Array:
    """ln(measured / forecast) of every row, shape (n,)."""
    forecast = np.asarray(step_s(stacked(counts), rates), dtype=float)
    return np.asarray(np.log(measured_s) - np.log(forecast))


def _rates(names: Sequence[str], point: Array) -> Rates:
    return Rates(**dict(zip(names, np.exp(point).tolist(), strict=True)))
