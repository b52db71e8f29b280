"""Who may write to a run, with real processes."""

import contextlib
import os
import re
import signal
import time
from collections.abc import Callable

import psutil  # type: ignore[import-untyped]  # no stubs in the pinned set
import pytest

from trimtab.core.errors import InputError, RunDirError
from trimtab.core.job import JobState
from trimtab.launch import locks
from trimtab.launch.local import LocalScheduler
from trimtab.orchestrator import run_lock, submission
from trimtab.orchestrator.rundir import RunDir, RunState

Start = Callable[..., RunDir]
Ended = Callable[[RunDir], RunState]
Lingering = Callable[..., None]
RankPids = Callable[[RunDir], dict[int, int]]
RankPrograms = Callable[..., LocalScheduler]


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "WAIT_S", 0.2)


def kill_controllers(run: RunDir) -> None:
    """The keeper first: it would start another."""
    state = run.state()
    for process in (state.keeper, state.controller):
        assert process is not None
        os.kill(process.pid, signal.SIGKILL)


def test_keeper_controller_agent_and_ranks_hold_the_lock_together(
    start: Start, lingering: Lingering, rank_pids: RankPids, impatient: None
) -> None:
    run = start("all:slow:3")
    lingering(run, 0, 1, 2)
    state = run.state()
    assert state.keeper is not None
    assert state.controller is not None
    (agent,) = psutil.Process(state.controller.pid).children()
    owners = [state.keeper.pid, state.controller.pid, agent.pid]
    expected = tuple(sorted([*owners, *rank_pids(run).values()]))
    assert locks.holders(run.lock) == expected
    with (
        pytest.raises(RunDirError, match="kill -9 " + " ".join(map(str, expected))),
        run_lock.held(run),
    ):
        pytest.fail("two attempts in one directory")


def test_the_lock_is_free_after_the_last_process(start: Start, ended: Ended) -> None:
    run = start(num_steps=1)
    ended(run)
    keeper = run.state().keeper
    assert keeper is not None
    while keeper.is_alive:
        time.sleep(0.02)
    with run_lock.held(run) as descriptor:
        assert os.fstat(descriptor).st_ino == run.lock.stat().st_ino
        assert locks.holders(run.lock) == (os.getpid(),)
    assert locks.holders(run.lock) == ()


def test_who_waits_for_the_lock_does_not_hold_it(start: Start, ended: Ended) -> None:
    run = start(num_steps=1)
    ended(run)
    with run_lock.held(run):
        pass
    with run.lock.open("a"):
        assert locks.holders(run.lock) == ()


def test_no_attempt_begins_while_a_rank_of_a_killed_controller_lives(
    start: Start,
    lingering: Lingering,
    ended: Ended,
    rank_programs: RankPrograms,
    rank_pids: RankPids,
    impatient: None,
) -> None:
    run = start("0:deaf:2")
    lingering(run, 0)
    request, deaf = (run.path / "request.json").read_text(), rank_pids(run)[0]
    kill_controllers(run)
    ended(run)
    with pytest.raises(RunDirError, match="is still held by the processes") as refusal:
        submission.resume_job(run, ["training.num_steps=8"], scheduler=rank_programs())
    assert run.state().attempt == 1
    assert (run.path / "request.json").read_text() == request
    listed = re.search(r"kill -9 ([0-9 ]+)$", str(refusal.value))
    assert listed is not None
    pids = {int(pid) for pid in listed[1].split()}
    assert deaf in pids
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):  # those it would not wait for end too
            os.kill(pid, signal.SIGKILL)


def test_a_new_attempt_waits_for_orphans_that_are_about_to_end(
    start: Start, lingering: Lingering, ended: Ended, rank_programs: RankPrograms
) -> None:
    run = start("all:slow:3")
    lingering(run, 0, 1, 2)
    kill_controllers(run)
    ended(run)
    submission.resume_job(run, scheduler=rank_programs())
    state = ended(run)
    assert (state.state, state.attempt) == (JobState.SUCCEEDED, 2)


def test_of_two_resumes_one_is_refused(
    start: Start, ended: Ended, rank_programs: RankPrograms
) -> None:
    run = start("2:kill:5")
    ended(run)
    first = submission.prepare_resume(run, scheduler=rank_programs())
    second = submission.prepare_resume(run, scheduler=rank_programs())
    submission.submit_prepared(first)
    ended(run)
    with pytest.raises(InputError, match="resumed in the meantime: its attempt 2 has begun"):
        submission.submit_prepared(second)
    assert run.state().attempt == 2
