"""Decides from events and the passing of time whether an attempt must be stopped.

Pure: time arrives as `now_s`, decisions leave as actions. One `Health` watches one attempt.

A rank's heartbeats come from a thread of its own, so a rank that is stuck in a collective goes
on sending them. Hence two rules: a rank that sends nothing is hung, and so is a job whose ranks
all stay where they are.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from trimtab.core.errors import ExitCode
from trimtab.core.events import (
    AnyEvent,
    NodeLost,
    RankExited,
    RankFrozen,
    RankProgressed,
    RankStarted,
    StepFinished,
    StopAttempt,
)
from trimtab.core.units import duration_text

START_ALLOWANCE_S: Final = 300.0
"""Silence allowed to a rank that starts, or writes a checkpoint.

Imports, weights and communicators of a large job take minutes before the first heartbeat.
"""
STALL_FACTOR: Final = 10.0
"""Ranks that report but do not move may do so for this many times `silent_rank_s`."""
SLOW_STALL_FACTOR: Final = 60.0
"""The same while a rank starts, saves or evaluates, and before the first step has finished.

By default one hour: a rank may read and tokenize a whole corpus before it begins.
"""
STALL_STEPS: Final = 20.0
"""And never less than this many times the longest step so far."""
_SLOW_DOINGS: Final = ("starting", "checkpoint")
_STANDING_DOINGS: Final = (*_SLOW_DOINGS, "evaluation")
_REPEATING_EXITS: Final = (ExitCode.USAGE, ExitCode.DO_NOT_RESTART)


@dataclass(frozen=True, slots=True, kw_only=True)
class _LifeSign:
    """The last that is known of a rank."""

    seen_s: float | None = None
    """None: nothing yet."""
    step: int = 0
    doing: str = "starting"
    exited: bool = False

    @property
    def place(self) -> tuple[int, str]:
        return self.step, self.doing


class Health:
    """The ranks of one attempt, as far as their events tell.

    Args:
        num_ranks: Ranks 0 to `num_ranks - 1` are expected.
        silent_rank_s: A rank that sends nothing for this long is taken as hung; all ranks
            together when none moves for `STALL_FACTOR` times as long. None: the ranks run a
            script that reports nothing, so that silence tells nothing.
        start_allowance_s: The same while it starts or writes a checkpoint.
    """

    def __init__(
        self,
        num_ranks: int,
        silent_rank_s: float | None,
        *,
        start_allowance_s: float = START_ALLOWANCE_S,
    ) -> None:
        self._signs = {rank: _LifeSign() for rank in range(num_ranks)}
        self._ranks_report = silent_rank_s is not None
        self._silent_rank_s = silent_rank_s or 0.0
        self._start_allowance_s = max(start_allowance_s, self._silent_rank_s)
        self._began_s: float | None = None
        self._moved_s = 0.0
        """When a rank last came from one place to another."""
        self._longest_step_s: float | None = None
        """None: no step has finished."""
        self._stopped = False

    def handle(self, event: AnyEvent, now_s: float) -> tuple[StopAttempt, ...]:
        """What to do because of `event`, which arrived at `now_s`."""
        self._note_beginning(now_s)
        if isinstance(event, NodeLost):
            reason = f"node {event.node} is lost: {event.reason}"
            return self._stop(reason, restartable=True, node=event.node)
        rank = getattr(event, "rank", None)
        if rank not in self._signs:
            return ()
        before = self._signs[rank]
        sign = self._signs[rank] = _renewed(before, event, now_s=now_s)
        if sign.place != before.place or sign.exited:
            self._moved_s = now_s
        if isinstance(event, StepFinished):
            self._longest_step_s = max(self._longest_step_s or 0.0, event.step_s)
        if isinstance(event, RankExited) and event.exit_code != ExitCode.OK:
            return self._stop(
                _exit_reason(event, sign),
                restartable=event.exit_code not in _REPEATING_EXITS,
                rank=rank,
            )
        if isinstance(event, RankFrozen):
            reason = f"rank {rank} does not run: {event.reason}; {_whereabouts(before)}"
            return self._stop(reason, restartable=True, rank=rank)
        return ()

    def tick(self, now_s: float) -> tuple[StopAttempt, ...]:
        """What to do because it is `now_s`; call it every second or so."""
        self._note_beginning(now_s)
        if not self._ranks_report:
            return ()
        silent = [rank for rank in self._signs if self._is_silent(rank, now_s)]
        if silent:
            return self._stop_silent(silent, now_s)
        running = {rank: sign for rank, sign in self._signs.items() if not sign.exited}
        still_s = now_s - self._moved_s
        if running and still_s > self._stall_allowance_s(running.values()):
            reason = f"no rank has moved for {duration_text(still_s)}: {_standing(running)}"
            return self._stop(reason, restartable=True)
        return ()

    def _stop_silent(self, silent: list[int], now_s: float) -> tuple[StopAttempt, ...]:
        first = min(silent, key=lambda rank: (self._signs[rank].step, self._seen_s(rank)))
        sign = self._signs[first]
        others = f" ({len(silent) - 1} other ranks are silent too)" if len(silent) > 1 else ""
        silence = duration_text(now_s - self._seen_s(first))
        reason = f"rank {first} has sent nothing for {silence}; {_whereabouts(sign)}{others}"
        return self._stop(reason, restartable=True, rank=first)

    def _note_beginning(self, now_s: float) -> None:
        if self._began_s is None:
            self._began_s = self._moved_s = now_s

    def _seen_s(self, rank: int) -> float:
        seen_s = self._signs[rank].seen_s
        if seen_s is not None:
            return seen_s
        assert self._began_s is not None
        return self._began_s

    def _is_silent(self, rank: int, now_s: float) -> bool:
        sign = self._signs[rank]
        if sign.exited:
            return False
        slow = sign.doing in _SLOW_DOINGS
        allowed_s = self._start_allowance_s if slow else self._silent_rank_s
        return now_s - self._seen_s(rank) > allowed_s

    def _stall_allowance_s(self, running: Iterable[_LifeSign]) -> float:
        is_slow = any(sign.doing in _STANDING_DOINGS for sign in running)
        is_slow = is_slow or self._longest_step_s is None
        factor = SLOW_STALL_FACTOR if is_slow else STALL_FACTOR
        steps_s = STALL_STEPS * (self._longest_step_s or 0.0)
        return max(factor * self._silent_rank_s, steps_s)

    def _stop(
        self,
        reason: str,
        *,
        restartable: bool,
        node: str | None = None,
        rank: int | None = None,
    ) -> tuple[StopAttempt, ...]:
        if self._stopped:
            return ()
        self._stopped = True
        return (StopAttempt(reason=reason, restartable=restartable, node=node, rank=rank),)


def _renewed(sign: _LifeSign, event: AnyEvent, *, now_s: float) -> _LifeSign:
    if isinstance(event, RankExited):
        return replace(sign, exited=True)
    if isinstance(event, RankFrozen):
        return sign
    sign = replace(sign, seen_s=now_s)
    if isinstance(event, RankProgressed):
        return replace(sign, step=event.step, doing=event.doing)
    if isinstance(event, StepFinished):
        return replace(sign, step=event.step, doing="between steps")
    if isinstance(event, RankStarted):
        return replace(sign, doing="waiting for the first step")
    return sign


def _exit_reason(event: RankExited, sign: _LifeSign) -> str:
    how = f"was killed by {event.signal}" if event.signal else f"exited {event.exit_code}"
    lines = event.last_words.strip().splitlines()
    words = f"; its last words: {lines[-1].strip()}" if lines and not event.signal else ""
    return f"rank {event.rank} {how}; {_whereabouts(sign)}{words}"


def _whereabouts(sign: _LifeSign) -> str:
    if sign.seen_s is None:
        return "it had not reported yet"
    return f"it was last seen in step {sign.step}, doing: {sign.doing}"


def _standing(signs: dict[int, _LifeSign]) -> str:
    """Where every rank stands, those furthest behind first."""
    ranks_at = defaultdict(list)
    for rank, sign in signs.items():
        ranks_at[sign.place].append(rank)
    return "; ".join(
        f"{_ranks_text(ranks)} in step {step}, {doing}"
        for (step, doing), ranks in sorted(ranks_at.items())
    )


def _ranks_text(ranks: list[int]) -> str:
    """`rank 3`, or `ranks 0-2, 5`: ascending ranks, neighbours as a span."""
    spans: list[tuple[int, int]] = []
    for rank in ranks:
        if spans and rank == spans[-1][1] + 1:
            spans[-1] = (spans[-1][0], rank)
        else:
            spans.append((rank, rank))
    text = ", ".join(
        str(first) if first == last else f"{first}-{last}" for first, last in spans
    )
    return f"rank {text}" if len(ranks) == 1 else f"ranks {text}"
