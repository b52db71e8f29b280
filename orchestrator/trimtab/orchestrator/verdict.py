"""Why an attempt ended, told from its events: pure, no clock, no file.

When one rank dies, its peers lose their connection within a moment and fail too. The verdict
names the first, not the loudest.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from trimtab.core.errors import ExitCode
from trimtab.core.events import (
    AnyEvent,
    CheckpointSaved,
    NodeLost,
    RankExited,
    RankProgressed,
    RunResumed,
    StepFinished,
    StepSummarized,
    StopAttempt,
)
from trimtab.core.job import JobHandle, JobState

SAME_MOMENT_S: Final = 2.0
"""Ranks that fail within this time of the first may all be victims of one of them."""

_VICTIM_WORDS: Final = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "failed to recv",
    "Failed to recv",
    "Connection was likely closed",
    "ncclRemoteError",
    "remote process exited",
)
"""What gloo, NCCL, the store and the kernel say to the peers of a process that died."""

_NOT_STARTED: Final = (126, 127)
"""Exit codes of shells and of ours for a program that cannot be run, or is not there."""

_SIGNAL_HINTS: Final = {
    "SIGKILL": " (kill -9, or the kernel when memory ran out)",
    "SIGSEGV": " (a crash in native code)",
    "SIGABRT": " (native code gave up)",
    "SIGBUS": " (a full /dev/shm, or a file cut short while mapped)",
}
_ERROR_LINE = re.compile(r"^(error: |[\w.]*(Error|Exception|Interrupt)\b)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """How an attempt ended."""

    state: JobState
    reason: str
    """What happened, and where."""
    exit_code: ExitCode
    """What `submit --wait` ends with."""
    advice: str = ""
    """What a person can do where nothing happens by itself."""
    rank: int | None = None
    """The rank to blame."""
    node: str | None = None
    """The node that was lost."""

    @property
    def line(self) -> str:
        """Reason and advice in one line."""
        return f"{self.reason}; {self.advice}" if self.advice else self.reason


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    step: int
    doing: str

    def __str__(self) -> str:
        return f"in step {self.step}, {self.doing}"


class Course:
    """What is known of an attempt so far; feed it every event in order."""

    def __init__(self, handle: JobHandle, num_steps: int | None) -> None:
        """`num_steps`: of the whole training; None: a script, whose steps are not known."""
        self._handle = handle
        self._num_steps = num_steps
        self._places: dict[int, _Place] = {}
        self._exits: list[RankExited] = []
        self._lost: list[NodeLost] = []
        self._last_step = 0
        self._checkpoint_step: int | None = None

    def note_earlier_checkpoint(self, step: int) -> None:
        """An earlier attempt of this run has left a checkpoint."""
        self._checkpoint_step = self._last_step = step

    @property
    def checkpoint_step(self) -> int | None:
        """Of the newest checkpoint, this attempt's or an earlier one's."""
        return self._checkpoint_step

    def note(self, event: AnyEvent) -> None:
        """Take in one event of this attempt."""
        match event:
            case RankProgressed():
                self._places[event.rank] = _Place(step=event.step, doing=event.doing)
            case RankExited():
                self._exits.append(event)
            case NodeLost():
                self._lost.append(event)
            case StepFinished() | StepSummarized():
                self._last_step = max(self._last_step, event.step)
            case RunResumed():
                self._last_step = max(self._last_step, event.step)
            case CheckpointSaved():
                self._checkpoint_step = event.step
            case _:
                return

    def verdict(
        self,
        *,
        stop: StopAttempt | None,
        cancelled: bool,
        asked_s: float | None,
        room_wanted: str | None = None,
        ended_at_once: bool = False,
    ) -> Verdict:
        """The verdict, once no rank runs any more.

        Args:
            stop: What the monitor asked for, if it did.
            cancelled: A person asked for the end.
            asked_s: When the ranks were sent SIGTERM; how they end after it explains little.
            room_wanted: Why the scheduler wants the nodes back, if it does.
            ended_at_once: A second cancel had the ranks that still ran killed.
        """
        if cancelled:
            return self._cancelled(ended_at_once=ended_at_once)
        root = root_cause(self._exits, asked_s=asked_s)
        if self._lost and (root is None or _is_victim(root)):
            lost = self._lost[0]
            what = f"node {lost.node} was lost after step {self._last_step}: {lost.reason}"
            return self.failed(what, ExitCode.JOB_FAILED, node=lost.node)
        if root is not None:
            return self._failed_by(root)
        if stop is not None:
            code = ExitCode.JOB_FAILED if stop.restartable else ExitCode.DO_NOT_RESTART
            return self.failed(stop.reason, code, rank=stop.rank)
        if room_wanted is not None and not self._is_complete:
            where = "" if self._num_steps is None else f" after step {self._last_step}"
            what = f"its ranks were asked to end{where}: {room_wanted}"
            return self.failed(what, ExitCode.JOB_FAILED)
        return self._ended_by_itself()

    @property
    def _is_complete(self) -> bool:
        return self._num_steps is not None and self._last_step >= self._num_steps

    def _ended_by_itself(self) -> Verdict:
        if self._num_steps is not None and not self._is_complete:
            return self.failed(
                f"every rank ended by itself after step {self._last_step} of "
                f"{self._num_steps}, as if sent SIGTERM",
                ExitCode.JOB_FAILED,
            )
        reason = f"all {self._num_steps} steps are done"
        if self._num_steps is None:
            reason = "every rank of the script has ended"
        return Verdict(state=JobState.SUCCEEDED, reason=reason, exit_code=ExitCode.OK)

    def _cancelled(self, *, ended_at_once: bool) -> Verdict:
        failed = [event for event in self._exits if event.exit_code != 0]
        trouble = ""
        if ended_at_once and any(event.signal == "SIGKILL" for event in failed):
            trouble = "; a second cancel ended it at once, without a checkpoint"
        elif failed:
            first = failed[0]
            trouble = f"; rank {first.rank} {_manner(first)} instead of stopping cleanly"
        where = "" if self._num_steps is None else f" after step {self._last_step}"
        return Verdict(
            state=JobState.CANCELLED,
            reason=f"cancelled{where}{trouble}",
            exit_code=ExitCode.JOB_FAILED,
            advice=self._way_on(),
        )

    def _failed_by(self, root: RankExited) -> Verdict:
        place = self._places.get(root.rank, "before its first step")
        words = "" if root.signal == "SIGKILL" else error_line(root.last_words)
        said = f": {words}" if words else ""
        return self.failed(
            f"rank {root.rank} {_manner(root)} {place}{said}",
            self._exit_code(root),
            rank=root.rank,
        )

    def failed(
        self,
        what: str,
        exit_code: ExitCode,
        *,
        rank: int | None = None,
        node: str | None = None,
    ) -> Verdict:
        """A failure for the reason `what`, with what a person can do about it."""
        advice = {
            ExitCode.USAGE: "mend the input and submit again",
            ExitCode.DO_NOT_RESTART: "it would fail again, so do not restart it as it is",
        }.get(exit_code, self._way_on())
        return Verdict(
            state=JobState.FAILED,
            reason=what,
            exit_code=exit_code,
            advice=advice,
            rank=rank,
            node=node,
        )

    def _exit_code(self, root: RankExited) -> ExitCode:
        if any(event.exit_code == ExitCode.DO_NOT_RESTART for event in self._exits):
            return ExitCode.DO_NOT_RESTART
        if root.exit_code == ExitCode.USAGE or self._has_no_program:
            return ExitCode.USAGE
        return ExitCode.JOB_FAILED

    @property
    def _has_no_program(self) -> bool:
        """Whether the script could not be started anywhere; another node may have it."""
        codes = {event.exit_code for event in self._exits if event.signal is None}
        return self._num_steps is None and bool(codes) and codes <= set(_NOT_STARTED)

    def _way_on(self) -> str:
        if self._num_steps is None:
            return f"to run it again: trimtab submit --resume {self._handle}"
        if self._checkpoint_step is None:
            return (
                "there is no checkpoint, so this starts from step 1: "
                f"trimtab submit --resume {self._handle}"
            )
        return (
            f"to go on from the checkpoint of step {self._checkpoint_step}: "
            f"trimtab submit --resume {self._handle}"
        )


def root_cause(exits: Iterable[RankExited], *, asked_s: float | None) -> RankExited | None:
    """The exit that explains the others, or None where none failed unasked.

    Among the failures within `SAME_MOMENT_S` of the first: one that does not speak of a lost
    connection before one that does, then a signal before an exit code, then the earlier.

    Args:
        exits: In the order they were seen.
        asked_s: When the ranks were sent SIGTERM, on the clock of the exits; None: never.
    """
    failures = [event for event in exits if event.exit_code != 0]
    if not failures or (asked_s is not None and failures[0].time_s > asked_s):
        return None
    moment = [
        event
        for event in failures
        if event.time_s - failures[0].time_s <= SAME_MOMENT_S
        and not (asked_s is not None and event.time_s > asked_s and event.signal == "SIGTERM")
    ]
    return min(moment, key=lambda event: (_is_victim(event), event.signal is None))


def error_line(last_words: str) -> str:
    """The line that says most: the last that begins like an error, or simply the last."""
    lines = [line.strip() for line in last_words.splitlines() if line.strip()]
    errors = [line for line in lines if _ERROR_LINE.match(line)]
    return (errors or lines or [""])[-1]


def _is_victim(event: RankExited) -> bool:
    return any(words in event.last_words for words in _VICTIM_WORDS)


def _manner(event: RankExited) -> str:
    if event.signal:
        return f"was killed by {event.signal}{_SIGNAL_HINTS.get(event.signal, '')}"
    return f"failed with exit code {event.exit_code}"
