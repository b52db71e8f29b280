"""Following real runs, with and without a terminal."""

import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable

from rich.console import Console

from trimtab.orchestrator.cli.progress import INTERRUPTED, follow
from trimtab.orchestrator.rundir import RunDir, RunState

Start = Callable[..., RunDir]
Ended = Callable[[RunDir], RunState]
Lingering = Callable[..., None]


def followed(run: RunDir, *, terminal: bool = False) -> tuple[int, str]:
    """Exit code and text of following `run`."""
    file = io.StringIO()
    console = Console(
        file=file, force_terminal=terminal, width=100, highlight=False, markup=False
    )
    return follow(run, console=console), file.getvalue()


def test_without_a_terminal_phases_and_the_end_are_plain_lines(start: Start) -> None:
    run = start(num_steps=4)
    exit_code, text = followed(run)
    assert exit_code == 0
    assert "\x1b" not in text
    assert "training: step" in text
    assert re.search(r"succeeded \(after .*\): all 4 steps are done", text)
    assert "  loss              4.9000 at step 1, 4.6000 at 4\n" in text
    assert "  median step       50 ms\n" in text
    assert f"  run directory     {run.path}\n" in text
    assert f"trimtab report {run.job_id}" in text


def test_a_terminal_shows_a_bar_with_figures_and_groups(start: Start) -> None:
    exit_code, text = followed(start(num_steps=20), terminal=True)
    assert exit_code == 0
    assert re.search(r"\d+/20", text)
    assert re.search(r"loss 4\.\d{4}  50 ms/step  6 k tokens/s  <3> <1x3>", text)


def test_a_failure_ends_with_reason_rank_log_and_last_words(start: Start) -> None:
    run = start("1:raise:3")
    exit_code, text = followed(run)
    assert exit_code == 1
    assert "failed (after" in text
    assert "rank 1 failed with exit code 1 in step 3, forward: ValueError: boom" in text
    assert f"trimtab submit --resume {run.handle}" in text
    assert str(run.rank_log(1)) in text
    assert "Traceback (most recent call last):" in text or "raise ValueError" in text


def test_the_jobs_own_exit_code_is_passed_on(start: Start) -> None:
    assert followed(start("0:exit93:1"))[0] == 93
    assert followed(start("0:exit2:1"))[0] == 2


def test_a_finished_run_can_be_followed_too(start: Start, ended: Ended) -> None:
    run = start(num_steps=2)
    ended(run)
    exit_code, text = followed(run)
    assert exit_code == 0
    assert "4.9000 at step 1, 4.8000 at 2" in text


def test_a_job_without_keeper_and_controller_ends_the_following(
    start: Start, lingering: Lingering
) -> None:
    run = start("all:slow:3")
    lingering(run, 0, 1, 2)
    state = run.state()
    assert state.controller is not None
    assert state.keeper is not None
    os.kill(state.keeper.pid, signal.SIGKILL)
    os.kill(state.controller.pid, signal.SIGKILL)
    exit_code, text = followed(run)
    assert exit_code == 1
    assert f"its controller (pid {state.controller.pid}) died" in text


def test_the_following_goes_on_over_a_restart(start: Start) -> None:
    run = start("1:kill:5", max_restarts=1)
    exit_code, text = followed(run)
    assert exit_code == 0
    assert "rank 1 ended (killed by SIGKILL)" in text
    assert "attempt 1 ended: starting again from the last checkpoint" in text
    assert "attempt 2 on " in text
    assert "going on after step 4, from " in text
    assert "succeeded (after " in text
    assert "  rank 1 " not in text  # its failure is over


def test_ctrl_c_leaves_the_job_running(start: Start, lingering: Lingering) -> None:
    run = start("all:slow:3")
    program = (
        "import signal, sys; from pathlib import Path\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from trimtab.orchestrator.cli.progress import follow\n"
        "from trimtab.orchestrator.rundir import RunDir\n"
        "sys.exit(follow(RunDir(Path(sys.argv[1]))))"
    )
    follower = subprocess.Popen(
        [sys.executable, "-u", "-c", program, str(run.path)],
        stdout=subprocess.PIPE,
        text=True,
    )
    with follower:
        assert follower.stdout is not None
        assert follower.stdout.readline()
        lingering(run, 0, 1, 2)
        follower.send_signal(signal.SIGINT)
        rest = follower.stdout.read()
    assert follower.returncode == INTERRUPTED
    assert f"detached; the job goes on. To end it: trimtab cancel {run.handle}" in rest
    owner = run.state().controller
    assert owner is not None
    assert owner.is_alive


def test_ctrl_c_says_what_it_means_to_who_asked_for_the_run(
    start: Start, lingering: Lingering
) -> None:
    run = start("all:slow:3")
    program = (
        "import signal, sys; from pathlib import Path\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from trimtab.orchestrator.cli.progress import follow\n"
        "from trimtab.orchestrator.rundir import RunDir\n"
        "sys.exit(follow(RunDir(Path(sys.argv[1])), interrupted='stopped; nothing measured'))"
    )
    follower = subprocess.Popen(
        [sys.executable, "-u", "-c", program, str(run.path)],
        stdout=subprocess.PIPE,
        text=True,
    )
    with follower:
        assert follower.stdout is not None
        assert follower.stdout.readline()
        lingering(run, 0, 1, 2)
        follower.send_signal(signal.SIGINT)
        rest = follower.stdout.read()
    assert rest.splitlines()[-1] == "stopped; nothing measured"
    assert "goes on" not in rest
