import pytest

from trimtab.core.errors import ExitCode
from trimtab.core.events import (
    CheckpointSaved,
    NodeLost,
    RankExited,
    RankProgressed,
    RunResumed,
    StepFinished,
    StopAttempt,
)
from trimtab.core.job import JobHandle, JobState
from trimtab.orchestrator.verdict import Course, error_line, root_cause

HANDLE = JobHandle(scheduler="local", job_id="20261120-161500-demo")
RESUME = "trimtab submit --resume local://20261120-161500-demo"
LOST = "RuntimeError: [pair.cc:525] Connection closed by peer [127.0.0.1]:5"


def exited(
    rank: int,
    *,
    time_s: float = 10.0,
    code: int | None = None,
    signal: str | None = None,
    words: str = "",
) -> RankExited:
    return RankExited(time_s=time_s, rank=rank, exit_code=code, signal=signal, last_words=words)


def checkpoint(step: int) -> CheckpointSaved:
    return CheckpointSaved(time_s=1.0, step=step, path="x", seconds=1.0, num_bytes=1)


def finished(step: int) -> StepFinished:
    return StepFinished(time_s=1.0, step=step, rank=0, step_s=1.0, parts=(), num_tokens=1)


def progressed(rank: int, step: int, doing: str) -> RankProgressed:
    return RankProgressed(time_s=1.0, rank=rank, step=step, doing=doing)


@pytest.fixture
def course() -> Course:
    return Course(HANDLE, 60)


def test_a_killed_rank_beats_peers_that_lost_their_connection() -> None:
    victim, killed = exited(0, code=1, words=LOST), exited(2, time_s=10.3, signal="SIGKILL")
    assert root_cause([victim, killed], asked_s=10.1) == killed


def test_the_error_that_speaks_of_no_lost_connection_is_the_cause() -> None:
    victim, cause = exited(0, code=1, words=LOST), exited(1, code=1, words="ValueError: boom")
    assert root_cause([victim, cause], asked_s=None) == cause


def test_a_crash_of_a_victim_is_not_the_cause() -> None:
    victim = exited(0, signal="SIGABRT", words="ncclRemoteError: remote process exited")
    cause = exited(1, time_s=10.5, code=1, words="torch.OutOfMemoryError: CUDA out of memory")
    assert root_cause([victim, cause], asked_s=10.1) == cause


def test_of_equal_failures_the_first_is_the_cause() -> None:
    first, second = exited(3, signal="SIGKILL"), exited(1, time_s=10.1, signal="SIGKILL")
    assert root_cause([first, second], asked_s=None) == first


def test_a_later_failure_is_no_cause_of_an_earlier_one() -> None:
    first, later = (
        exited(3, code=1, words="ValueError"),
        exited(1, time_s=13.0, signal="SIGKILL"),
    )
    assert root_cause([first, later], asked_s=10.1) == first


def test_dying_of_the_sigterm_it_was_sent_is_no_cause() -> None:
    victim = exited(0, code=1, words=LOST)
    asked = exited(1, time_s=10.2, signal="SIGTERM")
    assert root_cause([victim, asked], asked_s=10.1) == victim


def test_ranks_that_fail_only_after_they_were_asked_to_stop_are_no_cause() -> None:
    assert root_cause([exited(0, time_s=15.0, signal="SIGKILL")], asked_s=10.0) is None
    assert root_cause([exited(0, code=0)], asked_s=None) is None


def test_a_killed_rank_is_reported_with_place_and_way_on(course: Course) -> None:
    for event in (
        finished(20),
        checkpoint(20),
        progressed(2, 21, "attention communication"),
        exited(2, signal="SIGKILL"),
    ):
        course.note(event)
    verdict = course.verdict(stop=None, cancelled=False, asked_s=None)
    assert (verdict.state, verdict.exit_code) == (JobState.FAILED, ExitCode.JOB_FAILED)
    assert verdict.line == (
        "rank 2 was killed by SIGKILL (kill -9, or the kernel when memory ran out) in step 21, "
        f"attention communication; to go on from the checkpoint of step 20: {RESUME}"
    )


def test_an_error_is_reported_by_its_last_line(course: Course) -> None:
    words = "Traceback (most recent call last):\nValueError: boom\n  warnings.warn(x)"
    course.note(exited(1, code=1, words=words))
    assert course.verdict(stop=None, cancelled=False, asked_s=None).line == (
        "rank 1 failed with exit code 1 before its first step: ValueError: boom; there is no "
        f"checkpoint, so this starts from step 1: {RESUME}"
    )


