"""From a job to a running controller: `prepare` decides, `submit` acts.

A prepared job holds the request exactly as a dry run prints it and `request.json` will hold it.
Nothing exists on disk until it is submitted.
"""

import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from trimtab.core import serde
from trimtab.core.errors import (
    ExitCode,
    InputError,
    JobFailedError,
    MissingExtraError,
    RunDirError,
    unknown_name_message,
)
from trimtab.core.events import CheckpointSaved
from trimtab.core.job import JobHandle, JobSpec, JobState, Request, SchedulerName
from trimtab.core.plan import JobPlan, Layout
from trimtab.launch.api import Launcher
from trimtab.launch.local import LocalLauncher
from trimtab.monitor.store import EventStore
from trimtab.orchestrator import run_lock
from trimtab.launch.logs import last_words
from trimtab.orchestrator.rundir import (
    START_TIMEOUT_S,
    RunDir,
    RunIdTakenError,
    RunState,
    request_text,
    run_ids,
    runs_root,
)

RANK_COMMAND: Final = (sys.executable, "-m", "trimtab.orchestrator.rank")

_RANK_PACKAGES: Final = ("torch", "megatron")
"""What a rank imports and the base install has not."""
_SLUG_CHARS: Final = 40
_POLL_S: Final = 0.05
_RESUME_KEYS: Final = (
    "training.num_steps",
    "checkpoint.every_steps",
    "checkpoint.keep",
    "telemetry.wandb_project",
    "telemetry.gpu_sample_s",
    "telemetry.silent_rank_s",
)
"""What may change when a run goes on: anything else would make it another run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedJob:
    """A decided, not yet submitted job."""

    request: Request
    plan: JobPlan
    attempt: int = 1

    @property
    def text(self) -> str:
        """What a dry run prints, byte for byte what `request.json` will hold."""
        return request_text(self.request)


def prepare_job(
    job: JobSpec, *, launcher: Launcher | None = None, root: Path | None = None
) -> PreparedJob:
    """Decide everything about a new run: layout, forecast, id, command line.

    Args:
        job: The job; where it has no layout, its ranks share the data (`dp=num_ranks`).
        launcher: None: one that starts Trimtab's own ranks on this machine.
        root: The folder of the run directories; None: `rundir.runs_root()`.

    Raises:
        InputError: The worker cannot run the job, or its data are missing or empty.
        InfeasibleError: The model does not fit the cluster in a layout the worker can run, or
            a sequence is longer than any group can hold.
        RunDirError: `root` is not a folder, or cannot be read.
    """
    root = (root or runs_root()).absolute()
    run_ids(root)  # raises where it is no folder of runs
    handle = new_handle(job.name, root=root)
    launcher = launcher or launcher_of(handle)
    layout = job.layout or Layout(dp=job.num_ranks)
    run_dir = root / handle.job_id
    request = launcher.prepare(job, layout=layout, handle=handle, run_dir=run_dir)
    return PreparedJob(request=request, plan=_plan(job, layout))


def prepare_resume(
    run: RunDir, overrides: Sequence[str] = (), *, launcher: Launcher | None = None
) -> PreparedJob:
    """Decide how a finished run goes on in its own directory.

    Args:
        run: The run; it must not be running.
        overrides: `a.b=c` entries; see `resumed_job`.
        launcher: None: one that starts Trimtab's own ranks on this machine.

    Raises:
        InputError: The run is still running or has nothing left to do, or an override is not
            allowed.
        RunDirError: Its directory is damaged, or cannot be written.
    """
    state = run.observed(time.time())
    request = run.request()
    if not state.state.is_final:
        raise InputError(
            f"{run.handle} is still {state.state.value}; to end it: trimtab cancel {run.handle}"
        )
    job = resumed_job(request.job, overrides)
    if (
        state.state is JobState.SUCCEEDED
        and job.training.num_steps <= request.job.training.num_steps
    ):
        raise InputError(
            f"{run.handle} has done all its {request.job.training.num_steps} steps; to go on, "
            "add training.num_steps=MORE"
        )
    _check_can_go_on(run)
    launcher = launcher or launcher_of(run.handle)
    return PreparedJob(
        request=launcher.prepare(
            job, layout=request.layout, handle=run.handle, run_dir=run.path
        ),
        plan=run.plan(),
        attempt=state.attempt + 1,
    )


def submit_prepared(prepared: PreparedJob) -> RunDir:
    """Write the run directory, start its controller and return once that is up.

    Raises:
        MissingExtraError: What ranks need is not installed; nothing was written.
        JobFailedError: The controller did not come up; the message holds its last words.
        RunIdTakenError: Another submission in the same moment took the id.
        RunDirError: The run directory cannot be written, or processes of the run's last attempt
            still live.
        InputError: The controller refused the job (Weights & Biases without a key, say), or
            the run has been resumed since the job was prepared.
    """
    _check_packages()
    request = prepared.request
    state = RunState(
        name=request.job.name,
        num_ranks=request.num_ranks,
        state=JobState.PENDING,
        reason="its controller is starting",
        attempt=prepared.attempt,
        submitted_s=time.time(),
    )
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
        controller = _spawn_controller(run, lock_fd=lock_fd)
    _wait_until_up(run, controller, log_start=log_start)
    return run


def submit_job(
    job: JobSpec, *, launcher: Launcher | None = None, root: Path | None = None
) -> RunDir:
    """Prepare and submit a new run; see `prepare_job` and `submit_prepared`."""
    while True:
        try:
            return submit_prepared(prepare_job(job, launcher=launcher, root=root))
        except RunIdTakenError:  # by another submission in the same moment
            continue


def resume_job(
    run: RunDir, overrides: Sequence[str] = (), *, launcher: Launcher | None = None
) -> RunDir:
    """Prepare and submit the next attempt of a run; see `prepare_resume`."""
    return submit_prepared(prepare_resume(run, overrides, launcher=launcher))


def cancel_run(run: RunDir) -> RunState:
    """Ask a run's controller to end it cleanly; asked twice, it ends at once.

    Returns:
        The state before; where that is final, nothing was done.

    Raises:
        InputError: The run is still starting, or runs on another machine.
    """
    state = run.observed(time.time())
    if state.state.is_final:
        return state
    if state.controller is None:
        raise InputError(f"{run.handle} is still starting; try again in a moment")
    if not state.controller.is_here:
        raise InputError(
            f"{run.handle} runs on the machine {state.controller.host!r}; cancel it there"
        )
    with contextlib.suppress(ProcessLookupError):  # it may have ended just now
        os.kill(state.controller.pid, signal.SIGTERM)
    return state


def resumed_job(job: JobSpec, overrides: Sequence[str]) -> JobSpec:
    """`job` with `a.b=c` overrides limited to what may change in a run that goes on.

    Raises:
        InputError: An override has another form, names another key, or does not fit.
    """
    document: dict[str, Any] = serde.to_document(job)
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator:
            raise InputError(f"override: expected the form a.b=c, got {override!r}")
        if key not in _RESUME_KEYS:
            known = unknown_name_message("key", key, _RESUME_KEYS)
            raise InputError(f"--resume: {key} cannot change in a run that goes on; {known}")
        section, _, field = key.partition(".")
        document[section][field] = _scalar(text)
    return serde.from_document(JobSpec, document)


def launcher_of(handle: JobHandle) -> Launcher:
    """The launcher of a handle's scheduler, starting Trimtab's own ranks."""
    match handle.scheduler:
        case "local":
            return LocalLauncher(argv=RANK_COMMAND)


def slug(name: str) -> str:
    """A job's name as part of a folder's name: `a-z0-9-` only, 40 characters at most.

    >>> slug("Äpfel & Birnen/7B")
    'apfel-birnen-7b'
    """
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:_SLUG_CHARS].rstrip("-") or "job"


def new_handle(name: str, *, root: Path, scheduler: SchedulerName = "local") -> JobHandle:
    """A handle that no run in `root` has yet."""
    first = f"{time.strftime('%Y%m%d-%H%M%S')}-{slug(name)}"
    job_id, number = first, 1
    while (root / job_id).exists():
        number += 1
        job_id = f"{first}-{number}"
    return JobHandle(scheduler=scheduler, job_id=job_id)


def _plan(job: JobSpec, layout: Layout) -> JobPlan:
    """The forecast of `layout` on a batch of the job's own data where possible."""
    from trimtab.orchestrator import api
    from trimtab.orchestrator.preflight import check_inputs

    lengths = check_inputs(job, layout)
    return api.plan_run(job, layout, lengths=lengths.typical_batch if lengths else None)


