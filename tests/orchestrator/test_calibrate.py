"""Fitting a run's own groups; the probing run itself is in test_demo and by hand."""

from dataclasses import replace

import pytest

from trimtab.core.events import AnyEvent, StepFinished, StepPlanned
from trimtab.core.job import JobSpec
from trimtab.core.plan import SequenceGroup, StagePath, StepPlan, TimePart, Wave
from trimtab.orchestrator.calibrate import group_samples, probing_job


def planned(step: int) -> StepPlanned:
    plan = StepPlan(
        waves=(
            Wave(
                groups=(
                    SequenceGroup(ranks=(0,), sequences=(1,)),
                    SequenceGroup(ranks=(1,), sequences=(0,)),
                )
            ),
            Wave(groups=(SequenceGroup(ranks=(0, 1), sequences=(2,)),)),
        ),
        paths=(StagePath(stages=(0,)),) * 2,
        step_s=1.0,
        lower_bound_s=1.0,
        method="probe",
        solve_s=0.0,
        reason="",
    )
    return StepPlanned(time_s=0.0, step=step, plan=plan, lengths=(10, 20, 30))


def finished(step: int, rank: int, *waves_s: float) -> StepFinished:
    return StepFinished(
        time_s=0.0,
        step=step,
        rank=rank,
        step_s=sum(waves_s),
        parts=(TimePart(name="forward", seconds=sum(waves_s)),),
        num_tokens=30,
        waves_s=waves_s,
    )


def test_a_groups_time_is_that_of_its_last_rank_to_arrive() -> None:
    events: list[AnyEvent] = []
    for step in (1, 2, 3):
        events += [planned(step), finished(step, 0, 0.2, 0.9), finished(step, 1, 0.1, 0.5)]
    samples = [(s.degree, s.lengths, s.seconds) for s in group_samples(events)]
    assert samples == [(1, (20,), 0.2), (1, (10,), 0.1), (2, (30,), 0.5)]


def test_a_step_that_did_not_finish_everywhere_is_left_out() -> None:
    events: list[AnyEvent] = [planned(step) for step in (1, 2, 3)]
    events.append(finished(3, 0, 0.2, 0.9))
    assert [sample.degree for sample in group_samples(events)] == [1]


def test_the_probing_job_tries_every_degree_of_both_kinds_three_times(
    small_job: JobSpec,
) -> None:
    four = replace(small_job, num_ranks=4)
    probe = probing_job(four)
    assert probe.training.num_steps == 2 + 3 * 6
    assert probe.step_planning.grouping == "probe"
    assert probe.profile is not None
    assert probe.profile.degrees == (1, 2, 3, 4)


@pytest.mark.parametrize(("num_ranks", "num_options"), [(1, 1), (2, 3)])
def test_few_ranks_can_be_measured_too(
    small_job: JobSpec, num_ranks: int, num_options: int
) -> None:
    probe = probing_job(replace(small_job, num_ranks=num_ranks))
    assert probe.training.num_steps == 2 + 3 * num_options


def test_a_profile_without_a_ring_is_probed_with_one(small_job: JobSpec) -> None:
    four = replace(small_job, num_ranks=4)
    known = probing_job(four).profile
    assert known is not None
    assert known.ring is not None
    probe = probing_job(replace(four, profile=replace(known, ring=None)))
    assert probe.profile == known
