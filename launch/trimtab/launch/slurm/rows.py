"""What Slurm answers about jobs, in all its forms, as rows of one kind.

slurmrestd and `squeue --json` write the same documents. Their shape has changed: a number is a
number (22.05), or `{"set": ..., "infinite": ..., "number": ...}` (from 23.02 on); a job's state
is a word, or (from 23.11 on) a list of words. Source: Slurm's REST API documentation, and its
data_parser plugins v0.0.39 to v0.0.43.
"""

import json
from dataclasses import dataclass
from typing import Any, Final

from trimtab.core.errors import InputError

SQUEUE_FORMAT: Final = "%i|%T|%S|%N|%r|%R"
SACCT_FORMAT: Final = "JobID,State,Start,NodeList,Reason"
_NOTHING: Final = frozenset({"", "None", "(null)", "N/A", "NONE", "Unknown", "None assigned"})


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRow:
    """One job, or one task of an array, or those tasks of it that wait together."""

    job_id: str
    """`1234`, `1234_5`, or `1234_[0-3]`."""
    states: tuple[str, ...]
    """In Slurm's words, the main one first: `("PENDING", "REQUEUED")`."""
    reason: str = ""
    nodes: str = ""
    """As a host list."""
    start_s: float | None = None
    """Begin, or expected begin, in seconds since the Unix epoch."""

    @property
    def first_id(self) -> str:
        """The id of the job, or of the array it belongs to."""
        return self.job_id.partition("_")[0]


def rows_of_json(text: str) -> tuple[JobRow, ...]:
    """The jobs of a document of slurmrestd or `squeue --json`.

    Raises:
        InputError: It is none, or reports errors; the message holds them.
    """
    try:
        document = json.loads(text)
        jobs = document["jobs"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"slurm: an answer about jobs cannot be read: {error}") from error
    if document.get("errors"):
        words = "; ".join(_error_words(error) for error in document["errors"])
        raise InputError(f"slurm: {words}")
    return tuple(_row_of_job(job) for job in jobs)


def rows_of_squeue(text: str) -> tuple[JobRow, ...]:
    """The lines of `squeue --noheader --format=SQUEUE_FORMAT`, with times in seconds."""
    return tuple(_squeue_row(line) for line in text.splitlines() if line.strip())


def rows_of_sacct(text: str) -> tuple[JobRow, ...]:
    """The lines of `sacct --noheader --parsable2 --format=SACCT_FORMAT`."""
    return tuple(_sacct_row(line) for line in text.splitlines() if line.strip())


def _row_of_job(job: dict[str, Any]) -> JobRow:
    state = job["job_state"]
    states = tuple(state) if isinstance(state, list) else (str(state),)
    reason = _text(job.get("state_description")) or _text(job.get("state_reason"))
    return JobRow(
        job_id=_job_id(job),
        states=states,
        reason=reason,
        nodes=_text(job.get("nodes")),
        start_s=_number(job.get("start_time")) or None,
    )


def _job_id(job: dict[str, Any]) -> str:
    array = _number(job.get("array_job_id"))
    if not array:
        return f"{_number(job['job_id']):.0f}"
    task = _number(job.get("array_task_id"))
    if task is not None:
        return f"{array:.0f}_{task:.0f}"
    waiting = _text(job.get("array_task_string")).partition("%")[0]
    return f"{array:.0f}_[{waiting}]" if waiting else f"{array:.0f}"


def _number(value: Any) -> float | None:
    if isinstance(value, dict):
        value = value.get("number") if value.get("set") and not value.get("infinite") else None
    return None if value is None else float(value)


def _text(value: Any) -> str:
    return "" if value is None or str(value) in _NOTHING else str(value)


def _error_words(error: Any) -> str:
    if not isinstance(error, dict):
        return str(error)
    known = (error.get("description"), error.get("error"))
    return ": ".join(str(word) for word in known if word) or "an error without a word"


def _squeue_row(line: str) -> JobRow:
    job_id, state, start, nodes, code, place_or_reason = line.split("|", maxsplit=5)
    reason = _text(code)
    if state == "PENDING" and place_or_reason.startswith("("):
        reason = _text(place_or_reason.strip("()"))
    return JobRow(
        job_id=_without_limit(job_id),
        states=(state,),
        reason=reason,
        nodes=_text(nodes),
        start_s=_seconds(start),
    )


def _sacct_row(line: str) -> JobRow:
    job_id, state, start, nodes, reason = line.split("|", maxsplit=4)
    return JobRow(
        job_id=_without_limit(job_id),
        states=(state.partition(" ")[0],),  # "CANCELLED by 1000"
        reason=_text(reason),
        nodes=_text(nodes),
        start_s=_seconds(start),
    )


def _without_limit(job_id: str) -> str:
    """An array's id without how many of its tasks run at once: `21_[0-3%1]`."""
    return f"{job_id.partition('%')[0]}]" if "%" in job_id else job_id


def _seconds(text: str) -> float | None:
    return float(text) if text.isdigit() else None
