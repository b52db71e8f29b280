"""`trimtab submit`, `status`, `cancel` and `list`: jobs from the command line."""

import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.orchestrator.cli.logs import logs
from trimtab.orchestrator.cli.output import JsonOption, console, print_json
from trimtab.orchestrator.cli.which_run import NewestRunArgument, RunArgument, named_or_newest

if TYPE_CHECKING:
    from trimtab.orchestrator.rundir import RunDir, RunState
    from trimtab.orchestrator.submission import PreparedJob

__all__ = ["cancel", "list_jobs", "logs", "status", "submit"]

_NAME_WIDTH = 32
_COURSE_FIELDS = (
    "num_steps",
    "step",
    "loss",
    "step_s",
    "tokens_per_s",
    "checkpoint_step",
    "checkpoint_path",
)


def submit(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="JOB [a.b=c]...", help="The job file, and changes to it."),
    ] = None,
    scheduler: Annotated[
        str, typer.Option("--scheduler", "-s", help="Where to run: local.")
    ] = "local",
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", "--dryrun", help="Print the request as JSON and change nothing."
        ),
    ] = False,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Show the run until it ends.")
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Return when the job has ended.")
    ] = False,
    resume: Annotated[
        str | None,
        typer.Option(metavar="RUN", help="Go on with a run that has ended, without JOB."),
    ] = None,
    json_output: JsonOption = False,
) -> int:
    """Start a job, or go on with one; with --wait or --follow, exit as it does: 0, 1, 2, 93.

    Ctrl-C leaves the job running and exits with 130.
    """
    from trimtab.core import checks
    from trimtab.core.job import SCHEDULERS
    from trimtab.orchestrator.cli import progress

    checks.one_of("--scheduler", scheduler, SCHEDULERS)
    if dry_run:
        sys.stdout.write(_prepare(arguments or [], resume=resume).text)
        return 0
    run = _submit(arguments or [], resume=resume)
    _tell_submitted(run, to_stderr=json_output, follow=follow)
    exit_code = 0
    if follow:
        exit_code = progress.follow(run, console=console(stderr=json_output, markup=False))
    elif wait:
        exit_code = progress.wait(run).exit_code or 0
    state = run.observed(time.time())
    if json_output:
        print_json(_document(run, state))
    elif wait and not follow:
        typer.echo(f"{state.state.value}: {state.reason}")
    return exit_code


def status(
    handle: NewestRunArgument = None,
    json_output: JsonOption = False,
) -> int:
    """Show how a job stands.

    Exit codes: 0 succeeded, 100 failed, 101 not finished, 102 there is none, 103 cancelled.
    """
    from trimtab.orchestrator.cli.states import status_code

    run = named_or_newest(handle)
    state = run.observed(time.time())
    document = _document(run, state) | _course_or_warning(run)
    if json_output:
        print_json(document)
    else:
        _print_status(document)
    return status_code(state.state)


def cancel(
    handle: RunArgument,
    wait: Annotated[
        bool, typer.Option("--wait", help="Return when the job has ended.")
    ] = False,
    json_output: JsonOption = False,
) -> None:
    """End a job: its ranks write a checkpoint first; a second cancel ends it at once."""
    from trimtab.orchestrator.cli import progress
    from trimtab.orchestrator.rundir import find_run
    from trimtab.orchestrator.submission import cancel_run

    run = find_run(handle)
    state = cancel_run(run)
    if state.state.is_final:
        typer.echo(f"{run.handle} has already ended ({state.state.value})", err=json_output)
    else:
        first = f"cancelling {run.handle}: its ranks write a checkpoint and end"
        second = "second cancel: ending at once, without a checkpoint"
        typer.echo(first if state.cancelled_s is None else second, err=json_output)
        if wait:
            state = progress.wait(run)
            typer.echo(f"{state.state.value}: {state.reason}", err=json_output)
    if json_output:
        print_json(_document(run, run.observed(time.time())))


def list_jobs(
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=0, help="At most this many; 0: all.")
    ] = 20,
    json_output: JsonOption = False,
) -> None:
    """List the runs of this machine, newest first."""
    from trimtab.core.errors import RunDirError
    from trimtab.orchestrator.cli.states import state_document
    from trimtab.orchestrator.rundir import list_runs, runs_root

    root = runs_root()
    now_s = time.time()
    runs = []
    for job_id, state in list_runs(root, limit=limit):
        if isinstance(state, RunDirError):
            runs.append({"handle": f"local://{job_id}", "error": str(state)})
        else:
            state = state.observed(now_s)
            runs.append(state_document(job_id, state, run_dir=root / job_id))
    if json_output:
        print_json({"schema": 1, "root": str(root), "runs": runs})
    elif not runs:
        typer.echo(f"no runs in {root} yet; to start one: trimtab submit JOB.yaml")
    else:
        _print_list(runs)


def _prepare(arguments: list[str], *, resume: str | None) -> "PreparedJob":
    from trimtab.orchestrator import submission

    if resume is not None:
        return submission.prepare_resume(_run_to_resume(resume), _overrides(arguments))
    return submission.prepare_job(_load(arguments))


