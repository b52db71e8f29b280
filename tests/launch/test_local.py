"""Real processes, started and ended by the local launcher."""

import fcntl
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

import psutil  # type: ignore[import-untyped]  # no stubs in the pinned set
import pytest

from trimtab.core.cluster import ClusterSpec, GpuSpec, Link, NicSpec, NodeSpec, Precision
from trimtab.core.errors import InputError, JobFailedError
from trimtab.core.job import DataSource, DataSpec, EnvVar, JobHandle, JobSpec, TrainingSpec
from trimtab.core.model import ModelSpec
from trimtab.core.plan import Layout
from trimtab.launch import tether
from trimtab.launch.api import Launcher, RankExit, Rendezvous
from trimtab.launch.local import LocalLauncher, LocalRanks

HANDLE = JobHandle(scheduler="local", job_id="20261120-161500-small")
RENDEZVOUS = Rendezvous(
    attempt=2, collector_address="127.0.0.1:1", collector_token="marker-of-the-token"
)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    path = tmp_path / "a run's $(directory); with spaces"
    (path / "logs").mkdir(parents=True)
    return path


def job(
    *, num_ranks: int = 2, precision: Precision = "fp32", device: str = "CPU process"
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
        data=DataSpec(sources=(DataSource(path="stdlib:"),)),
        training=TrainingSpec(num_steps=1, global_batch_seqs=1, precision=precision),
    )


def python_ranks(
    run_dir: Path, program: str, *, num_ranks: int = 2, lock_fd: int | None = None
) -> LocalRanks:
    """Ranks that run a piece of Python."""
    launcher = LocalLauncher(argv=(sys.executable, "-c", program), num_cores=8)
    request = launcher.prepare(
        job(num_ranks=num_ranks), layout=Layout(dp=num_ranks), handle=HANDLE, run_dir=run_dir
    )
    return launcher.start(request, rendezvous=replace(RENDEZVOUS, lock_fd=lock_fd))


def all_exits(ranks: LocalRanks) -> list[RankExit]:
    exits: list[RankExit] = []
    while ranks.running:
        exits += ranks.poll()
        time.sleep(0.02)
    return sorted(exits, key=lambda ended: ended.rank)


def log_lines(run_dir: Path, rank: int) -> list[str]:
    return (run_dir / "logs" / f"rank-000{rank}.log").read_text().splitlines()


def test_the_request_holds_command_and_shared_environment(run_dir: Path) -> None:
    launcher: Launcher = LocalLauncher(argv=("python", "-m", "ranks"), num_cores=8)
    request = launcher.prepare(job(), layout=Layout(dp=2), handle=HANDLE, run_dir=run_dir)
    assert request.argv == ("python", "-m", "ranks", str(run_dir))
    assert request.environment == (
        EnvVar(name="GLOO_SOCKET_IFNAME", value="lo"),
        EnvVar(name="OMP_NUM_THREADS", value="4"),
        EnvVar(name="PYTHONUNBUFFERED", value="1"),
        EnvVar(name="CUDA_VISIBLE_DEVICES", value=""),
    )
    assert (request.num_ranks, request.layout) == (2, Layout(dp=2))


