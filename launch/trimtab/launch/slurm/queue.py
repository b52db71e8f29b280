"""Asking Slurm about jobs: slurmrestd where there is one, else its commands."""

import json
import os
import re
from collections.abc import Sequence
from typing import Final

from trimtab.core.errors import InputError
from trimtab.launch.slurm.commands import ask
from trimtab.launch.slurm.restd import SlurmRestd
from trimtab.launch.slurm.rows import (
    SACCT_FORMAT,
    SQUEUE_FORMAT,
    JobRow,
    rows_of_json,
    rows_of_sacct,
    rows_of_squeue,
)

_JSON_FILTERS_FROM: Final = (23, 2)
"""Before, `squeue --json` gives all jobs of the cluster, 5 kB and more for each, whatever jobs
were asked for (squeue(1) of 22.05: "All other formatting and filtering arguments will be
ignored"); lines of text are asked for instead."""
_MOST_IDS: Final = 1_000
"""In one command line."""
_FORMATS: Final = {
    "SLURM_TIME_FORMAT": "%s",  # seconds since the epoch
    "SLURM_BITSTR_LEN": "0",  # array indices are never cut short
}
_UNKNOWN: Final = re.compile(r"Invalid job id", re.IGNORECASE)


class SlurmQueue:
    """What slurmctld knows of jobs, and what slurmdbd remembers."""

    def __init__(self) -> None:
        self._restd = SlurmRestd.of_environment()
        self._has_filtered_json: bool | None = None

    def rows(self, job_ids: Sequence[str]) -> tuple[JobRow, ...]:
        """What is known of jobs or arrays, whatever their state; in as few questions as can be.

        Args:
            job_ids: As `1234`, without the task of an array.

        Raises:
            InputError: The cluster cannot be reached.
        """
        if not job_ids:
            return ()
        found = tuple(row for row in self._live_rows(job_ids) if row.first_id in job_ids)
        known = {row.first_id for row in found}
        gone = [job_id for job_id in job_ids if job_id not in known]
        return found + (remembered_rows(gone) if gone else ())

    def _live_rows(self, job_ids: Sequence[str]) -> tuple[JobRow, ...]:
        if self._restd is not None:
            return rows_of_json(self._restd.jobs())
        if self._has_filtered_json is None:
            self._has_filtered_json = _squeue_version() >= _JSON_FILTERS_FROM
        ask_queue = json_rows if self._has_filtered_json else text_rows
        chunks = (job_ids[at : at + _MOST_IDS] for at in range(0, len(job_ids), _MOST_IDS))
        return tuple(row for chunk in chunks for row in ask_queue(chunk))


def json_rows(job_ids: Sequence[str]) -> tuple[JobRow, ...]:
    """What `squeue --json` says of jobs, and before 23.02 of all others, too.

    Raises:
        InputError: The cluster cannot be reached.
    """
    text = _squeue(job_ids, ["--json"])
    return rows_of_json(text) if text else ()


def text_rows(job_ids: Sequence[str]) -> tuple[JobRow, ...]:
    """What `squeue` says of jobs in lines of text.

    Raises:
        InputError: The cluster cannot be reached.
    """
    return rows_of_squeue(_squeue(job_ids, ["--noheader", f"--format={SQUEUE_FORMAT}"]))


def remembered_rows(job_ids: Sequence[str]) -> tuple[JobRow, ...]:
    """What slurmdbd remembers of jobs that have ended; nothing where there is none."""
    argv = [
        "sacct",
        "--noheader",
        "--parsable2",
        "--allocations",
        f"--format={SACCT_FORMAT}",
        f"--jobs={','.join(job_ids)}",
    ]
    try:
        answer = ask(argv, environment={**os.environ, **_FORMATS})
    except InputError:
        return ()  # accounting is an extra: without it, jobs that slurmctld forgot are unknown
    return () if answer.exit_code else rows_of_sacct(answer.output)


def _squeue(job_ids: Sequence[str], form: Sequence[str]) -> str:
    argv = ["squeue", "--all", "--states=all", f"--jobs={','.join(job_ids)}", *form]
    answer = ask(argv, environment={**os.environ, **_FORMATS})
    if answer.exit_code and _UNKNOWN.search(answer.errors):
        return ""  # of a single job that it no longer knows
    if answer.exit_code:
        raise InputError(f"slurm: squeue: {answer.words}")
    return answer.output


def _squeue_version() -> tuple[int, int]:
    """Slurm's release, as (22, 5).

    Raises:
        InputError: squeue cannot be run, or says no version.
    """
    answer = ask(["squeue", "--version"])
    match = re.search(r"(\d+)\.(\d+)", answer.output)
    if match is None:
        raise InputError(f"slurm: squeue --version says {json.dumps(answer.output)}")
    return int(match[1]), int(match[2])
