import pytest

from trimtab.core.errors import ExitCode
from trimtab.core.job import JobState
from trimtab.core.scheduling import RestartSpec
from trimtab.orchestrator.supervision import (
    AttemptEnd,
    Decision,
    Finish,
    GoElsewhere,
    StartAgain,
    Supervisor,
)
from trimtab.orchestrator.verdict import Verdict

NONE: frozenset[str] = frozenset()


def verdict(
    code: ExitCode = ExitCode.JOB_FAILED,
    *,
    state: JobState = JobState.FAILED,
    rank: int | None = None,
    node: str | None = None,
) -> Verdict:
    return Verdict(
        state=state, reason="it failed", exit_code=code, advice="resume", rank=rank, node=node
    )


def failed(
    *, node: str | None = None, step: int | None = None, room: str | None = None
) -> AttemptEnd:
    """A rank failed, on a node or anywhere; `step` of the newest checkpoint."""
    return AttemptEnd(
        verdict=verdict(rank=3), node=node, checkpoint_step=step, room_wanted=room
    )


def lost(node: str, *, step: int | None = None, own: bool = False) -> AttemptEnd:
    """A node was lost, the controller's own or another."""
    return AttemptEnd(
        verdict=verdict(node=node), node=node, checkpoint_step=step, controller_lost=own
    )


def supervisor(
    *,
    max_restarts: int = 3,
    backoff_s: float = 1.0,
    can_move: bool = False,
    shun: tuple[str, ...] = (),
    step: int | None = None,
) -> Supervisor:
    spec = RestartSpec(max_restarts=max_restarts, backoff_s=backoff_s)
    made = Supervisor(spec, can_move=can_move, shun=shun)
    made.begin(checkpoint_step=step)
    return made


def again(
    pause_s: float = 0.0, *, shun: frozenset[str] = NONE, avoid: frozenset[str] = NONE
) -> StartAgain:
    return StartAgain(pause_s=pause_s, shun=shun, avoid=avoid)


@pytest.mark.parametrize(
    "end",
    [
        verdict(ExitCode.OK, state=JobState.SUCCEEDED),
        verdict(state=JobState.CANCELLED),
        verdict(ExitCode.USAGE),
        verdict(ExitCode.DO_NOT_RESTART),
    ],
)
@pytest.mark.parametrize("room", [None, "preempted"])
def test_what_is_done_wanted_or_would_repeat_ends_the_job(
    end: Verdict, room: str | None
) -> None:
    told = AttemptEnd(verdict=end, node="n1", checkpoint_step=4, room_wanted=room)
    assert supervisor(can_move=True).decide(told) == Finish(verdict=end)


def test_a_failure_starts_the_job_again_at_once() -> None:
    assert supervisor().decide(failed()) == again()


def test_pauses_double_from_the_second_restart_in_a_row_up_to_a_minute() -> None:
    boss = supervisor(max_restarts=9, backoff_s=3.0)
    decisions = [boss.decide(failed()) for _ in range(8)]
    expected = (0.0, 3.0, 6.0, 12.0, 24.0, 48.0, 60.0, 60.0)
    assert decisions == [again(pause_s) for pause_s in expected]


def test_restarts_without_a_new_checkpoint_are_limited() -> None:
    boss = supervisor(max_restarts=2, step=4)
    assert boss.decide(failed(step=4)) == again()
    assert boss.decide(failed(step=4)) == again(1.0)
    last = boss.decide(failed(step=4))
    assert isinstance(last, Finish)
    assert last.verdict.line == (
        "it failed (given up after 2 restarts without a new checkpoint); resume"
    )
    assert (last.verdict.exit_code, last.verdict.rank) == (ExitCode.JOB_FAILED, 3)


def test_what_earlier_controllers_have_used_of_the_budget_counts() -> None:
    spec = RestartSpec(max_restarts=3)
    boss = Supervisor(spec, can_move=True, num_in_row=3)
    boss.begin(checkpoint_step=4)
    assert isinstance(boss.decide(failed(step=4)), Finish)
    boss = Supervisor(spec, can_move=True, num_in_row=3)
    boss.begin(checkpoint_step=4)
    assert boss.decide(failed(step=8)) == again()
    assert boss.num_in_row == 1


def test_a_new_checkpoint_refills_the_budget() -> None:
    boss = supervisor(max_restarts=1)
    for step in (2, 4, 6, 8):
        assert boss.decide(failed(step=step)) == again()
    assert isinstance(boss.decide(failed(step=8)), Finish)


def test_a_job_that_may_not_restart_keeps_its_reason() -> None:
    assert supervisor(max_restarts=0).decide(failed()) == Finish(verdict=verdict(rank=3))


def test_a_node_where_a_rank_died_is_avoided_and_after_the_second_time_shunned() -> None:
    boss = supervisor()
    assert boss.decide(failed(node="n1")) == again(avoid=frozenset({"n1"}))
    assert boss.shun == NONE
    assert boss.decide(failed(node="n1")) == again(
        1.0, shun=frozenset({"n1"}), avoid=frozenset({"n1"})
    )
    assert boss.shun == {"n1"}


def test_failures_on_different_nodes_shun_none() -> None:
    boss = supervisor()
    boss.decide(failed(node="n1"))
    assert boss.decide(failed(node="n2")) == again(1.0, avoid=frozenset({"n1", "n2"}))


def test_failures_on_a_node_with_a_new_checkpoint_between_do_not_cost_it() -> None:
    boss = supervisor()
    boss.decide(failed(node="n1", step=2))
    assert boss.decide(failed(node="n1", step=4)) == again(avoid=frozenset({"n1"}))
    assert boss.shun == NONE


def test_a_lost_node_is_never_used_again() -> None:
    boss = supervisor(shun=("n9",))
    assert boss.decide(lost("n1", step=2)) == again(
        shun=frozenset({"n1", "n9"}), avoid=frozenset({"n1"})
    )
    boss.lose("n2")
    assert boss.shun == {"n1", "n2", "n9"}


def test_a_controller_whose_node_is_lost_goes_elsewhere_if_it_can() -> None:
    boss = supervisor(can_move=True, shun=("n9",))
    assert boss.decide(lost("n0", own=True)) == GoElsewhere(
        exclude=frozenset({"n0", "n9"}), reason="it failed"
    )
    assert isinstance(supervisor().decide(lost("n0", own=True)), StartAgain)


def test_moving_to_other_nodes_is_a_restart_too() -> None:
    boss = supervisor(can_move=True, max_restarts=0)
    assert isinstance(boss.decide(lost("n0", own=True)), Finish)


def test_another_lost_node_does_not_move_a_job() -> None:
    assert isinstance(supervisor(can_move=True).decide(lost("n1")), StartAgain)


def test_room_is_made_at_the_cost_of_no_restart() -> None:
    boss = supervisor(can_move=True, max_restarts=0)
    assert boss.decide(failed(step=7, room="preempted")) == GoElsewhere(
        exclude=NONE, reason="preempted"
    )


def test_a_job_that_cannot_move_makes_room_by_starting_again() -> None:
    decision: Decision = supervisor().decide(failed(room="preempted"))
    assert decision == again()


def test_a_node_that_fails_while_room_is_made_is_excluded() -> None:
    boss = supervisor(can_move=True)
    boss.decide(failed(node="n1"))
    assert boss.decide(failed(node="n1", room="preempted")) == GoElsewhere(
        exclude=frozenset({"n1"}), reason="preempted"
    )
