"""What to do when an attempt has ended: stop, start again, or go elsewhere. Pure.

- A success, a cancel and a failure that would repeat (wrong input, diverged, out of memory)
  end the job.
- Any other failure starts it again from the last checkpoint. Attempts in a row that bring no
  new checkpoint are limited (`restart.max_restarts`), with a growing pause between them.
- A node that was lost is not used again. One whose rank died or froze is avoided while others
  are free, and not used again when it happens there twice without a new checkpoint between:
  else a sick node that fails every attempt at once would draw all of them.
- When its own node is lost, the controller cannot stay: the job goes elsewhere.
"""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from trimtab.core.errors import ExitCode
from trimtab.core.job import JobState
from trimtab.core.scheduling import RestartSpec
from trimtab.core.units import counted
from trimtab.orchestrator.verdict import Verdict

LONGEST_PAUSE_S: Final = 60.0
FAILURES_TO_SHUN: Final = 2
"""So many failures in a row on a node and it is not used again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptEnd:
    """How an attempt ended, as far as it matters for what follows."""

    verdict: Verdict
    node: str | None
    """The node to blame: the lost one, or that of the rank to blame."""
    checkpoint_step: int | None
    """Of the newest checkpoint there is."""
    room_wanted: str | None = None
    """Why the scheduler wants the nodes back, if it does."""
    controller_lost: bool = False
    """Whether the blamed node was lost and is the controller's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """The job is over."""

    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class StartAgain:
    """Start the next attempt within the allocation."""

    pause_s: float
    shun: frozenset[str]
    """Nodes that must not be used."""
    avoid: frozenset[str]
    """Nodes to do without if others are free."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GoElsewhere:
    """Have the scheduler run the job on other nodes."""

    exclude: frozenset[str]
    reason: str


Decision = Finish | StartAgain | GoElsewhere


class Supervisor:
    """The restarts of one job.

    Args:
        spec: What the user allows.
        can_move: Whether the scheduler can put the job on other nodes.
        shun: Nodes that earlier allocations of this job have lost.
        num_in_row: Restarts that earlier controllers have made since the last checkpoint.
    """

    def __init__(
        self,
        spec: RestartSpec,
        *,
        can_move: bool,
        shun: Collection[str] = (),
        num_in_row: int = 0,
    ) -> None:
        self._spec = spec
        self._can_move = can_move
        self._shun = frozenset(shun)
        self._avoid: frozenset[str] = frozenset()
        self._failures: Counter[str] = Counter()
        """By node, since the last new checkpoint."""
        self._num_in_row = num_in_row
        self._checkpoint_step: int | None = None

    @property
    def num_in_row(self) -> int:
        """Restarts since the last new checkpoint."""
        return self._num_in_row

    @property
    def shun(self) -> frozenset[str]:
        """Nodes that must not be used any more."""
        return self._shun

    def begin(self, *, checkpoint_step: int | None) -> None:
        """Tell the newest checkpoint there was before the first attempt."""
        self._checkpoint_step = checkpoint_step

    def lose(self, node: str) -> None:
        """A node cannot be used."""
        self._shun |= {node}

    def decide(self, end: AttemptEnd) -> Decision:
        """What comes after `end`."""
        verdict = end.verdict
        if verdict.state is not JobState.FAILED:
            return Finish(verdict=verdict)
        if verdict.exit_code in (ExitCode.USAGE, ExitCode.DO_NOT_RESTART):
            return Finish(verdict=verdict)
        if end.checkpoint_step != self._checkpoint_step:
            self._num_in_row, self._checkpoint_step = 0, end.checkpoint_step
            self._failures.clear()
        self._blame(end)
        if end.room_wanted is not None and self._can_move:
            return GoElsewhere(exclude=self._shun, reason=end.room_wanted)
        self._num_in_row += 1
        if self._num_in_row > self._spec.max_restarts:
            return Finish(verdict=self._given_up(verdict))
        if end.controller_lost and self._can_move:
            return GoElsewhere(exclude=self._shun, reason=verdict.reason)
        return StartAgain(
            pause_s=self._pause_s(),
            shun=self._shun,
            avoid=self._avoid,
        )

    def _blame(self, end: AttemptEnd) -> None:
        if end.node is None:
            return
        self._failures[end.node] += 1
        self._avoid |= {end.node}
        lost = end.verdict.node == end.node
        if lost or self._failures[end.node] >= FAILURES_TO_SHUN:
            self._shun |= {end.node}

    def _pause_s(self) -> float:
        if self._num_in_row == 1:
            return 0.0
        return min(LONGEST_PAUSE_S, self._spec.backoff_s * 2.0 ** (self._num_in_row - 2))

    def _given_up(self, verdict: Verdict) -> Verdict:
        if not self._spec.max_restarts:
            return verdict
        times = counted(self._spec.max_restarts, "restart")
        return Verdict(
            state=verdict.state,
            reason=f"{verdict.reason} (given up after {times} without a new checkpoint)",
            exit_code=verdict.exit_code,
            advice=verdict.advice,
            rank=verdict.rank,
            node=verdict.node,
        )