def test_a_checkpoint_of_an_earlier_attempt_counts(course: Course) -> None:
    course.note_earlier_checkpoint(40)
    course.note(exited(1, code=1))
    line = course.verdict(stop=None, cancelled=False, asked_s=None).line
    assert "to go on from the checkpoint of step 40" in line


@pytest.mark.parametrize(("code", "expected"), [(1, 1), (2, 2), (93, 93), (139, 1)])
def test_the_ranks_code_decides_the_jobs(course: Course, code: int, expected: int) -> None:
    course.note(exited(0, code=code))
    assert course.verdict(stop=None, cancelled=False, asked_s=None).exit_code == expected


@pytest.mark.parametrize("code", [126, 127])
def test_a_script_that_cannot_be_started_anywhere_is_wrong_input(code: int) -> None:
    course = Course(HANDLE, None)
    for rank in (0, 1):
        course.note(exited(rank, code=code, words="cannot start 'trian': No such file"))
    verdict = course.verdict(stop=None, cancelled=False, asked_s=None)
    assert verdict.exit_code is ExitCode.USAGE
    assert "cannot start 'trian'" in verdict.line


def test_a_killed_rank_of_a_script_is_no_wrong_input() -> None:
    course = Course(HANDLE, None)
    course.note(exited(1, signal="SIGKILL"))
    verdict = course.verdict(stop=None, cancelled=False, asked_s=None)
    assert verdict.exit_code is ExitCode.JOB_FAILED


def test_a_script_that_one_node_lacks_may_run_on_another() -> None:
    course = Course(HANDLE, None)
    course.note(exited(0, code=127, words="cannot start 'train': No such file"))
    course.note(exited(1, code=1, words=LOST))
    verdict = course.verdict(stop=None, cancelled=False, asked_s=None)
    assert verdict.exit_code is ExitCode.JOB_FAILED


def test_a_peer_of_the_store_that_went_away_is_no_cause() -> None:
    words = "torch.distributed.DistNetworkError: failed to recv, got 0 bytes"
    victim, cause = exited(0, code=1, words=words), exited(1, code=1, words="ValueError: boom")
    assert root_cause([victim, cause], asked_s=None) == cause


def test_one_rank_that_forbids_a_restart_is_enough(course: Course) -> None:
    course.note(exited(0, code=1))
    course.note(exited(1, time_s=10.5, code=93))
    verdict = course.verdict(stop=None, cancelled=False, asked_s=10.2)
    assert verdict.exit_code is ExitCode.DO_NOT_RESTART


def test_a_hang_is_told_in_the_monitors_words(course: Course) -> None:
    stop = StopAttempt(reason="rank 1 has sent nothing for 60 s", restartable=True)
    course.note(exited(1, time_s=20.0, signal="SIGKILL"))
    verdict = course.verdict(stop=stop, cancelled=False, asked_s=15.0)
    assert verdict.line.startswith("rank 1 has sent nothing for 60 s; there is no checkpoint")
    assert verdict.exit_code is ExitCode.JOB_FAILED


def test_all_steps_done_is_success(course: Course) -> None:
    course.note(finished(60))
    course.note(exited(0, code=0))
    verdict = course.verdict(stop=None, cancelled=False, asked_s=None)
    assert (verdict.state, verdict.exit_code) == (JobState.SUCCEEDED, ExitCode.OK)


def test_a_resumed_run_with_nothing_left_to_do_is_success(course: Course) -> None:
    course.note(RunResumed(time_s=1.0, step=60, path="x"))
    assert course.verdict(stop=None, cancelled=False, asked_s=None).state is JobState.SUCCEEDED


def test_ending_early_without_an_error_is_failure(course: Course) -> None:
    course.note(finished(59))
    verdict = course.verdict(stop=None, cancelled=False, asked_s=None)
    assert verdict.state is JobState.FAILED
    assert "after step 59 of 60" in verdict.reason


def test_a_cancelled_job_is_cancelled_even_if_a_rank_had_to_be_killed(course: Course) -> None:
    course.note(finished(7))
    course.note(exited(1, signal="SIGKILL"))
    verdict = course.verdict(stop=None, cancelled=True, asked_s=5.0)
    assert verdict.state is JobState.CANCELLED
    assert verdict.reason.startswith("cancelled after step 7; rank 1 was killed by SIGKILL")


