"""From a job to a running controller: `prepare` decides, `submit` acts.

A prepared job holds the request exactly as a dry run prints it and `request.json` will hold it.
Nothing exists on disk until it is submitted.
"""

import contextlib
import importlib.util
import os
import re
import shutil
import signal
import time
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from trimtab.core.errors import (
    ExitCode,
    InputError,
    JobFailedError,
    MissingExtraError,
    TrimtabError,
)
from trimtab.core.job import JobSpec, JobState, Request, SchedulerName, ScriptSpec
from trimtab.core.plan import JobPlan, Layout
from trimtab.launch.api import Scheduler
from trimtab.launch.facts import RANK_PACKAGES
from trimtab.launch.logs import last_words
from trimtab.orchestrator import run_lock
from trimtab.orchestrator.observation import observe
from trimtab.orchestrator.resumption import check_can_go_on, resumed_job
from trimtab.orchestrator.rundir import (
    START_TIMEOUT_S,
    RunDir,
    RunIdTakenError,
    RunState,
    request_text,
)
from trimtab.orchestrator.runs_folder import run_ids, runs_root
from trimtab.orchestrator.schedulers import scheduler_for, scheduler_of

_SLUG_CHARS: Final = 40
_POLL_S: Final = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedJob:
    """A decided, not yet submitted job."""

    request: Request
    plan: JobPlan | None
    """None for a script of the user's."""
    attempt: int = 1

    @property
    def text(self) -> str:
        """What a dry run prints: what the scheduler is given, or `request.json` itself."""
        return self.request.submission or request_text(self.request)


def prepare_job(
    job: JobSpec | ScriptSpec,
    *,
    scheduler: Scheduler | SchedulerName = "local",
    root: Path | None = None,
    run_id: str | None = None,
) -> PreparedJob:
    """Decide everything about a new run: layout, forecast, id, what the scheduler is given.

    Args:
        job: The job; where it has no layout, its ranks share the data (`dp=num_ranks`).
        scheduler: Where it shall run, by name with Trimtab's own ranks.
        root: The folder of the run directories; None: `runs_folder.runs_root()`.
        run_id: Of the run; None: a new one.

    Raises:
        InputError: The worker cannot run the job, or its data are missing or empty.
        InfeasibleError: The model does not fit the cluster in a layout the worker can run, or
            a sequence is longer than any group can hold.
        RunDirError: `root` is not a folder, or cannot be read.
    """
    root = (root or runs_root()).absolute()
    run_ids(root)  # raises where it is no folder of runs
    run_dir = root / (run_id or new_run_id(job.name, root=root))
    if isinstance(scheduler, str):
        scheduler = scheduler_of(scheduler)
    if isinstance(job, ScriptSpec):
        request = scheduler.prepare(job, layout=None, run_dir=run_dir)
        _check_place(request)
        return PreparedJob(request=request, plan=None)
    layout = job.layout or Layout(dp=job.num_ranks)
    request = scheduler.prepare(job, layout=layout, run_dir=run_dir)
    _check_place(request)
    return PreparedJob(request=request, plan=_plan(job, layout))


def prepare_resume(
    run: RunDir, overrides: Sequence[str] = (), *, scheduler: Scheduler | None = None
) -> PreparedJob:
    """Decide how a finished run goes on in its own directory, under the same scheduler.

    Args:
        run: The run; it must not be running.
        overrides: `a.b=c` entries; see `resumption.resumed_job`.
        scheduler: None: the run's, with Trimtab's own ranks.

    Raises:
        InputError: The run is still running or has nothing left to do, or an override is not
            allowed.
        RunDirError: Its directory is damaged, or cannot be written.
    """
    state, request = observe(run).state, run.request()
    job = resumed_job(request.job, overrides)
    check_can_go_on(run, state, job)
    scheduler = scheduler or scheduler_for(request)
    return PreparedJob(
        request=scheduler.prepare(job, layout=request.layout, run_dir=run.path),
        plan=run.plan() if isinstance(job, JobSpec) else None,
        attempt=state.attempt + 1,
    )


