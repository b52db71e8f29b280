"""Real processes that hold, and wait for, real locks."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from trimtab.launch import locks

HOLD = (
    "import fcntl, sys, time; file = open(sys.argv[1], 'ab')\n"
    "if sys.argv[2] == 'hold': fcntl.flock(file, fcntl.LOCK_EX)\n"
    "print('up', flush=True); time.sleep(float(sys.argv[3]))"
)


@contextmanager
def process_with(path: Path, *, what: str, seconds: float = 600.0) -> Iterator[int]:
    argv = [sys.executable, "-c", HOLD, str(path), what, str(seconds)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process.pid
        process.kill()


def test_holders_are_those_that_hold_it_not_those_that_have_it_open(tmp_path: Path) -> None:
    path = tmp_path / "a lock"
    assert locks.holders(path) == ()
    with process_with(path, what="open"), process_with(path, what="hold") as holder:
        assert locks.holders(path) == (holder,)
        with path.open("ab") as file:
            assert not locks.try_lock(file.fileno(), wait_s=0.2)
    assert locks.holders(path) == ()


def test_a_lock_that_becomes_free_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with process_with(path, what="hold", seconds=0.5), path.open("ab") as file:
        assert locks.try_lock(file.fileno(), wait_s=60.0)
        assert locks.holders(path) == (os.getpid(),)


def test_taking_over_leaves_time_then_kills(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with process_with(path, what="open") as onlooker, path.open("ab") as file:
        with process_with(path, what="hold", seconds=0.5):
            assert locks.take_over(file, grace_s=60.0)
        os.kill(onlooker, 0)
    with process_with(path, what="hold") as holder, path.open("ab") as file:
        assert locks.take_over(file, grace_s=0.2)
        ended = os.waitid(os.P_PID, holder, os.WEXITED | os.WNOWAIT)
        assert ended is not None
        assert ended.si_status == 9


def test_locks_of_nodes_are_their_users_alone_and_one_a_run_and_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    names = []
    for run, node in (("a/r1", "n0"), ("a/r1", "n1"), ("a/r2", "n0"), ("b/r1", "n0")):
        with locks.open_node_lock(tmp_path / run, node) as file:
            names.append(file.name)
    assert len(set(names)) == 4
    with locks.open_node_lock(tmp_path / "b" / ".." / "a" / "r1", "n0") as file:
        assert file.name == names[0]
    folder = tmp_path / f"trimtab-{os.getuid()}"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
