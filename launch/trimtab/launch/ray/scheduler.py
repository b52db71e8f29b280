"""Jobs of a Ray cluster, submitted through its Jobs API.

What is submitted is the JSON of a `POST /api/jobs/`, which a dry run prints; the job's keeper
is its entrypoint. Secrets are never part of it: ranks have what the cluster's nodes have in
their environment, and what a user writes into `env_vars` of the runtime environment himself.

Source: Ray's "Ray Jobs REST API" and "Jobs CLI reference".
"""

import contextlib
import json
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from trimtab.core.errors import InputError, shown
from trimtab.core.job import EnvVar, JobHandle, JobSpec, JobState, Request, ScriptSpec
from trimtab.core.plan import Layout
from trimtab.core.units import counted
from trimtab.launch.api import SchedulerView
from trimtab.launch.limits import check_runnable
from trimtab.launch.local import device_environment
from trimtab.launch.nodes import job_networks, num_nodes
from trimtab.launch.ray.demand import fits, node_demand, resource_of
from trimtab.launch.ray.jobs_api import JobsApi, resolved_address
from trimtab.launch.ray.runtime_env import local_folder, package, runtime_env

CANCEL_FILE: Final = "cancel"
"""In the run directory: the controller takes it for a wish to cancel the job."""

_RUN_DIR_KEY: Final = "trimtab_run_dir"
_SUBMISSION_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)
"""It becomes part of names of Ray's files, and of a handle."""
_RESOURCE: Final = re.compile(r"[^\x00-\x1f\x7f]{1,200}")
_STATES: Final = {
    "PENDING": JobState.PENDING,
    "RUNNING": JobState.RUNNING,
    "STOPPED": JobState.CANCELLED,
    "SUCCEEDED": JobState.SUCCEEDED,
    "FAILED": JobState.FAILED,
}
"""Source: `ray.job_submission.JobStatus`."""


class RayScheduler:
    """Runs jobs on a Ray cluster."""

    def __init__(
        self,
        *,
        rank_argv: tuple[str, ...],
        keeper_argv: tuple[str, ...],
        address: str | None = None,
    ) -> None:
        """Make a scheduler.

        Args:
            rank_argv: Command line of a rank; the run directory is added to its end.
            keeper_argv: Command line of a job's keeper; so here.
            address: Of the cluster that `views` and `cancel` ask; None: from the environment.
        """
        self._rank_argv = rank_argv
        self._keeper_argv = keeper_argv
        self._address = address

    def prepare(
        self, job: JobSpec | ScriptSpec, *, layout: Layout | None, run_dir: Path
    ) -> Request:
        """The request that `submit` will hand over; asks nobody, reads the working directory.

        The address it names is the one that is meant, also where that comes from the
        environment: whoever looks after the job later finds it.

        Raises:
            InputError: The worker cannot run the job, or an option of Ray's is wrong.
            MissingExtraError: A folder as working directory needs Ray.
        """
        if isinstance(job, JobSpec):
            assert layout is not None
            check_runnable(job, layout=layout)
        _check_resource(job)
        address = resolved_address(job.ray.address)
        job = replace(job, ray=replace(job.ray, address=address))
        environment = runtime_env(job.ray)
        if isinstance(job, ScriptSpec) and "working_dir" in environment:
            job = replace(job, folder=".")  # agents are started in Ray's copy of it
        script = job.argv if isinstance(job, ScriptSpec) else None
        return Request(
            scheduler="ray",
            run_dir=str(run_dir),
            argv=script or (*self._rank_argv, str(run_dir)),
            environment=(
                EnvVar(name="PYTHONUNBUFFERED", value="1"),
                *device_environment(job),
            ),
            num_ranks=job.num_ranks,
            num_nodes=num_nodes(job),
            job=job,
            layout=layout,
            networks=job_networks(job),
            submission=self._submission(job, environment, run_dir=run_dir),
        )

    def check(self, request: Request) -> None:
        """Ask the cluster whether its live nodes have what the ranks need.

        Raises:
            InputError: It cannot be reached, or has too little, whoever uses it now.
        """
        api = _api_of(request)
        demand = node_demand(request)
        nodes = api.live_nodes()
        fitting = sum(fits(demand, node.resources) for node in nodes)
        if fitting >= request.num_nodes:
            return
        resource = resource_of(request)
        amounts = [node.resources.get(resource, 0.0) for node in nodes]
        raise InputError(
            f"num_ranks: {counted(request.num_nodes, 'node')} with {request.ranks_per_node} "
            f"{resource} each are asked for, but of the {counted(len(nodes), 'live node')} of "
            f"the Ray cluster at {request.job.ray.address} only {fitting} can give that (most "
            f"on one node: {max(amounts, default=0):g}, all together: {sum(amounts):g}); "
            "choose other num_ranks and num_nodes, or another ray.resource"
        )

    def submit(self, request: Request, *, lock_fd: int | None) -> JobHandle:  # noqa: ARG002  for this machine's
        """Upload the working directory, then hand over `request.submission` unchanged.

        Raises:
            InputError: The cluster refused the job, or the working directory has been changed
                since the request was made.
        """
        api = _api_of(request)
        self._upload(request, api)
        return JobHandle(scheduler="ray", job_id=api.submit(request.submission))

    def views(self, handles: Sequence[JobHandle]) -> Mapping[JobHandle, SchedulerView]:
        """How jobs stand, in one question for all; a job it does not know is left out.

        Raises:
            InputError: The cluster cannot be reached.
        """
        if not handles:
            return {}
        api = JobsApi(resolved_address(self._address))
        if len(handles) == 1:
            known = {handles[0].job_id: api.job(handles[0].job_id)}
        else:
            known = {**api.jobs()}
        return {
            handle: _view(job)
            for handle in handles
            if (job := known.get(handle.job_id)) is not None
        }

    def cancel(self, handle: JobHandle, *, at_once: bool) -> None:
        """Have Ray ask for the end of a job, for which it leaves its ranks time to save.

        Ray asks only once, so that `at_once` is told to the controller by a file besides.

        Raises:
            InputError: The cluster cannot be reached or does not know the job, or its run
                directory is not visible here and it cannot be ended at once.
        """
        api = JobsApi(resolved_address(self._address))
        job = api.job(handle.job_id)
        if job is None:
            raise InputError(
                f"{handle}: the Ray cluster at {resolved_address(self._address)} does not know "
                "this job (any more)"
            )
        told = not at_once or _tell_at_once(job)
        api.stop(handle.job_id)
        if not told:
            raise InputError(
                f"{handle} was asked to end cleanly: its run directory is not visible from "
                "here, so that it cannot be ended at once"
            )

    def _submission(
        self, job: JobSpec | ScriptSpec, environment: Mapping[str, Any], *, run_dir: Path
    ) -> str:
        submission = {
            "entrypoint": f"exec {shlex.join([*self._keeper_argv, str(run_dir)])}",
            "submission_id": _submission_id(job, run_dir=run_dir),
            "runtime_env": environment,
            "metadata": {"job_name": job.name, _RUN_DIR_KEY: str(run_dir)},
            "entrypoint_num_cpus": 0,
        }
        return json.dumps(submission, indent=2) + "\n"

    def _upload(self, request: Request, api: JobsApi) -> None:
        folder = local_folder(request.job.ray)
        if folder is None:
            return
        named = json.loads(request.submission)["runtime_env"]["working_dir"]
        if api.has_package(named):
            return
        uri, content = package(folder, request.job.ray)
        if uri != named:
            raise InputError(
                f"ray.working_dir: {folder} has been changed since the job was prepared; "
                "submit it again"
            )
        api.upload_package(uri, content)


