"""`trimtab status`, `cancel` and `list`: how jobs stand, and their end."""

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trimtab.core.errors import printable
from trimtab.orchestrator.cli.output import JsonOption, print_json
from trimtab.orchestrator.cli.which_run import NewestRunArgument, RunArgument, named_or_newest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from trimtab.core.errors import RunDirError
    from trimtab.core.events import Event
    from trimtab.orchestrator.observation import Observed
    from trimtab.orchestrator.rundir import RunDir, RunState

_NAME_WIDTH = 32
_COURSE_FIELDS = (
    "num_steps",
    "step",
    "loss",
    "step_s",
    "tokens_per_s",
    "checkpoint_step",
    "checkpoint_path",
    "attempts",
)


def status(
    handle: NewestRunArgument = None,
    json_output: JsonOption = False,
) -> int:
    """Show how a job stands.

    Exit codes: 0 succeeded, 100 failed, 101 not finished, 102 there is none, 103 cancelled.
    """
    from trimtab.orchestrator.cli.states import state_document, status_code
    from trimtab.orchestrator.observation import observe

    run = named_or_newest(handle)
    observed = observe(run)
    document = state_document(run, observed) | _course_or_warning(run)
    if json_output:
        print_json(document)
    else:
        _print_status(document)
    return status_code(observed.state.state)


def cancel(
    handle: RunArgument,
    wait: Annotated[
        bool, typer.Option("--wait", help="Return when the job has ended.")
    ] = False,
    json_output: JsonOption = False,
) -> None:
    """End a job: its ranks write a checkpoint first; a second cancel ends it at once."""
    from trimtab.orchestrator.cli import progress
    from trimtab.orchestrator.cli.states import state_document
    from trimtab.orchestrator.observation import observe
    from trimtab.orchestrator.runs_folder import find_run
    from trimtab.orchestrator.submission import cancel_run

    run = find_run(handle)
    state = cancel_run(run)
    if state.state.is_final:
        typer.echo(f"{run.handle} has already ended ({state.state.value})", err=json_output)
    else:
        typer.echo(_cancelling(run, state), err=json_output)
        if wait:
            state = progress.wait(run)
            typer.echo(f"{state.state.value}: {state.reason}", err=json_output)
    if json_output:
        print_json(state_document(run, observe(run)))


def _cancelling(run: "RunDir", state: "RunState") -> str:
    """What a cancel has begun, given how the run stood before it."""
    from trimtab.core.job import JobState

    if state.cancelled_s is not None:
        return "second cancel: ending at once, without a checkpoint"
    if state.state is JobState.PENDING and state.scheduler != "local":
        return f"cancelling {run.handle}: it leaves the queue"
    return f"cancelling {run.handle}: its ranks write a checkpoint and end"


def list_jobs(
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=0, help="At most this many; 0: all.")
    ] = 20,
    json_output: JsonOption = False,
) -> None:
    """List the runs submitted from here, newest first."""
    from trimtab.orchestrator.observation import observe_runs
    from trimtab.orchestrator.runs_folder import runs_root

    root = runs_root()
    runs = observe_runs(root, limit=limit)
    if json_output:
        documents = [_listing(run, observed) for run, observed in runs]
        print_json({"schema": 1, "root": str(root), "runs": documents})
    elif not runs:
        typer.echo(f"no runs in {root} yet; to start one: trimtab submit JOB.yaml")
    else:
        _print_list([_cells(run, observed) for run, observed in runs])


def _listing(run: "RunDir", observed: "Observed | RunDirError") -> dict[str, Any]:
    """A run as `list --json` has it; a broken one with what is wrong."""
    from trimtab.core.errors import RunDirError
    from trimtab.orchestrator.cli.states import state_document

    try:
        if isinstance(observed, RunDirError):
            raise observed
        return state_document(run, observed)
    except RunDirError as error:
        return {"handle": run.job_id, "error": str(error)}


