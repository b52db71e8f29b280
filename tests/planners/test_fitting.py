"""Constants that are planted in made-up measurements are found again."""

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np
import pytest

from trimtab.core.cluster import ClusterSpec
from trimtab.core.model import ModelSpec
from trimtab.core.plan import Layout
from trimtab.core.rates import Rates
from trimtab.planners.costs import StepWork, step_s, work_counts
from trimtab.planners.counts import StepCounts, stacked
from trimtab.planners.fitting import fit_rates
from trimtab.planners.placement import machine

PLANTED = Rates(matmul_efficiency=0.6, elementwise_factor=2.5, tp_factor=1.0)


@pytest.fixture
def counts(
    gpt: Callable[..., ModelSpec], a100s: Callable[..., ClusterSpec]
) -> list[StepCounts]:
    found = []
    for hidden, tp, pp in itertools.product((2048, 4096, 8192), (1, 2, 8), (1, 2, 4)):
        layout = Layout(tp=tp, pp=pp, dp=64 // tp // pp)
        model = gpt(num_layers=16, hidden=hidden, num_heads=hidden // 128)
        used = machine(a100s(num_nodes=8), 64, precision="bf16")
        work = StepWork(num_micro_batches=8, squares=3e8, degree_tokens=((1, 6.5e4),))
        found.append(work_counts(model, layout, used, precision="bf16", work=work))
    return found


def test_planted_rates_are_found(counts: list[StepCounts]) -> None:
    measured = np.asarray(step_s(stacked(counts), PLANTED))
    fitted = fit_rates(stacked(counts), measured, prior=Rates())
    forecast = np.asarray(step_s(stacked(counts), fitted))
    assert np.abs(forecast / measured - 1).max() < 0.02
    assert fitted.matmul_efficiency == pytest.approx(0.6, rel=0.03)


def test_outliers_do_not_pull(counts: list[StepCounts]) -> None:
    measured = np.asarray(step_s(stacked(counts), PLANTED)).copy()
    measured[::9] *= 3.0
    fitted = fit_rates(stacked(counts), measured, prior=Rates())
    kept = np.ones(len(measured), dtype=bool)
    kept[::9] = False
    errors = np.abs(np.asarray(step_s(stacked(counts), fitted)) / measured - 1)[kept]
    assert np.median(errors) < 0.03


def test_what_the_rows_do_not_tell_stays_as_it_was(counts: list[StepCounts]) -> None:
    measured = np.asarray(step_s(stacked(counts), PLANTED))
    fitted = fit_rates(stacked(counts), measured, prior=Rates())
    for name in ("fp8_efficiency", "ep_factor", "expert_factor", "gather_factor"):
        assert getattr(fitted, name) == pytest.approx(getattr(Rates(), name))


def test_no_efficiency_passes_what_devices_reach(counts: list[StepCounts]) -> None:
    measured = np.asarray(step_s(stacked(counts), Rates())) / 3
    fitted = fit_rates(stacked(counts), measured, prior=Rates())
    assert fitted.matmul_efficiency <= 0.92 + 1e-9


def test_stacked_counts_are_priced_as_single_ones(counts: list[StepCounts]) -> None:
    together = np.asarray(step_s(stacked(counts), Rates()))
    alone = [float(step_s(one, Rates())) for one in counts]
    assert together.tolist() == pytest.approx(alone)
    assert len(dataclasses.fields(StepCounts)) > 20