def _check_packages() -> None:
    for name in _RANK_PACKAGES:
        if importlib.util.find_spec(name) is None:
            raise MissingExtraError(
                f"training needs the package {name}: pip install 'trimtab[train]' (plans and "
                "dry runs need none)"
            )


def _check_can_go_on(run: RunDir) -> None:
    """Refuse what the next attempt's controller could not go on with, before it is begun."""
    for path in (run.path, run.logs, run.checkpoints):
        if not path.is_dir() or not os.access(path, os.W_OK | os.X_OK):
            raise RunDirError(f"{path}: expected a folder that can be written")
    for path in (run.events, run.controller_log, run.lock):
        if path.exists() and not os.access(path, os.R_OK | os.W_OK):
            raise RunDirError(f"{path}: expected a file that can be read and written")
    if not run.events.exists():
        return
    try:
        with EventStore.open(run.events) as store:
            store.latest(CheckpointSaved)
    except RunDirError as error:
        raise RunDirError(
            f"{error}; move events.db aside to go on without its history"
        ) from error


def _check_is_next(run: RunDir, attempt: int) -> None:
    last = run.state().attempt
    if attempt != last + 1:
        raise InputError(
            f"{run.handle} has been resumed in the meantime: its attempt {last} has begun; see "
            f"trimtab status {run.job_id}"
        )


def _scalar(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _spawn_controller(run: RunDir, *, lock_fd: int) -> subprocess.Popen[bytes]:
    """Start the controller in a session of its own: it outlives this process and terminal."""
    module = "trimtab.orchestrator.controller"
    with run.controller_log.open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, str(run.path), str(lock_fd)],
            pass_fds=(lock_fd,),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
    # Reaped here where this process lives longer, so that no zombie is left behind.
    threading.Thread(target=process.wait, name="controller reaper", daemon=True).start()
    return process


def _wait_until_up(run: RunDir, controller: subprocess.Popen[bytes], *, log_start: int) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline_s:
        has_ended = controller.poll() is not None
        state = run.state()
        if state.started_s is not None:
            return
        if state.state.is_final:
            error = InputError if state.exit_code == ExitCode.USAGE else JobFailedError
            raise error(state.reason)
        if has_ended:
            words = last_words(run.controller_log, start=log_start) or "it said nothing"
            reason = f"the controller of {run.handle} did not start: {words}"
            code = int(ExitCode.JOB_FAILED)
            run.write_state(
                replace(state, state=JobState.FAILED, reason=reason, exit_code=code)
            )
            raise JobFailedError(reason)
        time.sleep(_POLL_S)
    if state.controller is not None:
        return  # it is up and still at its preparations: the job is pending
    raise JobFailedError(
        f"the controller of {run.handle} is not up after {START_TIMEOUT_S:.0f} s; see "
        f"{run.controller_log}"
    )
