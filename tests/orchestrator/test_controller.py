"""Real controllers with real rank processes."""

import os
import signal
import stat
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # no stubs in the pinned set
import pytest

from trimtab.core.events import (
    Alert,
    AnyEvent,
    AttemptEnded,
    AttemptStarted,
    CheckpointSaved,
    JobFinished,
    NodeFound,
    RankExited,
    StepSummarized,
)
from trimtab.core.job import JobState, ScriptSpec
from trimtab.core.scheduling import RestartSpec
from trimtab.launch.local import LocalScheduler
from trimtab.monitor.store import EventStore
from trimtab.orchestrator import attempt, controller, submission
from trimtab.orchestrator.rundir import RunDir, RunState
from trimtab.orchestrator.submission import PreparedJob

Start = Callable[..., RunDir]
Ended = Callable[[RunDir], RunState]
Lingering = Callable[..., None]
RankPids = Callable[[RunDir], dict[int, int]]


def events(run: RunDir, *kinds: type[AnyEvent]) -> list[AnyEvent]:
    with EventStore.open(run.events) as store:
        return list(store.all(kinds=kinds))


def decisions(run: RunDir) -> list[tuple[int, str]]:
    """Attempt by attempt, what was decided at its end."""
    ends = events(run, AttemptEnded)
    return [(each.attempt, each.decision) for each in ends if isinstance(each, AttemptEnded)]


def steps(run: RunDir) -> list[int]:
    """In the order in which they were done, those that were done twice too."""
    done = events(run, StepSummarized)
    return [each.step for each in done if isinstance(each, StepSummarized)]


def test_ranks_that_all_end_cleanly_make_the_job_succeed(start: Start, ended: Ended) -> None:
    run = start()
    state = ended(run)
    assert (state.state, state.exit_code) == (JobState.SUCCEEDED, 0)
    assert state.reason == "all 6 steps are done"
    with EventStore.open(run.events) as store:
        kinds = [type(stored.event) for stored in store.read()]
        summaries = store.read(kinds=(StepSummarized,))
    assert kinds[0] is NodeFound
    assert kinds.count(AttemptStarted) == 1
    alerts = [each.message for each in events(run, Alert) if isinstance(each, Alert)]
    assert not any("GPU" in alert for alert in alerts), "none is missed on a cluster of CPUs"
    assert kinds[-2:] == [AttemptEnded, JobFinished]
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
    start: Start, ended: Ended, lingering: Lingering
) -> None:
    run = start("all:slow:5")
    lingering(run, 0, 1, 2)
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
    start: Start, ended: Ended, lingering: Lingering
) -> None:
    run = start("0:deaf:2")
    lingering(run, 0)
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
    start: Start, ended: Ended, lingering: Lingering, rank_pids: RankPids
) -> None:
    run = start("0:deaf:2")
    lingering(run, 0)
    owner = run.state().controller
    assert owner is not None
    pids = rank_pids(run)
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
    assert killed[-1].time_s - killed[0].time_s < attempt.CANCEL_GRACE_S / 2


def test_a_run_whose_keeper_is_killed_too_is_readable_and_leaves_no_ranks(
    start: Start, lingering: Lingering, rank_pids: RankPids
) -> None:
    run = start("all:slow:3")
    lingering(run, 0, 1, 2)
    owner, keeper = run.state().controller, run.state().keeper
    assert owner is not None
    assert keeper is not None
    pids = rank_pids(run)
    os.kill(keeper.pid, signal.SIGKILL)
    os.kill(owner.pid, signal.SIGKILL)
    while any(psutil.pid_exists(pid) for pid in pids.values()):
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
    start: Start, ended: Ended, lingering: Lingering, rank_pids: RankPids
) -> None:
    run = start("all:slow:3")
    lingering(run, 0, 1, 2)
    token = psutil.Process(rank_pids(run)[0]).environ()["TRIMTAB_COLLECTOR_TOKEN"]
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