def test_preparing_starts_and_writes_nothing(tmp_path: Path) -> None:
    launcher = LocalLauncher(argv=("no-such-program",))
    launcher.prepare(job(), layout=Layout(dp=2), handle=HANDLE, run_dir=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_more_ranks_than_cores_get_one_thread_each(run_dir: Path) -> None:
    launcher = LocalLauncher(argv=("python",), num_cores=2)
    request = launcher.prepare(
        job(num_ranks=5), layout=Layout(dp=5), handle=HANDLE, run_dir=run_dir
    )
    assert EnvVar(name="OMP_NUM_THREADS", value="1") in request.environment


def test_ranks_share_the_cores_of_the_cpu_set_they_may_use(run_dir: Path) -> None:
    program = (
        "import os\n"
        "from trimtab.launch.local import usable_cores\n"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "print(usable_cores())"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert answer.stdout == "1\n"


def test_ranks_of_a_gpu_cluster_see_the_gpus(run_dir: Path) -> None:
    launcher = LocalLauncher(argv=("python",))
    request = launcher.prepare(
        job(device="NVIDIA H100"), layout=Layout(dp=2), handle=HANDLE, run_dir=run_dir
    )
    assert "CUDA_VISIBLE_DEVICES" not in {each.name for each in request.environment}


def test_the_meeting_place_survives_the_characters_of_a_url(tmp_path: Path) -> None:
    run_dir = tmp_path / "a#b ?c%20d"
    (run_dir / "logs").mkdir(parents=True)
    program = "import os; print(os.environ['TRIMTAB_RENDEZVOUS'])"
    all_exits(python_ranks(run_dir, program, num_ranks=1))
    url = urlsplit(log_lines(run_dir, 0)[1])
    assert (url.scheme, unquote(url.path)) == ("file", f"{run_dir}/rendezvous-2")
    assert (url.query, url.fragment) == ("", "")


def test_every_rank_holds_the_lock_of_its_run(run_dir: Path) -> None:
    with (run_dir / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        ranks = python_ranks(
            run_dir,
            "import time; print('up'); time.sleep(600)",
            lock_fd=lock.fileno(),
        )
    while not all("up" in log_lines(run_dir, rank) for rank in (0, 1)):
        time.sleep(0.02)
    with (run_dir / "lock").open("w") as other:
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        ranks.kill()
        all_exits(ranks)
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_what_the_worker_cannot_run_is_refused(run_dir: Path) -> None:
    launcher = LocalLauncher(argv=("python",))
    with pytest.raises(InputError, match=r"layout.tp: .* got 2; set layout.tp=1"):
        launcher.prepare(job(), layout=Layout(tp=2), handle=HANDLE, run_dir=run_dir)


def test_more_than_64_local_ranks_are_refused(run_dir: Path) -> None:
    launcher = LocalLauncher(argv=("python",))
    with pytest.raises(InputError, match=r"num_ranks: expected at most 64 .* got 65"):
        launcher.prepare(
            job(num_ranks=65), layout=Layout(dp=65), handle=HANDLE, run_dir=run_dir
        )


def test_every_rank_gets_its_own_environment(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "inherited")
    names = (
        "RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE TRIMTAB_RENDEZVOUS TRIMTAB_COLLECTOR "
        "TRIMTAB_COLLECTOR_TOKEN TRIMTAB_ATTEMPT OMP_NUM_THREADS HF_TOKEN"
    )
    ranks = python_ranks(
        run_dir, f"import os\nfor name in '{names}'.split(): print(os.environ[name])"
    )
    assert [ended.is_clean for ended in all_exits(ranks)] == [True, True]
    assert log_lines(run_dir, 1)[1:] == [
        "1",
        "2",
        "1",
        "2",
        run_dir.as_uri() + "/rendezvous-2",
        "127.0.0.1:1",
        "marker-of-the-token",
        "2",
        "4",
        "inherited",
    ]


def test_a_rank_works_in_the_run_directory(run_dir: Path) -> None:
    all_exits(python_ranks(run_dir, "import os; print(os.getcwd())"))
    assert log_lines(run_dir, 0)[1:] == [str(run_dir)]


def test_logs_of_attempts_follow_each_other(run_dir: Path) -> None:
    (run_dir / "logs" / "rank-0000.log").write_text("of the first attempt\n")
    all_exits(python_ranks(run_dir, "print('of the second')"))
    first, marker, second = log_lines(run_dir, 0)
    assert (first, second) == ("of the first attempt", "of the second")
    assert marker.startswith("--- attempt 2: ")


def test_the_token_shows_in_no_text_of_the_rendezvous() -> None:
    assert "marker-of-the-token" not in repr(RENDEZVOUS)


def test_exit_codes_and_signals_are_told_once(run_dir: Path) -> None:
    program = (
        "import os, sys\nif os.environ['RANK'] == '0': sys.exit(93)\nos.kill(os.getpid(), 9)"
    )
    ranks = python_ranks(run_dir, program)
    assert all_exits(ranks) == [
        RankExit(rank=0, exit_code=93, signal=None),
        RankExit(rank=1, exit_code=None, signal="SIGKILL"),
    ]
    assert ranks.poll() == ()


def test_stopping_asks_and_killing_does_not(run_dir: Path) -> None:
    program = (
        "import os, signal, sys, time\n"
        "if os.environ['RANK'] == '0': signal.signal(15, lambda *_: sys.exit(0))\n"
        "else: signal.signal(15, signal.SIG_IGN)\n"
        "print('ready')\n"
        "while True: time.sleep(0.02)"
    )
    ranks = python_ranks(run_dir, program)
    while not all("ready" in log_lines(run_dir, rank) for rank in (0, 1)):
        time.sleep(0.02)
    ranks.stop()
    while ranks.running == (0, 1):
        assert ranks.poll() in ((), (RankExit(rank=0, exit_code=0, signal=None),))
    assert ranks.running == (1,)
    ranks.kill()
    assert all_exits(ranks) == [RankExit(rank=1, exit_code=None, signal="SIGKILL")]


def test_a_rank_is_asked_to_end_when_its_starter_dies(run_dir: Path) -> None:
    starter = (
        "import os, subprocess, sys\n"
        "from trimtab.launch import tether\n"
        "child = subprocess.Popen([sys.executable, '-I', '-S', tether.__file__,"
        " str(os.getpid()), 'sleep', '600'])\n"
        "print(child.pid, flush=True)\n"
        "while 'sleep' not in open(f'/proc/{child.pid}/comm').read(): pass\n"
        "os.kill(os.getpid(), 9)"
    )
    output = (run_dir / "child").open("w+")
    with output:
        subprocess.run([sys.executable, "-c", starter], stdout=output, check=False)
        output.seek(0)
        child = int(output.read())
    while psutil.pid_exists(child) and psutil.Process(child).status() != "zombie":
        time.sleep(0.02)


def test_a_rank_whose_starter_is_gone_does_not_start(run_dir: Path) -> None:
    command = [sys.executable, "-I", "-S", tether.__file__, "1", "touch", str(run_dir / "x")]
    assert os.getpid() != 1
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (
        1,
        "the process that started this rank has died\n",
    )
    assert not (run_dir / "x").exists()


def test_a_rank_that_cannot_be_started_is_a_failed_job(tmp_path: Path) -> None:
    launcher = LocalLauncher(argv=("true",))
    request = launcher.prepare(
        job(), layout=Layout(dp=2), handle=HANDLE, run_dir=tmp_path / "missing"
    )
    with pytest.raises(JobFailedError, match="rank 0 could not be started"):
        launcher.start(request, rendezvous=RENDEZVOUS)
