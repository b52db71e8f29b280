"""Runs that look like the demo's, written as the controller writes them.

`python tests/orchestrator/web/conftest.py RUNS_DIR [STEPS]` leaves one for a look at the page:
`trimtab dashboard --runs-dir RUNS_DIR`. With `--live` it goes on, two steps a second.
"""

import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from trimtab.core.cluster import ClusterSpec, GpuSpec, Link, NicSpec, NodeSpec
from trimtab.core.events import (
    STEP_PARTS,
    Alert,
    AnyEvent,
    AttemptStarted,
    CheckpointSaved,
    EvaluationFinished,
    JobFinished,
    RankProgressed,
    RankStarted,
    StepFinished,
    StepPlanned,
    StepSummarized,
)
from trimtab.core.job import (
    DataSource,
    DataSpec,
    JobSpec,
    JobState,
    Request,
    ScriptSpec,
    TrainingSpec,
)
from trimtab.core.model import ModelSpec
from trimtab.core.plan import (
    Forecast,
    JobPlan,
    Layout,
    Placement,
    SequenceGroup,
    StageMemory,
    StagePath,
    StepPlan,
    TimePart,
    Wave,
)
from trimtab.core.profile import DegreeBandwidth, StepProfile
from trimtab.monitor.store import EventStore
from trimtab.orchestrator.liveness import ProcessId
from trimtab.orchestrator.rundir import RunDir, RunState
from trimtab.planners.costs import group_s

BEGAN_S = 1_790_000_000.0
RANKS = (0, 1, 2, 3)
LAYOUT = Layout(dp=4)
NO_PEAK = "the peak of 'CPU process' in fp32 is unknown: the cluster file gives none"
PROFILE = StepProfile(
    name="laptop",
    num_gpus=4,
    gpus_per_node=4,
    quadratic_s=6e-9,
    linear_s=8e-5,
    fixed_s=0.02,
    alltoall_bytes_per_token=4_096.0,
    bandwidths=(
        DegreeBandwidth(degree=2, bytes_per_s=8e8),
        DegreeBandwidth(degree=4, bytes_per_s=6e8),
    ),
    token_cap=8_192,
    step_fixed_s=0.05,
)


def request(root: Path, *, job_id: str, num_steps: int) -> Request:
    gpu = GpuSpec(name="CPU process", memory_bytes=2**32, memory_bytes_per_s=2e10)
    nic = NicSpec(kind="loopback", count=1, bytes_per_s=1e9, latency_s=2e-5)
    node = NodeSpec(
        name="laptop",
        count=1,
        gpu=gpu,
        gpus_per_node=4,
        intra_node=Link(bytes_per_s=1e9, latency_s=2e-5),
        nics=(nic,),
        island="laptop",
    )
    model = ModelSpec(
        name="demo-1m",
        num_layers=4,
        hidden=128,
        ffn_hidden=512,
        num_heads=4,
        num_kv_heads=4,
        head_dim=32,
        vocab=256,
        max_seq_tokens=8_192,
    )
    job = JobSpec(
        name="demo",
        model=model,
        cluster=ClusterSpec(name="this laptop", nodes=(node,)),
        num_ranks=4,
        data=DataSpec(sources=(DataSource(path="stdlib:"),)),
        training=TrainingSpec(num_steps=num_steps, global_batch_seqs=12, precision="fp32"),
        layout=LAYOUT,
        profile=PROFILE,
    )
    return Request(
        scheduler="local",
        run_dir=str(root / job_id),
        argv=("python", "-m", "trimtab.orchestrator.rank"),
        environment=(),
        num_ranks=4,
        num_nodes=1,
        job=job,
        layout=LAYOUT,
    )


def job_plan() -> JobPlan:
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
        step_s=1.4,
        parts=(TimePart(name="forward", seconds=1.4),),
        num_tokens=30_000,
        model_flops=1e12,
        memory=(memory,),
        precision="fp32",
        peak_flop_per_s=None,
        num_ranks=4,
        bubble_fraction=0.0,
        evidence="analytic",
    )
    placement = Placement(rank_nodes=("laptop",) * 4, stage_layers=(4,))
    return JobPlan(
        layout=LAYOUT,
        placement=placement,
        forecast=forecast,
        alternatives=(),
        rejected=(),
        reason="the only layout asked for",
    )


