"""How runs stand: what their directories say, and what their schedulers say of the unfinished.

A finished run is told by its `state.json` alone. Of the others Slurm and Ray are asked, all
jobs in one question, and what they answered is believed for `ANSWER_AGE_S`.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from trimtab.core.errors import ExitCode, InputError, RunDirError, TrimtabError
from trimtab.core.job import JobHandle, JobState
from trimtab.orchestrator.rundir import RunDir, RunState
from trimtab.orchestrator.runs_folder import list_runs
from trimtab.orchestrator.schedulers import scheduler_of

if TYPE_CHECKING:
    from trimtab.launch.api import SchedulerView

ANSWER_AGE_S: Final = 2.0
FORGOTTEN_AFTER_S: Final = 10.0
"""A scheduler that does not know a job this long after its submission never will again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """A run as it stands now."""

    state: RunState
    view: "SchedulerView | None" = None
    """What the scheduler says; None: it was not asked, or does not know the job."""
    trouble: str = ""
    """Why the scheduler could not be asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a scheduler said of a job, or why it could not be asked."""

    handle: JobHandle
    view: "SchedulerView | None" = None
    """None: it does not know the job."""
    trouble: str = ""

    @property
    def is_end(self) -> bool:
        """Whether the job has ended as far as the scheduler knows."""
        return not self.trouble and (self.view is None or self.view.state.is_final)


_answers: dict[JobHandle, tuple[float, Answer]] = {}
"""The last answers, with the moments they were given."""


def observe(run: RunDir) -> Observed:
    """How one run stands; RunDirError where its directory is damaged."""
    return observe_all([(run, run.state())])[0]


def observe_all(runs: Sequence[tuple[RunDir, RunState]]) -> list[Observed]:
    """How runs stand, given what their `state.json` says; one question for each cluster."""
    asked = {
        run.path: (run, run.handle)
        for run, state in runs
        if state.scheduler != "local" and not state.state.is_final
    }
    answers = _answers_about(asked.values())
    now_s = time.time()
    observed = []
    for run, state in runs:
        answer = answers.get(run.path)
        if answer is not None and answer.is_end:
            # Its controller may have told the end, or moved it, while the scheduler was asked.
            trouble = _take_word(run, answer.handle) if state.staged else ""
            state = run.state()
            answer = answer if run.handle == answer.handle else None
            stands = replace(combined(state, answer, now_s=now_s), trouble=trouble)
            if state.staged and stands.state != state:
                run.write_state(stands.state)  # nobody else will, and schedulers forget
            observed.append(stands)
        else:
            observed.append(combined(state, answer, now_s=now_s))
    return observed


def observe_runs(root: Path, *, limit: int) -> list[tuple[RunDir, Observed | RunDirError]]:
    """The newest runs under `root` and how they stand; of a broken one, what is wrong with it.

    Args:
        root: The folder of the run directories.
        limit: At most this many; 0 for all.
    """
    found: list[tuple[RunDir, RunState | RunDirError]] = []
    for run_id, state in list_runs(root, limit=limit):
        run = RunDir(root / run_id)
        found.append((run, state if isinstance(state, RunDirError) else _checked(run, state)))
    whole = [(run, state) for run, state in found if isinstance(state, RunState)]
    observed = dict(zip((run.path for run, _ in whole), observe_all(whole), strict=True))
    return [
        (run, state if isinstance(state, RunDirError) else observed[run.path])
        for run, state in found
    ]


