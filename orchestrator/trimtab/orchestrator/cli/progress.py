"""Watching a run from a terminal: a bar that moves, or sparse lines where there is no terminal.

`follow` is what `trimtab submit --follow` and `trimtab demo` show.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from trimtab.core.errors import ExitCode, JobFailedError, printable
from trimtab.core.events import (
    Alert,
    AnyEvent,
    AttemptEnded,
    AttemptStarted,
    CheckpointSaved,
    EvaluationFinished,
    Event,
    NodeLost,
    RankExited,
    RankStarted,
    RunResumed,
    StepPlanned,
    StepSummarized,
)
from trimtab.core.job import JobSpec, JobState, SchedulerName, ScriptSpec
from trimtab.core.units import duration_text
from trimtab.orchestrator.cli.watched import Watched
from trimtab.orchestrator.observation import observe
from trimtab.orchestrator.rundir import RunDir, RunState
from trimtab.orchestrator.submission import cancel_run, submit_job
from trimtab.orchestrator.verdict import error_line

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

INTERRUPTED: Final = 130
"""Exit code of a follower that was interrupted; the job goes on."""

_POLL_S: Final = 0.2
_LINE_EVERY_S: Final = 10.0
"""How often a follower without a terminal prints a line."""
_LAST_WORDS_SHOWN: Final = 6
_FOLLOWED: Final[tuple[type[Event], ...]] = (
    AttemptStarted,
    AttemptEnded,
    NodeLost,
    RankStarted,
    RunResumed,
    StepPlanned,
    StepSummarized,
    EvaluationFinished,
    CheckpointSaved,
    Alert,
    RankExited,
)


def follow(
    run: RunDir, *, console: "Console | None" = None, interrupted: str | None = None
) -> int:
    """Show a submitted run until it ends; Ctrl-C leaves it running.

    Args:
        run: What `submission.submit_job` returned.
        console: Where to show it; None: standard output.
        interrupted: What Ctrl-C means, in words; None: that the job goes on.

    Returns:
        What the job ended with (`core.errors.ExitCode`: 0, 1, 2 or 93), or `INTERRUPTED`.
    """
    from rich.console import Console

    console = console or Console(highlight=False, markup=False)
    request = run.request()
    job = request.job
    num_steps = job.training.num_steps if isinstance(job, JobSpec) else None
    watched = Watched(num_steps, request.num_ranks)
    show = _show_bar if console.is_terminal else _show_lines
    try:
        show(watched, run, console)
    except KeyboardInterrupt:
        detached = f"detached; the job goes on. To end it: trimtab cancel {run.handle}"
        console.print(interrupted or detached, soft_wrap=True)
        return INTERRUPTED
    state = observe(run).state
    for line in summary_lines(watched, run, state):
        console.print(line, soft_wrap=True)
    return state.exit_code if state.exit_code is not None else 1


def run_and_follow(
    job: JobSpec | ScriptSpec,
    *,
    root: Path,
    console: "Console",
    interrupted: str,
    scheduler: SchedulerName = "local",
) -> RunDir:
    """Submit a job and show it until it ends; an interrupt cancels it.

    Args:
        job: The job.
        root: The folder of the run directories.
        console: Where to show it.
        interrupted: What an interrupt means to who asked for the run, in words.
        scheduler: Where to run it.

    Raises:
        KeyboardInterrupt: The user interrupted; the job has been asked to end.
        JobFailedError: The job did not succeed.
    """
    run = submit_job(job, scheduler=scheduler, root=root)
    exit_code = follow(run, console=console, interrupted=interrupted)
    if exit_code == INTERRUPTED:
        cancel_run(run)
        raise KeyboardInterrupt
    if exit_code != ExitCode.OK:
        raise JobFailedError(f"the run {run.handle} failed; see {run.path}")
    return run


def summary_lines(watched: Watched, run: RunDir, state: RunState) -> Iterator[str]:
    """How a run ended and what to do next, line by line."""
    took = ""
    if state.started_s is not None and state.finished_s is not None:
        took = f" (after {duration_text(state.finished_s - state.started_s)})"
    yield f"{state.state.value}{took}: {printable(state.reason)}"
    for event in watched.failed_ranks:
        yield f"  rank {event.rank:<12} {event.signal or f'exit code {event.exit_code}'}"
    yield from (f"  {name:<17} {text}" for name, text in watched.figures())
    if state.state is JobState.FAILED:
        yield from _last_words(watched, run)
    yield f"  {'run directory':<17} {run.path}"
    yield f"  {'look closer':<17} trimtab report {run.job_id}, trimtab dashboard {run.job_id}"


def wait(run: RunDir) -> RunState:
    """The state a run ends in; returns once it has."""
    while not (state := observe(run).state).state.is_final:
        time.sleep(_POLL_S)
    return state


def _last_words(watched: Watched, run: RunDir) -> Iterator[str]:
    if not watched.failed_ranks:
        yield f"  {'log':<17} {run.controller_logs[-1]}"
        return
    first = watched.failed_ranks[0]
    yield f"  {'log':<17} {run.rank_log(first.rank)}"
    for line in first.last_words.splitlines()[-_LAST_WORDS_SHOWN:]:
        yield f"    {printable(line)}"


def _news(run: RunDir) -> Iterator[tuple[RunState, list[AnyEvent]]]:
    """How the run stands, and what is new since its current attempt began, until it ends."""
    from trimtab.monitor.store import EventStore

    attempt, after, has_begun, has_ended = run.state().attempt, 0, False, False
    while not has_ended:
        state = observe(run).state
        has_ended = state.state.is_final
        events: list[AnyEvent] = []
        if run.events.exists():
            with EventStore.open(run.events) as store:
                while batch := store.read(after=after, kinds=_FOLLOWED):
                    after = batch[-1].id
                    events += [stored.event for stored in batch]
        for index, event in enumerate(events if not has_begun else ()):
            if isinstance(event, AttemptStarted) and event.attempt >= attempt:
                has_begun, events = True, events[index:]
                break
        yield state, events if has_begun else []


def _show_bar(watched: Watched, run: RunDir, console: "Console") -> None:
    from rich.console import Group
    from rich.live import Live
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    progress = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )
    task = progress.add_task("starting", total=watched.num_steps)

    def picture() -> "RenderableType":
        figures = Text(f"  {watched.line()}", no_wrap=True, overflow="ellipsis", style="dim")
        return Group(progress, figures)

    with Live(get_renderable=picture, console=console, refresh_per_second=8):
        for state, events in _news(run):
            for event in events:
                watched.handle(event)
                if line := _remark(event):
                    console.print(line, soft_wrap=True)
            phase = _waiting(state) or watched.phase
            progress.update(task, description=phase, completed=watched.step)
            time.sleep(_POLL_S)


def _show_lines(watched: Watched, run: RunDir, console: "Console") -> None:
    next_line_s, last_phase, last_step = 0.0, "", -1
    for state, events in _news(run):
        for event in events:
            watched.handle(event)
            if line := _remark(event):
                console.print(line, soft_wrap=True)
        now_s = time.monotonic()
        phase = _waiting(state) or watched.phase
        is_new = (phase, watched.step) != (last_phase, last_step)
        if is_new and (now_s >= next_line_s or phase != last_phase):
            last_phase, last_step = phase, watched.step
            next_line_s = now_s + _LINE_EVERY_S
            console.print(_waiting(state) or watched.progress_line(), soft_wrap=True)
        time.sleep(_POLL_S)


def _waiting(state: RunState) -> str:
    """Why a job of Slurm or Ray does not run yet; empty where it does."""
    if state.state is not JobState.PENDING or state.scheduler == "local":
        return ""
    return f"waiting: {printable(state.reason)}"


def _remark(event: AnyEvent) -> str | None:
    """What is printed above the bar because of an event."""
    match event:
        case Alert():
            return f"{event.severity}: {printable(event.message)}"
        case NodeLost():
            return f"node {event.node} is lost: {printable(event.reason)}"
        case AttemptEnded():
            return f"attempt {event.attempt} ended: {printable(event.decision)}"
        case AttemptStarted() if event.attempt > 1:
            return f"attempt {event.attempt} on {', '.join(event.nodes)}"
        case RunResumed():
            return f"going on after step {event.step}, from {printable(event.path)}"
        case RankExited() if event.exit_code != 0:
            how = f"killed by {event.signal}" if event.signal else f"exit {event.exit_code}"
            return f"rank {event.rank} ended ({how}) {printable(error_line(event.last_words))}"
        case EvaluationFinished():
            return f"step {event.step}: held-out loss {event.loss:.4f}"
        case _:
            return None