def run_state(state: JobState = JobState.RUNNING, *, reason: str = "") -> RunState:
    return RunState(
        name="demo",
        num_ranks=4,
        state=state,
        reason=reason,
        attempt=1,
        submitted_s=BEGAN_S,
        started_s=BEGAN_S + 1,
        finished_s=BEGAN_S + 400 if state.is_final else None,
        controller=ProcessId.own(),
    )


def start_events(
    *, attempt: int = 1, peak: float | None = None, num_ranks: int = 4
) -> list[AnyEvent]:
    first = AttemptStarted(
        time_s=BEGAN_S,
        attempt=attempt,
        num_ranks=num_ranks,
        layout=str(replace(LAYOUT, dp=num_ranks)),
        nodes=("n1", "n2") if attempt == 1 else ("n1",),
    )
    ranks = [
        RankStarted(
            time_s=BEGAN_S + 18,
            rank=rank,
            host="laptop",
            pid=4_000 + rank,
            device="CPU process" if peak is None else "NVIDIA H100 SXM",
            peak_flop_per_s=peak,
            peak_note=NO_PEAK if peak is None else "datasheet",
        )
        for rank in RANKS[:num_ranks]
    ]
    return [first, *ranks]


def step_plan(dice: random.Random) -> tuple[StepPlan, tuple[int, ...]]:
    lengths = tuple(min(8_192, int(dice.lognormvariate(7.0, 1.1)) + 40) for _ in range(12))
    order = sorted(range(12), key=lambda index: -lengths[index])
    shapes = [((0, 1, 2, 3),), ((0, 1), (2,), (3,)), ((0, 1), (2, 3)), ((0,), (1,), (2, 3))]
    first = 0 if lengths[order[0]] > 3_000 else 1
    chosen = [shapes[first], *(dice.choice(shapes[1:]) for _ in range(dice.randint(1, 3)))]
    slots = [(wave, ranks) for wave, shape in enumerate(chosen) for ranks in shape]
    sequences: list[list[int]] = [[] for _ in slots]
    for index in order:
        idle = [i for i, taken in enumerate(sequences) if not taken]
        best = (
            idle[0]
            if idle
            else min(range(len(slots)), key=lambda i: _load(i, slots, sequences, lengths))
        )
        sequences[best].append(index)
    waves: list[Wave] = []
    seconds = PROFILE.step_fixed_s
    for wave in range(len(chosen)):
        groups = tuple(
            SequenceGroup(ranks=ranks, sequences=tuple(taken))
            for (number, ranks), taken in zip(slots, sequences, strict=True)
            if number == wave
        )
        waves.append(Wave(groups=groups))
        seconds += max(
            group_s([lengths[i] for i in g.sequences], g.degree, profile=PROFILE)
            for g in groups
        )
    plan = StepPlan(
        waves=tuple(waves),
        paths=tuple(StagePath(stages=(0,)) for _ in waves),
        step_s=seconds,
        lower_bound_s=0.93 * seconds,
        method="heuristic",
        solve_s=0.004,
        reason="longest documents first, each to the group that ends earliest",
    )
    return plan, lengths


def _load(
    slot: int,
    slots: Sequence[tuple[int, tuple[int, ...]]],
    sequences: list[list[int]],
    lengths: tuple[int, ...],
) -> float:
    tokens = sum(lengths[index] for index in sequences[slot])
    return tokens / len(slots[slot][1])


