"""Runs and their states as commands print them."""

from typing import Any

from trimtab.core import serde
from trimtab.core.errors import ExitCode
from trimtab.core.job import JobState
from trimtab.orchestrator.observation import Observed
from trimtab.orchestrator.rundir import RunDir, RunState

_STATUS_CODES = {
    JobState.PENDING: ExitCode.UNFINISHED_JOB,
    JobState.RUNNING: ExitCode.UNFINISHED_JOB,
    JobState.SUCCEEDED: ExitCode.OK,
    JobState.FAILED: ExitCode.FAILED_JOB,
    JobState.CANCELLED: ExitCode.CANCELLED_JOB,
}


def status_code(state: JobState) -> ExitCode:
    """What `status` and `logs` end with."""
    return _STATUS_CODES[state]


def handle_text(run: RunDir, state: RunState) -> str:
    """The run's current handle."""
    if state.scheduler == "local":  # by far the cheapest to tell, in a list of a thousand
        return f"local://{run.job_id}"
    return str(run.handle)


def state_document(run: RunDir, observed: Observed) -> dict[str, Any]:
    """A run's state as the commands' `--json` prints it."""
    fields = serde.to_document(observed.state)
    view = observed.view
    return {
        "schema": fields.pop("schema"),
        "handle": handle_text(run, observed.state),
        "job_id": run.job_id,
        "run_dir": str(run.path),
        **{name: value for name, value in fields.items() if name != "type"},
        "scheduler_state": view.native_state if view else None,
        "expected_start_s": view.expected_start_s if view else None,
        "trouble": observed.trouble or None,
    }
