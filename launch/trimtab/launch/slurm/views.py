"""From Slurm's rows about a job to how it stands."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from trimtab.core.job import JobHandle, JobState
from trimtab.launch.api import SchedulerView
from trimtab.launch.slurm.hostlist import expanded
from trimtab.launch.slurm.options import array_indices
from trimtab.launch.slurm.reasons import explained
from trimtab.launch.slurm.rows import JobRow

_STATES: Final = {
    "BOOT_FAIL": JobState.FAILED,
    "CANCELLED": JobState.CANCELLED,
    "COMPLETED": JobState.SUCCEEDED,
    "COMPLETING": JobState.RUNNING,
    "CONFIGURING": JobState.PENDING,
    "DEADLINE": JobState.FAILED,
    "FAILED": JobState.FAILED,
    "LAUNCH_FAILED": JobState.FAILED,
    "NODE_FAIL": JobState.FAILED,
    "OUT_OF_MEMORY": JobState.FAILED,
    "PENDING": JobState.PENDING,
    "POWER_UP_NODE": JobState.PENDING,
    "PREEMPTED": JobState.FAILED,
    "RECONFIG_FAIL": JobState.FAILED,
    "REQUEUED": JobState.PENDING,
    "REQUEUE_FED": JobState.PENDING,
    "REQUEUE_HOLD": JobState.PENDING,
    "RESIZING": JobState.RUNNING,
    "RESV_DEL_HOLD": JobState.PENDING,
    "REVOKED": JobState.FAILED,
    "RUNNING": JobState.RUNNING,
    "SIGNALING": JobState.RUNNING,
    "SPECIAL_EXIT": JobState.PENDING,
    "STAGE_OUT": JobState.RUNNING,
    "STOPPED": JobState.RUNNING,
    "SUSPENDED": JobState.RUNNING,
    "TIMEOUT": JobState.FAILED,
    "UPDATE_DB": JobState.RUNNING,
}
"""Source: squeue(1), job state codes. A job that clears up or is stopped still holds nodes; one
that is put back is pending, even while its last run is cleared away."""

_WORDS: Final = {
    "CONFIGURING": "its nodes are being started",
    "DEADLINE": "it could not end before its deadline",
    "NODE_FAIL": "a node of it failed",
    "OUT_OF_MEMORY": "it needed more memory than it had asked for; see mem among slurm.args",
    "PREEMPTED": "a job of higher priority took its nodes",
    "REQUEUE_HOLD": "it went back to the queue and is held; `scontrol release` lets it go",
    "SPECIAL_EXIT": "it is held for its user to look at; `scontrol release` lets it go",
    "STOPPED": "it is stopped; `scancel --signal=CONT` lets it go on",
    "SUSPENDED": "it is suspended and waits on its nodes",
    "TIMEOUT": "it used up its time limit",
}
_ORDER: Final = (
    JobState.RUNNING,
    JobState.PENDING,
    JobState.FAILED,
    JobState.CANCELLED,
    JobState.SUCCEEDED,
)
"""Which state of its tasks is that of an array."""


def state_of(row: JobRow) -> JobState:
    """The state of a row: what still goes on comes before how it will end."""
    states = [_STATES.get(state, JobState.RUNNING) for state in row.states]
    if JobState.PENDING in states:
        return JobState.PENDING
    return JobState.RUNNING if JobState.RUNNING in states else states[0]


def rows_of(handle: JobHandle, rows: Iterable[JobRow]) -> tuple[JobRow, ...]:
    """The rows that speak of a job: its own, or those of all tasks of an array."""
    array, is_task, task = handle.job_id.partition("_")
    if not is_task:
        return tuple(row for row in rows if row.first_id == array)
    return tuple(row for row in rows if row.first_id == array and _has_task(row, task))


def view_of(rows: Sequence[JobRow]) -> SchedulerView:
    """How a job stands, from at least one row about it."""
    row = min(rows, key=lambda row: _ORDER.index(state_of(row)))
    state = state_of(row)
    native_state = next(name for name in row.states if _STATES.get(name, state) is state)
    nodes: dict[str, None] = {}
    if not state.is_final or len(rows) == 1:
        live = [other for other in rows if state_of(other) is state]
        nodes = dict.fromkeys(name for other in live for name in expanded(other.nodes))
    return SchedulerView(
        state=state,
        native_state=native_state,
        reason="; ".join(filter(None, (_tasks(rows), _reason(row, native_state)))),
        nodes=tuple(nodes),
        expected_start_s=row.start_s if state is JobState.PENDING else None,
    )


def _reason(row: JobRow, native_state: str) -> str:
    words = _WORDS.get(native_state, "")
    if words:
        return f"{native_state}: {words}"
    if state_of(row) in (JobState.SUCCEEDED, JobState.CANCELLED):
        return ""  # Slurm keeps the reason for which it waited last
    return explained(row.reason) if row.reason else ""


def _tasks(rows: Sequence[JobRow]) -> str:
    """How many tasks of an array are in which state; nothing of a single job."""
    if len(rows) == 1:
        return ""
    counts: Counter[str] = Counter()
    for row in rows:
        counts[row.states[0]] += max(1, len(_indices(row)))
    return ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))


def _has_task(row: JobRow, task: str) -> bool:
    return task.isdigit() and int(task) in _indices(row)


def _indices(row: JobRow) -> tuple[int, ...]:
    tasks = row.job_id.partition("_")[2].strip("[]")
    return array_indices(tasks) if tasks else ()
