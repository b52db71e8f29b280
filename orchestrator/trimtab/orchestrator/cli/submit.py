"""`trimtab submit`: jobs and scripts, to this machine, Slurm or Ray."""

import sys
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from trimtab.orchestrator.cli.output import JsonOption, console, print_json

if TYPE_CHECKING:
    from trimtab.orchestrator.rundir import RunDir
    from trimtab.orchestrator.submission import PreparedJob
    from trimtab.orchestrator.wanted_job import Wanted

_SLURM = "Slurm, under its own names"
_RAY = "Ray, under its own names"
_NODES = "Nodes and restarts"

_SLURM_FIELDS: Final = (
    "account",
    "partition",
    "qos",
    "time",
    "constraint",
    "gres",
    "gpus_per_node",
    "exclude",
    "nodelist",
    "reservation",
    "dependency",
    "signal",
    "comment",
    "array",
    "container_image",
    "container_mounts",
    "container_name",
    "container_workdir",
)
_RAY_FIELDS: Final = (
    "address",
    "working_dir",
    "runtime_env_json",
    "submission_id",
    "resource",
)
_STAGE_FIELDS: Final = {
    "stage": "enabled",
    "stage_python": "python",
    "stage_address": "address",
}
_RESTART_FIELDS: Final = ("max_restarts", "spare_nodes", "warm_spares", "when_short")


def _slurm(*names: str, what: str = "") -> Any:
    return typer.Option(*names, rich_help_panel=_SLURM, help=what, show_default=False)


def _ray(*names: str, what: str = "") -> Any:
    return typer.Option(*names, rich_help_panel=_RAY, help=what, show_default=False)


def _nodes(*names: str, what: str = "") -> Any:
    return typer.Option(*names, rich_help_panel=_NODES, help=what, show_default=False)


def submit(
    context: typer.Context,
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[JOB [a.b=c]...] [-- COMMAND...]",
            help="The job file and changes to it; or a script to run after --.",
        ),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(
            "--scheduler",
            "-s",
            help="Where to run: slurm, ray, or local (this machine, the default).",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            "--dryrun",
            help="Print what would be submitted and change nothing; --json: the whole request.",
        ),
    ] = False,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Show the run until it ends.")
    ] = False,
    wait: Annotated[
        bool,
        typer.Option("--wait/--no-wait", help="Return when the job has ended."),
    ] = False,
    resume: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="Go on with a run that has ended, without JOB."),
    ] = None,
    json_output: JsonOption = False,
    name: Annotated[str | None, _nodes("--name", what="Of a script's run.")] = None,
    nodes: Annotated[
        int | None, _nodes("--nodes", "-N", what="Machines that share the ranks evenly.")
    ] = None,
    ranks_per_node: Annotated[
        int | None, _nodes("--ranks-per-node", what="Of a script; 1 if not given.")
    ] = None,
    spare_nodes: Annotated[
        int | None, _nodes("--spare-nodes", what="Extra nodes to restart on at once (Slurm).")
    ] = None,
    warm_spares: Annotated[
        bool | None, _nodes("--warm-spares", what="Keep imported spare processes.")
    ] = None,
    max_restarts: Annotated[
        int | None, _nodes("--max-restarts", what="In a row, without a new checkpoint.")
    ] = None,
    when_short: Annotated[
        str | None, _nodes("--when-short", what="Too few nodes left: shrink, requeue, stop.")
    ] = None,
    stage: Annotated[
        bool | None, _nodes("--stage", what="Nodes share no files: send the code along.")
    ] = None,
    stage_python: Annotated[
        str | None, _nodes("--stage-python", what="The nodes' Python, where it is another.")
    ] = None,
    stage_address: Annotated[
        str | None, _nodes("--stage-address", what="Where events and logs go, as s3://a/b.")
    ] = None,
    account: Annotated[str | None, _slurm("--account", "-A")] = None,
    partition: Annotated[str | None, _slurm("--partition", "-p")] = None,
    qos: Annotated[str | None, _slurm("--qos", "-q")] = None,
    time: Annotated[str | None, _slurm("--time", "-t", what="2:00:00, say.")] = None,
    constraint: Annotated[str | None, _slurm("--constraint", "-C")] = None,
    gres: Annotated[str | None, _slurm("--gres")] = None,
    gpus_per_node: Annotated[str | None, _slurm("--gpus-per-node")] = None,
    exclude: Annotated[str | None, _slurm("--exclude", "-x")] = None,
    nodelist: Annotated[str | None, _slurm("--nodelist", "-w")] = None,
    reservation: Annotated[str | None, _slurm("--reservation")] = None,
    dependency: Annotated[str | None, _slurm("--dependency", "-d")] = None,
    signal: Annotated[str | None, _slurm("--signal")] = None,
    comment: Annotated[str | None, _slurm("--comment")] = None,
    array: Annotated[
        str | None, _slurm("--array", "-a", what="%a in an override is the task's number.")
    ] = None,
    container_image: Annotated[
        str | None, _slurm("--container-image", what="With pyxis; so the next.")
    ] = None,
    container_mounts: Annotated[str | None, _slurm("--container-mounts")] = None,
    container_name: Annotated[str | None, _slurm("--container-name")] = None,
    container_workdir: Annotated[str | None, _slurm("--container-workdir")] = None,
    slurm_arg: Annotated[
        list[str] | None,
        _slurm("--slurm-arg", what="Any other option, as name=value; repeatable."),
    ] = None,
    address: Annotated[
        str | None, _ray("--address", what="Of the Jobs API; RAY_ADDRESS if not given.")
    ] = None,
    working_dir: Annotated[str | None, _ray("--working-dir")] = None,
    runtime_env_json: Annotated[str | None, _ray("--runtime-env-json")] = None,
    submission_id: Annotated[str | None, _ray("--submission-id")] = None,
    resource: Annotated[
        str | None, _ray("--resource", what="Custom resource that every rank takes one of.")
    ] = None,
) -> int:
    """Start a job or a script, or go on with one; with --wait or --follow, exit as it does.

    That is 0, 1, 2 or 93. Ctrl-C leaves the job running and exits with 130.
    """
    chosen = {key: value for key, value in locals().items() if value is not None}
    from trimtab.core import checks
    from trimtab.core.job import SCHEDULERS
    from trimtab.orchestrator.wanted_job import Wanted

    checks.one_of("--scheduler", scheduler or "local", SCHEDULERS)
    wanted = Wanted(
        scheduler=scheduler or "local",  # type: ignore[arg-type]  # checked above
        arguments=tuple(arguments or ()),
        script=tuple(context.obj or ()),
        name=name,
        num_nodes=nodes,
        ranks_per_node=ranks_per_node,
        restart={field: chosen[field] for field in _RESTART_FIELDS if field in chosen},
        slurm={field: chosen[field] for field in _SLURM_FIELDS if field in chosen}
        | ({"args": tuple(slurm_arg)} if slurm_arg else {}),
        ray={field: chosen[field] for field in _RAY_FIELDS if field in chosen},
        stage={_STAGE_FIELDS[name]: chosen[name] for name in _STAGE_FIELDS if name in chosen},
    )
    to_resume = None if resume is None else _run_to_resume(resume, scheduler=scheduler)
    if dry_run:
        _print_prepared(_prepare(wanted, run=to_resume), as_json=json_output)
        return 0
    runs = _submit(wanted, run=to_resume)
    _tell_submitted(runs, to_stderr=json_output, follow=follow)
    try:
        return _watch(runs, follow=follow, wait=wait, json_output=json_output)
    except KeyboardInterrupt:
        from trimtab.orchestrator.cli.progress import INTERRUPTED

        typer.echo("detached; what was submitted goes on", err=True)
        return INTERRUPTED


