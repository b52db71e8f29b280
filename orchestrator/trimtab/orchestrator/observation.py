"""How runs stand: what their directories say, and what their schedulers say of the unfinished.

A finished run is told by its `state.json` alone. Of the others Slurm and Ray are asked, all
jobs in one question, and what they answered is believed for `VIEW_AGE_S`.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from trimtab.core.errors import ExitCode, InputError, RunDirError
from trimtab.core.job import JobHandle, JobState
from trimtab.launch.api import SchedulerView
from trimtab.orchestrator.rundir import RunDir, RunState, list_runs
from trimtab.orchestrator.schedulers import scheduler_of

VIEW_AGE_S: Final = 2.0
_FORGOTTEN_AFTER_S: Final = 10.0
"""A scheduler that does not know a job this long after its submission never will again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """A run as it stands now."""

    state: RunState
    view: SchedulerView | None = None
    """What the scheduler says; None: it was not asked, or does not know the job."""
    trouble: str = ""
    """Why the scheduler could not be asked."""


_views: dict[JobHandle, tuple[float, SchedulerView | None, str]] = {}
"""Answers by handle, with the moment they were given."""


def observe(run: RunDir) -> Observed:
    """How one run stands; RunDirError where its directory is damaged."""
    return observe_all([(run, run.state())])[0]


def observe_all(runs: Sequence[tuple[RunDir, RunState]]) -> list[Observed]:
    """How runs stand, given what their `state.json` says; one question for each scheduler."""
    now_s = time.time()
    handles = {
        run.path: run.handle
        for run, state in runs
        if state.scheduler != "local" and not state.state.is_final
    }
    _ask(handles.values())
    return [_combined(run, state, handles.get(run.path), now_s=now_s) for run, state in runs]


def observe_runs(root: Path, *, limit: int) -> list[tuple[RunDir, Observed | RunDirError]]:
    """The newest runs under `root` and how they stand; of a broken one, what is wrong with it.

    Args:
        root: The folder of the run directories.
        limit: At most this many; 0 for all.
    """
    listed = [(RunDir(root / run_id), state) for run_id, state in list_runs(root, limit=limit)]
    whole = [(run, state) for run, state in listed if isinstance(state, RunState)]
    observed = dict(zip((run.path for run, _ in whole), observe_all(whole), strict=True))
    return [
        (run, state if isinstance(state, RunDirError) else observed[run.path])
        for run, state in listed
    ]


def _ask(handles: Iterable[JobHandle]) -> None:
    """Bring the answers about `handles` up to date."""
    now_s = time.monotonic()
    stale = [
        handle
        for handle in handles
        if handle.scheduler != "local"
        and (handle not in _views or now_s - _views[handle][0] > VIEW_AGE_S)
    ]
    for name in {handle.scheduler for handle in stale}:
        asked = [handle for handle in stale if handle.scheduler == name]
        try:
            views, trouble = scheduler_of(name).views(asked), ""
        except InputError as error:
            views, trouble = {}, str(error)
        for handle in asked:
            _views[handle] = (now_s, views.get(handle), trouble)


def _combined(
    run: RunDir, state: RunState, handle: JobHandle | None, *, now_s: float
) -> Observed:
    if state.scheduler == "local" or state.state.is_final:
        return Observed(state=state.observed(now_s))
    if handle is None or handle not in _views:
        return Observed(state=state)  # it is being handed to its scheduler just now
    _, view, trouble = _views[handle]
    if trouble:
        return Observed(state=state, trouble=trouble)
    if view is None:
        if now_s - state.submitted_s < _FORGOTTEN_AFTER_S:
            return Observed(state=state)
        reason = f"{handle.scheduler} does not know {handle} any more, and it left no word"
        return _without_word(run, state, view=None, final=JobState.FAILED, reason=reason)
    if view.state.is_final:
        reason = f"{handle.scheduler} says {view.native_state}"
        if view.reason:
            reason += f": {view.reason}"
        final = JobState.CANCELLED if view.state is JobState.CANCELLED else JobState.FAILED
        return _without_word(run, state, view=view, final=final, reason=reason)
    if view.state is JobState.PENDING:
        waits = f"{state.reason}; {view.reason}" if state.num_restarts else view.reason
        return Observed(
            state=replace(state, state=JobState.PENDING, reason=waits or state.reason),
            view=view,
        )
    return Observed(state=state, view=view)


def _without_word(
    run: RunDir, state: RunState, *, view: SchedulerView | None, final: JobState, reason: str
) -> Observed:
    """The end of a job whose controller did not tell it, unless it has just done so."""
    latest = run.state()
    if latest != state and (latest.state.is_final or latest.controller != state.controller):
        return Observed(state=latest, view=view)
    if latest.cancelled_s is not None:
        final = JobState.CANCELLED
    ended = replace(latest, state=final, reason=reason, exit_code=int(ExitCode.JOB_FAILED))
    return Observed(state=ended, view=view)
