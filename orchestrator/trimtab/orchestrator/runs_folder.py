"""The folder of all run directories: which runs there are, and which one a person means."""

import difflib
import os
from collections.abc import Iterator
from pathlib import Path

from trimtab.core.errors import InputError, RunDirError
from trimtab.core.job import JobHandle
from trimtab.orchestrator.rundir import (
    HANDLES,
    NoSuchRunError,
    RunDir,
    RunState,
    index_name,
    not_a_folder_message,
)


def runs_root() -> Path:
    """The folder of all run directories: `$TRIMTAB_RUNS_DIR`, or `~/.trimtab/runs`."""
    configured = os.environ.get("TRIMTAB_RUNS_DIR")
    root = Path(configured) if configured else Path.home() / ".trimtab" / "runs"
    return root.expanduser().absolute()


def run_ids(root: Path) -> list[str]:
    """Ids of all runs under `root`, newest first: an id begins with its time.

    Raises:
        RunDirError: `root` is not a folder, or cannot be read.
    """
    try:
        names = [path.name for path in root.iterdir()]
    except FileNotFoundError:
        return []
    except NotADirectoryError as error:
        raise RunDirError(not_a_folder_message(root)) from error
    except OSError as error:
        raise RunDirError(
            f"{root}: the folder of the runs cannot be read: {error.strerror}; set "
            "TRIMTAB_RUNS_DIR to another"
        ) from error
    return sorted((name for name in names if not name.startswith(".")), reverse=True)


def list_runs(root: Path, *, limit: int) -> Iterator[tuple[str, RunState | RunDirError]]:
    """Id and state of the newest runs, newest first; of a broken run, what is wrong with it.

    Args:
        root: The folder of the run directories.
        limit: At most this many; 0 for all.
    """
    num_found = 0
    for job_id in run_ids(root):
        if limit and num_found == limit:
            return
        try:
            found: RunState | RunDirError = RunDir(root / job_id).state()
        except RunDirError as error:
            if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
                continue  # no run directory
            found = error
        num_found += 1
        yield job_id, found


def find_run(text: str, *, root: Path | None = None) -> RunDir:
    """The run that a person means by a handle, an id, the beginning of one, or a path.

    Args:
        text: `local://ID`, `slurm://1234`, `ray://ID` (an earlier one of the run, too), the
            run's own `ID`, the beginning of exactly one id, or a run directory.
        root: The folder of the run directories; None: `runs_root()`.

    Raises:
        NoSuchRunError: There is none; the message names the nearest.
        InputError: The beginning fits several, or the handle is that of a job array.
        RunDirError: It was written by another version, or is damaged.
    """
    root = root or runs_root()
    if "://" in text:
        handle = JobHandle.parse(text)
        if handle.scheduler != "local":
            return RunDir.open(root / _run_of_handle(handle, root=root))
        text = handle.job_id
    elif os.sep in text or text in (".", ".."):
        return RunDir.open(Path(text))
    if not text:
        raise InputError("handle: expected a handle, an id or a run directory, got nothing")
    ids = run_ids(root)
    matches = [text] if text in ids else [name for name in ids if name.startswith(text)]
    if len(matches) == 1:
        return RunDir.open(root / matches[0])
    if matches:
        raise InputError(
            f"handle: {text!r} is the beginning of {len(matches)} runs: {_some(matches)}"
        )
    raise NoSuchRunError(_no_such_run(text, ids=ids, root=root))


def newest_run() -> RunDir:
    """The newest run under `runs_root()`, a broken one too.

    Raises:
        NoSuchRunError: There is none yet.
        RunDirError: It was written by another version, or is damaged.
    """
    root = runs_root()
    for job_id, _ in list_runs(root, limit=1):
        return RunDir.open(root / job_id)
    raise NoSuchRunError(
        f"there is no run in {root} yet; to start one: trimtab submit JOB.yaml"
    )


def _run_of_handle(handle: JobHandle, *, root: Path) -> str:
    """Id of the run that Slurm or Ray knows by `handle`."""
    index = root / HANDLES
    try:
        return (index / index_name(handle)).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        raise RunDirError(f"{index}: cannot be read: {error}") from error
    tasks = _names(index, prefix=f"{index_name(handle)}_")
    if tasks:
        named = [f"{handle.scheduler}://{name.partition('-')[2]}" for name in tasks]
        raise InputError(
            f"handle: {handle} is an array of {len(tasks)} jobs: name one, {_some(named)}"
        )
    raise NoSuchRunError(f"there is no run {str(handle)!r} in {root}; see `trimtab list`")


def _names(folder: Path, *, prefix: str) -> list[str]:
    """Names in a folder that begin with `prefix`; none where there is no folder."""
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if path.name.startswith(prefix))


def _no_such_run(text: str, *, ids: list[str], root: Path) -> str:
    if not ids:
        return f"there is no run {text!r}: {root} holds none yet"
    nearest = difflib.get_close_matches(text, ids, n=3, cutoff=0.5)
    nearest += [job_id for job_id in ids if text in job_id and job_id not in nearest]
    hint = f"did you mean {_some(nearest)}?" if nearest else f"the newest are {_some(ids)}"
    return f"there is no run {text!r} in {root}; {hint} See `trimtab list`"


def _some(ids: list[str]) -> str:
    return ", ".join(ids[:3]) + (", ..." if len(ids) > 3 else "")
