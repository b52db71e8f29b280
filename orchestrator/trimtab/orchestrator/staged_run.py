"""A run whose nodes share no files: made on its first node, known elsewhere by its word.

The word of a run is what its directory holds but checkpoints: state, handles, events and logs.
Its controller leaves it at an address (`staging.word_address`) when the job ends or moves. From
there the next controller takes it, and the machine that the job was submitted from.
"""

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Final

from trimtab.core import serde
from trimtab.core.errors import TrimtabError
from trimtab.core.job import JobHandle, JobSpec, ScriptSpec
from trimtab.launch.remote import RemoteFolder
from trimtab.launch.staging import (
    ARCHIVE_NAME,
    STAGED_FOLDER,
    sent_request,
    word_address,
)
from trimtab.orchestrator.allocations import own_handle
from trimtab.orchestrator.rundir import RunDir, RunState

_WORD: Final = "run"
"""Its folder, beside the run's checkpoints."""
_LOGS: Final = "logs"
_EVENTS: Final = "events.db"
_HANDLES: Final = "handle"
_STATE: Final = "state.json"


def settle(run_dir: Path, *, script: Path | None) -> RunDir:
    """The run directory of a staged job on its controller's node; made if it is not there.

    Args:
        run_dir: Where.
        script: The batch script as Slurm holds it; None: it is a job of Ray.

    Raises:
        RunDirError: It cannot be read or written.
    """
    request = sent_request()
    if script is not None:
        request = replace(request, submission=script.read_bytes().decode())
    run = RunDir(run_dir)
    run.logs.mkdir(parents=True, exist_ok=True)
    run.checkpoints.mkdir(exist_ok=True)
    run.path.chmod(0o700)
    try:
        take_word(run, request.job, after_attempt=run.state().attempt if run.has_state else 0)
    except TrimtabError as error:
        print(f"what the run has left elsewhere is not taken: {error}", flush=True)
    own = own_handle(request)
    if not run.has_state:
        run.write_state(RunState.of(request))
    elif run.state().state.is_final and own not in run.handles:  # it is resumed
        run.write_state(replace(RunState.of(request), attempt=run.state().attempt + 1))
    run.write_request(request)
    if own is not None:
        run.add_handle(own)
    return run


def leave_word(run: RunDir) -> None:
    """Put the run's word at its address; where that fails it stays here, which is printed."""
    try:
        folder = _folder(run, run.request().job)
        if folder is None:
            return
        word = folder / _WORD
        for place in (folder, word, word / _LOGS):
            place.make()
        logs = sorted(path for path in run.logs.iterdir() if path.is_file())
        names = [*(f"{_LOGS}/{path.name}" for path in logs), _EVENTS, _HANDLES, _STATE]
        for name in names:  # the state comes last: who finds it finds the rest
            if (run.path / name).exists():
                word.upload(run.path / name, name)
    except TrimtabError as error:
        print(f"events and logs of the run stay in {run.path}: {error}", flush=True)


def leave_handles(run: RunDir) -> None:
    """Tell the run's handles once more, now that it has another; its word is there."""
    try:
        folder = _folder(run, run.request().job)
        if folder is not None:
            (folder / _WORD).upload(run.path / _HANDLES, _HANDLES)
    except TrimtabError as error:
        print(f"the run's new handle is known here only: {error}", flush=True)


def remove_staged(run: RunDir) -> None:
    """Remove what came along to this node, once the job has ended."""
    (run.path / ARCHIVE_NAME).unlink(missing_ok=True)
    shutil.rmtree(run.path / STAGED_FOLDER, ignore_errors=True)


def take_word(
    run: RunDir, job: JobSpec | ScriptSpec, *, after_attempt: int, of: JobHandle | None = None
) -> bool:
    """Bring the run's word into its directory here; whether there was one.

    Args:
        run: The run.
        job: What it runs.
        after_attempt: Only a word left in a later attempt.
        of: Only a word that knows this handle: that of an earlier submission does not.

    Raises:
        TrimtabError: The address cannot be reached.
    """
    folder = _folder(run, job)
    if folder is None:
        return False
    word = folder / _WORD
    names = {name for name in word.sizes() if _belongs(name)}
    if _STATE not in names:
        return False
    state = serde.from_json(RunState, word.read(_STATE).decode())
    handles = word.read(_HANDLES).decode().split() if _HANDLES in names else []
    if state.attempt <= after_attempt or (of is not None and str(of) not in handles):
        return False
    with tempfile.TemporaryDirectory(dir=run.path, prefix=".word-") as place:
        draft = Path(place)
        (draft / _LOGS).mkdir()
        for name in names:
            word.download(name, draft / name)
        for name in names - {_STATE, _HANDLES}:
            (draft / name).replace(run.path / name)
        for handle in handles:
            run.add_handle(JobHandle.parse(handle))
        (draft / _STATE).replace(run.path / _STATE)
    return True


def _folder(run: RunDir, job: JobSpec | ScriptSpec) -> RemoteFolder | None:
    """Of the run, with its checkpoints, where there is an address and the job is staged."""
    address = word_address(job) if job.stage.enabled else None
    return None if address is None else RemoteFolder.at(address) / run.job_id


def _belongs(name: str) -> bool:
    """Whether a file of the folder is part of a word: nothing else is put anywhere."""
    folder, _, file = name.rpartition("/")
    return name in (_EVENTS, _HANDLES, _STATE) or (folder == _LOGS and file not in (".", ".."))
