"""One attempt of a job: from its first rank's start to its last rank's end.

What ranks and agents tell becomes events, which are kept and judged; what health asks for is
done. The verdict at the end says why the attempt ended.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from trimtab.core.errors import TrimtabError
from trimtab.core.events import (
    Alert,
    AnyEvent,
    NodeLost,
    RankExited,
    RankFrozen,
    StepFinished,
    StopAttempt,
)
from trimtab.core.job import Request, ScriptSpec
from trimtab.launch.api import RankExit
from trimtab.launch.fleet import Fleet, News, NodeGone, RankFroze, RoomWanted
from trimtab.monitor.collector import Collector
from trimtab.monitor.gpus import GpuSampler
from trimtab.monitor.health import Health
from trimtab.orchestrator.verdict import Course, Verdict

POLL_S: Final = 0.1
FAILURE_GRACE_S: Final = 2.0
"""How long the peers of a failed rank get to say what they saw before SIGKILL."""
RESCUE_GRACE_S: Final = 20.0
"""How long ranks that all still live get to write a checkpoint when a node is failing."""
CANCEL_GRACE_S: Final = 120.0
"""How long ranks get to finish their step and write a checkpoint before SIGKILL."""


class Wishes:
    """What people and schedulers ask of a job; set by signal handlers, and by a file.

    Args:
        cancel_file: Who cannot signal the controller makes it; it is taken away when seen.
    """

    def __init__(self, cancel_file: Path) -> None:
        self._cancel_file = cancel_file
        self.num_cancels = 0
        self.room: str | None = None
        """Why the scheduler wants the nodes back."""

    def cancel(self) -> None:
        """Stop cleanly; called again, stop at once."""
        self.num_cancels += 1

    def look(self) -> None:
        """Take in the file."""
        if self._cancel_file.exists():
            self._cancel_file.unlink(missing_ok=True)
            self.cancel()

    def make_room(self, why: str) -> None:
        """Write a checkpoint and go back to the queue."""
        self.room = self.room or why


class Attempt:
    """Watches the ranks that a fleet runs.

    Args:
        request: What runs.
        fleet: The agents, which have been told to start it.
        collector: Where the ranks report.
        course: Knows of earlier checkpoints; takes in every event.
        record: Keeps events.
        wishes: What is asked for meanwhile.
        sampler: Measures the GPUs of the controller's own machine.
        on_cancel: Called once when a cancel is seen.
        shun: Nodes that are not to be used.
    """

    def __init__(
        self,
        request: Request,
        *,
        fleet: Fleet,
        collector: Collector,
        course: Course,
        record: Callable[[Sequence[AnyEvent]], None],
        wishes: Wishes,
        sampler: GpuSampler,
        on_cancel: Callable[[], None],
        shun: frozenset[str],
    ) -> None:
        self._request = request
        self._fleet = fleet
        self._collector = collector
        self._course = course
        self._record_elsewhere = record
        self._wishes = wishes
        self._sampler = sampler
        self._on_cancel = on_cancel
        self._shun = shun
        telemetry = request.job.telemetry
        is_script = isinstance(request.job, ScriptSpec)
        silent_rank_s = None if is_script else telemetry.silent_rank_s
        self._health = Health(request.num_ranks, silent_rank_s)
        self._wants_spares = request.job.restart.warm_spares and not is_script
        self._sample_every_s = telemetry.gpu_sample_s
        self._next_sample_s = time.monotonic()
        self._rank_nodes = {rank: fleet.node_of(rank) for rank in fleet.running}
        self._stop: StopAttempt | None = None
        self._asked_s: float | None = None
        """When the ranks were asked to stop (wall clock)."""
        self._kill_at_s: float | None = None
        """When their grace is over (monotonic clock)."""
        self._is_cancel_told = False

    def watch(self) -> None:
        """Return when no rank runs any more and everything they said is recorded."""
        try:
            while self._fleet.running:
                self._turn()
                time.sleep(POLL_S)
            self._take(self._fleet.poll(), time.monotonic())
        finally:
            self._fleet.kill()
            self._collector.close()
            self._record(self._collector.drain())

    def verdict(self) -> Verdict:
        """Why it ended."""
        return self._course.verdict(
            stop=self._stop,
            cancelled=self._wishes.num_cancels > 0,
            ended_at_once=self._wishes.num_cancels > 1,
            asked_s=self._asked_s,
            room_wanted=self._wishes.room,
        )

    def blamed_node(self, verdict: Verdict) -> str | None:
        """The node that a verdict speaks of, by itself or by its rank."""
        if verdict.node is not None:
            return verdict.node
        return None if verdict.rank is None else self._rank_nodes.get(verdict.rank)

    def _turn(self) -> None:
        now_s = time.monotonic()
        self._take(self._fleet.poll(), now_s)
        for action in self._health.tick(now_s):
            self._carry_out(action, now_s)
        self._heed_wishes(now_s)
        if self._kill_at_s is not None and now_s > self._kill_at_s:
            self._fleet.kill()

    def _take(self, news: Sequence[News], now_s: float) -> None:
        """Record what was heard, then act on it."""
        told = [self._collector.drain(), self._events_of(news), self._samples(now_s)]
        events: list[AnyEvent] = [event for part in told for event in part]
        self._record(events)
        for event in events:
            for action in self._health.handle(event, now_s):
                self._carry_out(action, now_s, ranks_live=_all_live(news))
        if self._wants_spares and any(isinstance(event, StepFinished) for event in events):
            self._wants_spares = False
            self._keep_warm()

    def _keep_warm(self) -> None:
        """Not before the first step, so as not to slow the ranks' own start."""
        try:
            self._fleet.keep_warm(self._request, exclude=self._shun)
        except TrimtabError as error:
            self._record([_warning(f"no warm spares on the spare nodes: {error}")])

    def _carry_out(
        self, action: StopAttempt, now_s: float, *, ranks_live: bool = False
    ) -> None:
        self._stop = action
        _say(f"stopping the attempt: {action.reason}")
        self._record([_critical(action.reason)])
        grace_s = RESCUE_GRACE_S if ranks_live else FAILURE_GRACE_S
        if action.rank is not None and action.rank in self._fleet.running:
            grace_s = 0.0  # it does not run, so no collective of its peers will ever end
        self._ask_to_stop(kill_at_s=now_s + grace_s)

    def _heed_wishes(self, now_s: float) -> None:
        wishes = self._wishes
        wishes.look()
        if wishes.num_cancels and not self._is_cancel_told:
            self._is_cancel_told = True
            _say("cancelling: the ranks write a checkpoint and end")
            self._on_cancel()
            self._ask_to_stop(kill_at_s=now_s + CANCEL_GRACE_S)
        if wishes.room is not None and self._kill_at_s is None:
            _say(f"making room: {wishes.room}")
            self._record([_warning(f"{wishes.room}: the ranks write a checkpoint and end")])
            self._ask_to_stop(kill_at_s=now_s + CANCEL_GRACE_S)
        if wishes.num_cancels > 1:
            self._fleet.kill()

    def _ask_to_stop(self, *, kill_at_s: float) -> None:
        """Ask once; a later reason can only bring the end of their grace forward."""
        if self._kill_at_s is None:
            self._fleet.stop()
            self._asked_s = time.time()
            self._kill_at_s = kill_at_s
        self._kill_at_s = min(self._kill_at_s, kill_at_s)

    def _events_of(self, news: Sequence[News]) -> list[AnyEvent]:
        """News as events, killed ranks before those that failed: causes before victims."""
        exits = [each for each in news if isinstance(each, RankExit)]
        events: list[AnyEvent] = []
        for each in news:
            match each:
                case NodeGone():
                    events.append(
                        NodeLost(time_s=time.time(), node=each.node, reason=each.reason)
                    )
                case RankFroze():
                    events.append(
                        RankFrozen(time_s=time.time(), rank=each.rank, reason=each.reason)
                    )
                case RoomWanted():
                    self._wishes.make_room(f"{each.signal} on node {each.node}")
                case _:
                    continue
        exits.sort(key=lambda ended: ended.signal is None)
        return [*events, *(_rank_exited(ended) for ended in exits)]

    def _samples(self, now_s: float) -> Sequence[AnyEvent]:
        if now_s < self._next_sample_s:
            return ()
        self._next_sample_s = now_s + self._sample_every_s
        return self._sampler.sample(time.time())

    def _record(self, events: Sequence[AnyEvent]) -> None:
        for event in events:
            self._course.note(event)
        self._record_elsewhere(events)


def _all_live(news: Sequence[News]) -> bool:
    """Whether every rank can still write its part of a checkpoint."""
    tells_of_ranks = (each for each in news if not isinstance(each, RoomWanted))
    return all(isinstance(each, NodeGone) and each.ranks_live for each in tells_of_ranks)


def _rank_exited(ended: RankExit) -> RankExited:
    if ended.exit_code != 0:
        _say(f"rank {ended.rank} ended: {ended.signal or ended.exit_code}")
    return RankExited(
        time_s=time.time(),
        rank=ended.rank,
        exit_code=ended.exit_code,
        signal=ended.signal,
        last_words=ended.last_words,
    )


def _critical(message: str) -> Alert:
    return Alert(time_s=time.time(), severity="critical", message=message)


def _warning(message: str) -> Alert:
    return Alert(time_s=time.time(), severity="warning", message=message)


def _say(line: str) -> None:
    print(time.strftime("%Y-%m-%d %H:%M:%S"), line, flush=True)
