"""How long after a rank is killed a run has ended and told why.

    python tests/benchmarks/bench_rank_death.py JOB.yaml [a.b=c ...] [--kills 3]

Submits the job, kills one rank (SIGKILL) in the middle of training, and prints the
seconds until the run directory says FAILED, with the reason it gives. Real ranks, this machine.
"""

import argparse
import os
import platform
import signal
import statistics
import time

import torch

from trimtab.core.events import RankStarted, StepSummarized
from trimtab.core.job import JobState
from trimtab.monitor.store import EventStore
from trimtab.orchestrator.config import load_job
from trimtab.orchestrator.rundir import RunDir
from trimtab.orchestrator.submission import submit_job

_POLL_S = 0.01
_STEPS_BEFORE = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("job")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--kills", type=int, default=3)
    arguments = parser.parse_args()
    job = load_job(arguments.job, arguments.overrides)
    print(f"{platform.platform()}, {os.cpu_count()} cores, torch {torch.__version__}")
    seconds = []
    for kill in range(arguments.kills):
        run = submit_job(job)
        victim = kill % job.num_ranks
        pid = _pid_in_training(run, victim)
        os.kill(pid, signal.SIGKILL)
        killed_s = time.monotonic()
        while run.observed(time.time()).state is not JobState.FAILED:
            time.sleep(_POLL_S)
        seconds.append(time.monotonic() - killed_s)
        print(f"rank {victim}: {seconds[-1]:.2f} s: {run.state().reason}")
    print(f"median {statistics.median(seconds):.2f} s, most {max(seconds):.2f} s")


def _pid_in_training(run: RunDir, rank: int) -> int:
    """The process of a rank, once a few steps are done."""
    while True:
        time.sleep(_POLL_S)
        if not run.events.exists():
            continue
        with EventStore.open(run.events) as store:
            latest = store.latest(StepSummarized)
            if latest is None or latest.step < _STEPS_BEFORE:
                continue
            for event in store.all(kinds=(RankStarted,)):
                if isinstance(event, RankStarted) and event.rank == rank:
                    return event.pid


if __name__ == "__main__":
    main()
