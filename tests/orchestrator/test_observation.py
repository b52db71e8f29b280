"""How runs stand, from what their directories and their schedulers say."""

from dataclasses import replace
from pathlib import Path

import pytest

from trimtab.core.job import JobHandle, JobState
from trimtab.launch.api import SchedulerView
from trimtab.orchestrator.observation import (
    FORGOTTEN_AFTER_S,
    Answer,
    Observed,
    combined,
    observe_runs,
)
from trimtab.orchestrator.rundir import RunDir, RunState
from trimtab.orchestrator.submission import PreparedJob

HANDLE = JobHandle(scheduler="slurm", job_id="1234")
SUBMITTED_S = 1_000.0
NOW_S = 2_000.0
RUNNING = RunState(
    name="demo",
    scheduler="slurm",
    num_ranks=4,
    state=JobState.RUNNING,
    reason="",
    attempt=1,
    submitted_s=SUBMITTED_S,
    started_s=1_010.0,
)
QUEUED = replace(RUNNING, state=JobState.PENDING, reason="queued", started_s=None)


def says(state: JobState, native_state: str, reason: str = "") -> Answer:
    view = SchedulerView(state=state, native_state=native_state, reason=reason)
    return Answer(handle=HANDLE, view=view)


def state_of(state: RunState, answer: Answer | None, *, now_s: float = NOW_S) -> RunState:
    return combined(state, answer, now_s=now_s).state


def test_a_queued_job_has_the_schedulers_reason() -> None:
    waits = says(JobState.PENDING, "PENDING", "Priority: others come first")
    observed = combined(QUEUED, waits, now_s=NOW_S)
    assert observed.state == replace(QUEUED, reason="Priority: others come first")
    assert observed.view == waits.view


def test_a_queued_job_for_which_the_scheduler_has_no_reason_keeps_ours() -> None:
    assert state_of(QUEUED, says(JobState.PENDING, "PENDING")) == QUEUED


def test_a_job_that_waits_for_other_nodes_says_why_it_left_the_first() -> None:
    state = replace(QUEUED, num_restarts=1, reason="node n2 is lost; waits for other nodes")
    waits = says(JobState.PENDING, "PENDING", "Resources: it is next")
    expected = "node n2 is lost; waits for other nodes; Resources: it is next"
    assert state_of(state, waits).reason == expected


def test_a_job_that_was_requeued_while_it_ran_is_pending() -> None:
    observed = state_of(RUNNING, says(JobState.PENDING, "REQUEUED", "BeginTime"))
    assert (observed.state, observed.reason) == (JobState.PENDING, "BeginTime")


def test_a_running_job_is_what_its_controller_says() -> None:
    assert state_of(RUNNING, says(JobState.RUNNING, "RUNNING")) == RUNNING
    assert state_of(QUEUED, says(JobState.RUNNING, "COMPLETING")) == QUEUED


@pytest.mark.parametrize(
    ("answer", "final", "reason"),
    [
        (says(JobState.FAILED, "NODE_FAIL", "a node of it failed"), JobState.FAILED,
         "Slurm says NODE_FAIL: a node of it failed"),
        (says(JobState.CANCELLED, "CANCELLED"), JobState.CANCELLED, "Slurm says CANCELLED"),
        (says(JobState.SUCCEEDED, "COMPLETED"), JobState.FAILED, "Slurm says COMPLETED"),
        (Answer(handle=HANDLE), JobState.FAILED,
         "Slurm does not know slurm://1234 any more, and it left no word"),
    ],
)  # fmt: skip
def test_a_job_whose_controller_left_no_word_has_ended_as_its_scheduler_says(
    answer: Answer, final: JobState, reason: str
) -> None:
    assert answer.is_end
    ended = state_of(RUNNING, answer)
    assert (ended.state, ended.reason, ended.exit_code) == (final, reason, 1)


def test_a_cancelled_job_that_is_gone_was_cancelled() -> None:
    asked = replace(RUNNING, cancelled_s=1_500.0)
    for answer in (Answer(handle=HANDLE), says(JobState.FAILED, "TIMEOUT")):
        assert state_of(asked, answer).state is JobState.CANCELLED


def test_a_job_is_not_given_up_before_its_scheduler_can_know_it() -> None:
    unknown = Answer(handle=HANDLE)
    soon_s = SUBMITTED_S + FORGOTTEN_AFTER_S - 1
    assert state_of(QUEUED, unknown, now_s=soon_s) == QUEUED
    assert state_of(QUEUED, unknown, now_s=soon_s + 2).state is JobState.FAILED


def test_what_a_controller_has_told_is_final_whatever_the_scheduler_says() -> None:
    done = replace(RUNNING, state=JobState.SUCCEEDED, reason="all done", exit_code=0)
    for answer in (None, Answer(handle=HANDLE), says(JobState.FAILED, "FAILED")):
        assert combined(done, answer, now_s=NOW_S) == Observed(state=done)


def test_a_cluster_that_cannot_be_reached_leaves_the_last_state_and_says_so() -> None:
    trouble = Answer(handle=HANDLE, trouble="slurm: the cluster cannot be reached")
    observed = combined(RUNNING, trouble, now_s=NOW_S)
    assert observed == Observed(state=RUNNING, trouble=trouble.trouble)
    assert not trouble.is_end
    assert combined(RUNNING, None, now_s=NOW_S) == Observed(state=RUNNING)


def test_a_run_on_a_cluster_that_is_gone_is_listed_with_what_was_last_known(
    small_script: PreparedJob, runs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no command of Slurm's
    run = RunDir.create(small_script.request, plan=None, state=RUNNING)
    run.add_handle(HANDLE)
    ((found, observed),) = observe_runs(runs, limit=0)
    assert found == run
    assert isinstance(observed, Observed)
    assert observed.state == RUNNING
    assert "this machine has no command squeue" in observed.trouble


def test_each_ray_run_is_asked_for_where_it_was_submitted(
    small_script: PreparedJob, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    job = small_script.request.job
    for port in (9, 10):
        address = f"http://127.0.0.1:{port}"
        request = replace(
            small_script.request,
            scheduler="ray",
            run_dir=str(runs / f"20261120-1615{port:02}-a"),
            job=replace(job, ray=replace(job.ray, address=address)),
        )
        run = RunDir.create(request, plan=None, state=replace(RUNNING, scheduler="ray"))
        run.add_handle(JobHandle(scheduler="ray", job_id=run.job_id))
    observed = [each for _, each in observe_runs(runs, limit=0)]
    troubles = [each.trouble for each in observed if isinstance(each, Observed)]
    for port, trouble in zip((10, 9), troubles, strict=True):
        assert f"no Ray Jobs API answers at http://127.0.0.1:{port} " in trouble