def _api_of(request: Request) -> JobsApi:
    assert request.job.ray.address is not None  # `prepare` has written it down
    return JobsApi(request.job.ray.address)


def _submission_id(job: JobSpec | ScriptSpec, *, run_dir: Path) -> str:
    """The user's own, or the run's id, numbered from the second submission of the run on."""
    given = job.ray.submission_id
    if given is None:
        count = _num_submissions(run_dir)
        return run_dir.name if not count else f"{run_dir.name}-{count + 1}"
    if _SUBMISSION_ID.fullmatch(given) is None:
        raise InputError(
            "ray.submission_id: expected up to 100 letters, digits, '.', '_' and '-', the "
            f"first a letter or a digit, got {shown(given)}"
        )
    return given


def _num_submissions(run_dir: Path) -> int:
    """How often the run was submitted: the run directory keeps one handle a line."""
    try:
        return len((run_dir / "handle").read_text(encoding="utf-8").split())
    except FileNotFoundError:
        return 0


def _check_resource(job: JobSpec | ScriptSpec) -> None:
    resource = job.ray.resource
    if resource is not None and _RESOURCE.fullmatch(resource) is None:
        raise InputError(
            f"ray.resource: expected the name of a resource of the cluster, got "
            f"{shown(resource)}"
        )


def _view(job: Mapping[str, Any]) -> SchedulerView:
    status = str(job["status"])
    return SchedulerView(
        state=_STATES.get(status, JobState.RUNNING),
        native_state=status,
        reason=_reason(job),
    )


def _reason(job: Mapping[str, Any]) -> str:
    """Ray's message without the end of the log, which it appends to it."""
    if job["status"] in ("RUNNING", "SUCCEEDED"):
        return ""
    message = str(job.get("message") or "").strip()
    first = message.partition(", last available logs")[0]
    return " ".join(first.split())[:500]


def _tell_at_once(job: Mapping[str, Any]) -> bool:
    """Put the wish into the run directory; whether that is visible here."""
    run_dir = (job.get("metadata") or {}).get(_RUN_DIR_KEY)
    if not run_dir:
        return False
    with contextlib.suppress(OSError):
        if (Path(run_dir) / "request.json").is_file():
            (Path(run_dir) / CANCEL_FILE).touch()
            return True
    return False
