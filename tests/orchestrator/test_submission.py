import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from trimtab.core.errors import (
    InfeasibleError,
    InputError,
    JobFailedError,
    MissingExtraError,
    RunDirError,
)
from trimtab.core.events import AttemptStarted, CheckpointSaved, RunResumed, StepSummarized
from trimtab.core.job import CheckpointSpec, JobSpec, JobState, ScriptSpec, TelemetrySpec
from trimtab.core.plan import Layout
from trimtab.core.profile import DegreeBandwidth, StepProfile
from trimtab.core.scheduling import SlurmOptions
from trimtab.launch.local import LocalScheduler
from trimtab.monitor import sinks
from trimtab.monitor.store import EventStore
from trimtab.orchestrator import run_lock, submission
from trimtab.orchestrator.cli.main import main
from trimtab.orchestrator.rundir import START_TIMEOUT_S, RunDir, RunState
from trimtab.orchestrator.submission import (
    PreparedJob,
    cancel_run,
    prepare_job,
    prepare_resume,
    slug,
)

Prepare = Callable[..., PreparedJob]
Start = Callable[..., RunDir]
Ended = Callable[[RunDir], RunState]
Lingering = Callable[..., None]
RankPrograms = Callable[..., LocalScheduler]

HOSTILE_NAMES = [
    "$(touch pwned); rm -rf /",
    "a\nb\r\x1b[31mred",
    "../../../etc/passwd",
    "数据/データ",
    "x" * 300,
    "-rf",
    "[bold]name[/bold] {0} %s",
]


@pytest.fixture
def planned_job(small_job: JobSpec) -> JobSpec:
    """A job that can be planned: with a profile, as the laptop's device has no peak."""
    profile = StepProfile(
        name="test",
        num_gpus=4,
        gpus_per_node=4,
        quadratic_s=1e-9,
        linear_s=1e-6,
        fixed_s=1e-3,
        alltoall_bytes_per_token=100.0,
        bandwidths=(DegreeBandwidth(degree=2, bytes_per_s=1e9),),
        token_cap=4_096,
    )
    return replace(small_job, profile=profile)


def test_preparing_decides_everything_and_writes_nothing(
    planned_job: JobSpec, runs: Path
) -> None:
    prepared = prepare_job(planned_job)
    assert not runs.exists()
    request = prepared.request
    assert Path(request.run_dir) == runs / request.run_id
    assert request.training[1].dp == 3
    assert request.argv[1:] == ("-P", "-m", "trimtab.orchestrator.rank", request.run_dir)
    assert prepared.plan is not None
    assert prepared.plan.layout.num_ranks == 3


def test_what_a_dry_run_prints_is_what_the_run_holds(start: Start, prepare: Prepare) -> None:
    prepared = prepare()
    run = submission.submit_prepared(prepared)
    assert (run.path / "request.json").read_text() == prepared.text


