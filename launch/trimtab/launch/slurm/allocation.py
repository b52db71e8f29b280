"""The nodes of a Slurm job, seen from its batch host.

A job is allocated with `--no-kill`: it keeps its other nodes when one dies, and new steps are
started on those. Only the batch host's death ends it.
"""

import os
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Final

from trimtab.core.errors import InputError, JobFailedError
from trimtab.core.job import JobHandle, JobSpec, Request
from trimtab.launch.agent import TOKEN_VARIABLE
from trimtab.launch.api import AgentOrder, AgentStep, AllocatedNode, Move
from trimtab.launch.slurm import topology
from trimtab.launch.slurm.arguments import further_arguments
from trimtab.launch.slurm.commands import ask, output_of
from trimtab.launch.slurm.hostlist import expanded
from trimtab.launch.slurm.probe import silent_nodes
from trimtab.launch.slurm.scheduler import submission_environment
from trimtab.launch.staging import ARCHIVE_NAME

_END_GRACE_S: Final = 3.0
"""How long srun gets to end a step before it is killed itself. It has all tasks killed at once,
then waits for every node, also for a dead one, for Slurm's KillWait (30 s by default)."""


_UNPACK: Final = """\
for place in "$SLURM_TMPDIR" "$TMPDIR" /tmp; do
    [ -n "$place" ] && [ -d "$place" ] && [ -w "$place" ] && break
done
if [ ! -x "$1" ]; then
    echo "error: node $SLURMD_NODENAME has no Python $1; set stage.python"
    exit 2
fi
TRIMTAB_STAGE=$(mktemp -d "$place/trimtab-XXXXXX") || exit
mkdir "$TRIMTAB_STAGE/work" && tar -xz -C "$TRIMTAB_STAGE" && cd "$TRIMTAB_STAGE/work" || exit
export TRIMTAB_STAGE PYTHONPATH="$TRIMTAB_STAGE/code${PYTHONPATH:+:$PYTHONPATH}"
exec "$@"
"""
"""Unpacks standard input into a folder of this agent's own, which the agent removes in the end,
and becomes the agent."""
_UNPACKED: Final = ("/bin/sh", "-c", _UNPACK, "trimtab")


