"""The job commands, as a user types them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from trimtab.core import serde
from trimtab.core.job import Request
from trimtab.orchestrator import run_lock
from trimtab.orchestrator.cli.logs import _Reader
from trimtab.orchestrator.cli.main import main
from trimtab.orchestrator.rundir import RunDir, RunState

Start = Callable[..., RunDir]
Ended = Callable[[RunDir], RunState]
Lingering = Callable[..., None]
Capture = pytest.CaptureFixture[str]

PROJECT = Path(__file__).parents[2]


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    """The demo's job on a cluster whose peak is known, so that it can be planned."""
    folder = tmp_path / "configs"
    shutil.copytree(PROJECT / "configs", folder)
    shutil.copytree(PROJECT / "clusters", tmp_path / "clusters")
    job = folder / "demo.yaml"
    job.write_text(job.read_text().replace("laptop.yaml", "dgx-h100-pair.yaml"))
    return job


def test_a_dry_run_prints_the_request_and_creates_nothing(
    job_file: Path, runs: Path, capsys: Capture
) -> None:
    for flag in ("--dry-run", "--dryrun"):
        arguments = ["submit", "-s", "local", str(job_file), "training.num_steps=7", flag]
        assert main(arguments) == 0
        request = serde.from_json(Request, capsys.readouterr().out)
        assert request.training[0].training.num_steps == 7
        assert (request.num_ranks, request.training[1].dp) == (4, 4)
    assert not runs.exists()


def test_a_dry_run_shows_no_secret(
    job_file: Path, runs: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "marker-of-a-secret")
    monkeypatch.setenv("HF_TOKEN", "marker-of-a-secret")
    assert main(["submit", str(job_file), "--dry-run"]) == 0
    printed = capsys.readouterr()
    assert "marker-of-a-secret" not in printed.out + printed.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["submit"], "JOB: expected a job file, -- COMMAND or --resume RUN, got nothing"),
        (["submit", "no.yaml"], "no.yaml"),
        (["submit", "-s", "slurn", "no.yaml"], "--scheduler: unknown value 'slurn'"),
        (["submit", "--resume", "nope"], "--resume: there is no run 'nope'"),
        (["logs", "--tail", "-1", "x"], "--tail"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(
    arguments: list[str], message: str, runs: Path, capsys: Capture
) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("command", ["status", "logs", "cancel"])
def test_a_job_that_does_not_exist_is_102(command: str, runs: Path, capsys: Capture) -> None:
    assert main([command, "local://nope"]) == 102
    assert "there is no run 'nope'" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["status", "logs", "report"])
def test_without_a_run_the_newest_is_taken_and_named(
    command: str, start: Start, ended: Ended, runs: Path, capsys: Capture
) -> None:
    assert main([command]) == 102
    assert f"there is no run in {runs} yet" in capsys.readouterr().err
    ended(start(name="older", num_steps=1))
    newest = start(name="small", num_steps=1)
    ended(newest)
    assert main([command]) == 0
    assert capsys.readouterr().err == f"the newest run: {newest.handle}\n"


@pytest.mark.parametrize("command", ["cancel", "export"])
def test_what_changes_something_needs_a_run(command: str, runs: Path, capsys: Capture) -> None:
    assert main([command]) == 2
    assert capsys.readouterr().err == "error: Missing argument 'RUN'. See `trimtab list`\n"