def submit_prepared(prepared: PreparedJob, *, scheduler: Scheduler | None = None) -> RunDir:
    """Write the run directory and hand the request to its scheduler.

    A local run is up when this returns, one of Slurm or Ray is queued.

    Args:
        prepared: What `prepare_job` or `prepare_resume` has decided.
        scheduler: None: the request's.

    Raises:
        MissingExtraError: What ranks need is not installed; nothing was written.
        JobFailedError: A local job's controller did not come up; the message holds its last
            words.
        RunIdTakenError: Another submission in the same moment took the id.
        RunDirError: The run directory cannot be written, or processes of the run's last attempt
            still live.
        InputError: The cluster or the controller refused the job; nothing is left of it.
    """
    request = prepared.request
    scheduler = scheduler or scheduler_of(request.scheduler)
    if request.scheduler == "local":
        _check_can_start(request.job)
    scheduler.check(request)
    state = replace(RunState.of(request), attempt=prepared.attempt)
    if prepared.attempt == 1:
        run = RunDir.create(request, plan=prepared.plan, state=state)
    else:
        run = RunDir.open(Path(request.run_dir))
    with run_lock.held(run) as lock_fd:
        if prepared.attempt > 1:
            _check_is_next(run, prepared.attempt)
            run.write_request(request)
            run.write_state(state)
        log = run.controller_log
        log_start = log.stat().st_size if log.exists() else 0
        try:
            handle = scheduler.submit(request, lock_fd=lock_fd)
        except TrimtabError as error:
            _undo(run, prepared, reason=str(error))
            raise
    if request.scheduler == "local":
        _wait_until_up(run, log_start=log_start)
    else:
        run.add_handle(handle)
    return run


def submit_job(
    job: JobSpec | ScriptSpec,
    *,
    scheduler: Scheduler | SchedulerName = "local",
    root: Path | None = None,
) -> RunDir:
    """Prepare and submit a new run; see `prepare_job` and `submit_prepared`."""
    if isinstance(scheduler, str):
        scheduler = scheduler_of(scheduler)
    while True:
        try:
            prepared = prepare_job(job, scheduler=scheduler, root=root)
            return submit_prepared(prepared, scheduler=scheduler)
        except RunIdTakenError:  # by another submission in the same moment
            continue


def prepare_array(jobs: Mapping[int, JobSpec | ScriptSpec]) -> dict[int, PreparedJob]:
    """Decide about every task of a Slurm job array, which share one script.

    Args:
        jobs: The job of every task, by the task's number.

    Raises:
        TrimtabError: As `prepare_job`; or tasks ask Slurm for different things.
    """
    scheduler = scheduler_of("slurm")
    first_task, first_job = next(iter(jobs.items()))
    run_id = new_run_id(first_job.name, root=runs_root())
    prepared: dict[int, PreparedJob] = {}
    decided: dict[JobSpec | ScriptSpec, PreparedJob] = {}
    for task, job in jobs.items():
        if job not in decided:
            decided[job] = prepare_job(job, scheduler=scheduler, run_id=run_id)
        prepared[task] = decided[job]
        if prepared[task].text != prepared[first_task].text:
            raise InputError(
                f"slurm.array: task {task} asks Slurm for something else than task "
                f"{first_task}, but an array has one script; leave %a out of name, num_ranks, "
                "num_nodes, restart and slurm"
            )
    return prepared


def submit_array(jobs: Mapping[int, JobSpec | ScriptSpec]) -> list[RunDir]:
    """Submit a Slurm job array: one script, and a run for each of its tasks.

    Args:
        jobs: The job of every task, by the task's number.

    Raises:
        TrimtabError: As `prepare_array` and `submit_prepared`; nothing is left of any task.
    """
    from trimtab.launch.slurm.script import array_member

    scheduler = scheduler_of("slurm")
    prepared = prepare_array(jobs)
    base = next(iter(prepared.values())).request
    scheduler.check(base)
    runs: dict[int, RunDir] = {}
    try:
        for task, each in prepared.items():
            member = array_member(each.request, task)
            runs[task] = RunDir.create(member, plan=each.plan, state=RunState.of(member))
        handle = scheduler.submit(base, lock_fd=None)
    except TrimtabError:
        for run in runs.values():
            shutil.rmtree(run.path)
        raise
    for task, run in runs.items():
        run.add_handle(replace(handle, job_id=f"{handle.job_id}_{task}"))
    return list(runs.values())


def resume_job(
    run: RunDir, overrides: Sequence[str] = (), *, scheduler: Scheduler | None = None
) -> RunDir:
    """Prepare and submit the next attempt of a run; see `prepare_resume`."""
    prepared = prepare_resume(run, overrides, scheduler=scheduler)
    return submit_prepared(prepared, scheduler=scheduler)


