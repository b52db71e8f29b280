"""The process that owns a run: starts its ranks, keeps their events, acts, says why it ended.

    python -m trimtab.orchestrator.controller RUN_DIR LOCK

LOCK is the descriptor of the run's locked file (`run_lock`), inherited from the submitter.
Detached from the terminal that submitted the job; its output is `logs/controller.log`. SIGTERM
cancels the job (the ranks write a checkpoint first); a second SIGTERM ends it at once. If this
process is killed, the kernel asks the ranks to stop and the run stays readable.
"""

import os
import secrets
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Final

from trimtab.core.errors import ExitCode, TrimtabError
from trimtab.core.events import (
    Alert,
    AnyEvent,
    AttemptStarted,
    CheckpointSaved,
    JobFinished,
    RankExited,
    StopAttempt,
)
from trimtab.core.job import JobState, Request
from trimtab.core.units import counted
from trimtab.launch.api import Launcher, RankExit, Rendezvous, RunningRanks
from trimtab.monitor.collector import Collector
from trimtab.monitor.gpus import GpuSampler
from trimtab.monitor.health import Health
from trimtab.monitor.sinks import EventSink, WandbSink
from trimtab.monitor.store import EventStore
from trimtab.orchestrator.liveness import ProcessId
from trimtab.orchestrator.logs import last_words
from trimtab.orchestrator.rundir import RunDir
from trimtab.orchestrator.submission import launcher_of
from trimtab.orchestrator.verdict import Course, Verdict

POLL_S: Final = 0.1
FAILURE_GRACE_S: Final = 5.0
"""How long the peers of a failed rank get to end by themselves before SIGKILL."""
CANCEL_GRACE_S: Final = 120.0
"""How long ranks get to finish their step and write a checkpoint before SIGKILL."""


class Controller:
    """Watches one attempt from its first rank's start to its last rank's end."""

    def __init__(
        self, run: RunDir, *, store: EventStore, launcher: Launcher, lock_fd: int
    ) -> None:
        self._run = run
        self._request = run.request()
        self._attempt = run.state().attempt
        self._store = store
        self._launcher = launcher
        self._lock_fd = lock_fd
        self._sinks: tuple[EventSink, ...] = ()
        self._sampler = GpuSampler(ProcessId.own().host)
        self._next_sample_s = time.monotonic()
        job = self._request.job
        self._health = Health(self._request.num_ranks, job.telemetry.silent_rank_s)
        self._course = Course(self._request.handle, job.training.num_steps)
        earlier = store.latest(CheckpointSaved)
        if earlier is not None:
            self._course.note_earlier_checkpoint(earlier.step)
        self._num_cancels = 0
        self._is_cancel_told = False
        self._stop: StopAttempt | None = None
        self._asked_s: float | None = None
        """When the ranks were asked to stop (wall clock)."""
        self._kill_at_s: float | None = None
        """When their grace is over (monotonic clock)."""

    def cancel(self) -> None:
        """Stop cleanly; called again, stop at once. Safe in a signal handler."""
        self._num_cancels += 1

    def run(self) -> Verdict:
        """Start the ranks and return when all have ended and everything is written.

        Raises:
            TrimtabError: A sink does not start, or no rank can be started.
        """
        self._sinks = _sinks(self._request, self._run.path)
        self._run.write_state(
            replace(self._run.state(), state=JobState.RUNNING, reason="", started_s=time.time())
        )
        collector = Collector(token := secrets.token_urlsafe(32))
        rendezvous = Rendezvous(
            attempt=self._attempt,
            collector_address=collector.address,
            collector_token=token,
            lock_fd=self._lock_fd,
        )
        self._record([self._attempt_started(), *self._gpu_notice()])
        try:
            if not self._num_cancels:
                ranks = self._launcher.start(self._request, rendezvous=rendezvous)
                ranks_text = counted(self._request.num_ranks, "rank")
                self._say(f"attempt {self._attempt}: {ranks_text} started")
                self._watch(ranks, collector)
        finally:
            collector.close()
            self._record(collector.drain())
        verdict = self._course.verdict(
            stop=self._stop,
            cancelled=self._num_cancels > 0,
            ended_at_once=self._num_cancels > 1,
            asked_s=self._asked_s,
        )
        self.finish(verdict)
        return verdict

    def finish(self, verdict: Verdict) -> None:
        """Write the end of the attempt where every reader looks for it."""
        now_s = time.time()
        self._record([JobFinished(time_s=now_s, state=verdict.state, reason=verdict.reason)])
        write_end(self._run, verdict, now_s=now_s)
        self._say(f"{verdict.state.value}: {verdict.reason}")
        self._sampler.close()
        for sink in self._sinks:
            self._store.append(sink.close())

    def _watch(self, ranks: RunningRanks, collector: Collector) -> None:
        try:
            while ranks.running:
                self._turn(ranks, collector)
                time.sleep(POLL_S)
        finally:
            ranks.kill()

    def _turn(self, ranks: RunningRanks, collector: Collector) -> None:
        ended = sorted(ranks.poll(), key=lambda ended: ended.signal is None)
        exits = [self._rank_exited(each) for each in ended]  # killed ones first: causes
        now_s = time.monotonic()
        events: list[AnyEvent] = [*collector.drain(), *exits, *self._samples(now_s)]
        actions = [a for event in events for a in self._health.handle(event, now_s)]
        self._record([*events, *self._alerts(actions)])
        for action in [*actions, *self._tick(now_s)]:
            self._stop = action
            self._say(f"stopping: {action.reason}")
            self._ask_to_stop(ranks, kill_at_s=now_s + FAILURE_GRACE_S)
        if self._num_cancels and self._kill_at_s is None:
            self._say("cancelling: the ranks write a checkpoint and end")
            self._ask_to_stop(ranks, kill_at_s=now_s + CANCEL_GRACE_S)
        if self._num_cancels and not self._is_cancel_told:
            self._is_cancel_told = True
            reason = "cancelling: its ranks write a checkpoint and end"
            state = replace(self._run.state(), cancelled_s=time.time(), reason=reason)
            self._run.write_state(state)
        if self._num_cancels > 1 or (self._kill_at_s is not None and now_s > self._kill_at_s):
            ranks.kill()

    def _tick(self, now_s: float) -> Sequence[StopAttempt]:
        actions = self._health.tick(now_s)
        self._record(self._alerts(actions))
        return actions

    def _ask_to_stop(self, ranks: RunningRanks, *, kill_at_s: float) -> None:
        """Ask once; a later reason can only bring the end of their grace forward."""
        if self._kill_at_s is None:
            ranks.stop()
            self._asked_s = time.time()
            self._kill_at_s = kill_at_s
        self._kill_at_s = min(self._kill_at_s, kill_at_s)

    def _record(self, events: Sequence[AnyEvent]) -> None:
        if not events:
            return
        for event in events:
            self._course.note(event)
        self._store.append(events)
        for sink in self._sinks:
            self._store.append(sink.write(events))

    def _samples(self, now_s: float) -> Sequence[AnyEvent]:
        if now_s < self._next_sample_s:
            return ()
        self._next_sample_s = now_s + self._request.job.telemetry.gpu_sample_s
        return self._sampler.sample(time.time())

    def _gpu_notice(self) -> Sequence[Alert]:
        if all(node.gpu.is_cpu for node in self._request.job.cluster.nodes):
            return []
        reason = self._sampler.unavailable_reason
        return [Alert(time_s=time.time(), severity="info", message=reason)] if reason else []

    def _attempt_started(self) -> AttemptStarted:
        return AttemptStarted(
            time_s=time.time(),
            attempt=self._attempt,
            num_ranks=self._request.num_ranks,
            layout=str(self._request.layout),
        )

    def _rank_exited(self, ended: RankExit) -> RankExited:
        words = last_words(self._run.rank_log(ended.rank), attempt=self._attempt)
        if not ended.is_clean:
            self._say(f"rank {ended.rank} ended: {ended.signal or ended.exit_code}")
        return RankExited(
            time_s=time.time(),
            rank=ended.rank,
            exit_code=ended.exit_code,
            signal=ended.signal,
            last_words="" if ended.is_clean else words,
        )

    def _alerts(self, actions: Sequence[StopAttempt]) -> list[Alert]:
        """Every action as something a person can read later."""
        return [
            Alert(time_s=time.time(), severity="critical", message=action.reason)
            for action in actions
        ]

    def _say(self, line: str) -> None:
        print(time.strftime("%Y-%m-%d %H:%M:%S"), line, flush=True)


