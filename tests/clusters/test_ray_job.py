"""Whole jobs on a real Ray of three nodes: they go on without a killed node, and leave nothing.

The ranks are a script, so that nothing has to be imported for long.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from trimtab.core.events import AttemptEnded, AttemptStarted
from trimtab.core.job import JobState, ScriptSpec
from trimtab.core.scheduling import RayOptions
from trimtab.monitor.store import EventStore
from trimtab.orchestrator.dev_cluster.ray import RayCluster
from trimtab.orchestrator.observation import observe
from trimtab.orchestrator.rundir import RunDir
from trimtab.orchestrator.submission import cancel_run, submit_job

pytestmark = [pytest.mark.ray, pytest.mark.slow]

RANK = """
import os, sys, time
from pathlib import Path
name = "-".join([os.environ["TRIMTAB_ATTEMPT"], os.environ["RANK"], os.environ["WORLD_SIZE"]])
draft = Path(f".{name}")
draft.write_text(str(os.getpid()))
draft.rename(name)
while not Path("go").exists():
    time.sleep(0.05)
"""


@pytest.fixture
def run(mended_ray: RayCluster, tmp_path: Path) -> Iterator[RunDir]:
    """A job of two ranks on two nodes, which has started."""
    job = ScriptSpec(
        name="script",
        argv=(sys.executable, "-c", RANK),
        folder=str(tmp_path),
        num_ranks=2,
        num_nodes=2,
        ray=RayOptions(),
    )
    run = submit_job(job, scheduler="ray", root=tmp_path / "runs")
    until(lambda: len(ranks_of(run, attempt=1)) == 2)
    yield run
    (tmp_path / "go").touch()
    until(lambda: observe(run).state.state.is_final)
    until(lambda: not processes_of(run))


def until(happened: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + 120
    while not happened():
        assert time.monotonic() < deadline_s, "it did not happen in two minutes"
        time.sleep(0.1)


def ranks_of(run: RunDir, *, attempt: int) -> list[int]:
    """Pids of the ranks of an attempt, of two, that have started."""
    paths = sorted(run.path.parents[1].glob(f"{attempt}-?-2"))
    return [int(path.read_text()) for path in paths]


def processes_of(run: RunDir) -> list[bytes]:
    """Command lines on this machine, which is all nodes, that name the run or are its ranks."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes()
        except OSError:  # it has ended
            continue
        if run.path.name.encode() in line or b"TRIMTAB_ATTEMPT" in line:
            lines.append(line)
    return lines


def told(run: RunDir) -> tuple[list[AttemptStarted], list[AttemptEnded]]:
    with EventStore.open(run.events) as store:
        events = list(store.all(kinds=(AttemptStarted, AttemptEnded)))
    return (
        [event for event in events if isinstance(event, AttemptStarted)],
        [event for event in events if isinstance(event, AttemptEnded)],
    )


@pytest.mark.parametrize("hard", [False, True])
def test_a_job_goes_on_without_a_killed_node(
    run: RunDir, mended_ray: RayCluster, hard: bool
) -> None:
    first = told(run)[0][0]
    head = next(name for name, state in mended_ray.states().items() if state == "head")
    victim = next(node for node in first.nodes if node != head)
    mended_ray.kill_node(victim, hard=hard)
    until(lambda: len(ranks_of(run, attempt=2)) == 2)
    (run.path.parents[1] / "go").touch()
    until(lambda: observe(run).state.state.is_final)
    assert observe(run).state.state is JobState.SUCCEEDED
    started, ended = told(run)
    assert len(started) == 2
    assert len(started[1].nodes) == 2
    assert victim not in started[1].nodes
    assert ended[0].reason.startswith(f"node {victim} was lost")


def test_a_killed_rank_is_started_again(run: RunDir) -> None:
    os.kill(ranks_of(run, attempt=1)[1], signal.SIGKILL)
    until(lambda: len(ranks_of(run, attempt=2)) == 2)


def test_a_killed_controller_is_started_again(run: RunDir) -> None:
    controller = run.state().controller
    assert controller is not None
    os.kill(controller.pid, signal.SIGKILL)
    until(lambda: len(ranks_of(run, attempt=2)) == 2)
    assert run.state().controller != controller


def test_cancel_leaves_no_process(run: RunDir) -> None:
    assert processes_of(run)
    cancel_run(run)
    until(lambda: observe(run).state.state is JobState.CANCELLED)
    until(lambda: not processes_of(run))
