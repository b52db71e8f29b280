"""The run directory: everything a run leaves on disk, readable while it runs and afterwards.

    request.json   exactly what runs (`core.job.Request`; a dry run prints the same bytes)
    plan.json      the layout's forecast (`core.plan.JobPlan`)
    state.json     where the job is in its life; replaced atomically
    handle         names the scheduler gave it, one a line; the last is current
    events.db      every event (`trimtab.monitor.store`)
    logs/          rank-0003.log, controller.log
    checkpoints/

Only the controller writes `state.json` once it runs. The directory is its owner's alone (0700).
"""

import json
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeVar

from trimtab.core import serde
from trimtab.core.errors import ExitCode, InputError, RunDirError, TrimtabError
from trimtab.core.job import JobHandle, JobState, Request, SchedulerName
from trimtab.core.plan import JobPlan
from trimtab.launch.logs import rank_log
from trimtab.orchestrator.liveness import ProcessId

START_TIMEOUT_S: Final = 60.0
"""A submitted job whose controller has not come up after this long never will."""

HANDLES: Final = ".handles"
"""Folder beside the runs: a file for each handle, which holds the run's id."""

T = TypeVar("T")


class NoSuchRunError(RunDirError):
    """No run has the given handle, id or path."""

    exit_code = ExitCode.NO_SUCH_JOB


class RunIdTakenError(RunDirError):
    """Another run has the id; the next preparation takes another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """`state.json`: cheap to read, so that a list of a thousand runs is."""

    name: str
    scheduler: SchedulerName = "local"
    num_ranks: int
    state: JobState
    reason: str
    attempt: int
    """1 for the first start; one more for each restart or resume."""
    submitted_s: float
    """When this attempt was submitted, in seconds since the Unix epoch; so the others."""
    started_s: float | None = None
    cancelled_s: float | None = None
    """When its controller was first asked to end it."""
    finished_s: float | None = None
    controller: ProcessId | None = None
    keeper: ProcessId | None = None
    """Starts the controller again when that is killed."""
    exit_code: int | None = None
    """What `submit --wait` ends with; None until the job has finished."""
    num_restarts: int = 0
    """Attempts that the job has started by itself."""
    excluded_nodes: tuple[str, ...] = ()
    """Nodes that are not used any more."""
    num_in_row: int = 0
    """Restarts since the last new checkpoint."""
    staged: bool = False
    """Whether its nodes share no files, so that this run directory learns nothing by itself."""

    @classmethod
    def of(cls, request: Request) -> "RunState":
        """That of a run which has just been submitted."""
        is_local = request.scheduler == "local"
        return cls(
            name=request.job.name,
            scheduler=request.scheduler,
            num_ranks=request.num_ranks,
            state=JobState.PENDING,
            reason="its controller is starting" if is_local else "queued",
            attempt=1,
            submitted_s=time.time(),
            staged=request.job.stage.enabled,
        )

    def observed(self, now_s: float) -> "RunState":
        """This state, or FAILED where the process that would have written that is gone.

        Of a job that is not local only its scheduler can tell: see `observation`.
        """
        if self.state.is_final or self.scheduler != "local":
            return self
        if self.controller is not None and not (
            self.controller.is_alive or (self.keeper is not None and self.keeper.is_alive)
        ):
            return self._failed(f"its controller (pid {self.controller.pid}) died")
        if self.controller is None and now_s - self.submitted_s > START_TIMEOUT_S:
            return self._failed("its controller never started; see trimtab logs --controller")
        return self

    def _failed(self, reason: str) -> "RunState":
        return replace(
            self, state=JobState.FAILED, reason=reason, exit_code=int(ExitCode.JOB_FAILED)
        )


@dataclass(frozen=True, slots=True)
class RunDir:
    """One run's directory; its name is the job's id."""

    path: Path

    @classmethod
    def create(cls, request: Request, *, plan: JobPlan | None, state: RunState) -> "RunDir":
        """Make the directory of a prepared request.

        Raises:
            RunIdTakenError: Another run has the name.
            RunDirError: The directory cannot be made or written.
        """
        run = cls(Path(request.run_dir))
        try:
            run.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _make_new(run.path)
            run.logs.mkdir()
            run.checkpoints.mkdir()
        except OSError as error:
            if run.path.parent.exists() and not run.path.parent.is_dir():
                raise RunDirError(not_a_folder_message(run.path.parent)) from error
            raise RunDirError(
                f"{run.path}: cannot make the run directory: {error.strerror}; set "
                "TRIMTAB_RUNS_DIR to a folder that can be written"
            ) from error
        if plan is not None:
            _write(run.path / "plan.json", serde.to_json(plan, indent=2) + "\n")
        run.write_request(request)
        run.write_state(state)
        return run

    @classmethod
    def open(cls, path: Path) -> "RunDir":
        """An existing run's directory.

        Raises:
            NoSuchRunError: `path` is not a run directory.
            RunDirError: It was written by another version, or its state is damaged.
        """
        run = cls(path.absolute())
        if not run.has_state:
            raise NoSuchRunError(f"{path}: expected a run directory, but it has no state.json")
        run.state()
        return run

    @property
    def job_id(self) -> str:
        return self.path.name

    @property
    def handle(self) -> JobHandle:
        """The name its scheduler knows it by; a run that was never queued has a local one."""
        handles = self.handles
        return handles[-1] if handles else JobHandle(scheduler="local", job_id=self.job_id)

    @property
    def handles(self) -> tuple[JobHandle, ...]:
        """Every name a scheduler has given it, the current one last.

        Raises:
            RunDirError: The file of them is damaged.
        """
        try:
            lines = self._handle_path.read_text(encoding="utf-8").splitlines()
            return tuple(JobHandle.parse(line) for line in lines)
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise RunDirError(
                f"{self._handle_path}: cannot be read: {error.strerror}"
            ) from error
        except (ValueError, InputError) as error:
            raise RunDirError(f"{self._handle_path}: damaged: {error}") from error

    def add_handle(self, handle: JobHandle) -> None:
        """Note the name that a scheduler has given the run, for `find_run` too."""
        if handle in self.handles:
            return
        with self._handle_path.open("a", encoding="utf-8") as file:
            file.write(f"{handle}\n")
        index = self.path.parent / HANDLES
        index.mkdir(mode=0o700, exist_ok=True)
        _write(index / index_name(handle), f"{self.job_id}\n")

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def controller_log(self) -> Path:
        return self.logs / "controller.log"

    @property
    def controller_logs(self) -> tuple[Path, ...]:
        """What its controllers have said, the newest last; those of Slurm jobs by their ids."""
        of_slurm = self.logs.glob("slurm-*.out")
        by_age = sorted(of_slurm, key=lambda path: (path.stat().st_mtime, path.name))
        return tuple(by_age) or (self.controller_log,)

    @property
    def agents_log(self) -> Path:
        """What the agents say that the scheduler has started, and srun."""
        return self.logs / "agents.log"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def events(self) -> Path:
        """Where the event store is; it exists from the moment the controller is up."""
        return self.path / "events.db"

    @property
    def lock(self) -> Path:
        """Held by whoever may write to this run; see `run_lock`."""
        return self.path / "run.lock"

    def rank_log(self, rank: int) -> Path:
        return rank_log(self.path, rank)

    def request(self) -> Request:
        """What runs; RunDirError where the file is damaged or of another version."""
        return _read(self._request_path, Request)

    def plan(self) -> JobPlan:
        """The forecast; RunDirError where the file is damaged or of another version."""
        return _read(self.path / "plan.json", JobPlan)

    def state(self) -> RunState:
        """What `state.json` says, which a dead controller cannot mend: see `observed`."""
        return _read(self._state_path, RunState)

    def observed(self, now_s: float) -> RunState:
        """A local run's state, or FAILED where its controller has died without a word."""
        return self.state().observed(now_s)

    def write_request(self, request: Request) -> None:
        """Replace `request.json`; one of an earlier attempt is kept under its number."""
        text = request_text(request)
        if self._request_path.exists():
            earlier = self._request_path.read_text()
            if earlier == text:
                return
            attempt = self.state().attempt
            _write(self.path / f"request-attempt-{attempt}.json", earlier)
        _write(self._request_path, text)

    def write_attempt_request(self, request: Request, *, attempt: int) -> str:
        """Keep the request of an attempt that differs from `request.json`; the file's name."""
        name = f"request-attempt-{attempt}.json"
        _write(self.path / name, request_text(request))
        return name

    def write_state(self, state: RunState) -> None:
        """Replace `state.json`: a reader sees the old or the new one, never half of one."""
        _write(self._state_path, serde.to_json(state, indent=2) + "\n")

    @property
    def has_state(self) -> bool:
        """Whether it is a run directory; RunDirError where that cannot be read."""
        try:
            return self._state_path.is_file()
        except OSError as error:
            raise RunDirError(f"{self.path}: cannot be read: {error.strerror}") from error

    @property
    def _request_path(self) -> Path:
        return self.path / "request.json"

    @property
    def _handle_path(self) -> Path:
        return self.path / "handle"

    @property
    def _state_path(self) -> Path:
        return self.path / "state.json"


