"""Decides from events and the passing of time whether a job must be stopped.

Pure: time arrives as `now_s`, decisions leave as actions. One `Health` watches one attempt.
"""

from dataclasses import dataclass, replace
from typing import Final

from trimtab.core.errors import ExitCode
from trimtab.core.events import (
    AnyAction,
    AnyEvent,
    RankExited,
    RankProgressed,
    RankStarted,
    StepFinished,
    StopJob,
)
from trimtab.core.units import duration_text

START_ALLOWANCE_S: Final = 300.0
"""Silence allowed to a rank that starts, or writes a checkpoint.

Imports, weights and communicators of a large job take minutes before the first heartbeat.
"""
_SLOW_DOINGS: Final = ("starting", "checkpoint")
_REPEATING_EXITS: Final = (ExitCode.USAGE, ExitCode.DO_NOT_RESTART)


@dataclass(frozen=True, slots=True, kw_only=True)
class _LifeSign:
    """The last that is known of a rank."""

    seen_s: float | None = None
    """None: nothing yet."""
    step: int = 0
    doing: str = "starting"
    exited: bool = False


class Health:
    """The ranks of one attempt, as far as their events tell.

    Args:
        num_ranks: Ranks 0 to `num_ranks - 1` are expected.
        silent_rank_s: A rank that sends nothing for this long is taken as hung.
        start_allowance_s: The same while it starts or writes a checkpoint.
    """

    def __init__(
        self,
        num_ranks: int,
        silent_rank_s: float,
        *,
        start_allowance_s: float = START_ALLOWANCE_S,
    ) -> None:
        self._signs = {rank: _LifeSign() for rank in range(num_ranks)}
        self._silent_rank_s = silent_rank_s
        self._start_allowance_s = max(start_allowance_s, silent_rank_s)
        self._began_s: float | None = None
        self._stopped = False

    def handle(self, event: AnyEvent, now_s: float) -> tuple[AnyAction, ...]:
        """What to do because of `event`, which arrived at `now_s`."""
        self._note_beginning(now_s)
        rank = getattr(event, "rank", None)
        if rank not in self._signs:
            return ()
        sign = self._signs[rank] = _renewed(self._signs[rank], event, now_s=now_s)
        if isinstance(event, RankExited) and event.exit_code != ExitCode.OK:
            return self._stop(
                _exit_reason(event, sign), restartable=event.exit_code not in _REPEATING_EXITS
            )
        return ()

    def tick(self, now_s: float) -> tuple[AnyAction, ...]:
        """What to do because it is `now_s`; call it every second or so."""
        self._note_beginning(now_s)
        silent = [rank for rank in self._signs if self._is_silent(rank, now_s)]
        if not silent:
            return ()
        first = min(silent, key=lambda rank: (self._signs[rank].step, self._seen_s(rank)))
        sign = self._signs[first]
        others = f" ({len(silent) - 1} other ranks are silent too)" if len(silent) > 1 else ""
        silence = duration_text(now_s - self._seen_s(first))
        reason = f"rank {first} has sent nothing for {silence}; {_whereabouts(sign)}{others}"
        return self._stop(reason, restartable=True)

    def _note_beginning(self, now_s: float) -> None:
        if self._began_s is None:
            self._began_s = now_s

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

    def _stop(self, reason: str, *, restartable: bool) -> tuple[AnyAction, ...]:
        if self._stopped:
            return ()
        self._stopped = True
        return (StopJob(reason=reason, restartable=restartable),)


def _renewed(sign: _LifeSign, event: AnyEvent, *, now_s: float) -> _LifeSign:
    if isinstance(event, RankExited):
        return replace(sign, exited=True)
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
    words = f"; its last words: {lines[-1].strip()}" if lines else ""
    return f"rank {event.rank} {how}; {_whereabouts(sign)}{words}"


def _whereabouts(sign: _LifeSign) -> str:
    if sign.seen_s is None:
        return "it had not reported yet"
    return f"it was last seen in step {sign.step}, doing: {sign.doing}"
