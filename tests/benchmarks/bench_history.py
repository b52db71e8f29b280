"""CPU time of looking at jobs where a thousand have ended.

    python tests/benchmarks/bench_history.py [--runs 1000]

Makes a folder of finished runs (half of Slurm, three tenths local, the others Ray) and prints
user + system CPU seconds of each command, the least of `--repeats`. Ends with 1 where one needs
more than `LIMIT_S`. No scheduler is asked: finished runs are told by their directories alone.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from trimtab.core.job import JobHandle, JobState, Request, SchedulerName, ScriptSpec
from trimtab.orchestrator.rundir import RunDir, RunState

LIMIT_S = 0.3
_TRIMTAB = Path(sys.executable).with_name("trimtab")


def make_history(root: Path, *, num_runs: int) -> list[RunDir]:
    """Runs that have ended in all the ways there are, the last one the newest."""
    runs = []
    for number in range(num_runs):
        scheduler = _scheduler(number)
        run_id = f"20261120-{number // 3600:02}{number // 60 % 60:02}{number % 60:02}-demo"
        request = _request(root / run_id, scheduler)
        state = (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)[number % 3]
        run = RunDir.create(request, plan=None, state=_state(scheduler, state, number))
        if scheduler != "local":
            job_id = str(1_000 + number) if scheduler == "slurm" else run_id
            run.add_handle(JobHandle(scheduler=scheduler, job_id=job_id))
        runs.append(run)
    return runs


def cpu_s(arguments: list[str], *, root: Path) -> float:
    """User and system time of one command and its children, in seconds."""
    before = _children_s()
    subprocess.run(
        [str(_TRIMTAB), *arguments],
        env={**os.environ, "TRIMTAB_RUNS_DIR": str(root)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,  # status tells the job's state by its exit code
    )
    return _children_s() - before


def _scheduler(number: int) -> SchedulerName:
    names: tuple[SchedulerName, ...] = ("slurm",) * 5 + ("local",) * 3 + ("ray",) * 2
    return names[number % len(names)]


def _request(run_dir: Path, scheduler: SchedulerName) -> Request:
    job = ScriptSpec(name="demo", argv=("python", "train.py"), folder="/", num_ranks=8)
    job = replace(job, num_nodes=2)
    return Request(
        scheduler=scheduler,
        run_dir=str(run_dir),
        argv=job.argv,
        environment=(),
        num_ranks=8,
        num_nodes=2,
        job=job,
        layout=None,
    )


def _state(scheduler: SchedulerName, state: JobState, number: int) -> RunState:
    return RunState(
        name="demo",
        scheduler=scheduler,
        num_ranks=8,
        state=state,
        reason="all steps are done",
        attempt=1,
        submitted_s=1.79e9 + number,
        started_s=1.79e9 + number + 5,
        finished_s=1.79e9 + number + 600,
        exit_code=0 if state is JobState.SUCCEEDED else 1,
    )


def _children_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1_000)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        runs = make_history(root, num_runs=options.runs)
        of_slurm = next(run for run in reversed(runs) if run.handle.scheduler == "slurm")
        commands = (
            ["list"],
            ["list", "-n", "0"],
            ["status", runs[len(runs) // 2].job_id],
            ["status", str(of_slurm.handle)],
            ["status", "local://nothing-like-it"],
        )
        print(f"{options.runs} finished runs, least of {options.repeats}, user + system CPU")
        worst_s = 0.0
        for arguments in commands:
            taken_s = min(cpu_s(arguments, root=root) for _ in range(options.repeats))
            worst_s = max(worst_s, taken_s)
            print(f"{taken_s:6.3f} s  trimtab {' '.join(arguments)}")
    return 0 if worst_s <= LIMIT_S else 1


if __name__ == "__main__":
    sys.exit(main())
