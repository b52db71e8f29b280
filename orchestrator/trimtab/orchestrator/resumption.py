"""How a run that has ended goes on: what may change, and whether it can at all."""

import json
import os
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any, Final, TypeVar

from trimtab.core import serde
from trimtab.core.errors import InputError, RunDirError, unknown_name_message
from trimtab.core.events import CheckpointSaved
from trimtab.core.job import JobSpec, JobState, ScriptSpec
from trimtab.core.scheduling import RestartSpec, SlurmOptions
from trimtab.monitor.store import EventStore
from trimtab.orchestrator.rundir import RunDir, RunState

_TRAINING_KEYS: Final = ("training.num_steps", "checkpoint.every_steps", "checkpoint.keep")
_KEYS: Final = (
    "telemetry.wandb_project",
    "telemetry.gpu_sample_s",
    "telemetry.silent_rank_s",
    *(f"restart.{field.name}" for field in fields(RestartSpec)),
    *(f"slurm.{field.name}" for field in fields(SlurmOptions) if field.name != "array"),
)
"""What may change when a run goes on: anything else would make it another run."""

Job = TypeVar("Job", bound=JobSpec | ScriptSpec)


def resumed_job(job: Job, overrides: Sequence[str]) -> Job:
    """`job` with `a.b=c` overrides limited to what may change in a run that goes on.

    A task of a job array goes on by itself.

    Raises:
        InputError: An override has another form, names another key, or does not fit.
    """
    known = (*_TRAINING_KEYS, *_KEYS) if isinstance(job, JobSpec) else _KEYS
    document: dict[str, Any] = serde.to_document(job)
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator:
            raise InputError(f"override: expected the form a.b=c, got {override!r}")
        if key not in known:
            message = unknown_name_message("key", key, known)
            raise InputError(f"--resume: {key} cannot change in a run that goes on; {message}")
        section, _, field = key.partition(".")
        document[section][field] = _value(text, is_text=section == "slurm" and field != "args")
    changed = serde.from_document(type(job), document)
    return replace(changed, slurm=replace(changed.slurm, array=None))


def check_can_go_on(run: RunDir, state: RunState, job: JobSpec | ScriptSpec) -> None:
    """Refuse what the next attempt's controller could not go on with, before it is begun.

    Args:
        run: The run.
        state: How it stands.
        job: What is to go on, with its changes.

    Raises:
        InputError: It still runs, or has nothing left to do.
        RunDirError: Its directory is damaged, or cannot be written.
    """
    if not state.state.is_final:
        raise InputError(
            f"{run.handle} is still {state.state.value}; to end it: trimtab cancel {run.handle}"
        )
    if state.state is JobState.SUCCEEDED:
        _check_has_more_to_do(run, job)
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


def _check_has_more_to_do(run: RunDir, job: JobSpec | ScriptSpec) -> None:
    if isinstance(job, ScriptSpec):
        raise InputError(f"{run.handle} has succeeded; to run its script again, submit it anew")
    done = run.request().training[0].training.num_steps
    if job.training.num_steps <= done:
        raise InputError(
            f"{run.handle} has done all its {done} steps; to go on, add training.num_steps=MORE"
        )


def _value(text: str, *, is_text: bool) -> Any:
    """An override's value: JSON, or text as it stands."""
    if is_text and text != "null":
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text
