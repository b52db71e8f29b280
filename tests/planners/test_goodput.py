"""Closed forms against a simulation of failures, and the figures of a published job."""

import math
import random

import pytest

from trimtab.core.errors import InfeasibleError, InputError
from trimtab.planners.goodput import Reliability, best_interval_s, goodput

OFTEN = Reliability(failures_per_gpu_day=0.01, checkpoint_s=60.0, restart_s=300.0)


def simulated(num_gpus: int, reliability: Reliability, *, every_s: float) -> float:
    """Productive over wall time of 40,000 segments of work, failing at random."""
    rate = num_gpus * reliability.failures_per_gpu_day / 86_400
    rng = random.Random(7)
    wall_s = 0.0
    for _ in range(40_000):
        while (fails_s := rng.expovariate(rate)) < every_s + reliability.checkpoint_s:
            wall_s += fails_s + reliability.restart_s
        wall_s += every_s + reliability.checkpoint_s
    return 40_000 * every_s / wall_s


@pytest.mark.parametrize("num_gpus", [64, 1024, 8192])
def test_the_closed_form_is_what_a_simulation_finds(num_gpus: int) -> None:
    found = goodput(num_gpus, OFTEN)
    expected = simulated(num_gpus, OFTEN, every_s=found.checkpoint_every_s)
    assert found.fraction == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("factor", [0.5, 0.8, 1.25, 2.0])
def test_no_other_interval_is_better(factor: float) -> None:
    best = goodput(1024, OFTEN)
    other = Reliability(
        failures_per_gpu_day=0.01,
        checkpoint_s=60.0,
        restart_s=300.0,
        checkpoint_every_s=factor * best.checkpoint_every_s,
    )
    assert goodput(1024, other).fraction < best.fraction


def test_llama_3_kept_over_ninety_percent() -> None:
    """arXiv:2407.21783, section 3.3.4: 7.8 interruptions a day, over 90 % effective time."""
    found = goodput(16_384, Reliability())
    assert found.failures_per_day == pytest.approx(7.76, abs=0.01)
    assert found.fraction > 0.9


def test_without_failures_checkpoints_are_all_that_is_lost() -> None:
    never = Reliability(failures_per_gpu_day=0.0)
    assert goodput(64, never).fraction == 1.0
    assert math.isinf(goodput(64, never).checkpoint_every_s)
    every = Reliability(failures_per_gpu_day=0.0, checkpoint_s=10.0, checkpoint_every_s=90.0)
    assert goodput(64, every).fraction == pytest.approx(0.9)


def test_a_checkpoint_longer_than_the_time_between_failures() -> None:
    assert best_interval_s(1 / 10, checkpoint_s=30.0) == 10.0
    hopeless = Reliability(failures_per_gpu_day=10.0, checkpoint_every_s=1e6)
    with pytest.raises(InfeasibleError, match="leave no time between them"):
        goodput(100_000, hopeless)


@pytest.mark.parametrize(
    "field", ["failures_per_gpu_day", "checkpoint_s", "restart_s", "checkpoint_every_s"]
)
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf])
def test_bad_figures_are_refused(field: str, value: float) -> None:
    with pytest.raises(InputError, match=field):
        Reliability(**{field: value})