def _cells(run: "RunDir", observed: "Observed | RunDirError") -> tuple[str, str]:
    """A line of `list`: the handle, and the rest."""
    from trimtab.core.errors import RunDirError
    from trimtab.orchestrator.cli.states import handle_text

    try:
        if isinstance(observed, RunDirError):
            raise observed
        state = observed.state
        handle = handle_text(run, state)
    except RunDirError as error:
        return run.job_id, f"{'broken':<9}  {error}"
    return handle, (
        f"{state.state.value:<9}  {state.num_ranks:>5}  {_clock_text(state.submitted_s)}  "
        f"{printable(state.name)[:_NAME_WIDTH]}"
    )


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
    from trimtab.core.job import JobSpec

    job = run.request().job
    num_steps = job.training.num_steps if isinstance(job, JobSpec) else None
    course: dict[str, Any] = {"num_steps": num_steps, "step": 0, "attempts": []}
    if not run.events.exists():
        return course
    from trimtab.core.events import (
        AttemptEnded,
        AttemptStarted,
        CheckpointSaved,
        StepSummarized,
    )
    from trimtab.monitor.store import EventStore

    with EventStore.open(run.events) as store:
        last, checkpoint = store.latest(StepSummarized), store.latest(CheckpointSaved)
        course["attempts"] = _attempts(store.all(kinds=(AttemptStarted, AttemptEnded)))
    if last is not None:
        course |= {"step": last.step, "loss": last.loss, "step_s": last.step_s}
        course |= {"tokens_per_s": last.num_tokens / last.step_s}
    if checkpoint is not None:
        course |= {"checkpoint_step": checkpoint.step, "checkpoint_path": checkpoint.path}
    return course


def _attempts(events: "Iterable[Event]") -> list[dict[str, Any]]:
    """Every attempt with its nodes, and how it ended where it has."""
    from trimtab.core.events import AttemptEnded, AttemptStarted

    attempts: dict[int, dict[str, Any]] = {}
    for event in events:
        if isinstance(event, AttemptStarted):
            attempts[event.attempt] = {
                "attempt": event.attempt,
                "started_s": event.time_s,
                "num_ranks": event.num_ranks,
                "nodes": list(event.nodes),
                "ended_s": None,
                "reason": None,
                "decision": None,
            }
        elif isinstance(event, AttemptEnded) and event.attempt in attempts:
            attempts[event.attempt] |= {
                "ended_s": event.time_s,
                "reason": event.reason,
                "decision": event.decision,
            }
    return list(attempts.values())


def _print_status(document: dict[str, Any]) -> None:

    typer.echo(document["handle"])
    for name, text in _status_lines(document):
        if text:
            typer.echo(f"  {name:<14} {printable(text)}")
    for attempt in document["attempts"] or ():
        if attempt["decision"] is not None and len(document["attempts"]) > 1:
            told = printable(f"{attempt['reason']}; {attempt['decision']}")
            typer.echo(f"  attempt {attempt['attempt']:<6} {told}")
    for trouble in (document["trouble"], document["warning"]):
        if trouble is not None:
            typer.echo(f"warning: {printable(trouble)}", err=True)


def _status_lines(document: dict[str, Any]) -> "Iterator[tuple[str, str]]":
    """What is known of a run, as a name and a text; empty where it is not."""
    from trimtab.core.units import duration_text

    yield "name", document["name"][:80]
    yield "state", document["state"]
    yield "why", document["reason"]
    if document["state"] == "pending" and document["expected_start_s"] is not None:
        yield "may start", _clock_text(document["expected_start_s"])
    yield "attempt", str(document["attempt"])
    yield "ranks", str(document["num_ranks"])
    attempts = document["attempts"] or [{"nodes": []}]
    yield "nodes", " ".join(attempts[-1]["nodes"])
    yield "not used", " ".join(document["excluded_nodes"])
    yield "submitted", _clock_text(document["submitted_s"])
    yield from _progress_lines(document)
    if document["started_s"] is not None:
        end_s = document["finished_s"] or time.time()
        yield "time", duration_text(max(0.0, end_s - document["started_s"]))
    if document["checkpoint_step"] is not None:
        yield "checkpoint", f"step {document['checkpoint_step']}"
    yield "run directory", document["run_dir"]


def _progress_lines(document: dict[str, Any]) -> "Iterator[tuple[str, str]]":
    from trimtab.core.units import count_text, duration_text

    if document["num_steps"] is not None:
        yield "step", f"{document['step']} of {document['num_steps']}"
    if document["loss"] is not None:
        yield "loss", f"{document['loss']:.4f}"
        yield "step time", duration_text(document["step_s"])
        yield "speed", f"{count_text(document['tokens_per_s'])} tokens/s"


def _print_list(lines: "list[tuple[str, str]]") -> None:
    width = max(len(handle) for handle, _ in lines)
    head = ("handle", f"{'state':<9}  {'ranks':>5}  {'submitted':<19}  name")
    typer.echo("\n".join(f"{handle:<{width}}  {rest}" for handle, rest in (head, *lines)))


def _clock_text(time_s: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time_s))
