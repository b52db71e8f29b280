"""A small job, its plan, and runs whose ranks are `tests/data/ranks/rank_program.py`."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeGuard

import pytest

from trimtab.core.cluster import ClusterSpec, GpuSpec, Link, NicSpec, NodeSpec
from trimtab.core.events import AnyEvent, RankProgressed, RankStarted
from trimtab.core.job import (
    DataSource,
    DataSpec,
    JobSpec,
    ScriptSpec,
    TelemetrySpec,
    TrainingSpec,
)
from trimtab.core.model import ModelSpec
from trimtab.core.plan import Forecast, JobPlan, Layout, Placement, StageMemory, TimePart
from trimtab.core.scheduling import RestartSpec
from trimtab.launch.local import LocalScheduler
from trimtab.monitor.store import EventStore
from trimtab.orchestrator import schedulers, submission
from trimtab.orchestrator.rundir import RunDir, RunState
from trimtab.orchestrator.submission import PreparedJob

RANK_PROGRAM = Path(__file__).parents[1] / "data" / "ranks" / "rank_program.py"


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the run directories."""
    root = tmp_path / "runs"
    monkeypatch.setenv("TRIMTAB_RUNS_DIR", str(root))
    return root


@pytest.fixture
def small_job() -> JobSpec:
    node = NodeSpec(
        name="laptop",
        count=1,
        gpu=GpuSpec(name="cpu", memory_bytes=2**34, memory_bytes_per_s=1e10),
        gpus_per_node=128,
        intra_node=Link(bytes_per_s=1e9, latency_s=1e-5),
        nics=(NicSpec(kind="loopback", count=1, bytes_per_s=1e9, latency_s=1e-5),),
        island="laptop",
    )
    model = ModelSpec(
        name="tiny",
        num_layers=2,
        hidden=32,
        ffn_hidden=64,
        num_heads=4,
        num_kv_heads=4,
        head_dim=8,
        vocab=259,
        max_seq_tokens=128,
    )
    return JobSpec(
        name="small",
        model=model,
        cluster=ClusterSpec(name="laptop", nodes=(node,)),
        num_ranks=3,
        data=DataSpec(sources=(DataSource(path="stdlib:"),), max_seq_tokens=128),
        training=TrainingSpec(num_steps=6, global_batch_seqs=4, precision="fp32"),
    )


@pytest.fixture
def small_plan() -> JobPlan:
    memory = StageMemory(
        stage=0,
        weights_bytes=1,
        gradients_bytes=1,
        optimizer_bytes=1,
        activations_bytes=1,
        workspace_bytes=1,
        capacity_bytes=100,
    )
    return JobPlan(
        layout=Layout(dp=3),
        placement=Placement(rank_nodes=("laptop",) * 3, stage_layers=(2,)),
        forecast=Forecast(
            step_s=0.1,
            parts=(TimePart(name="compute", seconds=0.1),),
            num_tokens=400,
            model_flops=1e6,
            memory=(memory,),
            precision="fp32",
            peak_flop_per_s=None,
            num_ranks=3,
            bubble_fraction=0.0,
            evidence="analytic",
        ),
        alternatives=(),
        rejected=(),
        reason="the only one",
    )


@pytest.fixture
def small_script(runs: Path) -> PreparedJob:
    """A user's script, for Slurm."""
    job = ScriptSpec(name="script", argv=("python", "x.py"), folder="/", num_ranks=2)
    return submission.prepare_job(job, scheduler="slurm", root=runs)


Prepare = Callable[..., PreparedJob]
Start = Callable[..., RunDir]


@pytest.fixture
def prepare(small_job: JobSpec, small_plan: JobPlan, runs: Path) -> Prepare:
    """`prepare(behaviour, name=..., num_steps=...)`: a job of rank programs."""

    def prepare(
        behaviour: str = "-",
        *,
        name: str = "small",
        num_steps: int = 6,
        silent_rank_s: float = 60.0,
        max_restarts: int = 0,
        backoff_s: float = 0.1,
    ) -> PreparedJob:
        training = replace(small_job.training, num_steps=num_steps)
        telemetry = TelemetrySpec(silent_rank_s=silent_rank_s)
        job = replace(
            small_job,
            name=name,
            training=training,
            telemetry=telemetry,
            restart=RestartSpec(max_restarts=max_restarts, backoff_s=backoff_s),
        )
        request = _rank_programs(behaviour).prepare(
            job, layout=small_plan.layout, run_dir=runs / submission.new_run_id(name, root=runs)
        )
        return PreparedJob(request=request, plan=small_plan)

    return prepare


@pytest.fixture
def start(prepare: Prepare) -> Iterator[Start]:
    """`start(behaviour, ...)`: a submitted run; its controller is ended with the test."""
    started: list[RunDir] = []

    def start(behaviour: str = "-", **settings: object) -> RunDir:
        run = submission.submit_prepared(prepare(behaviour, **settings))
        started.append(run)
        return run

    yield start
    for run in started:
        controller = run.state().controller
        if controller is not None and controller.is_alive:
            with contextlib.suppress(ProcessLookupError):  # it may end by itself just now
                os.kill(controller.pid, signal.SIGTERM)
                os.kill(controller.pid, signal.SIGTERM)


@pytest.fixture
def rank_programs() -> Callable[..., LocalScheduler]:
    """`rank_programs(behaviour)`: a scheduler of rank programs."""
    return _rank_programs


def _rank_programs(behaviour: str = "-") -> LocalScheduler:
    return LocalScheduler(
        rank_argv=(sys.executable, str(RANK_PROGRAM), behaviour),
        keeper_argv=schedulers.KEEPER_COMMAND,
        num_cores=2,
    )


@pytest.fixture
def ended() -> Callable[[RunDir], RunState]:
    """`ended(run)`: the state it ends in, waited for."""

    def ended(run: RunDir) -> RunState:
        while not (state := run.observed(time.time())).state.is_final:
            time.sleep(0.05)
        return state

    return ended


@pytest.fixture
def lingering() -> Callable[..., None]:
    """`lingering(run, 0, 2)`: return when ranks 0 and 2 are slow or deaf, as they were told to.

    The store then holds all that they have sent, for a rank's events arrive in order.
    """

    def lingering(run: RunDir, *ranks: int) -> None:
        missing = set(ranks)
        while missing:
            time.sleep(0.02)
            with EventStore.open(run.events) as store:
                events = store.all(kinds=(RankProgressed,))
                missing -= {event.rank for event in events if is_lingering(event)}

    def is_lingering(event: AnyEvent) -> TypeGuard[RankProgressed]:
        return isinstance(event, RankProgressed) and event.doing == "lingering"

    return lingering


@pytest.fixture
def rank_pids() -> Callable[[RunDir], dict[int, int]]:
    """`rank_pids(run)`: of every rank of the first attempt, once the store knows them all."""

    def rank_pids(run: RunDir) -> dict[int, int]:
        pids: dict[int, int] = {}
        while len(pids) < run.state().num_ranks:
            time.sleep(0.02)
            with EventStore.open(run.events) as store:
                events = store.all(kinds=(RankStarted,))
                pids = {each.rank: each.pid for each in events if isinstance(each, RankStarted)}
        return pids

    return rank_pids
