"""Reports are functions of events: each figure is checked against one worked out by hand."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from trimtab.core import serde
from trimtab.core.cluster import ClusterSpec, GpuSpec, Link, NicSpec, NodeSpec
from trimtab.core.events import (
    AnyEvent,
    AttemptStarted,
    CheckpointSaved,
    CoefficientsRefined,
    EvaluationFinished,
    JobFinished,
    RankStarted,
    RunResumed,
    StepFinished,
    StepPlanned,
    StepSummarized,
)
from trimtab.core.job import (
    DataSource,
    DataSpec,
    JobHandle,
    JobSpec,
    JobState,
    Request,
    StepPlanningSpec,
    TrainingSpec,
)
from trimtab.core.model import ModelSpec
from trimtab.core.plan import (
    Forecast,
    JobPlan,
    Layout,
    Placement,
    PlanMethod,
    SequenceGroup,
    StageMemory,
    StagePath,
    StepPlan,
    TimePart,
    Wave,
)
from trimtab.core.profile import DegreeBandwidth, StepProfile
from trimtab.monitor.store import EventStore
from trimtab.orchestrator.cli.main import main
from trimtab.orchestrator.report import (
    RunRecord,
    RunReport,
    compare,
    read_record,
    summarize,
)
from trimtab.orchestrator.rundir import RunDir, RunState

MIXED = (((0, 1), (0,)), ((2,), (1,)), ((3,), (2,)))
WIDE = (((0, 1, 2, 3), (0, 1, 2)),)


HANDLE = JobHandle(scheduler="local", job_id="20261120-161500-demo")


def request(*, num_steps: int = 10) -> Request:
    gpu = GpuSpec(name="test CPU", memory_bytes=2**33, memory_bytes_per_s=1e10)
    nic = NicSpec(kind="loopback", count=1, bytes_per_s=1e9, latency_s=1e-5)
    node = NodeSpec(
        name="here",
        count=1,
        gpu=gpu,
        gpus_per_node=4,
        intra_node=Link(bytes_per_s=1e9, latency_s=1e-5),
        nics=(nic,),
        island="here",
    )
    model = ModelSpec(
        name="tiny",
        num_layers=2,
        hidden=64,
        ffn_hidden=256,
        num_heads=4,
        num_kv_heads=4,
        head_dim=16,
        vocab=256,
        max_seq_tokens=1024,
    )
    job = JobSpec(
        name="demo",
        model=model,
        cluster=ClusterSpec(name="here", nodes=(node,)),
        num_ranks=4,
        data=DataSpec(sources=(DataSource(path="stdlib:"),)),
        training=TrainingSpec(num_steps=num_steps, global_batch_seqs=3, precision="fp32"),
        step_planning=StepPlanningSpec(grouping="planned"),
    )
    return Request(
        scheduler="local",
        run_dir="/runs/20261120-161500-demo",
        argv=("python",),
        environment=(),
        num_ranks=4,
        num_nodes=1,
        job=job,
        layout=Layout(dp=4),
    )


def job_plan(*, step_s: float) -> JobPlan:
    memory = StageMemory(
        stage=0,
        weights_bytes=1,
        gradients_bytes=1,
        optimizer_bytes=1,
        activations_bytes=1,
        workspace_bytes=1,
        capacity_bytes=10,
    )
    forecast = Forecast(
        step_s=step_s,
        parts=(),
        num_tokens=600,
        model_flops=1e9,
        memory=(memory,),
        precision="fp32",
        peak_flop_per_s=None,
        num_ranks=4,
        bubble_fraction=0.0,
        evidence="analytic",
    )
    return JobPlan(
        layout=Layout(dp=4),
        placement=Placement(rank_nodes=("here-0",) * 4, stage_layers=(2,)),
        forecast=forecast,
        alternatives=(),
        rejected=(),
        reason="the only one",
    )


def planned(
    step: int,
    *,
    step_s: float = 1.0,
    groups: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...] = MIXED,
    lengths: tuple[int, ...] = (400, 100, 100),
    method: PlanMethod = "heuristic",
) -> StepPlanned:
    wave = Wave(groups=tuple(SequenceGroup(ranks=r, sequences=s) for r, s in groups))
    plan = StepPlan(
        waves=(wave,),
        paths=(StagePath(stages=(0,)),),
        step_s=step_s,
        lower_bound_s=step_s,
        method=method,
        solve_s=0.01,
        reason="",
    )
    return StepPlanned(time_s=100.0, step=step, plan=plan, lengths=lengths)


def finished(
    step: int, step_s: float, *, loss: float = 2.0, at_s: float = 100.0
) -> StepSummarized:
    return StepSummarized(
        time_s=at_s,
        step=step,
        loss=loss,
        num_tokens=600,
        model_flops=4e9,
        step_s=step_s,
        gradient_norm=1.0,
        learning_rate=1e-3,
    )


def rank_step(step: int, rank: int, *, forward_s: float, waiting_s: float) -> StepFinished:
    parts = (
        TimePart(name="forward", seconds=forward_s),
        TimePart(name="waiting", seconds=waiting_s),
    )
    return StepFinished(
        time_s=100.0,
        step=step,
        rank=rank,
        step_s=forward_s + waiting_s,
        parts=parts,
        num_tokens=150,
    )


def rank_started(rank: int, *, peak: float | None, note: str = "datasheet") -> RankStarted:
    return RankStarted(
        time_s=1.0,
        rank=rank,
        host="here",
        pid=rank,
        device="test CPU",
        peak_flop_per_s=peak,
        peak_note=note,
    )


def attempt(number: int, *, at_s: float = 0.0) -> AttemptStarted:
    return AttemptStarted(time_s=at_s, attempt=number, num_ranks=4, layout="tp1 pp1 dp4")


def report_of(
    *events: AnyEvent, forecast_s: float = 1.0, submitted_s: float | None = None
) -> RunReport:
    return summarize(
        RunRecord(
            handle=HANDLE,
            request=request(),
            plan=job_plan(step_s=forecast_s),
            events=events,
            submitted_s=submitted_s,
        )
    )


def test_groups_are_compared_with_the_costs_in_force_at_their_step() -> None:
    def profile(linear_s: float) -> StepProfile:
        return StepProfile(
            name="tiny",
            num_gpus=4,
            gpus_per_node=4,
            quadratic_s=0.0,
            linear_s=linear_s,
            fixed_s=0.0,
            alltoall_bytes_per_token=0.0,
            bandwidths=(DegreeBandwidth(degree=2, bytes_per_s=1e9),),
            token_cap=1000,
        )

    def refined(step: int, linear_s: float) -> CoefficientsRefined:
        return CoefficientsRefined(
            time_s=1.0, step=step, profile=profile(linear_s), num_groups=3,
            error_before=0.5, error_after=0.0,
        )  # fmt: skip

    steps: list[AnyEvent] = []
    for step in range(1, 6):
        steps.append(planned(step))
        for rank in range(4):
            timed = rank_step(step, rank, forward_s=1, waiting_s=0)
            steps.append(replace(timed, waves_s=(0.2,)))
        steps.append(finished(step, 1.0))
    events: list[AnyEvent] = [refined(1, 0.001), *steps[:18], refined(4, 0.002), *steps[18:]]
    plans = report_of(attempt(1), *events).plans
    assert plans is not None
    assert plans.num_refinements == 2
    wide, single = {each.degree: each for each in plans.groups}[2], plans.groups[0]
    assert wide.num_groups == 3
    assert wide.ratio == pytest.approx(0.002 * 400 / 2 / 0.2)
    assert single.ratio == pytest.approx(0.002 * 100 / 0.2)
    again = report_of(attempt(1), *events, attempt(2), *steps[12:]).plans
    assert again is not None
    assert (
        again.groups == ()
    )  # a restart plans with the job's own costs, which there are none of


def test_times_leave_the_first_two_steps_out_and_say_so() -> None:
    steps = [finished(i + 1, s) for i, s in enumerate((50.0, 20.0, 1.0, 3.0, 2.0))]
    times = report_of(attempt(1), *steps).times
    assert times is not None
    assert (times.num_steps, times.num_warmup_steps) == (3, 2)
    assert times.median_step_s == 2.0
    assert times.p90_step_s == 3.0
    assert times.tokens_per_s == 300.0


def test_a_run_of_warmup_steps_alone_is_measured_on_them() -> None:
    times = report_of(attempt(1), finished(1, 5.0), finished(2, 3.0)).times
    assert times is not None
    assert (times.num_steps, times.num_warmup_steps, times.median_step_s) == (2, 0, 4.0)


def test_p90_is_the_nearest_rank() -> None:
    steps = [finished(i, 1.0) for i in (1, 2)]
    steps += [finished(i + 2, float(i)) for i in range(1, 11)]
    times = report_of(attempt(1), *steps).times
    assert times is not None
    assert times.p90_step_s == 9.0


def test_a_step_seen_twice_counts_once_as_it_ran_last() -> None:
    report = report_of(
        attempt(1),
        *(finished(i, 1.0, loss=float(9 - i)) for i in (1, 2, 3, 4)),
        attempt(2),
        RunResumed(time_s=50.0, step=3, path="checkpoints/3"),
        finished(4, 7.0, loss=4.5),
        finished(5, 7.0, loss=4.0),
        finished(6, 2.0, loss=3.5),
    )
    assert report.num_steps == 6
    assert report.num_attempts == 2
    assert (report.loss.first, report.loss.last) == (8.0, 3.5)
    assert report.times is not None
    assert report.times.num_steps == 2, "steps 3 and 6; 4 and 5 warm the second attempt up"
    assert report.times.median_step_s == 1.5


def test_parts_are_means_over_ranks_and_measured_steps() -> None:
    times = report_of(
        attempt(1),
        finished(1, 9.0),
        finished(2, 9.0),
        finished(3, 4.0),
        rank_step(1, 0, forward_s=9.0, waiting_s=0.0),
        rank_step(3, 0, forward_s=3.0, waiting_s=1.0),
        rank_step(3, 1, forward_s=2.0, waiting_s=2.0),
    ).times
    assert times is not None
    means = {part.name: part.seconds for part in times.parts}
    assert means["forward"] == 2.5
    assert means["waiting"] == 1.5
    assert means["backward"] == 0.0


def test_mfu_is_model_flops_over_time_and_all_peaks() -> None:
    ranks = [rank_started(rank, peak=1e9) for rank in range(4)]
    times = report_of(
        attempt(1), *ranks, finished(1, 1.0), finished(2, 1.0), finished(3, 2.0)
    ).times
    assert times is not None
    assert times.mfu == 0.5, "4e9 FLOPs in 2 s on 4 ranks of 1e9 FLOP/s"
    assert "fp32 peak of 4 ranks (test CPU) together 4 GFLOP/s: datasheet" in times.mfu_note
    assert "PaLM" in times.mfu_note


def test_a_run_that_goes_on_with_fewer_ranks_is_measured_on_those_of_each_step() -> None:
    four = [rank_started(rank, peak=1e9) for rank in range(4)]
    first = [finished(step, 1.0) for step in range(1, 5)]
    stale = rank_step(6, 3, forward_s=9.0, waiting_s=0.0)  # the others never finished it
    second = [finished(step, 2.0) for step in range(4, 8)]
    counted = rank_step(6, 0, forward_s=2.0, waiting_s=0.0)
    report = report_of(
        attempt(1), *four, *first, stale, attempt(2), *four[:2], *second, counted
    )
    assert report.times is not None
    assert report.num_attempts == 2
    assert report.times.num_steps == 3, "step 3 of the first attempt, 6 and 7 of the second"
    assert report.times.mfu == 1.0, "4e9 FLOPs in 1 s on 4 ranks, in 2 s on 2"
    assert "peak of 2 or 4 ranks" in report.times.mfu_note
    parts = {part.name: part.seconds for part in report.times.parts}
    assert parts["forward"] == 2.0


def test_mfu_is_blank_with_the_reason_where_one_peak_is_unknown() -> None:
    ranks = [rank_started(0, peak=1e9), rank_started(1, peak=None, note="no datasheet peak")]
    times = report_of(attempt(1), *ranks, finished(1, 1.0)).times
    assert times is not None
    assert times.mfu is None
    assert times.mfu_note == "test CPU: no datasheet peak"


def test_plans_are_counted_and_their_forecasts_measured() -> None:
    report = report_of(
        attempt(1),
        planned(1),
        planned(2, method="fallback"),
        planned(3, step_s=1.0),
        planned(4, step_s=4.0, groups=WIDE),
        *(finished(i, 2.0) for i in (1, 2, 3, 4)),
        forecast_s=1.5,
    )
    plans = report.plans
    assert plans is not None
    assert plans.num_plans == 4
    assert plans.mixed_fraction == 0.75
    assert plans.waves_per_step == 1.0
    assert plans.num_fallbacks == 1
    assert plans.forecast_ratio == 0.75
    assert plans.step_error_fraction == 0.75, "steps 3 and 4 are off by 50 % and 100 %"


def test_goodput_counts_lost_steps_and_the_time_before_the_start_as_lost() -> None:
    events = (
        attempt(1, at_s=10.0),
        finished(1, 4.0, at_s=14.0),
        finished(1, 6.0, at_s=30.0),
    )
    assert report_of(*events, submitted_s=6.0).goodput_fraction == 0.25
    assert report_of(*events).goodput_fraction == 0.3


def test_held_out_losses_and_checkpoints_are_reported_in_order() -> None:
    report = report_of(
        attempt(1),
        EvaluationFinished(time_s=1.0, step=0, loss=5.5, num_tokens=900),
        CheckpointSaved(time_s=2.0, step=5, path="a", seconds=1.0, num_bytes=10),
        EvaluationFinished(time_s=3.0, step=10, loss=3.5, num_tokens=900),
        CheckpointSaved(time_s=4.0, step=10, path="b", seconds=1.0, num_bytes=10),
    )
    assert (report.loss.held_out_first, report.loss.held_out_last) == (5.5, 3.5)
    assert report.loss.held_out_tokens == 900
    assert report.checkpoints == (5, 10)
    assert report.times is None
    assert report.plans is None


def test_the_state_is_that_of_the_last_attempt() -> None:
    failed = JobFinished(time_s=9.0, state=JobState.FAILED, reason="rank 2 was killed")
    done = JobFinished(time_s=20.0, state=JobState.SUCCEEDED, reason="all steps done")
    assert report_of(attempt(1), failed).state == "failed"
    assert report_of(attempt(1), failed).reason == "rank 2 was killed"
    assert report_of(attempt(1), failed, attempt(2)).state == "unfinished"
    assert report_of(attempt(1), failed, attempt(2), done).state == "succeeded"


def record_of(*events: AnyEvent) -> RunRecord:
    return RunRecord(
        handle=HANDLE,
        request=request(),
        plan=job_plan(step_s=1.0),
        events=events,
        submitted_s=None,
    )


def test_the_speedup_is_the_median_of_the_ratios_of_like_steps() -> None:
    times = ((9.0, 9.0), (9.0, 9.0), (1.0, 2.0), (2.0, 3.0), (4.0, 3.0))
    first = [e for i, (s, _) in enumerate(times, 1) for e in (planned(i), finished(i, s))]
    second = [e for i, (_, s) in enumerate(times, 1) for e in (planned(i), finished(i, s))]
    comparison = compare(record_of(attempt(1), *first), record_of(attempt(1), *second))
    assert comparison.same_batches
    assert comparison.speedup_ratio == 1.5
    assert comparison.total_ratio == pytest.approx(8 / 7)
    assert (comparison.faster_steps, comparison.measured_steps) == (2, 3)


def test_other_lengths_are_another_batch() -> None:
    first = record_of(planned(1), finished(1, 1.0))
    second = record_of(planned(1, lengths=(400, 100, 101)), finished(1, 1.0))
    assert not compare(first, second).same_batches
    assert not compare(first, record_of(finished(1, 1.0))).same_batches


def test_the_loss_difference_is_the_largest_over_common_steps() -> None:
    first = record_of(finished(1, 1.0, loss=5.0), finished(2, 1.0, loss=4.0))
    second = record_of(finished(1, 1.0, loss=5.25), finished(2, 1.0, loss=3.5))
    comparison = compare(first, second)
    assert comparison.num_common_steps == 2
    assert comparison.max_loss_difference == 0.5


def test_runs_without_a_common_step_have_no_ratio() -> None:
    comparison = compare(record_of(finished(1, 1.0)), record_of(finished(2, 1.0)))
    assert comparison.num_common_steps == 0
    assert comparison.speedup_ratio is None
    assert comparison.max_loss_difference is None
    assert not comparison.same_batches


def test_a_report_is_a_json_document_that_round_trips() -> None:
    report = report_of(attempt(1), planned(1), finished(1, 1.0))
    assert serde.from_json(RunReport, serde.to_json(report)) == report
    assert json.loads(serde.to_json(report))["type"] == "RunReport"


def store_run(root: Path, job_id: str, *events: AnyEvent) -> str:
    stored = replace(request(), run_dir=str(root / job_id))
    state = RunState(
        name="demo",
        num_ranks=4,
        state=JobState.SUCCEEDED,
        reason="all steps done",
        attempt=1,
        submitted_s=0.0,
    )
    run = RunDir.create(stored, plan=job_plan(step_s=1.0), state=state)
    with EventStore.create(run.events) as store:
        store.append(events)
    return str(run.path)


def some_events(*, step_s: float) -> list[AnyEvent]:
    ranks = [rank_started(0, peak=None, note="no datasheet [sic]")]
    steps = [e for i in range(1, 6) for e in (planned(i), finished(i, step_s, at_s=10.0 * i))]
    return [attempt(1), *ranks, *steps, rank_step(5, 0, forward_s=1.0, waiting_s=1.0)]


def test_a_stored_run_reads_as_what_was_recorded(tmp_path: Path) -> None:
    path = store_run(tmp_path, "20261120-161500-demo", *some_events(step_s=2.0))
    record = read_record(RunDir.open(Path(path)))
    assert record.events == tuple(some_events(step_s=2.0))
    assert summarize(record).goodput_fraction == 0.1, "5 steps of 2 s in 100 s"


def test_the_report_is_printed_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = store_run(tmp_path, "20261120-161500-demo", *some_events(step_s=2.0))
    assert main(["report", path]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "5 of 10 on 4 ranks" in shown
    assert "median 2 s, p90 2 s, 300 tokens/s over 3 steps (2 warm-up steps" in shown
    assert "blank: test CPU: no datasheet [sic]" in shown
    assert "forward │ ████████████ 50% 1 s" in shown


def test_the_report_prints_one_json_document(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = store_run(tmp_path, "20261120-161500-demo", *some_events(step_s=2.0))
    assert main(["report", path, "--json"]) == 0
    assert serde.from_json(RunReport, capsys.readouterr().out).num_steps == 5


def test_two_runs_are_compared_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fast = store_run(tmp_path, "20261120-161500-demo", *some_events(step_s=2.0))
    slow = store_run(tmp_path, "20261120-161501-demo", *some_events(step_s=3.0))
    assert main(["compare", fast, slow]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Same batches in all 5 common steps." in shown
    assert "is 1.50 times as fast" in shown
    assert "faster in 3 of 3 steps" in shown


def test_a_run_compared_with_itself_is_told_to_be_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = store_run(tmp_path, "20261120-161500-demo", *some_events(step_s=2.0))
    assert main(["compare", path, path]) == 0
    shown = capsys.readouterr().out
    assert "Both are the same run." in shown
    assert "times as fast" not in shown


def test_a_run_that_does_not_exist_is_one_line_and_code_102(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(tmp_path / "nothing")]) == 102
    assert len(capsys.readouterr().err.splitlines()) == 1