def step_events(step: int) -> list[AnyEvent]:
    """One step as four ranks report it; equal for equal `step`."""
    dice = random.Random(step)
    now_s = BEGAN_S + 20 + 1.5 * step
    plan, lengths = step_plan(dice)
    step_s = plan.step_s * dice.uniform(0.97, 1.12)
    events: list[AnyEvent] = [StepPlanned(time_s=now_s, step=step, plan=plan, lengths=lengths)]
    for rank in RANKS:
        busy = dice.uniform(0.78, 0.95)
        shares = (0.02, 0.27 * busy, 0.5 * busy, 0.12 * busy, 0.0, 0.06, 0.03)
        shares = (*shares[:4], 1 - sum(shares), *shares[5:])
        parts = tuple(
            TimePart(name=name, seconds=share * step_s)
            for name, share in zip(STEP_PARTS, shares, strict=True)
        )
        events.append(RankProgressed(time_s=now_s, rank=rank, step=step, doing="forward"))
        events.append(
            StepFinished(
                time_s=now_s + step_s,
                step=step,
                rank=rank,
                step_s=step_s,
                parts=parts,
                num_tokens=sum(lengths) // 4,
            )
        )
    loss = 1.9 + 3.7 * 2 ** (-step / 14) + dice.gauss(0, 0.06)
    events.append(
        StepSummarized(
            time_s=now_s + step_s,
            step=step,
            loss=loss,
            num_tokens=sum(lengths),
            model_flops=9e6 * sum(lengths),
            step_s=step_s,
            gradient_norm=dice.uniform(0.4, 1.2),
            learning_rate=2e-3,
        )
    )
    if step % 20 == 0:
        events += [
            EvaluationFinished(time_s=now_s + 2, step=step, loss=loss + 0.12, num_tokens=9_000),
            CheckpointSaved(
                time_s=now_s + 2,
                step=step,
                path=f"checkpoints/step-{step:06d}",
                seconds=0.42,
                num_bytes=12_600_000,
            ),
        ]
    if step == 17:
        message = "step 17: the plan came 0.3 s late; the fast plan was used instead"
        events.append(Alert(time_s=now_s, severity="warning", message=message, step=step))
    return events


class SampleRun:
    """A run directory and the store its events are appended to."""

    def __init__(
        self, root: Path, *, job_id: str = "20260921-120000-demo", num_steps: int = 60
    ) -> None:
        self.root = root
        self.job_id = job_id
        wanted = request(root, job_id=job_id, num_steps=num_steps)
        self.dir = RunDir.create(wanted, plan=job_plan(), state=run_state())
        self.store = EventStore.create(self.dir.events)

    def start(self, *, peak: float | None = None) -> "SampleRun":
        self.store.append(start_events(peak=peak))
        return self

    def resume(self, *, peak: float | None = None, num_ranks: int = 4) -> None:
        self.store.append(start_events(attempt=2, peak=peak, num_ranks=num_ranks))

    def become_script(self, *argv: str) -> None:
        """A user's own script instead of the training job."""
        wanted = self.dir.request()
        job = ScriptSpec(name="my script", argv=argv, folder="/", num_ranks=4)
        self.dir.write_request(replace(wanted, job=job, layout=None))

    def steps(self, first: int, last: int, *, num_ranks: int = 4) -> "SampleRun":
        events = [event for step in range(first, last + 1) for event in step_events(step)]
        self.store.append(e for e in events if (getattr(e, "rank", None) or 0) < num_ranks)
        return self

    def append(self, *events: AnyEvent) -> None:
        self.store.append(events)

    def finish(
        self, state: JobState = JobState.SUCCEEDED, *, reason: str = "all steps done"
    ) -> None:
        self.store.append([JobFinished(time_s=BEGAN_S + 400, state=state, reason=reason)])
        self.dir.write_state(run_state(state, reason=reason))


@pytest.fixture
def sample(tmp_path: Path) -> Iterator[SampleRun]:
    """A run that nothing has happened in yet, alone in its folder of runs."""
    run = SampleRun(tmp_path / "runs")
    yield run
    run.store.close()


def main() -> None:
    root, num_steps = Path(sys.argv[1]).absolute(), int(sys.argv[2])
    job_id = time.strftime("%Y%m%d-%H%M%S-demo")
    run = SampleRun(root, job_id=job_id, num_steps=max(60, num_steps)).start()
    run.steps(1, num_steps)
    step = num_steps
    while "--live" in sys.argv:
        time.sleep(0.5)
        step += 1
        run.steps(step, step)


if __name__ == "__main__":
    main()
