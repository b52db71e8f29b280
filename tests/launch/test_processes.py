"""Real rank processes."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trimtab.core.errors import JobFailedError
from trimtab.launch.api import RankExit
from trimtab.launch.processes import RankOrder, RankProcesses, usable_cores


def start(ranks: RankProcesses, run_dir: Path, program: str, **changes: object) -> RankOrder:
    settings = {
        "rank": 0,
        "argv": (sys.executable, "-u", "-c", program),
        "folder": run_dir,
        "environment": dict(os.environ),
        "log": run_dir / "logs" / "rank.log",
        "attempt": 2,
    }
    order = RankOrder(**(settings | changes))  # type: ignore[arg-type]
    ranks.start(order)
    return order


def until_ended(ranks: RankProcesses) -> list[RankExit]:
    exits: list[RankExit] = []
    while ranks.running:
        exits += ranks.poll()
        time.sleep(0.02)
    return exits


def wait_for(text: str, order: RankOrder) -> None:
    while text not in order.log.read_text():
        time.sleep(0.02)


def test_a_rank_has_its_folder_environment_and_log(run_dir: Path) -> None:
    ranks = RankProcesses()
    program = "import os; print(os.getcwd(), sorted(os.environ))"
    order = start(ranks, run_dir, program, environment={"LC_ALL": "C.UTF-8", "X": "1"})
    assert until_ended(ranks) == [RankExit(rank=0, exit_code=0)]
    first, second = order.log.read_text().splitlines()
    assert first.startswith("--- attempt 2: ")
    assert second == f"{run_dir} ['LC_ALL', 'X']"


def test_logs_of_attempts_follow_each_other_and_only_the_last_is_quoted(
    run_dir: Path,
) -> None:
    ranks = RankProcesses()
    log = run_dir / "logs" / "rank.log"
    log.write_text("--- attempt 1: once\nof the first attempt\n")
    start(ranks, run_dir, "import sys; print('of the second'); sys.exit(7)")
    assert until_ended(ranks) == [RankExit(rank=0, exit_code=7, last_words="of the second")]
    lines = log.read_text().splitlines()
    assert (lines[1], lines[3]) == ("of the first attempt", "of the second")


def test_a_signal_without_a_name_is_told_by_its_number(run_dir: Path) -> None:
    ranks = RankProcesses()
    start(ranks, run_dir, "import os; os.kill(os.getpid(), 40)")
    assert until_ended(ranks) == [RankExit(rank=0, signal="signal 40")]


def test_every_end_is_told_once(run_dir: Path) -> None:
    ranks = RankProcesses()
    for rank in range(3):
        start(ranks, run_dir, "pass", rank=rank, log=run_dir / f"{rank}.log")
    assert ranks.running == (0, 1, 2)
    exits = until_ended(ranks)
    assert sorted(ended.rank for ended in exits) == [0, 1, 2]
    assert ranks.poll() == ()


def test_stopping_asks_the_rank_and_killing_ends_its_children_too(run_dir: Path) -> None:
    ranks = RankProcesses()
    program = (
        "import signal, subprocess, time; signal.signal(15, lambda *_: print('asked'))\n"
        "child = subprocess.Popen(['sleep', '600']); print('child', child.pid)\n"
        "while True: time.sleep(0.02)"
    )
    order = start(ranks, run_dir, program)
    wait_for("child ", order)
    ranks.stop()
    wait_for("asked", order)
    child = int(order.log.read_text().splitlines()[1].split()[1])
    os.kill(child, 0)
    ranks.kill()
    ranks.wait()
    (ended,) = ranks.poll()
    assert ended.signal == "SIGKILL"
    while Path(f"/proc/{child}/stat").exists():
        if ") Z " in Path(f"/proc/{child}/stat").read_text():
            break
        time.sleep(0.02)


def test_a_frozen_rank_is_found_once_and_a_short_stop_is_none(run_dir: Path) -> None:
    ranks = RankProcesses()
    order = start(ranks, run_dir, "import os, time; print('up', os.getpid()); time.sleep(600)")
    wait_for("up ", order)
    pid = int(order.log.read_text().split()[-1])
    os.kill(pid, signal.SIGSTOP)
    assert ranks.frozen() == {}
    os.kill(pid, signal.SIGCONT)
    while ") T " in Path(f"/proc/{pid}/stat").read_text():
        time.sleep(0.01)
    assert ranks.frozen() == {}
    os.kill(pid, signal.SIGSTOP)
    while not (found := ranks.frozen()):
        time.sleep(0.1)
    assert found == {0: f"stopped by a signal (process {pid})"}
    time.sleep(0.2)
    assert ranks.frozen() == {}
    ranks.kill()
    assert [ended.signal for ended in until_ended(ranks)] == ["SIGKILL"]


def test_open_files_are_handed_down(run_dir: Path) -> None:
    ranks = RankProcesses()
    with (run_dir / "lock").open("w") as lock, (run_dir / "lock").open("w") as other:
        fcntl.flock(lock, fcntl.LOCK_EX)
        program = "import time; print('up'); time.sleep(600)"
        order = start(ranks, run_dir, program, inherited_fds=(lock.fileno(),))
        wait_for("up", order)
        lock.close()
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        ranks.kill()
        until_ended(ranks)
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_program_that_is_not_there_ends_with_127_and_its_name(run_dir: Path) -> None:
    ranks = RankProcesses()
    start(ranks, run_dir, "", argv=("/no/such program",))
    (ended,) = until_ended(ranks)
    assert (ended.exit_code, ended.last_words) == (
        127,
        "cannot start '/no/such program': No such file or directory",
    )


def test_a_folder_that_is_not_there_is_a_failed_job(run_dir: Path) -> None:
    with pytest.raises(JobFailedError, match=r"rank 0 could not be started: .*missing"):
        start(RankProcesses(), run_dir, "", folder=run_dir / "missing")


def test_only_the_cores_of_the_cpu_set_count() -> None:
    program = (
        "import os\n"
        "from trimtab.launch.processes import usable_cores\n"
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "print(usable_cores())"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert answer.stdout == "1\n"
    assert usable_cores() == len(os.sched_getaffinity(0))
