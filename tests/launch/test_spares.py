"""Real spares of a small program that prints how it was started."""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # no stubs in the pinned set
import pytest

from trimtab.launch.processes import RankOrder
from trimtab.launch.spares import SparePool

PROGRAM = """
import os, sys
from trimtab.launch.warm import await_order
is_warm = sys.argv[-1] == "--warm"
if is_warm and not await_order():
    sys.exit(0)
print("warm" if is_warm else "cold", os.environ["RANK"], os.environ["KIND"], flush=True)
"""
ARGV = (sys.executable, "-P", "-c", PROGRAM)


def order(folder: Path, *, rank: int = 0, argv: tuple[str, ...] = ARGV) -> RankOrder:
    return RankOrder(
        rank=rank,
        argv=argv,
        folder=folder,
        environment={**os.environ, "RANK": str(rank), "KIND": "ordered"},
        log=folder / f"{rank}.log",
        attempt=1,
    )


@pytest.fixture
def pool() -> Iterator[SparePool]:
    pool = SparePool(held_fds=())
    yield pool
    pool.end()


def children() -> set[psutil.Process]:
    return set(psutil.Process().children())


def test_spares_are_used_up_then_kept_again(pool: SparePool, tmp_path: Path) -> None:
    assert pool.take(order(tmp_path)) is None
    pool.keep(2, argv=ARGV, environment=os.environ)
    pool.keep(2, argv=ARGV, environment=os.environ)
    taken = [pool.take(order(tmp_path, rank=rank)) for rank in range(3)]
    assert [process is not None for process in taken] == [True, True, False]
    for rank, process in enumerate(taken[:2]):
        assert process is not None
        assert process.wait() == 0
        assert f"warm {rank} ordered" in (tmp_path / f"{rank}.log").read_text()
    pool.keep(1, argv=ARGV, environment=os.environ)
    again = pool.take(order(tmp_path))
    assert again is not None
    assert again.wait() == 0


def test_a_spare_that_has_died_is_passed_over_and_replaced(
    pool: SparePool, tmp_path: Path
) -> None:
    before = children()
    dying = (sys.executable, "-c", "raise SystemExit(3)")
    pool.keep(1, argv=dying, environment=os.environ)
    (process,) = children() - before
    while process.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.02)
    assert pool.take(order(tmp_path, argv=dying)) is None
    pool.keep(1, argv=dying, environment=os.environ)
    assert len(children() - before) == 1
    pool.end()
    assert not children() - before


def test_spares_of_another_command_line_are_not_used(pool: SparePool, tmp_path: Path) -> None:
    pool.keep(1, argv=ARGV, environment=os.environ)
    assert pool.take(order(tmp_path, argv=(*ARGV, "other"))) is None
