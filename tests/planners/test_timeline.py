"""Timelines of pipelines against closed forms, lower bounds and published bubbles."""

import csv
from pathlib import Path
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trimtab.core.errors import InputError
from trimtab.core.plan import PipelineSchedule
from trimtab.planners.timeline import PipelineWork, Timeline, fill, most_held, timeline

PUBLISHED = Path(__file__).parents[1] / "data" / "perf" / "zero_bubble_bubble_rates_theory.csv"

PROFILED_MS = {
    "1.5B": (18.522, 18.086, 9.337, 0.601),
    "6.2B": (29.718, 29.444, 19.927, 0.527),
    "14.6B": (11.347, 11.248, 8.132, 0.377),
    "28.3B": (10.419, 10.207, 7.715, 0.408),
}
"""F, B, W and sending, as arXiv:2401.10241 measured them (appendix)."""

SCHEDULES: tuple[PipelineSchedule, ...] = ("1f1b", "zb-h1", "zb-h2", "dualpipe")


def equal(pp: int, *, f: float = 1.0, b: float = 1.0, w: float = 1.0) -> PipelineWork:
    return PipelineWork(forward_s=(f,) * pp, backward_s=(b,) * pp, weight_s=(w,) * pp)


@pytest.mark.parametrize(
    "row", list(csv.DictReader(PUBLISHED.read_text().splitlines())), ids=str
)
def test_bubbles_are_those_published(row: dict[str, str]) -> None:
    """Equal where the step is shortest; longer steps send a little more than was published."""
    f, b, w, send_s = PROFILED_MS[row["model"]]
    pp, num_micro = int(row["stages"]), int(row["microbatches"])
    work = PipelineWork(
        forward_s=(f,) * pp, backward_s=(b,) * pp, weight_s=(w,) * pp, send_s=send_s
    )
    for column, schedule in (("1F1B", "1f1b"), ("ZB-H1", "zb-h1"), ("ZB-H2", "zb-h2")):
        found = timeline(cast(PipelineSchedule, schedule), work, num_micro_batches=num_micro)
        exact = num_micro == 3 * pp
        assert found.bubble_fraction == pytest.approx(
            float(row[column]), abs=6e-5 if exact else 6e-3
        )


@pytest.mark.parametrize("schedule", ["1f1b", "zb-h1", "zb-h2"])
@pytest.mark.parametrize("pp", [2, 4, 8])
def test_equal_stages_wait_as_the_closed_form_says(schedule: str, pp: int) -> None:
    schedule = cast(PipelineSchedule, schedule)
    f, b, w = 1.0, 0.9, 0.4
    num_micro = 4 * pp
    found = timeline(schedule, equal(pp, f=f, b=b, w=w), num_micro_batches=num_micro)
    waits = fill(schedule, pp=pp, vpp=1)
    bubble_s = waits.stages * (f + b + w) - waits.forwards * f - waits.weights * w
    assert found.step_s == pytest.approx(num_micro * (f + b + w) + bubble_s)
    assert max(found.peaks) == most_held(schedule, pp=pp, stage=0, vpp=1)


@pytest.mark.parametrize(("pp", "vpp"), [(2, 2), (4, 2), (4, 4), (8, 3)])
def test_interleaving_divides_the_bubble(pp: int, vpp: int) -> None:
    found = timeline("1f1b", equal(pp), num_micro_batches=4 * pp, vpp=vpp)
    assert found.step_s == pytest.approx(3 * (4 * pp + (pp - 1) / vpp))
    assert max(found.peaks) / vpp == pytest.approx(
        most_held("1f1b", pp=pp, stage=0, vpp=vpp), abs=1 / vpp
    )


def test_dualpipe_is_near_its_authors_bubble() -> None:
    f, b, w = 1.0, 1.0, 0.8
    found = timeline("dualpipe", equal(8, f=f, b=b, w=w), num_micro_batches=32)
    waits = fill("dualpipe", pp=8, vpp=1)
    bubble_s = waits.stages * (f + b + w) - waits.forwards * f - waits.weights * w
    assert found.step_s - 32 * (f + b + w) == pytest.approx(bubble_s, rel=0.5)
    assert max(found.peaks) <= 9


