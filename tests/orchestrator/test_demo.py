"""The demo's two jobs, its forecast of them, and the whole of it with real workers."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from trimtab.core.errors import InfeasibleError, InputError
from trimtab.core.job import JobSpec
from trimtab.core.profile import DegreeBandwidth, StepProfile
from trimtab.orchestrator import demo

PROFILE = StepProfile(
    name="made up",
    num_gpus=4,
    gpus_per_node=4,
    quadratic_s=1e-7,
    linear_s=1e-4,
    fixed_s=1e-3,
    alltoall_bytes_per_token=1e5,
    bandwidths=(
        DegreeBandwidth(degree=2, bytes_per_s=1e8),
        DegreeBandwidth(degree=4, bytes_per_s=1e8),
    ),
    token_cap=1_000,
)
BATCHES = ((1900, 300, 200, 100), (1500, 500, 400, 300))


def job() -> JobSpec:
    shipped = demo.demo_job(num_steps=2, num_ranks=4)
    planning = replace(shipped.step_planning, token_cap=None)
    return replace(shipped, profile=PROFILE, step_planning=planning)


def test_the_demo_has_the_steps_and_ranks_asked_for() -> None:
    shipped = demo.demo_job(num_steps=7, num_ranks=2)
    assert shipped.training.num_steps == 7
    assert shipped.num_ranks == 2
    assert shipped.layout is not None
    assert shipped.layout.dp == 2
    assert [source.path for source in shipped.data.sources] == ["stdlib:"]


@pytest.mark.parametrize(
    ("num_ranks", "token_cap"), [(4, 1792), (2, 2048), (1, 4096), (3, 4096)]
)
def test_the_longest_document_fits_whatever_the_ranks(num_ranks: int, token_cap: int) -> None:
    shipped = demo.demo_job(num_steps=1, num_ranks=num_ranks)
    assert shipped.step_planning.token_cap == token_cap


def test_too_many_ranks_are_refused_with_the_number_there_are() -> None:
    with pytest.raises(InputError, match="has 16 devices, got 17"):
        demo.demo_job(num_steps=1, num_ranks=17)


def test_the_uniform_job_takes_the_smallest_degree_that_holds_the_longest_sequence() -> None:
    for longest_tokens, degree in ((1_000, 1), (1_001, 2), (2_000, 2), (2_001, 4)):
        uniform = demo.uniform_job(job(), longest_tokens=longest_tokens)
        assert uniform.step_planning.uniform_degree == degree


def test_the_uniform_job_differs_in_its_groups_alone() -> None:
    uniform = demo.uniform_job(job(), longest_tokens=1_500)
    same = replace(uniform, name=job().name, step_planning=job().step_planning)
    assert same == job()


def test_a_sequence_that_no_group_holds_is_named() -> None:
    with pytest.raises(InfeasibleError, match="4001 tokens fits in no group of 4 ranks"):
        demo.uniform_job(job(), longest_tokens=4_001)


def test_the_forecast_covers_every_step_of_both_runs() -> None:
    uniform = demo.uniform_job(job(), longest_tokens=1_900)
    forecast = demo.forecast(job(), uniform=uniform, batches=BATCHES)
    assert (forecast.num_steps, forecast.num_sequences) == (2, 4)
    assert (forecast.shortest_tokens, forecast.longest_tokens) == (100, 1_900)
    assert forecast.tokens_per_step == 2_600
    assert forecast.uniform_degree == 2
    assert forecast.mixed_fraction == 1.0
    assert forecast.ratio > 1.0, "short sequences need not pay for the long one's width"


@pytest.mark.slow
@pytest.mark.workers
def test_the_demo_trains_twice_and_compares(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "trimtab.orchestrator.cli.main", "demo", "--json"]
    command += ["--steps", "2", "--ranks", "2", "--runs-dir", str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=dict(os.environ)
    )
    assert done.returncode == 0, done.stderr
    comparison = json.loads(done.stdout)
    assert comparison["type"] == "Comparison"
    assert comparison["same_batches"]
    assert comparison["num_common_steps"] == 2
    assert comparison["max_loss_difference"] < 1e-3
    for run in (comparison["first"], comparison["second"]):
        assert run["state"] == "succeeded"
        assert Path(run["run_dir"]).parent == tmp_path
        assert run["times"]["mfu"] is None
    for phase in range(1, 6):
        assert f"[{phase}/5]" in done.stderr