def test_a_second_cancel_is_what_ended_the_ranks_it_killed(course: Course) -> None:
    course.note(finished(7))
    course.note(exited(1, signal="SIGKILL"))
    verdict = course.verdict(stop=None, cancelled=True, asked_s=5.0, ended_at_once=True)
    assert verdict.line.startswith(
        "cancelled after step 7; a second cancel ended it at once, without a checkpoint; there"
    )


def test_a_second_cancel_after_the_ranks_have_ended_cleanly_ended_nothing(
    course: Course,
) -> None:
    course.note(finished(7))
    course.note(exited(1, code=0))
    verdict = course.verdict(stop=None, cancelled=True, asked_s=5.0, ended_at_once=True)
    assert verdict.line.startswith("cancelled after step 7; there is no checkpoint")


def lost(node: str) -> NodeLost:
    return NodeLost(time_s=10.0, node=node, reason="the connection to its agent broke")


def test_a_lost_node_is_the_cause_of_what_its_peers_tell(course: Course) -> None:
    for event in (finished(7), lost("n1"), exited(0, code=1, words=LOST)):
        course.note(event)
    verdict = course.verdict(stop=None, cancelled=False, asked_s=10.5)
    assert (verdict.node, verdict.rank) == ("n1", None)
    assert verdict.reason == (
        "node n1 was lost after step 7: the connection to its agent broke"
    )
    assert verdict.line == (
        f"{verdict.reason}; there is no checkpoint, so this starts from step 1: {RESUME}"
    )


def test_an_error_of_its_own_is_the_cause_and_a_lost_node_is_not(course: Course) -> None:
    for event in (exited(0, code=93, words="NoRestartError: NaN"), lost("n1")):
        course.note(event)
    verdict = course.verdict(stop=None, cancelled=False, asked_s=10.5)
    assert (verdict.node, verdict.rank) == (None, 0)
    assert verdict.exit_code is ExitCode.DO_NOT_RESTART


def test_ranks_that_were_asked_to_make_room_did_not_end_by_themselves(
    course: Course,
) -> None:
    for event in (finished(7), exited(0, code=0), exited(1, time_s=6.0, signal="SIGTERM")):
        course.note(event)
    verdict = course.verdict(
        stop=None, cancelled=False, asked_s=5.0, room_wanted="time is running out"
    )
    assert (verdict.state, verdict.reason) == (
        JobState.FAILED,
        "its ranks were asked to end after step 7: time is running out",
    )


def test_a_job_that_is_done_when_room_is_wanted_is_done(course: Course) -> None:
    course.note(finished(60))
    verdict = course.verdict(stop=None, cancelled=False, asked_s=5.0, room_wanted="preempted")
    assert verdict.state is JobState.SUCCEEDED


def test_a_cancel_before_the_first_step_tells_where_the_run_stands(course: Course) -> None:
    course.note_earlier_checkpoint(40)
    verdict = course.verdict(stop=None, cancelled=True, asked_s=None)
    assert verdict.line == (
        f"cancelled after step 40; to go on from the checkpoint of step 40: {RESUME}"
    )


def test_a_script_has_no_steps_to_speak_of() -> None:
    ended = Course(HANDLE, None)
    ended.note(exited(0, code=0))
    verdict = ended.verdict(stop=None, cancelled=False, asked_s=None)
    assert (verdict.state, verdict.line) == (
        JobState.SUCCEEDED,
        "every rank of the script has ended",
    )
    room = ended.verdict(stop=None, cancelled=False, asked_s=1.0, room_wanted="preempted")
    assert room.line == (f"its ranks were asked to end: preempted; to run it again: {RESUME}")
    cancelled = ended.verdict(stop=None, cancelled=True, asked_s=1.0)
    assert cancelled.line == f"cancelled; to run it again: {RESUME}"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("", ""),
        ("a\nb\n", "b"),
        ("KeyError: 'x'\nexiting", "KeyError: 'x'"),
        ("torch.cuda.OutOfMemoryError: 3 GiB\n\n", "torch.cuda.OutOfMemoryError: 3 GiB"),
        ("error: no data\n", "error: no data"),
        ("UserWarning: slow\nfailed", "failed"),
    ],
)
def test_the_line_that_says_most_is_chosen(words: str, line: str) -> None:
    assert error_line(words) == line
