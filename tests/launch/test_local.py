"""This machine as a scheduler, and as the one node of a job."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # no stubs in the pinned set
import pytest

from trimtab.core.cluster import ClusterSpec, GpuSpec, Link, NicSpec, NodeSpec, Precision
from trimtab.core.errors import InputError, JobFailedError
from trimtab.core.job import (
    DataSource,
    DataSpec,
    EnvVar,
    JobHandle,
    JobSpec,
    Request,
    ScriptSpec,
    TrainingSpec,
)
from trimtab.core.model import ModelSpec
from trimtab.core.plan import Layout
from trimtab.launch import local, locks
from trimtab.launch.api import Scheduler
from trimtab.launch.fleet import Fleet, Rendezvous
from trimtab.launch.local import LocalAllocation, LocalScheduler


def job(
    *,
    num_ranks: int = 2,
    num_nodes: int | None = None,
    precision: Precision = "fp32",
    device: str = "CPU process",
) -> JobSpec:
    node = NodeSpec(
        name="laptop",
        count=1,
        gpu=GpuSpec(name=device, memory_bytes=2**34, memory_bytes_per_s=1e10),
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
        vocab=256,
        max_seq_tokens=128,
    )
    return JobSpec(
        name="$(touch /tmp/x); rm -rf /",
        model=model,
        cluster=ClusterSpec(name="laptop", nodes=(node,)),
        num_ranks=num_ranks,
        num_nodes=num_nodes,
        data=DataSpec(sources=(DataSource(path="stdlib:"),)),
        training=TrainingSpec(num_steps=1, global_batch_seqs=1, precision=precision),
    )


def script(program: str, *, num_ranks: int = 1) -> ScriptSpec:
    argv = (sys.executable, "-u", "-c", program)
    return ScriptSpec(name="script", argv=argv, folder="/", num_ranks=num_ranks)


def scheduler(*keeper_argv: str, num_cores: int | None = 8) -> LocalScheduler:
    return LocalScheduler(
        rank_argv=("python", "-m", "ranks"), keeper_argv=keeper_argv, num_cores=num_cores
    )


def prepared(run_dir: Path, job: JobSpec, *, num_cores: int | None = 8) -> Request:
    layout = Layout(dp=job.num_ranks)
    local: Scheduler = scheduler(num_cores=num_cores)
    return local.prepare(job, layout=layout, run_dir=run_dir)


def test_the_request_holds_command_and_shared_environment(run_dir: Path) -> None:
    request = prepared(run_dir, job())
    assert request.argv == ("python", "-m", "ranks", str(run_dir))
    assert request.environment == (
        EnvVar(name="OMP_NUM_THREADS", value="4"),
        EnvVar(name="PYTHONUNBUFFERED", value="1"),
        EnvVar(name="CUDA_VISIBLE_DEVICES", value=""),
    )
    assert (request.num_ranks, request.num_nodes) == (2, 1)
    assert (request.layout, request.submission) == (Layout(dp=2), "")


def test_a_script_runs_as_it_was_given(run_dir: Path) -> None:
    request = scheduler().prepare(script("pass", num_ranks=4), layout=None, run_dir=run_dir)
    assert request.argv == (sys.executable, "-u", "-c", "pass")
    assert EnvVar(name="OMP_NUM_THREADS", value="2") in request.environment
    assert request.layout is None


def test_preparing_and_checking_start_and_write_nothing(tmp_path: Path) -> None:
    request = prepared(tmp_path / "run", job())
    scheduler("/no/such/keeper").check(request)
    assert list(tmp_path.iterdir()) == []


def test_more_ranks_than_cores_get_one_thread_each(run_dir: Path) -> None:
    request = prepared(run_dir, job(num_ranks=5), num_cores=2)
    assert EnvVar(name="OMP_NUM_THREADS", value="1") in request.environment


def test_the_cores_to_share_are_those_of_this_process(run_dir: Path) -> None:
    request = prepared(run_dir, job(num_ranks=1), num_cores=None)
    cores = str(len(os.sched_getaffinity(0)))
    assert EnvVar(name="OMP_NUM_THREADS", value=cores) in request.environment


def test_ranks_of_a_gpu_cluster_see_the_gpus(run_dir: Path) -> None:
    request = prepared(run_dir, job(device="NVIDIA H100"))
    assert "CUDA_VISIBLE_DEVICES" not in {each.name for each in request.environment}


def test_what_the_worker_cannot_run_is_refused(run_dir: Path) -> None:
    with pytest.raises(InputError, match=r"layout.tp: .* got 2; set layout.tp=1"):
        scheduler().prepare(job(), layout=Layout(tp=2), run_dir=run_dir)


def test_more_than_64_local_ranks_are_refused(run_dir: Path) -> None:
    with pytest.raises(InputError, match=r"num_ranks: expected at most 64 .* got 65"):
        prepared(run_dir, job(num_ranks=65))


def test_more_than_one_local_node_is_refused(run_dir: Path) -> None:
    with pytest.raises(InputError, match=r"num_nodes: this machine is one node, got 2; leave"):
        prepared(run_dir, job(num_nodes=2))
    assert prepared(run_dir, job(num_nodes=1)).num_nodes == 1


def test_the_keeper_is_given_run_and_lock_in_a_session_of_its_own(run_dir: Path) -> None:
    program = (
        "import os, sys\n"
        "print(os.getsid(0) == os.getpid(), sys.argv[1:3], os.fstat(int(sys.argv[3])).st_ino)"
    )
    with (run_dir / "lock").open("w") as lock:
        handle = scheduler(sys.executable, "-c", program).submit(
            prepared(run_dir, job()), lock_fd=lock.fileno()
        )
    assert handle == JobHandle(scheduler="local", job_id=run_dir.name)
    log = run_dir / "logs" / "controller.log"
    while not log.read_text().endswith("\n"):
        time.sleep(0.02)
    inode = (run_dir / "lock").stat().st_ino
    assert log.read_text() == f"True {[str(run_dir), '--lock']} {inode}\n"


def test_a_keeper_that_cannot_be_started_is_a_failed_job(run_dir: Path) -> None:
    with pytest.raises(JobFailedError, match="the job's keeper could not be started"):
        scheduler("/no/such/keeper").submit(prepared(run_dir, job()), lock_fd=None)


@contextmanager
def local_fleet(run_dir: Path, *, lock_fd: int | None = None) -> Iterator[Fleet]:
    allocation = LocalAllocation(run_dir=run_dir, lock_fd=lock_fd)
    fleet = Fleet(allocation, run_dir=run_dir)
    yield fleet
    fleet.close()


def start(fleet: Fleet, run_dir: Path, program: str, *, num_ranks: int = 1) -> None:
    request = scheduler().prepare(
        script(program, num_ranks=num_ranks), layout=None, run_dir=run_dir
    )
    allocation = LocalAllocation(run_dir=run_dir, lock_fd=None)
    nodes = allocation.acquire(1, exclude=("whatever",))
    assert [node.name for node in nodes] == [socket.gethostname()]
    assert set(fleet.gather(nodes)) == {socket.gethostname()}
    fleet.start(
        request,
        nodes,
        rendezvous=Rendezvous(
            attempt=1,
            collector_address="127.0.0.1:1",
            collector_token="",
            request_name="request.json",
            request_text="",
        ),
    )


def wait_up(run_dir: Path, num_ranks: int = 1) -> None:
    logs = [run_dir / "logs" / f"rank-000{rank}.log" for rank in range(num_ranks)]
    while not all(log.exists() and "up" in log.read_text() for log in logs):
        time.sleep(0.02)


FOREVER = "import time; print('up'); time.sleep(600)"
DEAF = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up'); time.sleep(600)"
Started = Callable[[], list[psutil.Process]]


def test_closing_a_local_fleet_leaves_no_process(run_dir: Path, started_here: Started) -> None:
    with local_fleet(run_dir) as fleet:
        start(fleet, run_dir, DEAF, num_ranks=2)
        wait_up(run_dir, 2)
        assert len(started_here()) == 3
    assert started_here() == []


def test_agent_and_ranks_hold_the_runs_lock(run_dir: Path, started_here: Started) -> None:
    path = run_dir / "lock"
    with path.open("w") as lock:
        assert locks.try_lock(lock.fileno(), wait_s=0.0)
        with local_fleet(run_dir, lock_fd=lock.fileno()) as fleet:
            start(fleet, run_dir, FOREVER)
            wait_up(run_dir)
            started = [process.pid for process in started_here()]
            assert locks.holders(path) == tuple(sorted([os.getpid(), *started]))
    assert locks.holders(path) == ()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_closing_ends_deaf_ranks_of_an_agent_that_is_gone_or_stopped(
    run_dir: Path,
    started_here: Started,
    number: signal.Signals,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(local, "_ORPHAN_GRACE_S", 1.0)
    with local_fleet(run_dir) as fleet:
        start(fleet, run_dir, DEAF)
        wait_up(run_dir)
        (agent,) = (each for each in started_here() if "trimtab.launch.agent" in each.cmdline())
        agent.send_signal(number)
    assert started_here() == []


def test_ranks_end_with_the_process_that_holds_the_fleet(
    run_dir: Path, started_here: Started
) -> None:
    program = (
        "import sys, time; from pathlib import Path\n"
        "from trimtab.launch.local import LocalAllocation\n"
        "from trimtab.launch.fleet import Fleet\n"
        "run_dir = Path(sys.argv[1])\n"
        "allocation = LocalAllocation(run_dir=run_dir, lock_fd=None)\n"
        "fleet = Fleet(allocation, run_dir=run_dir)\n"
        "fleet.gather(allocation.acquire(1, exclude=()))\n"
        "print('gathered', flush=True); time.sleep(600)"
    )
    argv = [sys.executable, "-c", program, str(run_dir)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"gathered\n"
        assert len(started_here()) == 2
        process.kill()
    while started_here():
        time.sleep(0.05)


def test_a_local_job_has_nowhere_else_to_go(run_dir: Path) -> None:
    allocation = LocalAllocation(run_dir=run_dir, lock_fd=None)
    assert not allocation.can_move
    with pytest.raises(JobFailedError, match="this machine is the only one: a reason"):
        allocation.go_elsewhere(exclude=(), reason="a reason")
