"""A whole job on a real cluster; its ranks are a script, so that nothing is imported."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trimtab.core.events import AttemptEnded, AttemptStarted
from trimtab.core.job import JobState, ScriptSpec
from trimtab.monitor.store import EventStore
from trimtab.orchestrator.observation import observe
from trimtab.orchestrator.rundir import RunDir
from trimtab.orchestrator.submission import submit_job

RANK = """
import os, time
from pathlib import Path
name = "-".join([os.environ["TRIMTAB_ATTEMPT"], os.environ["RANK"], os.environ["WORLD_SIZE"]])
draft = Path(f".{name}")
draft.write_text(str(os.getpid()))
draft.rename(name)
while not Path("go").exists():
    time.sleep(0.05)
"""


@dataclass(frozen=True, kw_only=True)
class ScriptRun:
    """A job of two ranks on two nodes; they end when told to."""

    run: RunDir
    folder: Path

    @property
    def ranks(self) -> list[int]:
        """Pids of all ranks that have started, attempt after attempt, two of each."""
        return [int(path.read_text()) for path in sorted(self.folder.glob("?-?-2"))]

    def until_started(self) -> None:
        until(lambda: len(self.ranks) == 2)

    def until_started_again(self) -> None:
        until(lambda: len(self.ranks) == 4)

    def finish(self) -> JobState:
        """Have the ranks end; how the job has ended then."""
        (self.folder / "go").touch()
        until(lambda: self.state.is_final)
        return self.state

    @property
    def state(self) -> JobState:
        return observe(self.run).state.state

    def processes(self) -> list[bytes]:
        """Command lines on this machine, of all nodes, that name the run or are its ranks."""
        lines = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                line = path.read_bytes()
            except OSError:  # it has ended
                continue
            if bytes(self.folder) in line:
                lines.append(line)
        return lines

    def told(self) -> tuple[list[AttemptStarted], list[AttemptEnded]]:
        with EventStore.open(self.run.events) as store:
            events = list(store.all(kinds=(AttemptStarted, AttemptEnded)))
        return (
            [event for event in events if isinstance(event, AttemptStarted)],
            [event for event in events if isinstance(event, AttemptEnded)],
        )


@contextmanager
def script_run(
    folder: Path, *, scheduler: Literal["slurm", "ray"], **options: Any
) -> Iterator[ScriptRun]:
    """A job that has started; afterwards it ends, and none of its processes may be left."""
    job = ScriptSpec(
        name="script",
        argv=(sys.executable, "-c", RANK, str(folder)),
        folder=str(folder),
        num_ranks=2,
        num_nodes=2,
        **options,
    )
    run = submit_job(job, scheduler=scheduler, root=folder / "runs")
    job_run = ScriptRun(run=run, folder=folder)
    job_run.until_started()
    yield job_run
    job_run.finish()
    until(lambda: not job_run.processes())


def until(happened: Callable[[], object]) -> None:
    """Wait; the whole test's time limit bounds it."""
    while not happened():
        time.sleep(0.1)


def signal_controller(run: RunDir, number: int) -> None:
    controller = run.state().controller
    assert controller is not None
    os.kill(controller.pid, number)