def index_name(handle: JobHandle) -> str:
    """The file in `HANDLES` that stands for a handle."""
    return f"{handle.scheduler}-{handle.job_id}"


def request_text(request: Request) -> str:
    """A request as a dry run prints it and `request.json` holds it."""
    return serde.to_json(request, indent=2) + "\n"


def not_a_folder_message(root: Path) -> str:
    """What to say where the folder of the runs is something else."""
    return (
        f"{root}: expected the folder of the runs, but this is not a folder; set "
        "TRIMTAB_RUNS_DIR to one that can be written"
    )


def _make_new(path: Path) -> None:
    try:
        path.mkdir(mode=0o700)
    except FileExistsError as error:
        raise RunIdTakenError(f"{path}: already exists; submit again") from error


def _read(path: Path, expected: type[T]) -> T:
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise RunDirError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise RunDirError(f"{path}: damaged, expected a JSON document: {error}") from error
    version = document.get("schema") if isinstance(document, dict) else None
    if isinstance(version, int) and version != serde.SCHEMA_VERSION:
        raise RunDirError(
            f"{path.parent}: a run directory of another version: it has schema {version}, this "
            f"Trimtab reads {serde.SCHEMA_VERSION}; use the Trimtab that wrote it"
        )
    try:
        return serde.from_document(expected, document)
    except TrimtabError as error:
        raise RunDirError(f"{path}: damaged: {error}") from error


def _write(path: Path, text: str) -> None:
    """Replace `path` so that neither a reader nor a power cut meets half of it."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise RunDirError(f"{path}: cannot be written: {error.strerror}") from error