def test_no_secret_reaches_a_file(
    start: Start, ended: Ended, prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = "marker-of-a-secret"
    monkeypatch.setenv("WANDB_API_KEY", marker)
    monkeypatch.setenv("HF_TOKEN", marker)
    assert marker not in prepare().text
    run = start("0:kill:2")
    ended(run)
    while list(run.path.glob("events.db-*")):  # which go when the last writer closes it
        time.sleep(0.02)
    written = [path for path in run.path.rglob("*") if path.is_file()]
    assert {"events.db", "request.json", "controller.log"} <= {path.name for path in written}
    for path in written:
        assert marker.encode() not in path.read_bytes(), path


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_hostile_name_becomes_a_harmless_folder(
    prepare: Prepare, runs: Path, name: str
) -> None:
    prepared = prepare(name=name)
    folder = Path(prepared.request.run_dir)
    assert folder.parent == runs
    assert len(folder.name) < 70
    assert set(folder.name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert json.loads(prepared.text)["job"]["name"] == name


def test_a_run_with_a_hostile_name_runs(start: Start, ended: Ended, tmp_path: Path) -> None:
    run = start(name=HOSTILE_NAMES[0] + HOSTILE_NAMES[1], num_steps=2)
    assert ended(run).state is JobState.SUCCEEDED
    assert not list(tmp_path.rglob("pwned"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Äpfel & Birnen/7B", "apfel-birnen-7b"),
        ("日本", "job"),
        ("--", "job"),
        ("a" * 50, "a" * 40),
    ],
)
def test_a_slug_is_plain(name: str, expected: str) -> None:
    assert slug(name) == expected


def test_an_id_that_is_taken_gets_a_number(runs: Path) -> None:
    first = submission.new_run_id("demo", root=runs)
    (runs / first).mkdir(parents=True)
    second = submission.new_run_id("demo", root=runs)
    assert second != first


def test_a_layout_the_worker_cannot_run_is_refused_before_planning(small_job: JobSpec) -> None:
    job = replace(small_job, num_ranks=4, layout=Layout(dp=2, pp=2))
    with pytest.raises(InputError, match=r"layout\.pp: this version's worker runs pp = 1 only"):
        prepare_job(job)


def test_a_sequence_no_group_can_hold_is_refused(planned_job: JobSpec) -> None:
    planning = replace(planned_job.step_planning, token_cap=10)
    with pytest.raises(InfeasibleError, match="128 tokens fits in no group"):
        prepare_job(replace(planned_job, step_planning=planning))


def test_an_empty_data_folder_is_refused(planned_job: JobSpec, tmp_path: Path) -> None:
    source = replace(planned_job.data.sources[0], path=str(tmp_path))
    job = replace(planned_job, data=replace(planned_job.data, sources=(source,)))
    with pytest.raises(InputError, match=r"data\.sources\.path: .*no file"):
        prepare_job(job)


def test_missing_start_weights_are_refused(planned_job: JobSpec) -> None:
    job = replace(planned_job, checkpoint=CheckpointSpec(start_from="/no/such/folder"))
    with pytest.raises(InputError, match=r"checkpoint\.start_from: .*/no/such/folder"):
        prepare_job(job)


def test_a_missing_tokenizer_is_refused(planned_job: JobSpec) -> None:
    data = replace(planned_job.data, tokenizer="/no/tokenizer.json")
    with pytest.raises(
        InputError, match=r"data\.tokenizer: .*/no/tokenizer\.json is not a file"
    ):
        prepare_job(replace(planned_job, data=data))


@pytest.mark.parametrize("package", ["torch", "megatron"])
def test_a_base_install_refuses_to_train_before_anything_is_written(
    prepare: Prepare, runs: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    message = rf"needs the package {package}: pip install 'trimtab\[train\]'"
    with pytest.raises(MissingExtraError, match=message):
        submission.submit_prepared(prepare())
    assert not runs.exists()


@pytest.mark.parametrize("argv", [("no-such-program",), ("./x.py",), ("/",)])
def test_a_program_that_is_not_here_is_refused_before_anything_is_written(
    argv: tuple[str, ...], runs: Path, tmp_path: Path
) -> None:
    (tmp_path / "x.py").write_text("it may not be executed")
    job = ScriptSpec(name="x", argv=argv, folder=str(tmp_path), num_ranks=1)
    with pytest.raises(InputError, match=f"script: '{argv[0]}' is no program that can be run"):
        submission.submit_job(job, root=runs)
    assert not runs.exists()


def test_tasks_of_an_array_that_ask_for_different_things_are_refused(runs: Path) -> None:
    slurm = SlurmOptions(array="0-1")
    job = ScriptSpec(name="x", argv=("x",), folder="/", num_ranks=2, slurm=slurm)
    alike = submission.prepare_array({0: job, 1: job})
    assert alike[0].text == alike[1].text
    with pytest.raises(InputError, match=r"task 1 asks Slurm for something else than task 0"):
        submission.prepare_array({0: job, 1: replace(job, num_nodes=2)})
    assert not runs.exists()


def test_w_and_b_may_not_hold_up_a_start_for_as_long_as_a_submitter_waits() -> None:
    assert sinks.INIT_TIMEOUT_S <= START_TIMEOUT_S / 2


def test_a_controller_that_cannot_start_is_told_with_its_last_words(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepare()
    monkeypatch.setenv("PYTHONHOME", "/no/such/python")
    with pytest.raises(JobFailedError, match=r"did not start: .*"):
        submission.submit_prepared(prepared)
    state = RunDir.open(Path(prepared.request.run_dir)).state()
    assert (state.state, state.exit_code) == (JobState.FAILED, 1)


def test_a_job_the_controller_refuses_is_wrong_input(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("HOME", "/no/such/home")
    prepared = prepare()
    telemetry = TelemetrySpec(wandb_project="trimtab")
    job = replace(prepared.request.job, telemetry=telemetry)
    prepared = replace(prepared, request=replace(prepared.request, job=job))
    with pytest.raises(InputError, match=r"telemetry\.wandb_project"):
        submission.submit_prepared(prepared)
    run = RunDir.open(Path(prepared.request.run_dir))
    assert (run.state().state, run.state().exit_code) == (JobState.FAILED, 2)


def test_a_failed_run_goes_on_from_its_checkpoint_in_the_same_directory(
    start: Start, ended: Ended, rank_programs: RankPrograms
) -> None:
    run = start("2:kill:5")
    assert ended(run).state is JobState.FAILED
    again = submission.resume_job(
        run, ["training.num_steps=8"], scheduler=rank_programs("2:kill:5")
    )
    assert again == run
    state = ended(run)
    assert (state.state, state.attempt, state.exit_code) == (JobState.SUCCEEDED, 2, 0)
    with EventStore.open(run.events) as store:
        attempts = [s.event for s in store.read(kinds=(AttemptStarted,))]
        resumed = store.latest(RunResumed)
        last = store.latest(StepSummarized)
        saved = store.latest(CheckpointSaved)
    assert len(attempts) == 2
    assert (resumed and resumed.step, last and last.step, saved and saved.step) == (4, 8, 8)
    assert run.request().training[0].training.num_steps == 8
    assert (run.path / "request-attempt-1.json").exists()


def test_a_running_run_is_not_resumed(start: Start, lingering: Lingering) -> None:
    run = start("all:slow:3")
    lingering(run, 0, 1, 2)
    with pytest.raises(InputError, match=r"is still running; to end it: trimtab cancel local:"):
        prepare_resume(run)


def test_a_finished_run_needs_more_steps_to_go_on(start: Start, ended: Ended) -> None:
    run = start(num_steps=2)
    ended(run)
    with pytest.raises(
        InputError, match=r"has done all its 2 steps; .*training.num_steps=MORE"
    ):
        prepare_resume(run)
    assert prepare_resume(run, ["training.num_steps=4"]).attempt == 2


@pytest.mark.parametrize("arguments", [["--dry-run"], []])
def test_a_run_with_a_damaged_event_store_is_not_resumed_and_not_changed(
    start: Start, ended: Ended, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run = start(num_steps=2)
    ended(run)
    with run_lock.held(run):  # no process has the store open any more
        run.events.write_text("garbage\n")
    files = [p for p in run.path.rglob("*") if p.is_file() and p != run.lock]
    before = {path: path.read_bytes() for path in files}
    resume = ["submit", "--resume", run.job_id, "training.num_steps=4", *arguments]
    assert main(resume) == 2
    message = capsys.readouterr().err
    assert "move events.db aside to go on without its history" in message
    assert message.count("\n") == 1
    assert {path: path.read_bytes() for path in files} == before


def test_a_run_without_its_folder_of_logs_is_not_resumed(start: Start, ended: Ended) -> None:
    run = start(num_steps=2)
    ended(run)
    run.logs.rename(run.path / "elsewhere")
    with pytest.raises(RunDirError, match="logs: expected a folder that can be written"):
        prepare_resume(run, ["training.num_steps=4"])


def test_cancelling_ends_a_run_once(start: Start, ended: Ended, lingering: Lingering) -> None:
    run = start("all:slow:3")
    lingering(run, 0, 1, 2)
    assert cancel_run(run).state is JobState.RUNNING
    assert ended(run).state is JobState.CANCELLED
    assert cancel_run(run).state is JobState.CANCELLED


def test_a_run_of_another_machine_is_cancelled_there(start: Start, ended: Ended) -> None:
    run = start(num_steps=1)
    state = ended(run)
    assert state.controller is not None
    elsewhere = replace(state.controller, host="another-machine")
    run.write_state(replace(state, state=JobState.RUNNING, controller=elsewhere))
    with pytest.raises(InputError, match="'another-machine'; cancel it there"):
        cancel_run(run)


def test_the_controller_outlives_the_session_that_started_it(
    start: Start, lingering: Lingering
) -> None:
    run = start("all:slow:3")
    lingering(run, 0, 1, 2)
    state = run.observed(time.time())
    assert state.controller is not None
    assert state.keeper is not None
    assert os.getsid(state.controller.pid) == state.keeper.pid
    assert os.getsid(state.controller.pid) != os.getsid(0)
