import pytest

from trimtab.core.events import (
    AnyEvent,
    GpuSampled,
    RankExited,
    RankProgressed,
    RankStarted,
    StepFinished,
    StopJob,
)
from trimtab.monitor.health import Health


def started(rank: int) -> RankStarted:
    return RankStarted(
        time_s=0.0, rank=rank, host="a", pid=1, device="cpu", peak_flop_per_s=None, peak_note=""
    )


def doing(what: str, *, rank: int, step: int = 12) -> RankProgressed:
    return RankProgressed(time_s=0.0, rank=rank, step=step, doing=what)


def exited(
    rank: int, code: int | None, *, signal: str | None = None, words: str = ""
) -> RankExited:
    return RankExited(time_s=0.0, rank=rank, exit_code=code, signal=signal, last_words=words)


def healthy(num_ranks: int = 4, *events: AnyEvent, now_s: float = 0.0) -> Health:
    health = Health(num_ranks, 60.0)
    for event in events:
        assert health.handle(event, now_s) == ()
    return health


def test_a_killed_rank_stops_the_job_and_the_reason_says_who_where_and_how() -> None:
    health = healthy(4, doing("forward", rank=2))
    assert health.handle(exited(2, None, signal="SIGKILL"), 5.0) == (
        StopJob(
            reason=(
                "rank 2 was killed by SIGKILL; it was last seen in step 12, doing: forward"
            ),
            restartable=True,
        ),
    )


def test_the_reason_ends_with_the_last_line_of_the_log() -> None:
    (action,) = healthy().handle(
        exited(1, 1, words="Traceback\n  ...\nRuntimeError: out of memory\n\n"), 1.0
    )
    assert action.reason == (
        "rank 1 exited 1; it had not reported yet; its last words: RuntimeError: out of memory"
    )


@pytest.mark.parametrize(("code", "restartable"), [(1, True), (2, False), (93, False)])
def test_exit_codes_2_and_93_are_not_to_be_restarted(code: int, restartable: bool) -> None:
    (action,) = healthy().handle(exited(0, code), 1.0)
    assert isinstance(action, StopJob)
    assert action.restartable is restartable


def test_a_rank_that_finished_is_neither_a_failure_nor_silent() -> None:
    health = healthy(2, doing("forward", rank=0), doing("forward", rank=1))
    assert health.handle(exited(0, 0), 50.0) == ()
    assert health.handle(exited(1, 0), 50.0) == ()
    assert health.tick(10_000.0) == ()


def test_the_first_failure_stops_the_job_and_the_ones_it_causes_say_nothing() -> None:
    health = healthy()
    assert len(health.handle(exited(2, None, signal="SIGKILL"), 1.0)) == 1
    assert health.handle(exited(0, 1), 2.0) == ()
    assert health.tick(9_999.0) == ()


def test_a_silent_rank_stops_the_job_once() -> None:
    health = healthy(2, doing("forward", rank=0), doing("optimizer", rank=1))
    health.handle(doing("waiting", rank=0), 60.0)
    assert health.tick(60.0) == ()
    assert health.tick(61.0) == (
        StopJob(
            reason=(
                "rank 1 has sent nothing for 1 min 1 s; "
                "it was last seen in step 12, doing: optimizer"
            ),
            restartable=True,
        ),
    )
    assert health.tick(62.0) == ()


def test_of_several_silent_ranks_the_one_furthest_behind_is_named() -> None:
    health = healthy(
        3,
        doing("waiting", rank=0, step=13),
        doing("backward", rank=2, step=12),
        doing("waiting", rank=1, step=13),
    )
    (action,) = health.tick(100.0)
    assert action.reason == (
        "rank 2 has sent nothing for 1 min 40 s; it was last seen in step 12, "
        "doing: backward (2 other ranks are silent too)"
    )


@pytest.mark.parametrize(
    "sign",
    [
        doing("forward", rank=0),
        StepFinished(time_s=0.0, step=12, rank=0, step_s=1.0, parts=(), num_tokens=1),
        started(0),
    ],
)
def test_any_event_of_a_rank_renews_its_life_sign(sign: AnyEvent) -> None:
    health = healthy(1, doing("forward", rank=0))
    health.handle(sign, 50.0)
    assert health.tick(109.0) == ()
    assert len(health.tick(111.0)) == 1


def test_starting_ranks_have_five_minutes() -> None:
    health = healthy(2, doing("starting", rank=1, step=0))
    assert health.tick(299.0) == ()
    (action,) = health.tick(301.0)
    assert action.reason == (
        "rank 0 has sent nothing for 5 min 1 s; it had not reported yet "
        "(1 other ranks are silent too)"
    )


def test_writing_a_checkpoint_may_take_as_long_as_starting() -> None:
    health = healthy(1, doing("checkpoint", rank=0))
    assert health.tick(299.0) == ()
    assert len(health.tick(301.0)) == 1


def test_events_of_no_rank_or_an_unknown_one_change_nothing() -> None:
    sample = GpuSampled(
        time_s=0.0,
        host="a",
        index=0,
        name="H100",
        utilization_fraction=0.5,
        memory_used_bytes=1,
        power_w=1.0,
        temperature_c=50.0,
    )
    assert healthy(2).handle(sample, 1.0) == ()
    assert healthy(2).handle(exited(7, 1), 1.0) == ()