def combined(state: RunState, answer: Answer | None, *, now_s: float) -> Observed:
    """How a run stands, from what its directory and its scheduler say. Pure.

    Args:
        state: Of `state.json`, read after the scheduler was asked where that says it has ended.
        answer: The scheduler's; None: it was not asked.
        now_s: The time, in seconds since the Unix epoch.
    """
    if state.scheduler == "local" or state.state.is_final:
        return Observed(state=state.observed(now_s))
    if answer is None:
        return Observed(state=state)
    if answer.trouble:
        return Observed(state=state, trouble=answer.trouble)
    name, view = state.scheduler.capitalize(), answer.view
    if view is None:
        if now_s - state.submitted_s < FORGOTTEN_AFTER_S:
            return Observed(state=state)
        reason = f"{name} does not know {answer.handle} any more, and it left no word"
        return Observed(state=_ended(state, JobState.FAILED, reason))
    if view.state.is_final:
        reason = f"{name} says {view.native_state}"
        reason += f": {view.reason}" if view.reason else ""
        final = view.state
        if final is JobState.SUCCEEDED and not state.staged:
            final = JobState.FAILED  # its controller would have said so
        return Observed(state=_ended(state, final, reason), view=view)
    if view.state is JobState.PENDING:
        waits = (state.reason if state.num_restarts else "", view.reason)
        reason = "; ".join(filter(None, waits)) or state.reason
        pending = replace(state, state=JobState.PENDING, reason=reason)
        return Observed(state=pending, view=view)
    if state.staged:
        where = f"its run directory is on {view.nodes[0]}" if view.nodes else ""
        running = replace(state, state=JobState.RUNNING, reason=where)
        return Observed(state=running, view=view)
    return Observed(state=state, view=view)


def _checked(run: RunDir, state: RunState) -> RunState | RunDirError:
    """The state, or what is wrong with the handles under which it is to be asked for."""
    if state.scheduler == "local" or state.state.is_final:
        return state
    try:
        _ = run.handles
    except RunDirError as error:
        return error
    return state


def _ended(state: RunState, final: JobState, reason: str) -> RunState:
    """The end of a job whose controller did not tell it."""
    if state.cancelled_s is not None and final is not JobState.SUCCEEDED:
        final = JobState.CANCELLED
    code = ExitCode.OK if final is JobState.SUCCEEDED else ExitCode.JOB_FAILED
    return replace(state, state=final, reason=reason, exit_code=int(code))


def _take_word(run: RunDir, handle: JobHandle) -> str:
    """Bring here what a staged run has left elsewhere; why that cannot be, if so."""
    from trimtab.orchestrator.staged_run import take_word

    try:
        take_word(run, run.request().job, after_attempt=run.state().attempt - 1, of=handle)
    except TrimtabError as error:
        return str(error)
    return ""


def _answers_about(runs: Iterable[tuple[RunDir, JobHandle]]) -> dict[Path, Answer]:
    """The scheduler's word on each run that has one, by run directory; asked if need be."""
    now_s = time.monotonic()
    queued = {run.path: handle for run, handle in runs if handle.scheduler != "local"}
    clusters: dict[tuple[str, str | None], list[JobHandle]] = {}
    for path, handle in queued.items():
        if handle in _answers and now_s - _answers[handle][0] <= ANSWER_AGE_S:
            continue
        try:
            cluster = (handle.scheduler, _address(RunDir(path), handle))
        except RunDirError as error:
            _answers[handle] = (now_s, Answer(handle=handle, trouble=str(error)))
        else:
            clusters.setdefault(cluster, []).append(handle)
    for (_, address), handles in clusters.items():
        for answer in _ask(handles, address=address):
            _answers[answer.handle] = (now_s, answer)
    return {path: _answers[handle][1] for path, handle in queued.items()}


def _ask(handles: Sequence[JobHandle], *, address: str | None) -> list[Answer]:
    """What one cluster says of jobs of one scheduler."""
    try:
        views = scheduler_of(handles[0].scheduler, address=address).views(handles)
    except InputError as error:
        return [Answer(handle=handle, trouble=str(error)) for handle in handles]
    return [Answer(handle=handle, view=views.get(handle)) for handle in handles]


def _address(run: RunDir, handle: JobHandle) -> str | None:
    """Where the cluster is that the run was submitted to; Slurm has one for a machine."""
    return run.request().job.ray.address if handle.scheduler == "ray" else None
