"""The process that owns a run: holds its nodes, starts attempts, decides what follows each.

    python -P -m trimtab.orchestrator.controller RUN_DIR [--lock FD] [--staged [SCRIPT]]
        [-- STEP_PREFIX ...]

Started by the keeper. SIGTERM, or a file `cancel` in the run directory, cancels the job (the
ranks write a checkpoint first); a second SIGTERM ends it at once. SIGUSR2 has it write a
checkpoint and go back to the queue. If this process is killed, the agents have the ranks write
a checkpoint and end, and the next controller goes on from there.
"""

import argparse
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType

from trimtab.core.errors import ExitCode, TrimtabError
from trimtab.core.events import (
    AttemptEnded,
    AttemptStarted,
    JobFinished,
)
from trimtab.core.job import JobState
from trimtab.monitor.store import EventStore
from trimtab.orchestrator import staged_run
from trimtab.orchestrator.allocations import allocation_of, is_superseded
from trimtab.orchestrator.attempt import Wishes
from trimtab.orchestrator.job_controller import Controller, say
from trimtab.orchestrator.keeper import PASSED_ON
from trimtab.orchestrator.liveness import ProcessId
from trimtab.orchestrator.rundir import RunDir
from trimtab.orchestrator.verdict import Verdict


def write_end(run: RunDir, verdict: Verdict, *, now_s: float) -> None:
    """Put a verdict into `state.json`."""
    run.write_state(
        replace(
            run.state(),
            state=verdict.state,
            reason=verdict.line,
            finished_s=now_s,
            exit_code=int(verdict.exit_code),
        )
    )


def control(run: RunDir, *, lock_fd: int | None, step_prefix: tuple[str, ...]) -> ExitCode:
    """Run the job from the attempt that is due; returns what its keeper ends with.

    Args:
        run: The run: new, or one whose last controller was killed or went back to the queue.
        lock_fd: Its locked file, held until this process and all ranks have ended; or None.
        step_prefix: Command that starts processes on the nodes of a Slurm job.
    """
    with _event_store(run) as store:
        os.chdir(run.path)
        try:
            _note_arrival(run, store)
            allocation = allocation_of(run, lock_fd=lock_fd, step_prefix=step_prefix)
            controller = Controller(run, store=store, allocation=allocation)
            _heed_signals(controller.wishes, are_one=run.request().scheduler == "ray")
            verdict = controller.run()
        except Exception as error:
            verdict = _own_failure(error)
            _finish(run, store, verdict)
            if not isinstance(error, TrimtabError):
                raise
            print(f"error: {error}", flush=True)
            return verdict.exit_code
        if verdict is None:
            return ExitCode.OK
        _finish(run, store, verdict)
        return verdict.exit_code


def main(argv: Sequence[str]) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="trimtab.orchestrator.controller")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--lock", type=int)
    parser.add_argument("--staged", nargs="?", const="", help="what brought this code along")
    end = argv.index("--") if "--" in argv else len(argv)
    options, step_prefix = parser.parse_args(argv[:end]), tuple(argv[end + 1 :])
    try:
        if options.staged is not None:
            script = Path(options.staged) if options.staged else None
            staged_run.settle(options.run_dir, script=script)
        run = RunDir.open(options.run_dir)
        if is_superseded(run):
            return int(ExitCode.OK)
        state = run.state()
        if state.state.is_final and state.exit_code is not None:
            return state.exit_code  # of a controller that was killed just after it wrote this
        return int(control(run, lock_fd=options.lock, step_prefix=step_prefix))
    except TrimtabError as error:
        print(f"error: {error}", flush=True)
        return int(error.exit_code)
    except Exception:
        traceback.print_exc(file=sys.stdout)
        return int(ExitCode.JOB_FAILED)


def _note_arrival(run: RunDir, store: EventStore) -> None:
    """Say who controls the run, and count an attempt that an earlier controller has begun."""
    state = run.state()
    begun = store.latest(AttemptStarted)
    if begun is not None and begun.attempt >= state.attempt:
        store.append([_abandoned(begun.attempt)])
        say(f"goes on after attempt {begun.attempt}, whose controller is gone")
        state = replace(state, attempt=begun.attempt + 1, num_restarts=state.num_restarts + 1)
    keeper = ProcessId.of(os.getppid())
    run.write_state(replace(state, controller=ProcessId.own(), keeper=keeper))


def _abandoned(attempt: int) -> AttemptEnded:
    """The end of an attempt that its own controller could not tell."""
    return AttemptEnded(
        time_s=time.time(),
        attempt=attempt,
        reason="its controller was killed",
        decision="a new controller starts again from the last checkpoint",
    )


def _finish(run: RunDir, store: EventStore, verdict: Verdict) -> None:
    """Write the end of the job where every reader looks for it."""
    now_s = time.time()
    store.append([JobFinished(time_s=now_s, state=verdict.state, reason=verdict.line)])
    write_end(run, verdict, now_s=now_s)
    say(f"{verdict.state.value}: {verdict.line}")
    staged_run.leave_word(run)
    staged_run.remove_staged(run)


def _own_failure(error: Exception) -> Verdict:
    if isinstance(error, TrimtabError):
        return Verdict(state=JobState.FAILED, reason=str(error), exit_code=error.exit_code)
    return Verdict(
        state=JobState.FAILED,
        reason=f"the controller failed ({type(error).__name__}: {error}); "
        "trimtab logs --controller shows its traceback",
        exit_code=ExitCode.JOB_FAILED,
    )


def _heed_signals(wishes: Wishes, *, are_one: bool) -> None:
    """Let in what the keeper passes on, and what people send.

    Args:
        wishes: Where they are noted.
        are_one: Whether signals that cancel are one wish, however many come: Ray signals the
            keeper and this process, and the keeper passes its signal on.
    """

    def handle(number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGUSR2:
            wishes.make_room("the scheduler wants the nodes back, or time is running out")
        elif not (are_one and wishes.num_cancels):
            wishes.cancel()

    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    for number in PASSED_ON:
        signal.signal(number, handle)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)


def _event_store(run: RunDir) -> EventStore:
    if run.events.exists():
        return EventStore.open(run.events, read_only=False)
    return EventStore.create(run.events, shared=run.request().scheduler != "local")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