def test_a_job_goes_on_from_its_last_checkpoint_when_a_rank_is_killed(
    start: Start, ended: Ended
) -> None:
    run = start("2:kill:4", max_restarts=1)
    state = ended(run)
    assert (state.state, state.exit_code) == (JobState.SUCCEEDED, 0)
    assert (state.attempt, state.num_restarts) == (2, 1)
    assert state.reason == "all 6 steps are done"
    assert steps(run) == [1, 2, 3, 3, 4, 5, 6]
    assert decisions(run) == [
        (1, "starting again from the last checkpoint"),
        (2, "the job has succeeded"),
    ]
    log = run.rank_log(1).read_text()
    assert log.index("--- attempt 1: ") < log.index("--- attempt 2: ")


def test_a_job_that_gets_no_further_is_given_up(start: Start, ended: Ended) -> None:
    run = start("2:kill:3:9", max_restarts=2)
    state = ended(run)
    assert (state.state, state.exit_code) == (JobState.FAILED, 1)
    assert (state.attempt, state.num_restarts) == (3, 2)
    assert state.reason == (
        "rank 2 was killed by SIGKILL (kill -9, or the kernel when memory ran out) in step 3, "
        "forward (given up after 2 restarts without a new checkpoint); to go on from the "
        f"checkpoint of step 2: trimtab submit --resume {run.handle}"
    )
    assert [decision for _, decision in decisions(run)] == [
        "starting again from the last checkpoint",
        "starting again from the last checkpoint in 100 ms",
        "the job has failed",
    ]


def test_a_failure_that_would_repeat_is_not_restarted(start: Start, ended: Ended) -> None:
    run = start("0:exit93:3", max_restarts=9)
    state = ended(run)
    assert (state.state, state.exit_code, state.attempt) == (JobState.FAILED, 93, 1)
    assert decisions(run) == [(1, "the job has failed")]


def test_a_frozen_rank_is_killed_and_the_job_goes_on(start: Start, ended: Ended) -> None:
    run = start("1:freeze:3", max_restarts=1, num_steps=4)
    state = ended(run)
    assert (state.state, state.attempt) == (JobState.SUCCEEDED, 2)
    (first, _) = [each for each in events(run, AttemptEnded) if isinstance(each, AttemptEnded)]
    assert first.reason.startswith("rank 1 does not run: stopped by a signal (process ")
    assert first.reason.endswith("; it was last seen in step 3, doing: forward")


def test_a_job_goes_on_by_itself_when_its_controller_is_killed(
    start: Start, ended: Ended, lingering: Lingering, rank_pids: RankPids
) -> None:
    run = start("all:slow:3")
    lingering(run, 0, 1, 2)
    killed, pids = run.state().controller, rank_pids(run)
    assert killed is not None
    os.kill(killed.pid, signal.SIGKILL)
    state = ended(run)
    assert (state.state, state.attempt, state.num_restarts) == (JobState.SUCCEEDED, 2, 1)
    assert state.controller != killed
    assert steps(run)[-3:] == [4, 5, 6], "the ranks of attempt 1 have saved step 3"
    assert not any(psutil.pid_exists(pid) for pid in pids.values())
    assert "goes on after attempt 1, whose controller is gone" in run.controller_log.read_text()


def test_a_cancel_reaches_the_controller_that_follows_a_killed_one(
    start: Start, ended: Ended, lingering: Lingering, rank_pids: RankPids
) -> None:
    run = start("0:deaf:3")
    lingering(run, 0)
    owner, pids = run.state().controller, rank_pids(run)
    assert owner is not None
    os.kill(owner.pid, signal.SIGTERM)
    while run.state().cancelled_s is None:
        time.sleep(0.02)
    for pid in (owner.pid, *pids.values()):
        os.kill(pid, signal.SIGKILL)
    state = ended(run)
    assert (state.state, state.attempt) == (JobState.CANCELLED, 2)
    assert len(events(run, AttemptStarted)) == 1


