"""Runs and their states as commands print them."""

from pathlib import Path
from typing import Any

from trimtab.core import serde
from trimtab.core.errors import ExitCode
from trimtab.core.job import JobState
from trimtab.orchestrator.rundir import RunState

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


def state_document(job_id: str, state: RunState, *, run_dir: Path) -> dict[str, Any]:
    """A run's state as the commands' `--json` prints it: `state.json` and where it lies."""
    fields = serde.to_document(state)
    return {
        "schema": fields.pop("schema"),
        "handle": f"local://{job_id}",
        "run_dir": str(run_dir),
        **{name: value for name, value in fields.items() if name != "type"},
    }