def _submit(arguments: list[str], *, resume: str | None) -> "RunDir":
    from trimtab.orchestrator import submission

    if resume is not None:
        return submission.resume_job(_run_to_resume(resume), _overrides(arguments))
    return submission.submit_job(_load(arguments))


def _load(arguments: list[str]) -> Any:
    from trimtab.core.errors import InputError
    from trimtab.orchestrator.config import load_job

    if not arguments:
        raise InputError("JOB: expected a job file (or --resume RUN), got nothing")
    return load_job(arguments[0], arguments[1:])


def _run_to_resume(handle: str) -> "RunDir":
    from trimtab.core.errors import InputError
    from trimtab.orchestrator.rundir import NoSuchRunError, find_run

    try:
        return find_run(handle)
    except NoSuchRunError as error:
        raise InputError(f"--resume: {error}") from error


def _overrides(arguments: list[str]) -> list[str]:
    from trimtab.core.errors import InputError

    for argument in arguments:
        if "=" not in argument:
            raise InputError(
                f"--resume takes the job from its run directory: leave {argument!r} out"
            )
    return arguments


def _tell_submitted(run: "RunDir", *, to_stderr: bool, follow: bool) -> None:
    typer.echo(f"submitted {run.handle}", err=to_stderr)
    typer.echo(f"  run directory  {run.path}", err=to_stderr)
    if not follow:
        typer.echo(f"  watch          trimtab status {run.job_id}", err=to_stderr)
        typer.echo(f"  end it         trimtab cancel {run.job_id}", err=to_stderr)


def _document(run: "RunDir", state: "RunState") -> dict[str, Any]:
    from trimtab.orchestrator.cli.states import state_document

    return state_document(run.job_id, state, run_dir=run.path)


def _course_or_warning(run: "RunDir") -> dict[str, Any]:
    """How far a run has come; where that cannot be read, a warning that says why."""
    from trimtab.core.errors import RunDirError

    unknown = dict.fromkeys(_COURSE_FIELDS) | {"warning": None}
    try:
        return unknown | _course(run)
    except RunDirError as error:
        return unknown | {"warning": str(error)}


def _course(run: "RunDir") -> dict[str, Any]:
    """How far a run has come, from its request and events."""
    from trimtab.core.events import CheckpointSaved, StepSummarized
    from trimtab.monitor.store import EventStore

    course: dict[str, Any] = {"num_steps": run.request().job.training.num_steps, "step": 0}
    if not run.events.exists():
        return course
    with EventStore.open(run.events) as store:
        last, checkpoint = store.latest(StepSummarized), store.latest(CheckpointSaved)
    if last is not None:
        course |= {"step": last.step, "loss": last.loss, "step_s": last.step_s}
        course |= {"tokens_per_s": last.num_tokens / last.step_s}
    if checkpoint is not None:
        course |= {"checkpoint_step": checkpoint.step, "checkpoint_path": checkpoint.path}
    return course


def _print_status(document: dict[str, Any]) -> None:
    from trimtab.core.units import count_text, duration_text
    from trimtab.orchestrator.cli.watched import printable

    lines = {
        "name": printable(document["name"])[:80],
        "state": document["state"],
        "why": printable(document["reason"]),
        "attempt": document["attempt"],
        "ranks": document["num_ranks"],
        "submitted": _clock_text(document["submitted_s"]),
    }
    if document["warning"] is None:
        lines["step"] = f"{document['step']} of {document['num_steps']}"
    if document["loss"] is not None:
        lines["loss"] = f"{document['loss']:.4f}"
        lines["step time"] = duration_text(document["step_s"])
        lines["speed"] = f"{count_text(document['tokens_per_s'])} tokens/s"
    if document["started_s"] is not None:
        end_s = document["finished_s"] or time.time()
        lines["time"] = duration_text(max(0.0, end_s - document["started_s"]))
    if document["checkpoint_step"] is not None:
        lines["checkpoint"] = f"step {document['checkpoint_step']}"
    lines["run directory"] = document["run_dir"]
    typer.echo(document["handle"])
    for name, text in lines.items():
        if text != "":
            typer.echo(f"  {name:<14} {text}")
    if document["warning"] is not None:
        typer.echo(f"warning: {printable(document['warning'])}", err=True)


def _print_list(runs: list[dict[str, Any]]) -> None:
    from trimtab.orchestrator.cli.watched import printable

    width = max(len(run["handle"]) for run in runs)
    typer.echo(f"{'handle':<{width}}  {'state':<9}  {'ranks':>5}  {'submitted':<19}  name")
    for run in runs:
        if "error" in run:
            typer.echo(f"{run['handle']:<{width}}  {'broken':<9}  {run['error']}")
            continue
        typer.echo(
            f"{run['handle']:<{width}}  {run['state']:<9}  {run['num_ranks']:>5}  "
            f"{_clock_text(run['submitted_s'])}  {printable(run['name'])[:_NAME_WIDTH]}"
        )


def _clock_text(time_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time_s))