def test_a_pause_ends_with_a_cancel(start: Start, ended: Ended) -> None:
    run = start("2:kill:3:9", max_restarts=9, backoff_s=3_600.0)
    while len(decisions(run)) < 2:
        time.sleep(0.05)
    owner = run.state().controller
    assert owner is not None
    os.kill(owner.pid, signal.SIGTERM)
    state = ended(run)
    assert state.state is JobState.CANCELLED
    assert state.reason == (
        "cancelled after step 2; to go on from the checkpoint of step 2: "
        f"trimtab submit --resume {run.handle}"
    )
    assert decisions(run)[-1] == (2, "starting again from the last checkpoint in 1 min 0 s")


def test_a_file_in_the_run_directory_cancels(
    start: Start, ended: Ended, lingering: Lingering
) -> None:
    run = start("all:slow:5")
    lingering(run, 0, 1, 2)
    (run.path / "cancel").touch()
    state = ended(run)
    assert state.state is JobState.CANCELLED
    assert state.reason.startswith("cancelled after step 5; ")
    assert not (run.path / "cancel").exists(), "else a resumed run would be cancelled too"


def test_room_is_made_with_a_checkpoint(
    start: Start, ended: Ended, lingering: Lingering
) -> None:
    run = start("all:slow:3", max_restarts=1)
    lingering(run, 0, 1, 2)
    keeper = run.state().keeper
    assert keeper is not None
    os.kill(keeper.pid, signal.SIGUSR2)
    state = ended(run)
    assert (state.state, state.attempt) == (JobState.SUCCEEDED, 2)
    assert steps(run) == [1, 2, 3, 4, 5, 6]
    (first, _) = [each for each in events(run, AttemptEnded) if isinstance(each, AttemptEnded)]
    assert first.reason == (
        "its ranks were asked to end after step 3: the scheduler wants the nodes back, or time "
        "is running out"
    )


def test_an_end_that_is_written_is_not_begun_again(start: Start, ended: Ended) -> None:
    run = start("0:exit93:1")
    state = ended(run)
    while state.keeper is not None and state.keeper.is_alive:
        time.sleep(0.02)
    assert controller.main([str(run.path)]) == 93
    assert run.state() == state


def script_run(
    run_dir: Path, program: str, *, rank_programs: Callable[..., LocalScheduler]
) -> RunDir:
    run_dir.parent.mkdir(exist_ok=True)
    script = ScriptSpec(
        name="script",
        argv=(sys.executable, "-u", "-c", program),
        folder=str(run_dir.parent),
        num_ranks=2,
        restart=RestartSpec(max_restarts=1, backoff_s=0.1),
    )
    request = rank_programs().prepare(script, layout=None, run_dir=run_dir)
    return submission.submit_prepared(PreparedJob(request=request, plan=None))


def test_a_script_is_supervised_like_our_own_ranks(
    runs: Path, ended: Ended, rank_programs: Callable[..., LocalScheduler]
) -> None:
    program = (
        "import os, sys\n"
        "print('in', os.getcwd(), 'as', os.environ['RANK'])\n"
        "sys.exit(os.environ['TRIMTAB_ATTEMPT'] + os.environ['RANK'] == '11')"
    )
    run = script_run(runs / "s1", program, rank_programs=rank_programs)
    state = ended(run)
    assert (state.state, state.attempt) == (JobState.SUCCEEDED, 2)
    assert state.reason == "every rank of the script has ended"
    assert f"in {runs} as 1" in run.rank_log(1).read_text()
    first = events(run, AttemptEnded)[0]
    assert isinstance(first, AttemptEnded)
    assert first.reason.startswith("rank 1 failed with exit code 1")


def test_a_script_that_makes_room_has_not_succeeded(
    runs: Path, ended: Ended, rank_programs: Callable[..., LocalScheduler]
) -> None:
    program = (
        "import os, time; print('up')\nif os.environ['TRIMTAB_ATTEMPT'] == '1': time.sleep(600)"
    )
    run = script_run(runs / "s1", program, rank_programs=rank_programs)
    while not run.rank_log(1).exists() or "up" not in run.rank_log(1).read_text():
        time.sleep(0.02)
    owner = run.state().controller
    assert owner is not None
    os.kill(owner.pid, signal.SIGUSR2)
    state = ended(run)
    assert (state.state, state.attempt) == (JobState.SUCCEEDED, 2)
