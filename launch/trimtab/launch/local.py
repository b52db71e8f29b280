"""This machine as a scheduler: a job starts at once, in processes that outlive the terminal."""

import os
import signal
import socket
import subprocess
import threading
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Final

from trimtab.core.errors import InputError, JobFailedError
from trimtab.core.job import EnvVar, JobHandle, JobSpec, Request, ScriptSpec
from trimtab.core.plan import Layout
from trimtab.launch import locks, tether
from trimtab.launch.agent import NODE_VARIABLE, TOKEN_VARIABLE
from trimtab.launch.api import AgentOrder, AgentStep, AllocatedNode, Move, SchedulerView
from trimtab.launch.limits import check_runnable
from trimtab.launch.nodes import job_networks
from trimtab.launch.processes import usable_cores

MAX_LOCAL_RANKS: Final = 64
"""More processes than this on one machine are taken for a mistake."""

_LOOPBACK: Final = "127.0.0.1"
_ORPHAN_GRACE_S: Final = 30.0
"""How long ranks whose agent was killed may take to save and end."""


class LocalScheduler:
    """Runs jobs on this machine."""

    def __init__(
        self,
        *,
        rank_argv: tuple[str, ...],
        keeper_argv: tuple[str, ...],
        num_cores: int | None = None,
    ) -> None:
        """Make a scheduler.

        Args:
            rank_argv: Command line of a rank; the run directory is added to its end.
            keeper_argv: Command line of a job's keeper; so here.
            num_cores: Cores to share out to the ranks; None: `usable_cores()`.
        """
        self._rank_argv = rank_argv
        self._keeper_argv = keeper_argv
        self._num_cores = num_cores or usable_cores()

    def prepare(
        self, job: JobSpec | ScriptSpec, *, layout: Layout | None, run_dir: Path
    ) -> Request:
        """The request that `submit` will hand over; acts on nothing.

        Raises:
            InputError: The worker cannot run the job, or it is too large for one machine.
        """
        _check_size(job)
        argv = job.argv if isinstance(job, ScriptSpec) else (*self._rank_argv, str(run_dir))
        if isinstance(job, JobSpec):
            assert layout is not None
            check_runnable(job, layout=layout)
        threads = max(1, self._num_cores // job.num_ranks)
        return Request(
            scheduler="local",
            run_dir=str(run_dir),
            argv=argv,
            environment=(
                EnvVar(name="OMP_NUM_THREADS", value=str(threads)),
                EnvVar(name="PYTHONUNBUFFERED", value="1"),
                *device_environment(job),
            ),
            num_ranks=job.num_ranks,
            num_nodes=1,
            job=job,
            layout=layout,
            networks=job_networks(job),
        )

    def check(self, request: Request) -> None:
        """Nothing here could refuse a request that was prepared."""

    def submit(self, request: Request, *, lock_fd: int | None) -> JobHandle:
        """Start the job's keeper in a session of its own: it outlives process and terminal.

        Raises:
            JobFailedError: It could not be started.
        """
        run_dir = Path(request.run_dir)
        held = () if lock_fd is None else ("--lock", str(lock_fd))
        try:
            with (run_dir / "logs" / "controller.log").open("ab") as log:
                keeper = subprocess.Popen(
                    [*self._keeper_argv, str(run_dir), *held],
                    pass_fds=() if lock_fd is None else (lock_fd,),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, "PYTHONUNBUFFERED": "1"},
                    start_new_session=True,
                )
        except OSError as error:
            raise JobFailedError(f"the job's keeper could not be started: {error}") from error
        # Reaped here where this process lives longer, so that no zombie is left behind.
        threading.Thread(target=keeper.wait, name="keeper reaper", daemon=True).start()
        return JobHandle(scheduler="local", job_id=request.run_id)

    def views(self, handles: Sequence[JobHandle]) -> Mapping[JobHandle, SchedulerView]:
        """Nothing beyond what the run directory tells."""
        return {}

    def cancel(self, handle: JobHandle, *, at_once: bool) -> None:
        """A local job's controller is signalled by who has its run directory."""
        raise NotImplementedError(f"{handle} is cancelled by a signal to its controller")


