import pytest

from trimtab.core.errors import printable
from trimtab.core.events import (
    CheckpointSaved,
    EvaluationFinished,
    RankExited,
    RankStarted,
    RunResumed,
    StepPlanned,
    StepSummarized,
)
from trimtab.core.plan import SequenceGroup, StagePath, StepPlan, Wave
from trimtab.orchestrator.cli.watched import Watched


def rank_started(rank: int, peak: float | None = None) -> RankStarted:
    return RankStarted(
        time_s=1.0,
        rank=rank,
        host="here",
        pid=1,
        device="cpu",
        peak_flop_per_s=peak,
        peak_note="",
    )


def summarized(step: int, *, loss: float = 2.0, step_s: float = 0.5) -> StepSummarized:
    return StepSummarized(
        time_s=1.0,
        step=step,
        loss=loss,
        num_tokens=1_000,
        model_flops=1e9,
        step_s=step_s,
        gradient_norm=1.0,
        learning_rate=1e-3,
    )


def plan(*waves: tuple[int, ...]) -> StepPlan:
    """A plan whose waves have groups of these degrees."""
    built = []
    for degrees in waves:
        rank, groups = 0, []
        for degree in degrees:
            ranks = tuple(range(rank, rank + degree))
            groups.append(SequenceGroup(ranks=ranks, sequences=(rank,)))
            rank += degree
        built.append(Wave(groups=tuple(groups)))
    return StepPlan(
        waves=tuple(built),
        paths=tuple(StagePath(stages=(0,)) for _ in built),
        step_s=1.0,
        lower_bound_s=1.0,
        method="heuristic",
        solve_s=0.1,
        reason="",
    )


@pytest.fixture
def watched() -> Watched:
    return Watched(60, 2)


def test_groups_are_written_wave_by_wave() -> None:
    assert plan((4, 2, 2, 1, 1, 1, 1)).groups_text == "<4, 2x2, 1x4>"
    assert plan((2,), (1, 1)).groups_text == "<2> <1x2>"
    assert plan((1,), (1,), (1,), (1,), (1,)).groups_text == "<1> <1> <1> +2 waves"


def test_the_phases_of_an_attempt(watched: Watched) -> None:
    assert watched.phase == "starting ranks (0 of 2 are up)"
    watched.handle(rank_started(0))
    watched.handle(rank_started(1))
    assert watched.phase == "planning"
    watched.handle(StepPlanned(time_s=1.0, step=1, plan=plan((2,)), lengths=(1,)))
    assert watched.phase == "first step"
    watched.handle(summarized(1))
    assert (watched.phase, watched.step) == ("training", 1)
    watched.handle(RankExited(time_s=1.0, rank=1, exit_code=1, signal=None, last_words=""))
    assert watched.phase == "stopping"


def test_the_line_holds_the_last_steps_figures_and_groups(watched: Watched) -> None:
    watched.handle(StepPlanned(time_s=1.0, step=1, plan=plan((2,), (1, 1)), lengths=(1,)))
    watched.handle(StepPlanned(time_s=1.0, step=2, plan=plan((1, 1)), lengths=(1,)))
    watched.handle(summarized(1, loss=3.25))
    assert watched.line() == "loss 3.2500  500 ms/step  2 k tokens/s  <2> <1x2>"
    watched.handle(summarized(2))
    assert watched.line().endswith("<1x2>")


def test_mfu_is_shown_only_where_every_peak_is_known(watched: Watched) -> None:
    watched.handle(rank_started(0, peak=1e10))
    watched.handle(summarized(1))
    assert watched.mfu is None
    watched.handle(rank_started(1, peak=1e10))
    assert watched.mfu == pytest.approx(0.1)
    assert "MFU 10.0%" in watched.line()
    watched.handle(rank_started(1, peak=None))
    assert watched.mfu is None


def test_a_resumed_attempt_starts_where_the_checkpoint_ends(watched: Watched) -> None:
    watched.handle(RunResumed(time_s=1.0, step=20, path="x"))
    assert watched.step == 20


def test_the_closing_figures(watched: Watched) -> None:
    for step, step_s in ((1, 4.0), (2, 1.0), (3, 2.0)):
        watched.handle(summarized(step, loss=5.0 - step, step_s=step_s))
    watched.handle(EvaluationFinished(time_s=1.0, step=3, loss=2.5, num_tokens=10))
    watched.handle(CheckpointSaved(time_s=1.0, step=3, path="/x", seconds=1.0, num_bytes=1))
    assert dict(watched.figures()) == {
        "loss": "4.0000 at step 1, 2.0000 at 3",
        "median step": "2 s",
        "held-out loss": "2.5000 at step 3",
        "checkpoint": "step 3, /x",
    }


def test_text_cannot_steer_the_terminal() -> None:
    assert printable("a\x1b[31m\nb\tc") == "a\N{REPLACEMENT CHARACTER}[31m b c"
