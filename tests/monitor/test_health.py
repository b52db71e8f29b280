import pytest

from trimtab.core.events import (
    AnyEvent,
    GpuSampled,
    NodeLost,
    RankExited,
    RankFrozen,
    RankProgressed,
    RankStarted,
    StepFinished,
    StopAttempt,
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
        StopAttempt(
            reason=(
                "rank 2 was killed by SIGKILL; it was last seen in step 12, doing: forward"
            ),
            restartable=True,
            rank=2,
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
    assert isinstance(action, StopAttempt)
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
        StopAttempt(
            reason=(
                "rank 1 has sent nothing for 1 min 1 s; "
                "it was last seen in step 12, doing: optimizer"
            ),
            restartable=True,
            rank=1,
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


def finished(rank: int, *, step: int, step_s: float) -> StepFinished:
    return StepFinished(time_s=0.0, step=step, rank=rank, step_s=step_s, parts=(), num_tokens=1)


def beaten(health: Health, *beats: RankProgressed, until_s: float) -> list[StopAttempt]:
    """What `health` asks for while the same heartbeats come every 10 s from 10 s on."""
    actions: list[StopAttempt] = []
    for now_s in range(10, int(until_s) + 1, 10):
        for beat in beats:
            actions += health.handle(beat, float(now_s))
        actions += health.tick(float(now_s))
    return actions


def test_ranks_that_report_but_stay_where_they_are_are_hung_after_ten_minutes() -> None:
    health = Health(5, 60.0)
    places = [doing("waiting", rank=r, step=4) for r in (0, 1, 2, 4)]
    places.append(doing("backward", rank=3, step=4))
    for rank in range(5):
        health.handle(finished(rank, step=3, step_s=2.0), 0.0)
    for place in places:
        health.handle(place, 0.0)
    assert beaten(health, *places, until_s=600.0) == []
    assert beaten(health, *places, until_s=610.0) == [
        StopAttempt(
            reason=(
                "no rank has moved for 10 min 10 s: rank 3 in step 4, backward; "
                "ranks 0-2, 4 in step 4, waiting"
            ),
            restartable=True,
        )
    ]


def test_one_rank_that_moves_keeps_the_job_alive() -> None:
    health = healthy(2, finished(0, step=1, step_s=1.0), finished(1, step=1, step_s=1.0))
    for now_s in range(0, 3_000, 30):
        step = 2 + now_s // 300
        assert health.handle(doing("waiting", rank=0, step=2), float(now_s)) == ()
        assert health.handle(doing("forward", rank=1, step=step), float(now_s)) == ()
        assert health.tick(float(now_s)) == ()


def test_long_steps_may_stand_for_twenty_of_them() -> None:
    health = healthy(1, finished(0, step=1, step_s=100.0), doing("forward", rank=0, step=2))
    assert beaten(health, doing("forward", rank=0, step=2), until_s=2_000.0) == []
    assert len(beaten(health, doing("forward", rank=0, step=2), until_s=2_010.0)) == 1


@pytest.mark.parametrize("what", ["starting", "checkpoint", "evaluation"])
def test_start_checkpoint_and_evaluation_may_take_an_hour(what: str) -> None:
    health = healthy(1, finished(0, step=1, step_s=1.0), doing(what, rank=0, step=1))
    assert beaten(health, doing(what, rank=0, step=1), until_s=3_600.0) == []
    assert len(beaten(health, doing(what, rank=0, step=1), until_s=3_610.0)) == 1


def test_the_first_step_belongs_to_the_start() -> None:
    health = healthy(1, doing("forward", rank=0, step=1))
    assert beaten(health, doing("forward", rank=0, step=1), until_s=3_600.0) == []
    assert len(beaten(health, doing("forward", rank=0, step=1), until_s=3_610.0)) == 1


def test_ranks_that_wait_for_one_that_has_left_are_hung() -> None:
    health = healthy(2, finished(0, step=1, step_s=1.0), finished(1, step=1, step_s=1.0))
    health.handle(doing("waiting", rank=0, step=2), 0.0)
    health.handle(exited(1, 0), 0.0)
    (action,) = beaten(health, doing("waiting", rank=0, step=2), until_s=700.0)
    assert action.reason == "no rank has moved for 10 min 10 s: rank 0 in step 2, waiting"


def test_a_frozen_rank_stops_the_job_at_once_and_is_to_blame() -> None:
    health = healthy(4, doing("forward", rank=2))
    frozen = RankFrozen(time_s=0.0, rank=2, reason="stopped by a signal (process 7)")
    assert health.handle(frozen, 5.0) == (
        StopAttempt(
            reason=(
                "rank 2 does not run: stopped by a signal (process 7); "
                "it was last seen in step 12, doing: forward"
            ),
            restartable=True,
            rank=2,
        ),
    )
    assert health.handle(exited(2, None, signal="SIGKILL"), 6.0) == ()


def test_a_lost_node_stops_the_job_at_once_and_is_to_blame() -> None:
    lost = NodeLost(time_s=0.0, node="n1", reason="its agent has sent nothing for 6 s")
    assert healthy().handle(lost, 5.0) == (
        StopAttempt(
            reason="node n1 is lost: its agent has sent nothing for 6 s",
            restartable=True,
            node="n1",
        ),
    )


def test_the_silence_of_a_script_tells_nothing_but_its_end_does() -> None:
    health = Health(2, None)
    assert health.tick(0.0) == ()
    assert health.tick(1_000_000.0) == ()
    (action,) = health.handle(exited(1, None, signal="SIGKILL"), 1_000_001.0)
    assert action.reason == "rank 1 was killed by SIGKILL; it had not reported yet"