def cancel_run(run: RunDir) -> RunState:
    """Ask a run to end cleanly; asked twice, it ends at once.

    Returns:
        The state before; where that is final, nothing was done.

    Raises:
        InputError: The run is still starting, or runs on another machine.
    """
    state = observe(run).state
    if state.state.is_final:
        return state
    if state.scheduler != "local":
        scheduler = scheduler_for(run.request())
        scheduler.cancel(run.handle, at_once=state.cancelled_s is not None)
        if state.staged and state.cancelled_s is None:  # its controller cannot tell us
            run.write_state(replace(run.state(), cancelled_s=time.time()))
        return state
    if state.controller is None:
        raise InputError(f"{run.handle} is still starting; try again in a moment")
    if not state.controller.is_here:
        raise InputError(
            f"{run.handle} runs on the machine {state.controller.host!r}; cancel it there"
        )
    owner = state.controller
    if state.keeper is not None and not owner.is_alive:
        owner = state.keeper  # it starts the next controller, and passes the signal on
    with contextlib.suppress(ProcessLookupError):  # it may have ended just now
        os.kill(owner.pid, signal.SIGTERM)
    return state


def slug(name: str) -> str:
    """A job's name as part of a folder's name: `a-z0-9-` only, 40 characters at most.

    >>> slug("Äpfel & Birnen/7B")
    'apfel-birnen-7b'
    """
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:_SLUG_CHARS].rstrip("-") or "job"


def new_run_id(name: str, *, root: Path) -> str:
    """An id that no run in `root` has yet."""
    first = f"{time.strftime('%Y%m%d-%H%M%S')}-{slug(name)}"
    run_id, number = first, 1
    while (root / run_id).exists():
        number += 1
        run_id = f"{first}-{number}"
    return run_id


def _plan(job: JobSpec, layout: Layout) -> JobPlan:
    """The forecast of `layout` on a batch of the job's own data where possible."""
    from trimtab.orchestrator import api
    from trimtab.orchestrator.preflight import check_inputs

    lengths = check_inputs(job, layout)
    return api.plan_run(job, layout, lengths=lengths.typical_batch if lengths else None)


def _check_place(request: Request) -> None:
    """Refuse to stage where that is not done."""
    if not request.job.stage.enabled:
        return
    if request.scheduler == "local":
        raise InputError(
            "stage.enabled: a job on this machine finds all it needs here; leave --stage out, "
            "or add -s slurm"
        )
    if request.scheduler == "ray":
        raise InputError(
            "stage.enabled: Ray's nodes have to share the run directory; leave --stage out "
            "(--working-dir sends a script's folder along), or add -s slurm"
        )


def _check_can_start(job: JobSpec | ScriptSpec) -> None:
    """Refuse what could not even begin on this machine."""
    if isinstance(job, ScriptSpec):
        _check_command(job)
        return
    for name in RANK_PACKAGES:
        if importlib.util.find_spec(name) is None:
            raise MissingExtraError(
                f"training needs the package {name}: pip install 'trimtab[train]' (plans and "
                "dry runs need none)"
            )


def _check_command(job: ScriptSpec) -> None:
    command = job.argv[0]
    place = str(Path(job.folder, command)) if os.sep in command else command
    if shutil.which(place) is None:
        raise InputError(
            f"script: {command!r} is no program that can be run here; expected a command line, "
            "as -- python train.py"
        )


def _check_is_next(run: RunDir, attempt: int) -> None:
    last = run.state().attempt
    if attempt != last + 1:
        raise InputError(
            f"{run.handle} has been resumed in the meantime: its attempt {last} has begun; see "
            f"trimtab status {run.job_id}"
        )


def _undo(run: RunDir, prepared: PreparedJob, *, reason: str) -> None:
    """Leave nothing of a run that was refused; of one that was to go on, why it did not."""
    if prepared.attempt == 1:
        shutil.rmtree(run.path)
        return
    _write_failure(run, reason)


def _wait_until_up(run: RunDir, *, log_start: int) -> None:
    """Return when a local run's controller has begun, or is busy with its preparations."""
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        is_gone = run_lock.is_free(run)  # asked first: it may begin and end in between
        state = observe(run).state
        if state.started_s is not None:
            return
        if state.state.is_final and state.finished_s is not None:
            error = InputError if state.exit_code == ExitCode.USAGE else JobFailedError
            raise error(state.reason)
        if is_gone or state.state.is_final:
            words = last_words(run.controller_log, start=log_start) or "it said nothing"
            reason = f"the controller of {run.handle} did not start: {words}"
            _write_failure(run, reason)
            raise JobFailedError(reason)
        time.sleep(_POLL_S)
    if state.controller is not None:
        return  # it is up and still at its preparations: the job is pending
    raise JobFailedError(
        f"the controller of {run.handle} is not up after {START_TIMEOUT_S:.0f} s; see "
        f"{run.controller_log}"
    )


def _write_failure(run: RunDir, reason: str) -> None:
    code = int(ExitCode.JOB_FAILED)
    run.write_state(replace(run.state(), state=JobState.FAILED, reason=reason, exit_code=code))