def check(found: Timeline, work: PipelineWork, scales: list[float]) -> None:
    """Nothing overlaps, nothing starts before what it needs, nothing is left out."""
    pp = work.num_stages
    ends: dict[tuple[str, int, int], float] = {}
    free = [0.0] * pp
    for operation in found.operations:
        assert operation.start_s >= free[operation.rank] - 1e-9
        free[operation.rank] = operation.end_s
        ends[operation.kind, operation.micro_batch, operation.stage] = operation.end_s
    for operation in found.operations:
        kind, micro, stage = operation.kind, operation.micro_batch, operation.stage
        needed = {
            "F": ("F", micro, stage - 1),
            "B": ("B", micro, stage + 1) if stage < pp - 1 else ("F", micro, stage),
            "W": ("B", micro, stage),
        }[kind]
        if needed[2] >= 0:
            assert operation.start_s >= ends[needed] - 1e-9
    total = sum(scales) * sum(work.stage_s)
    assert sum(found.busy_s) == pytest.approx(total)
    assert found.step_s >= sum(scales) * max(work.stage_s) - 1e-9 or pp > 1
    assert 0 <= found.bubble_fraction < 1


seconds = st.floats(0.1, 5.0)


@given(data=st.data(), schedule=st.sampled_from(SCHEDULES), half=st.integers(1, 3))
def test_unequal_stages_and_micro_batches_keep_every_rule(
    data: st.DataObject, schedule: PipelineSchedule, half: int
) -> None:
    pp = 2 * half
    rows = st.tuples(*[seconds] * pp)
    work = PipelineWork(
        forward_s=data.draw(rows),
        backward_s=data.draw(rows),
        weight_s=data.draw(rows),
        send_s=data.draw(st.floats(0, 1)),
    )
    scales = data.draw(st.lists(seconds, min_size=2 * pp, max_size=3 * pp))
    found = timeline(schedule, work, num_micro_batches=len(scales), scales=scales)
    check(found, work, scales)
    if schedule == "1f1b":
        way_s = sum(work.forward_s) + 2 * (pp - 1) * work.send_s
        way_s += sum(work.backward_s) + sum(work.weight_s)
        assert found.step_s >= max(scales) * (way_s - 2 * (pp - 1) * work.send_s) - 1e-9
        assert found.step_s >= sum(scales) * work.stage_s[0] - 1e-9


@pytest.mark.parametrize(
    ("schedule", "pp", "vpp", "num_micro", "message"),
    [
        ("zb-h1", 4, 2, 8, r"layout\.vpp: only the schedule 1f1b interleaves"),
        ("1f1b", 4, 2, 6, r"layout\.vpp: interleaving needs pp = 4 to divide"),
        ("dualpipe", 3, 1, 6, r"layout\.schedule: dualpipe needs an even pp, got 3"),
        ("dualpipe", 4, 1, 6, r"layout\.schedule: dualpipe needs at least 2 pp = 8"),
        ("1f1b", 4, 1, 0, r"num_micro_batches: expected a whole number >= 1"),
    ],
)
def test_what_a_schedule_cannot_do_is_refused(
    schedule: str, pp: int, vpp: int, num_micro: int, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        timeline(
            cast(PipelineSchedule, schedule), equal(pp), num_micro_batches=num_micro, vpp=vpp
        )


def test_work_says_which_field_is_wrong() -> None:
    with pytest.raises(InputError, match=r"pipeline\.weight_s: expected 2 stages"):
        PipelineWork(forward_s=(1.0, 1.0), backward_s=(1.0, 1.0), weight_s=(1.0,))
    with pytest.raises(InputError, match=r"pipeline\.forward_s: expected a finite number"):
        equal(2, f=float("nan"))
    with pytest.raises(InputError, match="scales: expected 4 numbers, got 1"):
        timeline("1f1b", equal(2), num_micro_batches=4, scales=[1.0])