class SlurmAllocation:
    """The job this process is the batch script of."""

    def __init__(
        self, step_prefix: tuple[str, ...], *, request: Request, handle: JobHandle
    ) -> None:
        """Find the job in the environment that Slurm has set.

        Args:
            step_prefix: The `srun` command line, up to its first option of ours.
            request: What runs.
            handle: This job's, or this array task's.

        Raises:
            InputError: This is no batch script of Slurm, or Slurm cannot be asked.
        """
        missing = [n for n in ("SLURM_JOB_ID", "SLURMD_NODENAME") if n not in os.environ]
        if missing or not step_prefix:
            raise InputError(
                f"slurm: expected to run as the batch script of a job, but "
                f"{', '.join(missing) or 'the srun command'} is missing; use "
                "`trimtab submit -s slurm`"
            )
        self._step_prefix = step_prefix
        self._request = request
        self._handle = handle
        self._run_dir = Path(request.run_dir)
        # Of an array's last task SLURM_JOB_ID is the whole array's, too.
        self._job_id = handle.job_id
        self._own_name = os.environ["SLURMD_NODENAME"]
        self._places = topology.parsed_places(
            ask(["scontrol", "show", "topology", "--oneliner"]).output
        )
        own = _show_nodes([self._own_name])
        self._own_address = own[0].address if own else self._own_name

    @property
    def controller_host(self) -> str:
        try:
            return str(socket.getaddrinfo(self._own_address, None)[0][4][0])
        except OSError as error:
            raise JobFailedError(
                f"the address of node {self._own_name}, {self._own_address}, cannot be "
                f"resolved: {error}"
            ) from error

    @property
    def can_move(self) -> bool:
        return True

    def acquire(self, num_nodes: int, *, exclude: Collection[str]) -> tuple[AllocatedNode, ...]:
        """Usable nodes of the job in the order of islands, switches and names.

        Its own node is among them where it is usable: the job cannot do without it anyway.
        A node whose slurmd does not answer is left out, whatever Slurm says of it.

        Raises:
            InputError: Slurm cannot be asked.
        """
        held = [name for name in self._held() if name not in exclude]
        nodes = topology.ordered(
            (node for node in _show_nodes(held) if not node.is_lost),
            places=self._places,
            islands=_islands(self._request),
        )
        while True:
            chosen = topology.chosen(nodes, num_nodes, own=self._own_name)
            silent = silent_nodes(chosen)
            if not silent:
                break
            for name, reason in silent.items():
                print(f"node {name} is left out: {reason}", flush=True)
            nodes = tuple(node for node in nodes if node.name not in silent)
        return tuple(
            AllocatedNode(
                name=node.name,
                address=node.address,
                hosts_controller=node.name == self._own_name,
            )
            for node in chosen
        )

    def num_free_nodes(self, *, exclude: Collection[str]) -> int:
        """Idle nodes of the job's partition; other users' jobs may be faster to take them."""
        argv = ["sinfo", "--noheader", "--Node", "--format=%N %T"]
        if partition := os.environ.get("SLURM_JOB_PARTITION"):
            argv.append(f"--partition={partition}")
        # `--states=idle` would show those that are drained or do not respond, too.
        said = (line.split() for line in ask(argv).output.splitlines())
        idle = {words[0] for words in said if words[1:] == ["idle"]}
        return len(idle - set(exclude))

    def start_agents(self, nodes: Sequence[AllocatedNode], *, order: AgentOrder) -> AgentStep:
        """One job step with an agent on each node; its output goes to `logs/agents.log`.

        What a staged job has brought goes to every node by srun's standard input.

        srun is not tied to this process: agents see for themselves when it is gone, and have
        their ranks write a checkpoint, for which a cancelled step would leave no time.

        Raises:
            JobFailedError: srun could not be started.
        """
        is_staged = self._request.job.stage.enabled
        argv = [
            *self._step_prefix,
            f"--nodes={len(nodes)}",
            f"--ntasks={len(nodes)}",
            f"--nodelist={','.join(node.name for node in nodes)}",
            *(_UNPACKED if is_staged else ()),
            *order.argv,
        ]
        archive = self._run_dir / ARCHIVE_NAME if is_staged else Path(os.devnull)
        try:
            with (
                (self._run_dir / "logs" / "agents.log").open("ab") as log,
                archive.open("rb") as sent,
            ):
                log.write(f"$ {shlex.join(argv)}\n".encode())
                log.flush()
                process = subprocess.Popen(
                    argv,
                    env={**os.environ, TOKEN_VARIABLE: order.token},
                    stdin=sent,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        except OSError as error:
            raise JobFailedError(f"srun could not be started: {error}") from error
        return _SlurmStep(process)

    def release(self, node: str) -> None:
        """Shrink the job to its other nodes; Slurm refuses that for the batch host."""
        held = self._held()
        if node in held and node != self._own_name:
            self._shrink_to([name for name in held if name != node])

    def go_elsewhere(self, *, exclude: Collection[str], reason: str) -> Move:
        """Requeue the job; with nodes to exclude, submit a successor and end this one.

        Slurm takes no new `--exclude` for a job that runs, holds a requeued job for two
        minutes, and cannot requeue one whose batch host is dead before it has noticed that. A
        successor starts at once where nodes are free.

        Raises:
            JobFailedError: Slurm refuses.
        """
        if not exclude:
            answer = ask(["scontrol", "requeue", self._job_id])
            if answer.exit_code:
                raise JobFailedError(f"slurm does not requeue {self._handle}: {answer.words}")
            return Move(handle=self._handle, how=f"requeued: {reason}")
        successor = self._submit_successor(exclude)
        return Move(
            handle=successor,
            how=f"{successor} takes over, without {', '.join(sorted(exclude))}: {reason}",
        )

    def leave(self) -> None:
        """End this job, so that Slurm does not requeue it beside its successor.

        All nodes but its own are given back first: those of a job that ends with a dead node
        are not free before Slurm has given up to reach that one.
        """
        self._shrink_to([self._own_name])
        ask(["scancel", self._job_id])

    def _submit_successor(self, exclude: Collection[str]) -> JobHandle:
        """The same script again, at once and on other nodes."""
        task = os.environ.get("SLURM_ARRAY_TASK_ID")
        script = self._request.submission
        answer = ask(
            [
                "sbatch",
                "--parsable",
                # What this job has waited for, it need not wait for again.
                "--dependency=",
                "--begin=now",
                *self._node_options(frozenset(exclude)),
                *(() if task is None else (f"--array={task}",)),
            ],
            text=script,
            environment=submission_environment(script),
            folder=str(self._run_dir.parent),
        )
        if answer.exit_code:
            raise JobFailedError(f"slurm refuses a successor of {self._handle}: {answer.words}")
        job_id = answer.output.strip().partition(";")[0]
        if "hold" in further_arguments(self._request.job.slurm.args):
            ask(["scontrol", "release", job_id])
        return JobHandle(
            scheduler="slurm", job_id=job_id if task is None else f"{job_id}_{task}"
        )

    def _node_options(self, exclude: frozenset[str]) -> list[str]:
        """The nodes that this job was given or not to have, without those to exclude."""
        job = output_of(["scontrol", "show", "job", "--oneliner", self._job_id])
        without = exclude.union(topology.host_field(job, "ExcNodeList"))
        options = [f"--exclude={','.join(sorted(without))}"]
        wanted = topology.host_field(job, "ReqNodeList")
        if not without.isdisjoint(wanted):
            left = [name for name in wanted if name not in without]
            options.append(f"--nodelist={','.join(left)}")
        return options

    def _shrink_to(self, nodes: Sequence[str]) -> None:
        """Give the job's other nodes back; Slurm keeps them where it refuses."""
        argv = ["scontrol", "update", f"JobId={self._job_id}", f"NodeList={','.join(nodes)}"]
        # scontrol leaves shell scripts behind, which nobody needs.
        answer = ask(argv, folder=str(self._run_dir / "logs"))
        if answer.exit_code:
            print(f"slurm does not shrink the job to {nodes}: {answer.words}", flush=True)

    def _held(self) -> tuple[str, ...]:
        """All nodes of the job now, usable or not."""
        names = output_of(["squeue", "--noheader", "--jobs", self._job_id, "--format=%N"])
        return expanded(names.strip())


class _SlurmStep:
    """A running srun."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def poll(self) -> str | None:
        code = self._process.poll()
        return None if code is None else f"srun ended with {code}; see logs/agents.log"

    def end(self) -> None:
        """Have srun end the step; agents that were told to leave have ended it already."""
        deadline_s = time.monotonic() + _END_GRACE_S
        while self._process.poll() is None:
            if time.monotonic() > deadline_s:
                self._process.kill()
            else:
                self._process.send_signal(signal.SIGTERM)
            time.sleep(0.5)


def _show_nodes(names: Sequence[str]) -> tuple[topology.NodeInfo, ...]:
    if not names:
        return ()  # scontrol would show all
    argv = ["scontrol", "show", "node", "--oneliner", ",".join(names)]
    return topology.parsed_nodes(output_of(argv))


def _islands(request: Request) -> tuple[str, ...]:
    return request.job.cluster.islands if isinstance(request.job, JobSpec) else ()
