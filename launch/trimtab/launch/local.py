"""Ranks as processes of this machine."""

import datetime
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from trimtab.core.errors import InputError, JobFailedError
from trimtab.core.job import EnvVar, JobHandle, JobSpec, Request
from trimtab.core.plan import Layout
from trimtab.launch import tether
from trimtab.launch.api import RankExit, Rendezvous, rank_log
from trimtab.launch.limits import check_runnable

MAX_LOCAL_RANKS: Final = 64
"""More processes than this on one machine are taken for a mistake."""


class LocalLauncher:
    """Starts one process for each rank on this machine, in a process group of its own."""

    def __init__(self, *, argv: tuple[str, ...], num_cores: int | None = None) -> None:
        """Make a launcher.

        Args:
            argv: Command line of a rank; the run directory is added to its end.
            num_cores: Cores to share out to the ranks; None: `usable_cores()`.
        """
        self._argv = argv
        self._num_cores = num_cores or usable_cores()

    def prepare(
        self, job: JobSpec, *, layout: Layout, handle: JobHandle, run_dir: Path
    ) -> Request:
        """The request that `start` will carry out; acts on nothing.

        Raises:
            InputError: The worker cannot run the job, or there are too many ranks for one
                machine.
        """
        check_runnable(job, layout=layout)
        _check_size(job)
        threads = max(1, self._num_cores // job.num_ranks)
        return Request(
            handle=handle,
            run_dir=str(run_dir),
            argv=(*self._argv, str(run_dir)),
            environment=(
                EnvVar(name="GLOO_SOCKET_IFNAME", value="lo"),
                EnvVar(name="OMP_NUM_THREADS", value=str(threads)),
                EnvVar(name="PYTHONUNBUFFERED", value="1"),
                *_device_environment(job),
            ),
            num_ranks=job.num_ranks,
            job=job,
            layout=layout,
        )

    def start(self, request: Request, *, rendezvous: Rendezvous) -> "LocalRanks":
        """Start every rank of `request`, from the thread that outlives them.

        The kernel ends a rank (SIGTERM) with the thread that started it, so call this from the
        main thread of the process that watches the ranks.

        Raises:
            JobFailedError: A process could not be started.
        """
        ranks = LocalRanks()
        try:
            for rank in range(request.num_ranks):
                ranks.add(rank, _start_rank(request, rank=rank, rendezvous=rendezvous))
        except OSError as error:
            ranks.kill()
            ranks.wait()
            raise JobFailedError(f"rank {rank} could not be started: {error}") from error
        return ranks


class LocalRanks:
    """Running processes, by rank."""

    def __init__(self) -> None:
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def add(self, rank: int, process: subprocess.Popen[bytes]) -> None:
        """Watch the process of a rank, which leads a process group."""
        self._processes[rank] = process

    @property
    def running(self) -> tuple[int, ...]:
        return tuple(sorted(self._processes))

    def poll(self) -> tuple[RankExit, ...]:
        """The ranks that ended since the last call; what they had started is ended too."""
        exits = tuple(
            _rank_exit(rank, process.returncode)
            for rank, process in sorted(self._processes.items())
            if process.poll() is not None
        )
        for ended in exits:
            _signal_group(self._processes.pop(ended.rank).pid, signal.SIGKILL)
        return exits

    def stop(self) -> None:
        """SIGTERM to every running rank, not to what it has started."""
        for process in self._processes.values():
            process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to every running rank and all it has started."""
        for process in self._processes.values():
            _signal_group(process.pid, signal.SIGKILL)

    def wait(self) -> None:
        """Return when every running rank has ended; `poll` still tells how."""
        for process in self._processes.values():
            process.wait()


def usable_cores() -> int:
    """Cores this process may run on: those of its CPU set, where the system tells."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _device_environment(job: JobSpec) -> tuple[EnvVar, ...]:
    """Hides GPUs this machine may have from ranks that are to run on its CPU."""
    if all(node.gpu.is_cpu for node in job.cluster.nodes):
        return (EnvVar(name="CUDA_VISIBLE_DEVICES", value=""),)
    return ()


def _check_size(job: JobSpec) -> None:
    if job.num_ranks > MAX_LOCAL_RANKS:
        raise InputError(
            f"num_ranks: expected at most {MAX_LOCAL_RANKS} on one machine, got "
            f"{job.num_ranks}; set num_ranks={MAX_LOCAL_RANKS} or fewer (`trimtab plan` takes "
            "any number)"
        )


def _start_rank(
    request: Request, *, rank: int, rendezvous: Rendezvous
) -> subprocess.Popen[bytes]:
    run_dir = Path(request.run_dir)
    with rank_log(run_dir, rank).open("ab") as log:
        now = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        log.write(f"{attempt_line(rendezvous.attempt)} {now}\n".encode())
        log.flush()
        return subprocess.Popen(
            _tethered(request.argv),
            env=_environment(request, rank=rank, rendezvous=rendezvous),
            cwd=run_dir,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            process_group=0,
            pass_fds=() if rendezvous.lock_fd is None else (rendezvous.lock_fd,),
        )


def attempt_line(attempt: int) -> str:
    """How the part of a rank's log that belongs to an attempt begins."""
    return f"--- attempt {attempt}:"


def _tethered(argv: tuple[str, ...]) -> list[str]:
    return [sys.executable, "-I", "-S", tether.__file__, str(os.getpid()), *argv]


def _environment(request: Request, *, rank: int, rendezvous: Rendezvous) -> Mapping[str, str]:
    shared = {variable.name: variable.value for variable in request.environment}
    store = Path(request.run_dir) / f"rendezvous-{rendezvous.attempt}"
    return {
        **os.environ,
        **shared,
        "RANK": str(rank),
        "WORLD_SIZE": str(request.num_ranks),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(request.num_ranks),
        "TRIMTAB_RENDEZVOUS": store.as_uri(),
        "TRIMTAB_COLLECTOR": rendezvous.collector_address,
        "TRIMTAB_COLLECTOR_TOKEN": rendezvous.collector_token,
        "TRIMTAB_ATTEMPT": str(rendezvous.attempt),
    }


def _rank_exit(rank: int, return_code: int) -> RankExit:
    """`return_code` as `subprocess` gives it: minus the signal's number where one ended it."""
    if return_code >= 0:
        return RankExit(rank=rank, exit_code=return_code, signal=None)
    return RankExit(rank=rank, exit_code=None, signal=_signal_name(-return_code))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # real-time signals have no name in Python
        return f"signal {number}"


def _signal_group(pid: int, number: signal.Signals) -> None:
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        return