def _print_prepared(prepared: "PreparedJob", *, as_json: bool) -> None:
    from trimtab.orchestrator.rundir import request_text

    sys.stdout.write(request_text(prepared.request) if as_json else prepared.text)


def _prepare(wanted: "Wanted", *, run: "RunDir | None") -> "PreparedJob":
    from trimtab.orchestrator import submission

    if run is not None:
        return submission.prepare_resume(run, wanted.only_overrides())
    if jobs := wanted.array_jobs():
        return next(iter(submission.prepare_array(jobs).values()))
    return submission.prepare_job(wanted.job(), scheduler=wanted.scheduler)


def _submit(wanted: "Wanted", *, run: "RunDir | None") -> "list[RunDir]":
    from trimtab.orchestrator import submission

    if run is not None:
        return [submission.resume_job(run, wanted.only_overrides())]
    if jobs := wanted.array_jobs():
        return submission.submit_array(jobs)
    return [submission.submit_job(wanted.job(), scheduler=wanted.scheduler)]


def _watch(runs: "list[RunDir]", *, follow: bool, wait: bool, json_output: bool) -> int:
    """Follow or wait for what was submitted, if asked; the exit code."""
    from trimtab.orchestrator.cli import progress
    from trimtab.orchestrator.cli.states import state_document
    from trimtab.orchestrator.observation import observe

    codes = [0]
    for run in runs:
        if follow:
            shown = console(stderr=json_output, markup=False)
            codes.append(progress.follow(run, console=shown))
        elif wait:
            codes.append(progress.wait(run).exit_code or 0)
    documents = []
    for run in runs:
        observed = observe(run)
        documents.append(state_document(run, observed))
        if wait and not follow and not json_output:
            typer.echo(f"{observed.state.state.value}: {observed.state.reason}")
    if json_output:
        print_json(documents[0] if len(runs) == 1 else {"schema": 1, "runs": documents})
    return max(codes)


def _run_to_resume(handle: str, *, scheduler: str | None) -> "RunDir":
    from trimtab.core.errors import InputError
    from trimtab.orchestrator.rundir import NoSuchRunError
    from trimtab.orchestrator.runs_folder import find_run

    try:
        run = find_run(handle)
    except NoSuchRunError as error:
        raise InputError(f"--resume: {error}") from error
    own = run.state().scheduler
    if scheduler not in (None, own):
        raise InputError(f"--scheduler: {run.handle} goes on where it was, with -s {own}")
    return run


def _tell_submitted(runs: "list[RunDir]", *, to_stderr: bool, follow: bool) -> None:
    for run in runs:
        typer.echo(f"submitted {run.handle}", err=to_stderr)
        typer.echo(f"  run directory  {run.path}", err=to_stderr)
        if not follow:
            typer.echo(f"  watch          trimtab status {run.job_id}", err=to_stderr)
            typer.echo(f"  end it         trimtab cancel {run.job_id}", err=to_stderr)
