"""The attempts of a job, one after the other: on which nodes, with what request, what follows.

The decisions are `supervision.py`'s; this holds the allocation, tells the store and the sinks,
and keeps `state.json`.
"""

import secrets
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from trimtab.core.errors import ExitCode, JobFailedError
from trimtab.core.events import (
    Alert,
    AnyEvent,
    AttemptEnded,
    AttemptStarted,
    CheckpointSaved,
)
from trimtab.core.job import JobSpec, JobState, Request
from trimtab.core.units import counted, duration_text
from trimtab.launch.api import AllocatedNode, Allocation
from trimtab.launch.fleet import Fleet, Rendezvous
from trimtab.monitor.collector import Collector
from trimtab.monitor.gpus import GpuSampler
from trimtab.monitor.sinks import EventSink, WandbSink
from trimtab.monitor.store import EventStore
from trimtab.orchestrator import node_check, staged_run
from trimtab.orchestrator.attempt import Attempt, Wishes
from trimtab.orchestrator.keeper import PASSED_ON
from trimtab.orchestrator.liveness import ProcessId
from trimtab.orchestrator.rundir import RunDir, request_text
from trimtab.orchestrator.shrinking import smaller_request
from trimtab.orchestrator.supervision import (
    AttemptEnd,
    Decision,
    Finish,
    GoElsewhere,
    StartAgain,
    Supervisor,
)
from trimtab.orchestrator.verdict import Course, Verdict

_POLL_S: Final = 0.1


