"""Whole jobs on a real Slurm of four nodes: they outlive nodes, ranks and controllers."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from script_jobs import ScriptRun, script_run, signal_controller, until

from trimtab.core.job import JobState
from trimtab.core.scheduling import SlurmOptions
from trimtab.orchestrator.dev_cluster.slurm import SlurmCluster
from trimtab.orchestrator.submission import cancel_run

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


@pytest.fixture
def job(mended_slurm: SlurmCluster, tmp_path: Path) -> Iterator[ScriptRun]:
    with script_run(tmp_path, scheduler="slurm", slurm=SlurmOptions()) as job:
        yield job


def batch_host(job: ScriptRun) -> str:
    asked = ["squeue", "-h", "-j", job.run.handle.job_id, "-o", "%B"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("whose", ["a rank's", "the controller's"])
def test_a_job_goes_on_without_a_killed_node(
    job: ScriptRun, mended_slurm: SlurmCluster, whose: str
) -> None:
    """Of the controller's own node Slurm takes the job, and a successor goes on."""
    handle = job.run.handle
    own = batch_host(job)
    nodes = job.told()[0][0].nodes
    victim = own if whose == "the controller's" else next(n for n in nodes if n != own)
    mended_slurm.kill_node(victim)
    job.until_started_again()
    assert job.finish() is JobState.SUCCEEDED
    started, ended = job.told()
    assert len(started) == 2
    assert len(started[1].nodes) == 2
    assert victim not in started[1].nodes
    assert victim in ended[0].reason
    assert job.run.handle != handle


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_killed_or_stopped_rank_is_started_again(
    job: ScriptRun, number: signal.Signals
) -> None:
    os.kill(job.ranks[1], number)
    job.until_started_again()
    assert job.finish() is JobState.SUCCEEDED
    assert len(job.told()[0]) == 2


def test_a_killed_controller_is_started_again(job: ScriptRun) -> None:
    controller = job.run.state().controller
    signal_controller(job.run, signal.SIGKILL)
    job.until_started_again()
    assert job.run.state().controller != controller
    assert job.finish() is JobState.SUCCEEDED


def test_a_job_that_makes_room_comes_back_under_the_same_id(job: ScriptRun) -> None:
    """What Slurm sends before the time limit, and when it preempts."""
    handle = job.run.handle
    subprocess.run(["scancel", "--batch", "--signal=USR2", handle.job_id], check=True)
    begin_now = ["scontrol", "update", f"JobId={handle.job_id}", "StartTime=now"]
    # Slurm would keep a requeued job waiting for two minutes.
    until(lambda: subprocess.run(begin_now, capture_output=True, check=False).returncode == 0)
    job.until_started_again()
    assert job.run.handle == handle
    assert job.finish() is JobState.SUCCEEDED


def test_cancel_leaves_no_process(job: ScriptRun) -> None:
    assert job.processes()
    cancel_run(job.run)
    until(lambda: job.state is JobState.CANCELLED)
    until(lambda: not job.processes())
