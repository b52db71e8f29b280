"""Real controllers with real rank processes."""

import os
import signal
import stat
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # no stubs in the pinned set
import pytest

from trimtab.core.events import (
    Alert,
    AttemptStarted,
    CheckpointSaved,
    JobFinished,
    RankExited,
    RankStarted,
    StepSummarized,
)
from trimtab.core.job import JobState
from trimtab.monitor.store import EventStore
from trimtab.orchestrator import controller, submission
from trimtab.orchestrator.rundir import RunDir, RunState
from trimtab.orchestrator.submission import PreparedJob

Start = Callable[..., RunDir]
Ended = Callable[[RunDir], RunState]
Appeared = Callable[[Path], Path]


def test_ranks_that_all_end_cleanly_make_the_job_succeed(start: Start, ended: Ended) -> None:
    run = start()
    state = ended(run)
    assert (state.state, state.exit_code) == (JobState.SUCCEEDED, 0)
    assert state.reason == "all 6 steps are done"
    with EventStore.open(run.events) as store:
        kinds = [type(stored.event) for stored in store.read()]
        summaries = store.read(kinds=(StepSummarized,))
    assert kinds[0] is AttemptStarted
    assert Alert not in kinds, "no GPU is missed on a cluster of CPUs"
    assert kinds[-1] is JobFinished
    assert kinds.count(RankExited) == 3
    assert len(summaries) == 6


def test_a_killed_rank_is_named_with_signal_step_part_and_way_on(
    start: Start, ended: Ended
) -> None:
    run = start("2:kill:3")
    state = ended(run)
    assert (state.state, state.exit_code) == (JobState.FAILED, 1)
    assert state.reason == (
        "rank 2 was killed by SIGKILL (kill -9, or the kernel when memory ran out) "
        "in step 3, forward; to go on from the checkpoint of step 2: "
        f"trimtab submit --resume {run.handle}"
    )
    assert state.finished_s is not None
    with EventStore.open(run.events) as store:
        exits = [s.event for s in store.read(kinds=(RankExited,))]
        finished = store.latest(JobFinished)
    killed = next(event for event in exits if isinstance(event, RankExited) and event.signal)
    assert killed.rank == 2
    assert finished is not None
    assert finished.time_s - killed.time_s < 15


def test_an_exception_is_told_by_its_last_words_and_not_its_victims(
    start: Start, ended: Ended, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "marker-of-a-secret")
    run = start("1:raise:2")
    state = ended(run)
    assert state.reason.startswith(
        "rank 1 failed with exit code 1 in step 2, forward: "
        "ValueError: boom, and the key is ***; "
    )
    for path in [*run.path.glob("*.json"), *run.path.glob("events.db*")]:
        assert b"marker-of-a-secret" not in path.read_bytes(), path


@pytest.mark.parametrize(
    ("code", "advice"),
    [(93, "do not restart it as it is"), (2, "mend the input and submit again")],
)
def test_codes_that_forbid_a_restart_are_passed_on(
    start: Start, ended: Ended, code: int, advice: str
) -> None:
    state = ended(start(f"0:exit{code}:1"))
    assert (state.state, state.exit_code) == (JobState.FAILED, code)
    assert "error: data.sources: expected files, got an empty folder" in state.reason
    assert advice in state.reason


def test_ranks_that_stop_early_are_no_success(start: Start, ended: Ended) -> None:
    state = ended(start("all:exit:4"))
    assert state.state is JobState.FAILED
    assert "every rank ended by itself after step 3 of 6" in state.reason


def test_a_silent_rank_is_taken_as_hung(start: Start, ended: Ended) -> None:
    state = ended(start("1:hang:3", silent_rank_s=3.0))
    assert (state.state, state.exit_code) == (JobState.FAILED, 1)
    assert state.reason.startswith("rank 1 has sent nothing for")
    assert "step 3" in state.reason


def test_what_a_dead_rank_has_started_is_ended_too(start: Start, ended: Ended) -> None:
    run = start("1:child:2")
    ended(run)
    child = int((run.path / "child.pid").read_text())
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == "zombie"


def test_sigterm_cancels_and_the_ranks_write_a_checkpoint(
    start: Start, ended: Ended, appeared: Appeared
) -> None:
    run = start("all:slow:5")
    appeared(run.path / "slow-0")
    owner = run.state().controller
    assert owner is not None
    os.kill(owner.pid, signal.SIGTERM)
    state = ended(run)
    assert (state.state, state.exit_code) == (JobState.CANCELLED, 1)
    assert state.reason == (
        "cancelled after step 5; to go on from the checkpoint of step 5: "
        f"trimtab submit --resume {run.handle}"
    )
    with EventStore.open(run.events) as store:
        checkpoint = store.latest(CheckpointSaved)
    assert checkpoint is not None
    assert checkpoint.step == 5


