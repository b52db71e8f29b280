"""What every launcher offers: a pure `prepare`, and a `start` that does what it was told.

A launcher turns a job into a `Request`, which a dry run prints, and starts exactly that
request's ranks later. What only exists then (the collector's address, its token, the number of
the attempt) comes in a `Rendezvous` and is never written down.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from trimtab.core.job import JobHandle, JobSpec, Request
from trimtab.core.plan import Layout


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendezvous:
    """How the ranks of one attempt find each other and the collector."""

    attempt: int
    """1 for the first start; one more for each resume."""
    collector_address: str
    """`host:port`."""
    collector_token: str = field(repr=False)
    """A secret: it reaches the ranks through their environment only."""
    lock_fd: int | None = None
    """Locked file of the run, which every rank holds open as long as it lives; None: none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankExit:
    """How a rank's process ended: one of `exit_code` and `signal` is not None."""

    rank: int
    exit_code: int | None
    signal: str | None
    """`SIGKILL`, say."""

    @property
    def is_clean(self) -> bool:
        return self.exit_code == 0


class RunningRanks(Protocol):
    """The processes of one attempt."""

    def poll(self) -> tuple[RankExit, ...]:
        """The ranks that ended since the last call, in the order of their numbers."""

    @property
    def running(self) -> tuple[int, ...]:
        """Ranks whose end `poll` has not told yet, ascending."""

    def stop(self) -> None:
        """Ask every running rank to end cleanly (SIGTERM: it writes a checkpoint first)."""

    def kill(self) -> None:
        """End every running rank at once, with all it has started."""


class Launcher(Protocol):
    """One kind of machine that ranks are started on."""

    def prepare(
        self, job: JobSpec, *, layout: Layout, handle: JobHandle, run_dir: Path
    ) -> Request:
        """The request that `start` will carry out; acts on nothing.

        Raises:
            InputError: The worker or this launcher cannot run such a job.
        """

    def start(self, request: Request, *, rendezvous: Rendezvous) -> RunningRanks:
        """Start every rank of `request`; logs go to `run_dir/logs/rank-0003.log`.

        Raises:
            JobFailedError: A process could not be started.
        """


def rank_log(run_dir: Path, rank: int) -> Path:
    """Where a rank's output goes: `logs/rank-0003.log`."""
    return run_dir / "logs" / f"rank-{rank:04d}.log"
