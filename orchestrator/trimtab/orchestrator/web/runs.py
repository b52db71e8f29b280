"""The runs under one folder, as JSON for the page."""

import re
import shlex
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any, Final

from trimtab.core.errors import RunDirError
from trimtab.core.events import STEP_PARTS, StepFinished, StepPlanned
from trimtab.core.job import JobSpec, Request, ScriptSpec
from trimtab.monitor.store import EventStore, read_event
from trimtab.orchestrator.observation import Observed, observe, observe_runs
from trimtab.orchestrator.rundir import NoSuchRunError, RunDir, RunState
from trimtab.orchestrator.web.plans import plan_document
from trimtab.orchestrator.web.steps import Column, part_seconds
from trimtab.orchestrator.web.view import RunView

MAX_LISTED_RUNS: Final = 200
_MAX_OPEN_RUNS = 16
_RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


class Runs:
    """Every run under `root`; safe to use from many threads."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._open: OrderedDict[str, OpenRun] = OrderedDict()
        self._lock = threading.Lock()

    def listed(self) -> list[dict[str, Any]]:
        """The newest runs, newest first; a broken one with what is wrong with it."""
        return [
            _listing(run.job_id, observed)
            for run, observed in observe_runs(self._root, limit=MAX_LISTED_RUNS)
        ]

    def run(self, job_id: str) -> "OpenRun":
        """The run of an id that came from outside.

        Raises:
            NoSuchRunError: There is none, or it is not an id at all.
            RunDirError: It is broken, or of another version.
        """
        if not _RUN_ID.fullmatch(job_id):
            raise NoSuchRunError(f"{job_id!r} is not a run id")
        run_dir = RunDir.open(self._root / job_id)
        with self._lock:
            run = self._open.pop(job_id, None) or OpenRun(run_dir)
            self._open[job_id] = run
            if len(self._open) > _MAX_OPEN_RUNS:
                self._open.popitem(last=False)[1].close()
            return run

    def close(self) -> None:
        """Close every open store."""
        with self._lock:
            for run in self._open.values():
                run.close()
            self._open.clear()


class OpenRun:
    """One run with its view; reads only what is new since the last call."""

    def __init__(self, run_dir: RunDir) -> None:
        self._dir = run_dir
        self._store: EventStore | None = None
        self._request: Request | None = None
        self._forecast_step_s: float | None = None
        self._attempt = 0
        self._view = RunView()
        self._lock = threading.Lock()

    def snapshot(self, *, rank: int | None = None) -> dict[str, Any]:
        """The whole run as the page shows it; parts are of `rank`, or a mean over ranks."""
        with self._lock:
            state = self._refresh()
            parts = None if rank is None else self._rank_parts(rank)
            lists = self._view.snapshot(rank_parts=parts)
            return {**lists, "parts": STEP_PARTS, "head": self._head(state)}

    def changes(self, after_id: int, *, rank: int | None = None) -> dict[str, Any]:
        """What came after an event, and the head, which changes without one, too."""
        with self._lock:
            state = self._refresh()
            parts = None if rank is None else self._changed_rank_parts(rank, after_id)
            lists = self._view.changes(after_id, rank_parts=parts)
            return {**lists, "head": self._head(state)}

    def plan(self, step: int) -> dict[str, Any]:
        """The plan of a step as groups over ranks and predicted time.

        Raises:
            NoSuchRunError: The step has no plan (yet).
        """
        with self._lock:
            self._refresh()
            rows = self._store.rows(kinds=(StepPlanned,), step=step) if self._store else []
            if not rows or self._request is None:
                raise NoSuchRunError(f"step {step} has no plan yet")
            request, planned = self._request, self._view.steps.row(step)
        event = read_event(rows[-1].body)
        assert isinstance(event, StepPlanned)
        return plan_document(
            event,
            request=request,
            num_ranks=planned.num_ranks if planned else request.num_ranks,
            measured_s=planned.step_s if planned else None,
        )

    def close(self) -> None:
        """Close the store; the next call opens it again."""
        with self._lock:
            if self._store is not None:
                self._store.close()
                self._store = None

    def _refresh(self) -> RunState:
        state = observe(self._dir).state
        if self._request is None or state.attempt != self._attempt:
            self._request = self._dir.request()
            self._forecast_step_s = _forecast_step_s(self._dir)
            self._attempt = state.attempt
        if self._store is None and self._dir.events.is_file():
            self._store = EventStore.open(self._dir.events)
        if self._store is not None:
            while rows := self._store.rows(after=self._view.last_id):
                self._view.absorb(rows)
        return state

    def _head(self, state: RunState) -> dict[str, Any]:
        request = self._request
        assert request is not None
        view = self._view
        last = view.steps.last_finished
        finished = view.steps.finished()
        return {
            "job_id": self._dir.job_id,
            "handle": str(self._dir.handle),
            "run_dir": str(self._dir.path),
            "name": request.job.name,
            "state": state.state.value,
            "reason": state.reason,
            "attempt": state.attempt,
            "num_ranks": view.num_ranks or request.num_ranks,
            **_what_runs(request),
            "num_steps_done": last.step if last else 0,
            "submitted_s": _earliest(state.submitted_s, view.first_time_s),
            "ended_s": _ended_s(state, view),
            "productive_s": sum(row.summary["step_s"] for row in finished if row.summary),
            "forecast_step_s": self._forecast_step_s,
            "last_planned_step": view.steps.last_planned_step,
            "mfu": view.mfu_note(_precision(request)),
        }

    def _rank_parts(self, rank: int) -> dict[int, Column]:
        if self._store is None:
            return {}
        rows = self._store.rows(kinds=(StepFinished,), rank=rank, limit=10_000_000)
        return {
            row.step: list(part_seconds(row.fields)) for row in rows if row.step is not None
        }

    def _changed_rank_parts(self, rank: int, after_id: int) -> dict[int, Column]:
        if self._store is None:
            return {}
        parts: dict[int, Column] = {}
        for changed in self._view.steps.finished(after_id=after_id):
            rows = self._store.rows(kinds=(StepFinished,), rank=rank, step=changed.step)
            if rows:
                parts[changed.step] = list(part_seconds(rows[-1].fields))
        return parts


def _listing(job_id: str, run: Observed | RunDirError) -> dict[str, Any]:
    if isinstance(run, RunDirError):
        return {"job_id": job_id, "name": job_id, "state": "broken", "reason": str(run)}
    observed = run.state
    return {
        "job_id": job_id,
        "name": observed.name,
        "state": observed.state.value,
        "reason": observed.reason,
        "num_ranks": observed.num_ranks,
        "attempt": observed.attempt,
        "submitted_s": observed.submitted_s,
        "finished_s": observed.finished_s,
    }


def _what_runs(request: Request) -> dict[str, Any]:
    """What the page says of a training job, and of a user's script, which has no steps."""
    job = request.job
    if isinstance(job, ScriptSpec):
        known = ("layout", "cluster", "model", "num_parameters", "grouping", "num_steps")
        return dict.fromkeys(known) | {"script": shlex.join(job.argv)}
    return {
        "script": None,
        "layout": str(request.layout),
        "cluster": job.cluster.name,
        "model": job.model.name,
        "num_parameters": job.model.num_parameters,
        "grouping": job.step_planning.grouping,
        "num_steps": job.training.num_steps,
    }


def _precision(request: Request) -> str | None:
    return request.job.training.precision if isinstance(request.job, JobSpec) else None


def _forecast_step_s(run_dir: RunDir) -> float | None:
    try:
        return run_dir.plan().forecast.step_s
    except RunDirError:
        return None  # the page shows a run without its forecast, too


def _earliest(*times_s: float | None) -> float | None:
    return min((time_s for time_s in times_s if time_s is not None), default=None)


def _ended_s(state: RunState, view: RunView) -> float | None:
    """When the run ended: as its state says, or its last event where its controller died."""
    if not state.state.is_final:
        return None
    return state.finished_s or view.last_time_s or state.submitted_s