class Controller:
    """Runs a job's attempts one after the other."""

    def __init__(self, run: RunDir, *, store: EventStore, allocation: Allocation) -> None:
        self._run = run
        self._request = run.request()
        self._store = store
        self._allocation = allocation
        self._wishes = Wishes(run.path / "cancel")
        self._sinks: tuple[EventSink, ...] = ()
        self._sampler = GpuSampler(ProcessId.own().host)
        state = run.state()
        if state.cancelled_s is not None:
            self._wishes.cancel()  # asked of an earlier controller, which was killed meanwhile
        self._attempt = state.attempt
        self._supervisor = Supervisor(
            self._request.job.restart,
            shun=state.excluded_nodes,
            can_move=allocation.can_move,
            num_in_row=state.num_in_row,
        )
        earlier = store.latest(CheckpointSaved)
        self._checkpoint_step = earlier.step if earlier is not None else None
        self._supervisor.begin(checkpoint_step=self._checkpoint_step)

    @property
    def wishes(self) -> Wishes:
        """What is asked of the job; safe to set in a signal handler."""
        return self._wishes

    def run(self) -> Verdict | None:
        """Run attempts until the job is over; None: it has gone elsewhere.

        Raises:
            TrimtabError: A sink does not start, or no node can be used.
        """
        self._sinks = _sinks(self._request, self._run.path)
        started_s = self._run.state().started_s or time.time()
        self._write_state(state=JobState.RUNNING, reason="", started_s=started_s)
        fleet = Fleet(self._allocation, run_dir=self._run.path)
        self._record(self._gpu_notice())
        avoid: frozenset[str] = frozenset()
        try:
            while True:
                decision = self._run_attempt(fleet, avoid=avoid)
                if isinstance(decision, Finish):
                    return decision.verdict
                self._attempt += 1
                self._write_state(
                    attempt=self._attempt,
                    num_restarts=self._run.state().num_restarts + 1,
                    num_in_row=self._supervisor.num_in_row,
                    excluded_nodes=tuple(sorted(self._supervisor.shun)),
                )
                if isinstance(decision, GoElsewhere):
                    self._go_elsewhere(fleet, decision)
                    return None
                avoid = decision.avoid
                self._pause(decision.pause_s)
        finally:
            fleet.close()
            self._sampler.close()
            for sink in self._sinks:
                self._store.append(sink.close())

    def _run_attempt(self, fleet: Fleet, *, avoid: frozenset[str]) -> Decision:
        course = self._course()
        if self._wishes.num_cancels:
            verdict = course.verdict(stop=None, cancelled=True, asked_s=None)
            return Finish(verdict=verdict)
        nodes = self._nodes(fleet, avoid=avoid)
        request = self._fitting(nodes)
        if request is None:
            return self._decide_short(course, nodes)
        collector = Collector(
            token := secrets.token_urlsafe(32), host=self._allocation.controller_host
        )
        self._record([self._attempt_started(request, nodes)])
        self._write_state(num_ranks=request.num_ranks, reason="")
        rendezvous = Rendezvous(
            attempt=self._attempt,
            collector_address=collector.address,
            collector_token=token,
            request_name=self._request_name(request),
            request_text=request_text(replace(request, submission="")),  # of no use to ranks
        )
        try:
            fleet.start(request, nodes, rendezvous=rendezvous)
        except JobFailedError as error:
            collector.close()
            verdict = course.failed(str(error), ExitCode.JOB_FAILED, node=nodes[0].name)
            return self._decide(verdict, course, fleet, nodes=nodes, blamed=nodes[0].name)
        names = ", ".join(node.name for node in nodes)
        say(f"attempt {self._attempt}: {counted(request.num_ranks, 'rank')} on {names}")
        attempt = Attempt(
            request,
            fleet=fleet,
            collector=collector,
            course=course,
            record=self._record,
            wishes=self._wishes,
            sampler=self._sampler,
            on_cancel=self._tell_cancel,
            shun=self._supervisor.shun,
        )
        attempt.watch()
        verdict = attempt.verdict()
        blamed = attempt.blamed_node(verdict)
        return self._decide(verdict, course, fleet, nodes=nodes, blamed=blamed)

    def _decide(
        self,
        verdict: Verdict,
        course: Course,
        fleet: Fleet,
        *,
        nodes: Sequence[AllocatedNode],
        blamed: str | None,
    ) -> Decision:
        if self._request.scheduler == "local":
            blamed = None  # this machine is all there is
        self._checkpoint_step = course.checkpoint_step
        own = {node.name for node in nodes if node.hosts_controller}
        decision = self._supervisor.decide(
            AttemptEnd(
                verdict=verdict,
                node=blamed,
                checkpoint_step=course.checkpoint_step,
                room_wanted=self._wishes.room,
                controller_lost=verdict.node in own,
            )
        )
        self._wishes.room = None
        self._record([self._attempt_ended(verdict, decision)])
        for node in self._supervisor.shun:
            fleet.forget(node)
        if isinstance(decision, StartAgain) and verdict.node is not None:
            self._allocation.release(verdict.node)
        return decision

    def _nodes(self, fleet: Fleet, *, avoid: frozenset[str]) -> tuple[AllocatedNode, ...]:
        """Nodes to run on, with agents that have reported; fewer where there are no more."""
        wanted = self._request.num_nodes
        while True:
            nodes = self._acquire(wanted, avoid=avoid)
            found = fleet.gather(nodes)
            bad = node_check.unusable(self._request, nodes, found)
            self._record(node_check.events(self._request, nodes, found, unusable=bad))
            if not bad:
                return nodes
            node_check.raise_if_all(self._request, nodes, bad)
            avoid |= set(bad)
            for name, reason in bad.items():
                say(f"node {name} cannot be used: {reason}")
                self._supervisor.lose(name)

    def _acquire(self, wanted: int, *, avoid: frozenset[str]) -> tuple[AllocatedNode, ...]:
        """Without the nodes to avoid if there are enough others, else with them."""
        shun = self._supervisor.shun
        for exclude in (avoid | shun, shun):
            nodes = self._allocation.acquire(wanted, exclude=exclude)
            still_there = sorted({node.name for node in nodes} & exclude)
            assert not still_there, f"excluded nodes in the allocation: {still_there}"
            if len(nodes) == wanted:
                break
        return nodes

    def _fitting(self, nodes: Sequence[AllocatedNode]) -> Request | None:
        """The request as it runs on these nodes; None where it had better not."""
        if len(nodes) == self._request.num_nodes:
            return self._request
        if not nodes or self._request.job.restart.when_short != "shrink":
            return None
        if self._could_be_whole_elsewhere(nodes):
            return None
        request = smaller_request(self._request, num_nodes=len(nodes))
        if request is not None:
            message = (
                f"{counted(len(nodes), 'node')} of {self._request.num_nodes} left: going on "
                f"with {counted(request.num_ranks, 'rank')}, {request.layout}"
            )
            say(message)
            self._record([Alert(time_s=time.time(), severity="warning", message=message)])
        return request

    def _could_be_whole_elsewhere(self, nodes: Sequence[AllocatedNode]) -> bool:
        """Whether the scheduler has enough free nodes for all ranks now."""
        free = self._allocation.num_free_nodes(exclude=self._supervisor.shun)
        return self._allocation.can_move and len(nodes) + free >= self._request.num_nodes

    def _decide_short(self, course: Course, nodes: Sequence[AllocatedNode]) -> Decision:
        wanted = self._request.num_nodes
        reason = f"{counted(len(nodes), 'usable node')} left of {wanted} that the job needs"
        verdict = course.failed(reason, ExitCode.JOB_FAILED)
        decision: Decision = Finish(verdict=verdict)
        if self._allocation.can_move and self._request.job.restart.when_short != "stop":
            decision = GoElsewhere(exclude=self._supervisor.shun, reason=reason)
        self._record([self._attempt_ended(verdict, decision)])
        return decision

    def _go_elsewhere(self, fleet: Fleet, decision: GoElsewhere) -> None:
        """Leave this allocation; this process may not live to see it done."""
        fleet.close()
        reason = f"{decision.reason}; waits for other nodes"
        self._write_state(state=JobState.PENDING, reason=reason)
        for number in PASSED_ON:
            # What the scheduler signals from here on is meant for this allocation, not for the
            # job; a handler of ours would be gone while this process ends.
            signal.signal(number, signal.SIG_IGN)
        staged_run.leave_word(self._run)
        move = self._allocation.go_elsewhere(exclude=decision.exclude, reason=decision.reason)
        say(move.how)
        if move.handle != self._run.handle:
            self._run.add_handle(move.handle)
            staged_run.leave_handles(self._run)
            self._allocation.leave()

    def _pause(self, pause_s: float) -> None:
        if pause_s:
            say(f"waiting {duration_text(pause_s)} before the next attempt")
        deadline_s = time.monotonic() + pause_s
        while time.monotonic() < deadline_s and not self._wishes.num_cancels:
            self._wishes.look()
            time.sleep(_POLL_S)

    def _request_name(self, request: Request) -> str:
        """The file that holds this attempt's request; one of its own where it differs."""
        if request == self._request:
            return "request.json"
        return self._run.write_attempt_request(request, attempt=self._attempt)

    def _course(self) -> Course:
        job = self._request.job
        num_steps = job.training.num_steps if isinstance(job, JobSpec) else None
        course = Course(self._run.handle, num_steps)
        if self._checkpoint_step is not None:
            course.note_earlier_checkpoint(self._checkpoint_step)
        return course

    def _record(self, events: Sequence[AnyEvent]) -> None:
        if not events:
            return
        self._store.append(events)
        for sink in self._sinks:
            self._store.append(sink.write(events))

    def _tell_cancel(self) -> None:
        reason = "cancelling: its ranks write a checkpoint and end"
        self._write_state(cancelled_s=time.time(), reason=reason)

    def _write_state(self, **changes: object) -> None:
        self._run.write_state(replace(self._run.state(), **changes))  # type: ignore[arg-type]  # fields of RunState

    def _gpu_notice(self) -> Sequence[Alert]:
        job = self._request.job
        if not job.needs_gpus:
            return []
        reason = self._sampler.unavailable_reason
        return [Alert(time_s=time.time(), severity="info", message=reason)] if reason else []

    def _attempt_started(
        self, request: Request, nodes: Sequence[AllocatedNode]
    ) -> AttemptStarted:
        return AttemptStarted(
            time_s=time.time(),
            attempt=self._attempt,
            num_ranks=request.num_ranks,
            layout="" if request.layout is None else str(request.layout),
            nodes=tuple(node.name for node in nodes),
        )

    def _attempt_ended(self, verdict: Verdict, decision: Decision) -> AttemptEnded:
        text = _decision_text(decision)
        say(f"attempt {self._attempt} ended: {verdict.reason}; {text}")
        return AttemptEnded(
            time_s=time.time(), attempt=self._attempt, reason=verdict.reason, decision=text
        )


def _decision_text(decision: Decision) -> str:
    match decision:
        case Finish(verdict=verdict):
            return f"the job has {verdict.state.value}"
        case GoElsewhere(exclude=exclude):
            without = f" without {', '.join(sorted(exclude))}" if exclude else ""
            return f"going back to the queue, for other nodes{without}"
        case StartAgain(pause_s=pause_s, avoid=avoid):
            without = f", not on {', '.join(sorted(avoid))} if others are free" if avoid else ""
            after = f" in {duration_text(pause_s)}" if pause_s else ""
            return f"starting again from the last checkpoint{after}{without}"


def _sinks(request: Request, run_dir: Path) -> tuple[EventSink, ...]:
    project = request.job.telemetry.wandb_project
    if project is None:
        return ()
    return (WandbSink(project, request.run_id, folder=run_dir),)


def say(line: str) -> None:
    """Write a line with the time into the controller's log."""
    print(time.strftime("%Y-%m-%d %H:%M:%S"), line, flush=True)
