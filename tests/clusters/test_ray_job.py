"""Whole jobs on a real Ray of three nodes: they outlive nodes, ranks and controllers."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from script_jobs import ScriptRun, script_run, signal_controller, until

from trimtab.core.job import JobState
from trimtab.core.scheduling import RayOptions
from trimtab.orchestrator.dev_cluster.ray import RayCluster
from trimtab.orchestrator.submission import cancel_run

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.usefixtures("mended_ray")]


@pytest.fixture
def job(mended_ray: RayCluster, tmp_path: Path) -> Iterator[ScriptRun]:
    with script_run(tmp_path, scheduler="ray", ray=RayOptions()) as job:
        yield job


@pytest.mark.parametrize("hard", [False, True])
def test_a_job_goes_on_without_a_killed_node(
    job: ScriptRun, mended_ray: RayCluster, hard: bool
) -> None:
    first = job.told()[0][0]
    head = next(name for name, state in mended_ray.states().items() if state == "head")
    victim = next(node for node in first.nodes if node != head)
    mended_ray.kill_node(victim, hard=hard)
    job.until_started_again()
    assert job.finish() is JobState.SUCCEEDED
    started, ended = job.told()
    assert len(started) == 2
    assert len(started[1].nodes) == 2
    assert victim not in started[1].nodes
    assert ended[0].reason.startswith(f"node {victim} was lost")


def test_a_killed_rank_is_started_again(job: ScriptRun) -> None:
    os.kill(job.ranks[1], signal.SIGKILL)
    job.until_started_again()


def test_a_killed_controller_is_started_again(job: ScriptRun) -> None:
    controller = job.run.state().controller
    signal_controller(job.run, signal.SIGKILL)
    job.until_started_again()
    assert job.run.state().controller != controller


def test_cancel_leaves_no_process(job: ScriptRun) -> None:
    assert job.processes()
    cancel_run(job.run)
    until(lambda: job.state is JobState.CANCELLED)
    until(lambda: not job.processes())