class LocalAllocation:
    """This machine, as the one node of a job."""

    def __init__(self, *, run_dir: Path, lock_fd: int | None) -> None:
        """Make it.

        Args:
            run_dir: The run directory.
            lock_fd: Locked file of the run, which the agent and its ranks hold open too.
        """
        self._run_dir = run_dir
        self._lock_fd = lock_fd
        self._node = AllocatedNode(
            name=socket.gethostname(), address=_LOOPBACK, hosts_controller=True
        )

    @property
    def controller_host(self) -> str:
        return _LOOPBACK

    @property
    def can_move(self) -> bool:
        return False

    def acquire(self, num_nodes: int, *, exclude: Collection[str]) -> tuple[AllocatedNode, ...]:
        """This machine, which is all there is: excluding it would help nobody."""
        return (self._node,)

    def num_free_nodes(self, *, exclude: Collection[str]) -> int:
        return 0

    def start_agents(self, nodes: Sequence[AllocatedNode], *, order: AgentOrder) -> AgentStep:
        """Start the agent, which is asked to end when this process dies.

        Raises:
            JobFailedError: It could not be started.
        """
        held = () if self._lock_fd is None else ("--lock", str(self._lock_fd))
        environment = {
            **os.environ,
            NODE_VARIABLE: self._node.name,
            TOKEN_VARIABLE: order.token,
        }
        try:
            process = subprocess.Popen(
                tether.command((*order.argv, *held)),
                env=environment,
                pass_fds=() if self._lock_fd is None else (self._lock_fd,),
                stdin=subprocess.DEVNULL,
                process_group=0,
            )
        except OSError as error:
            raise JobFailedError(f"the agent could not be started: {error}") from error
        return _LocalStep(process, run_dir=self._run_dir, node=self._node.name)

    def release(self, node: str) -> None:
        """There is nobody to give it to."""

    def go_elsewhere(self, *, exclude: Collection[str], reason: str) -> Move:
        """There is nowhere else: `can_move` says so."""
        raise JobFailedError(f"this machine is the only one: {reason}")

    def leave(self) -> None:
        """It has no other handle."""


class _LocalStep:
    """The agent's process."""

    def __init__(self, process: subprocess.Popen[bytes], *, run_dir: Path, node: str) -> None:
        self._process = process
        self._run_dir = run_dir
        self._node = node

    def poll(self) -> str | None:
        code = self._process.poll()
        return None if code is None else f"the agent ended with {code}"

    def end(self) -> None:
        """Ranks that outlive their agent have been asked to end by the kernel, and may save."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        with locks.open_node_lock(self._run_dir, self._node) as lock:
            locks.take_over(lock, grace_s=_ORPHAN_GRACE_S)


def device_environment(job: JobSpec | ScriptSpec) -> tuple[EnvVar, ...]:
    """Hides GPUs a machine may have from ranks that are to run on its CPU."""
    if isinstance(job, JobSpec) and not job.needs_gpus:
        return (EnvVar(name="CUDA_VISIBLE_DEVICES", value=""),)
    return ()


def _check_size(job: JobSpec | ScriptSpec) -> None:
    if job.num_ranks > MAX_LOCAL_RANKS:
        raise InputError(
            f"num_ranks: expected at most {MAX_LOCAL_RANKS} on one machine, got "
            f"{job.num_ranks}; set num_ranks={MAX_LOCAL_RANKS} or fewer (`trimtab plan` takes "
            "any number)"
        )
    if job.num_nodes not in (None, 1):
        raise InputError(
            f"num_nodes: this machine is one node, got {job.num_nodes}; leave it out, or "
            "submit with -s slurm or -s ray"
        )