def write_end(run: RunDir, verdict: Verdict, *, now_s: float) -> None:
    """Put a verdict into `state.json`."""
    run.write_state(
        replace(
            run.state(),
            state=verdict.state,
            reason=verdict.reason,
            finished_s=now_s,
            exit_code=int(verdict.exit_code),
        )
    )


def control(run: RunDir, *, lock_fd: int) -> ExitCode:
    """Run the attempt that `state.json` announces; returns what `submit --wait` ends with.

    Args:
        run: The run, not yet begun.
        lock_fd: Its locked file, held until this process and all ranks have ended.
    """
    with _event_store(run.events) as store:
        os.chdir(run.path)
        try:
            controller = Controller(
                run, store=store, launcher=launcher_of(run.handle), lock_fd=lock_fd
            )
            _on_stop_signals(controller.cancel)
            run.write_state(replace(run.state(), controller=ProcessId.own()))
            return controller.run().exit_code
        except Exception as error:
            verdict = _own_failure(error)
            now_s = time.time()
            write_end(run, verdict, now_s=now_s)
            store.append(
                [JobFinished(time_s=now_s, state=verdict.state, reason=verdict.reason)]
            )
            if not isinstance(error, TrimtabError):
                raise
            print(f"error: {error}", flush=True)
            return verdict.exit_code


def main(argv: Sequence[str]) -> int:
    """Entry point; `argv` is the run directory and the descriptor of its locked file."""
    path, lock_fd = argv
    try:
        return int(control(RunDir.open(Path(path)), lock_fd=int(lock_fd)))
    except TrimtabError as error:
        print(f"error: {error}", flush=True)
        return int(error.exit_code)
    except Exception:
        traceback.print_exc(file=sys.stdout)
        return int(ExitCode.JOB_FAILED)


def _own_failure(error: Exception) -> Verdict:
    if isinstance(error, TrimtabError):
        return Verdict(state=JobState.FAILED, reason=str(error), exit_code=error.exit_code)
    return Verdict(
        state=JobState.FAILED,
        reason=f"the controller failed ({type(error).__name__}: {error}); "
        "its traceback is in logs/controller.log",
        exit_code=ExitCode.JOB_FAILED,
    )


def _on_stop_signals(cancel: Callable[[], None]) -> None:
    def handle(_number: int, _frame: FrameType | None) -> None:
        cancel()

    signal.signal(signal.SIGTERM, handle)
    signal.signal(signal.SIGINT, handle)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _event_store(path: Path) -> EventStore:
    return EventStore.open(path, read_only=False) if path.exists() else EventStore.create(path)


def _sinks(request: Request, run_dir: Path) -> tuple[EventSink, ...]:
    project = request.job.telemetry.wandb_project
    if project is None:
        return ()
    return (WandbSink(project, request.handle.job_id, folder=run_dir),)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
