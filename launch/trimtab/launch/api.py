"""The seams to a scheduler: from outside (`Scheduler`), from inside a job (`Allocation`).

    submitter --Scheduler.submit--> keeper -> controller
                                              --Allocation.start_agents--> agents -> ranks

Outside, a scheduler takes a `Request` as it stands, tells how the job is and ends it. Inside,
the controller holds an allocation of nodes, has one agent started on each, and talks to the
agents itself (`fleet.py`): starting, watching and ending ranks is the same everywhere.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from trimtab.core.job import JobHandle, JobSpec, JobState, Request, ScriptSpec
from trimtab.core.plan import Layout


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerView:
    """What a scheduler says about a job."""

    state: JobState
    native_state: str
    """In the scheduler's own word: `PENDING`, `NODE_FAIL`."""
    reason: str
    """Why it waits or has ended, the scheduler's own reason with what it means; or nothing."""
    nodes: tuple[str, ...] = ()
    expected_start_s: float | None = None
    """When a waiting job is expected to start, in seconds since the Unix epoch."""


class Scheduler(Protocol):
    """Takes requests, on behalf of a person at a terminal."""

    def prepare(
        self, job: JobSpec | ScriptSpec, *, layout: Layout | None, run_dir: Path
    ) -> Request:
        """The request that `submit` will hand over; acts on nothing, asks nobody.

        Raises:
            InputError: The worker or this scheduler cannot run such a job.
        """

    def check(self, request: Request) -> None:
        """Ask the cluster what can be known before anything is queued.

        Raises:
            InputError: The cluster cannot be reached, or would refuse the request; the message
                holds its own words.
        """

    def submit(self, request: Request, *, lock_fd: int | None) -> JobHandle:
        """Hand over `request.submission` unchanged; the run directory has been written.

        Args:
            request: What `prepare` made.
            lock_fd: Locked file of the run, which what is started on this machine holds open
                as long as it lives; schedulers of other machines leave it alone.

        Raises:
            InputError: The cluster refused it; the message holds its own words.
            JobFailedError: Something else went wrong.
        """

    def views(self, handles: Sequence[JobHandle]) -> Mapping[JobHandle, SchedulerView]:
        """How jobs stand, in one question for all; a job it does not know any more is left out.

        Raises:
            InputError: The cluster cannot be reached.
        """

    def cancel(self, handle: JobHandle, *, at_once: bool) -> None:
        """Ask for the end of a job: its ranks write a checkpoint first, unless `at_once`.

        Raises:
            InputError: The cluster cannot be reached, or refuses.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class AllocatedNode:
    """A machine that belongs to the job."""

    name: str
    """As its scheduler calls it; unique in the allocation."""
    address: str
    """Where the other nodes reach it: an IP address, or a name they can resolve."""
    hosts_controller: bool
    """Whether the controller runs here: when it dies, the job must go on elsewhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentOrder:
    """What an agent is told when it is started; the token goes by the environment only."""

    controller_address: str
    """`host:port`."""
    token: str = field(repr=False)
    argv: tuple[str, ...]
    """The agent's command line; `agent.command` makes it."""


class AgentStep(Protocol):
    """Agents that were started together."""

    def poll(self) -> str | None:
        """Why it has ended, or None while it runs."""

    def end(self) -> None:
        """End what still runs, at once; returns when that is done."""


class Allocation(Protocol):
    """The nodes of a running job, seen by its controller."""

    @property
    def controller_host(self) -> str:
        """The address to listen on: the other nodes reach the controller there."""

    @property
    def can_move(self) -> bool:
        """Whether `go_elsewhere` can bring the job to other nodes."""

    def acquire(self, num_nodes: int, *, exclude: Collection[str]) -> tuple[AllocatedNode, ...]:
        """Up to `num_nodes` usable nodes in the order in which ranks are numbered.

        Args:
            num_nodes: How many the ranks need.
            exclude: Names of nodes that must not be used.

        Returns:
            Fewer where no more can be had now. A node asked for and excluded is never among
            them, whatever the scheduler gave.
        """

    def num_free_nodes(self, *, exclude: Collection[str]) -> int:
        """How many nodes beyond those held `go_elsewhere` could have at once."""

    def start_agents(self, nodes: Sequence[AllocatedNode], *, order: AgentOrder) -> AgentStep:
        """Start one agent on each node.

        Raises:
            JobFailedError: They could not be started.
        """

    def release(self, node: str) -> None:
        """Give a lost node back, where the scheduler takes one back from a running job."""

    def go_elsewhere(self, *, exclude: Collection[str], reason: str) -> "Move":
        """Have the job run again on other nodes, from the queue; this one then ends.

        The last call of a controller, which may not live to see it return: state is written.

        Args:
            exclude: Nodes that must not be in the new allocation.
            reason: Shown by the scheduler where it can.

        Raises:
            JobFailedError: The scheduler refuses; the message holds its words.
        """

    def leave(self) -> None:
        """End what is left of this job, once `go_elsewhere` has given it another handle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """A job's way to other nodes."""

    handle: JobHandle
    """The same one where the scheduler puts the job itself back into its queue."""
    how: str
    """What was arranged, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankExit:
    """How a rank's process ended: exactly one of `exit_code` and `signal` is not None."""

    rank: int
    exit_code: int | None = None
    signal: str | None = None
    """`SIGKILL`, say."""
    last_words: str = ""
    """The last lines of its log in this attempt, secrets blotted out."""