def test_a_second_sigterm_ends_deaf_ranks_at_once(
    start: Start, ended: Ended, appeared: Appeared
) -> None:
    run = start("0:deaf:2")
    appeared(run.path / "deaf")
    owner = run.state().controller
    assert owner is not None
    os.kill(owner.pid, signal.SIGTERM)
    while "cancelling" not in run.controller_log.read_text():
        time.sleep(0.02)
    os.kill(owner.pid, signal.SIGTERM)
    state = ended(run)
    assert state.state is JobState.CANCELLED
    assert "a second cancel ended it at once, without a checkpoint" in state.reason
    assert "memory" not in state.reason


def test_a_rank_that_fails_after_a_cancel_ends_the_wait_for_a_checkpoint(
    start: Start, ended: Ended, appeared: Appeared
) -> None:
    run = start("0:deaf:2")
    appeared(run.path / "deaf")
    owner = run.state().controller
    assert owner is not None
    with EventStore.open(run.events) as store:
        pids = {
            e.rank: e.pid for e in store.all(kinds=(RankStarted,)) if isinstance(e, RankStarted)
        }
    os.kill(owner.pid, signal.SIGTERM)
    while "cancelling" not in run.controller_log.read_text():
        time.sleep(0.02)
    os.kill(pids[1], signal.SIGKILL)
    state = ended(run)
    assert state.state is JobState.CANCELLED
    assert "instead of stopping cleanly" in state.reason
    assert state.finished_s is not None
    with EventStore.open(run.events) as store:
        killed = [e for e in store.all(kinds=(RankExited,)) if isinstance(e, RankExited)]
    assert {e.rank for e in killed if e.signal == "SIGKILL"} >= {0}
    assert killed[-1].time_s - killed[0].time_s < controller.CANCEL_GRACE_S / 2


def test_a_killed_controller_leaves_a_readable_run_and_no_ranks(
    start: Start, appeared: Appeared
) -> None:
    run = start("all:slow:3")
    for rank in range(3):
        appeared(run.path / f"slow-{rank}")
    owner = run.state().controller
    assert owner is not None
    with EventStore.open(run.events) as store:
        pids = [s.event.pid for s in store.read() if isinstance(s.event, RankStarted)]
    os.kill(owner.pid, signal.SIGKILL)
    while any(psutil.pid_exists(pid) for pid in pids):
        time.sleep(0.05)
    state = run.observed(time.time())
    assert (state.state, state.reason) == (
        JobState.FAILED,
        f"its controller (pid {owner.pid}) died",
    )
    assert run.state().state is JobState.RUNNING
    with EventStore.open(run.events) as store:
        assert store.latest(StepSummarized) is not None
    assert (run.checkpoints / "step-3").exists()


def test_the_collector_token_is_in_no_file(
    start: Start, ended: Ended, appeared: Appeared
) -> None:
    run = start("all:slow:3")
    appeared(run.path / "slow-0")
    with EventStore.open(run.events) as store:
        pid = next(s.event.pid for s in store.read() if isinstance(s.event, RankStarted))
    token = psutil.Process(pid).environ()["TRIMTAB_COLLECTOR_TOKEN"]
    assert len(token) > 30
    for path in run.path.rglob("*"):
        assert not path.is_file() or token.encode() not in path.read_bytes(), path


def test_a_command_that_cannot_start_is_told(
    prepare: Callable[..., PreparedJob], ended: Ended
) -> None:
    prepared = prepare()
    request = replace(prepared.request, argv=("/no/such/program",))
    state = ended(submission.submit_prepared(replace(prepared, request=request)))
    assert state.state is JobState.FAILED
    assert "before its first step: cannot start '/no/such/program'" in state.reason


def test_the_run_directory_is_its_owners_alone(start: Start, ended: Ended) -> None:
    run = start()
    ended(run)
    assert stat.S_IMODE(run.path.stat().st_mode) == 0o700


def test_every_stop_of_the_monitor_is_an_alert(start: Start, ended: Ended) -> None:
    run = start("2:kill:3")
    ended(run)
    with EventStore.open(run.events) as store:
        alerts = [s.event for s in store.read(kinds=(Alert,))]
    assert any(isinstance(a, Alert) and a.severity == "critical" for a in alerts)