def test_status_of_a_job_that_succeeded_is_0(
    start: Start, ended: Ended, capsys: Capture
) -> None:
    run = start(num_steps=4)
    ended(run)
    assert main(["status", run.job_id]) == 0
    text = capsys.readouterr().out
    assert str(run.handle) in text
    assert "step           4 of 4" in text
    assert main(["status", str(run.path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    expected = {
        "schema": 1,
        "handle": str(run.handle),
        "state": "succeeded",
        "attempt": 1,
        "num_ranks": 3,
        "num_steps": 4,
        "step": 4,
        "exit_code": 0,
        "checkpoint_step": 4,
    }
    assert {name: document[name] for name in expected} == expected
    assert document["loss"] == pytest.approx(4.6)


def test_status_of_a_job_that_failed_is_100(
    start: Start, ended: Ended, capsys: Capture
) -> None:
    run = start("1:raise:2")
    ended(run)
    assert main(["status", run.job_id]) == 100
    text = capsys.readouterr().out
    assert "rank 1 failed with exit code 1 in step 2" in text
    assert f"trimtab submit --resume {run.handle}" in text


def test_a_running_job_is_101_until_it_is_cancelled_then_103(
    start: Start, lingering: Lingering, capsys: Capture
) -> None:
    run = start("all:slow:3")
    lingering(run, 0, 1, 2)
    assert main(["status", run.job_id]) == 101
    assert main(["cancel", run.job_id, "--wait"]) == 0
    assert "cancelled: cancelled after step 3" in capsys.readouterr().out
    assert main(["status", run.job_id]) == 103
    assert main(["cancel", run.job_id]) == 0
    assert "has already ended (cancelled)" in capsys.readouterr().out


def test_a_second_cancel_says_that_it_ends_the_job_at_once(
    start: Start, ended: Ended, lingering: Lingering, capsys: Capture
) -> None:
    run = start("0:deaf:2")
    lingering(run, 0)
    assert main(["cancel", run.job_id]) == 0
    assert "its ranks write a checkpoint and end" in capsys.readouterr().out
    while run.state().cancelled_s is None:
        time.sleep(0.02)
    assert main(["cancel", run.job_id]) == 0
    said = "second cancel: ending at once, without a checkpoint\n"
    assert capsys.readouterr().out == said
    assert "a second cancel ended it at once" in ended(run).reason


def test_logs_are_those_of_all_ranks_or_of_one(
    start: Start, ended: Ended, capsys: Capture
) -> None:
    run = start("1:raise:2")
    ended(run)
    assert main(["logs", run.job_id]) == 100
    text = capsys.readouterr().out
    assert (
        text.index("==> rank 0 <==") < text.index("==> rank 1 <==") < text.index("ValueError")
    )
    assert main(["logs", run.job_id, "--rank", "1", "--tail", "1"]) == 100
    text = capsys.readouterr().out
    assert text.startswith("ValueError: boom")
    assert text.count("\n") == 1
    assert main(["logs", run.job_id, "--controller"]) == 100
    assert "attempt 1: 3 ranks on" in capsys.readouterr().out
    assert main(["logs", run.job_id, "--rank", "3"]) == 2
    assert "--rank: the job has ranks 0 to 2, got 3" in capsys.readouterr().err


def test_following_the_logs_ends_with_the_job(start: Start, capsys: Capture) -> None:
    run = start("1:raise:4")
    assert main(["logs", run.job_id, "--follow", "--rank", "1"]) == 100
    assert capsys.readouterr().out.count("ValueError: boom") == 1


def test_the_list_is_newest_first_and_survives_broken_runs(
    start: Start, ended: Ended, runs: Path, capsys: Capture
) -> None:
    run = start(name="a\x1b[31m\nname", num_steps=1)
    ended(run)
    (runs / "20000101-000000-broken").mkdir()
    (runs / "20000101-000000-broken" / "state.json").write_text('{"schema": 9}')
    assert main(["list"]) == 0
    text = capsys.readouterr().out
    header, first, second = text.splitlines()
    assert header.split() == ["handle", "state", "ranks", "submitted", "name"]
    assert first.startswith(f"{run.handle}  succeeded")
    assert "broken" in second
    assert "another version: it has schema 9" in second
    assert "\x1b" not in text
    assert main(["list", "--json", "--limit", "1"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [entry["handle"] for entry in document["runs"]] == [str(run.handle)]


def test_an_empty_list_says_how_to_start(runs: Path, capsys: Capture) -> None:
    assert main(["list"]) == 0
    assert "trimtab submit JOB.yaml" in capsys.readouterr().out


def test_status_shows_what_it_knows_of_a_run_with_a_damaged_event_store(
    start: Start, ended: Ended, capsys: Capture
) -> None:
    run = start(num_steps=2)
    ended(run)
    with run_lock.held(run):  # no process has the store open any more
        run.events.write_text("garbage\n")
    assert main(["status", run.job_id]) == 0
    printed = capsys.readouterr()
    assert "all 2 steps are done" in printed.out
    assert printed.err.startswith(f"warning: {run.events}: expected an event store, but")
    assert main(["status", run.job_id, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["state"] == "succeeded"
    assert document["step"] is None
    assert "expected an event store" in document["warning"]


@pytest.mark.parametrize(
    "arguments", [["list"], ["status", "x"], ["submit", "JOB", "--dry-run"], ["submit", "JOB"]]
)
def test_a_file_in_the_place_of_the_runs_is_told_with_the_variable_that_names_it(
    arguments: list[str], job_file: Path, runs: Path, capsys: Capture
) -> None:
    runs.write_text("")
    assert main([str(job_file) if a == "JOB" else a for a in arguments]) == 2
    assert capsys.readouterr().err == (
        f"error: {runs}: expected the folder of the runs, but this is not a folder; set "
        "TRIMTAB_RUNS_DIR to one that can be written\n"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read anything")
@pytest.mark.parametrize("mode", [0o000, 0o400])
def test_runs_of_others_are_one_line_and_exit_2(mode: int, runs: Path, capsys: Capture) -> None:
    (runs / "20000101-000000-others").mkdir(parents=True)
    runs.chmod(mode)
    try:
        code = main(["list"])
    finally:
        runs.chmod(0o700)
    printed = capsys.readouterr()
    assert "Permission denied" in printed.out + printed.err
    assert code == (2 if mode == 0 else 0)


def test_resuming_takes_overrides_and_no_job_file(
    start: Start, ended: Ended, capsys: Capture
) -> None:
    run = start("1:raise:2")
    ended(run)
    assert main(["submit", "--resume", str(run.handle), "job.yaml", "--dry-run"]) == 2
    assert "leave 'job.yaml' out" in capsys.readouterr().err
    resume = ["submit", "--resume", str(run.handle), "training.num_steps=9", "--dry-run"]
    assert main(resume) == 0
    request = serde.from_json(Request, capsys.readouterr().out)
    assert request.run_id == run.job_id
    assert request.training[0].training.num_steps == 9
    assert run.state().attempt == 1


def test_a_job_whose_keeper_and_controller_are_killed_is_shown_as_failed(
    start: Start, lingering: Lingering, capsys: Capture
) -> None:
    run = start("all:slow:3")
    lingering(run, 0, 1, 2)
    state = run.state()
    assert state.controller is not None
    assert state.keeper is not None
    for process in (state.keeper, state.controller):
        os.kill(process.pid, signal.SIGKILL)
        while process.is_alive:
            time.sleep(0.02)
    assert main(["status", run.job_id]) == 100
    said = f"its controller (pid {state.controller.pid}) died"
    assert said in capsys.readouterr().out


def test_listing_imports_nothing_heavy() -> None:
    program = (
        "import sys; from trimtab.orchestrator.cli.main import main; main(['list'])\n"
        "print([m for m in ('torch', 'pulp', 'numpy', 'omegaconf', 'sqlite3')"
        " if m in sys.modules])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ended.stdout.splitlines()[-1] == "[]"


def test_a_log_is_printed_in_whole_lines_while_it_grows(
    tmp_path: Path, capsys: Capture
) -> None:
    log = tmp_path / "rank.log"
    reader = _Reader("rank 0", log, tail=None)
    written = "first\nzweite für".encode()
    log.write_bytes(written[:-2])  # cut within the ü, as a writer's buffer may be
    reader.print_new(with_header=False, whole_lines=True)
    assert capsys.readouterr().out == "first\n"
    log.write_bytes(written + b" alle\nthird")
    reader.print_new(with_header=False, whole_lines=True)
    assert capsys.readouterr().out == "zweite für alle\n"
    reader.print_new(with_header=False, whole_lines=False)
    assert capsys.readouterr().out == "third"


def test_cancel_prints_the_state_as_json(
    start: Start, lingering: Lingering, capsys: Capture
) -> None:
    run = start("all:slow:3")
    lingering(run, 0, 1, 2)
    assert main(["cancel", run.job_id, "--wait", "--json"]) == 0
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    assert (document["handle"], document["state"]) == (str(run.handle), "cancelled")
    assert "its ranks write a checkpoint" in printed.err
