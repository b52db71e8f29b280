import json
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from trimtab.core.errors import ExitCode, InputError, RunDirError
from trimtab.core.job import JobState
from trimtab.core.plan import JobPlan
from trimtab.orchestrator.liveness import ProcessId
from trimtab.orchestrator.rundir import (
    NoSuchRunError,
    RunDir,
    RunIdTakenError,
    RunState,
    request_text,
)
from trimtab.orchestrator.runs_folder import find_run, list_runs, runs_root
from trimtab.orchestrator.submission import PreparedJob

Prepare = Callable[..., PreparedJob]

PENDING = RunState(
    name="small",
    num_ranks=3,
    state=JobState.PENDING,
    reason="its controller is starting",
    attempt=1,
    submitted_s=1_000.0,
)
DEAD = ProcessId(host=ProcessId.own().host, pid=ProcessId.own().pid, started="another time")


@pytest.fixture
def run(prepare: Prepare) -> RunDir:
    prepared = prepare()
    return RunDir.create(prepared.request, plan=prepared.plan, state=PENDING)


def make_run(root: Path, job_id: str, state: RunState = PENDING) -> RunDir:
    """A run directory with a state and nothing else."""
    (root / job_id).mkdir(parents=True)
    run = RunDir(root / job_id)
    run.write_state(state)
    return run


def test_what_is_written_is_read_back(prepare: Prepare, small_plan: JobPlan) -> None:
    prepared = prepare()
    RunDir.create(prepared.request, plan=small_plan, state=PENDING)
    run = RunDir.open(Path(prepared.request.run_dir))
    assert run.request() == prepared.request
    assert run.plan() == small_plan
    assert run.state() == PENDING
    assert str(run.handle) == f"local://{prepared.request.run_id}"


def test_the_request_file_is_what_a_dry_run_prints(run: RunDir) -> None:
    assert (run.path / "request.json").read_text() == request_text(run.request())


def test_only_the_owner_may_look_inside(run: RunDir) -> None:
    assert stat.S_IMODE(run.path.stat().st_mode) == 0o700


def test_an_id_is_used_once(run: RunDir) -> None:
    with pytest.raises(RunIdTakenError, match="already exists"):
        RunDir.create(run.request(), plan=run.plan(), state=PENDING)


def test_a_root_that_is_a_file_is_one_clear_line(prepare: Prepare, runs: Path) -> None:
    runs.write_text("")
    prepared = prepare()
    with pytest.raises(RunDirError, match=r"but this is not a folder; set TRIMTAB_RUNS_DIR"):
        RunDir.create(prepared.request, plan=prepared.plan, state=PENDING)


def test_a_run_of_another_version_is_refused_naming_both(run: RunDir) -> None:
    for name in ("state.json", "request.json", "plan.json"):
        path = run.path / name
        path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 7}))
    expected = "another version: it has schema 7, this Trimtab reads 1; use the Trimtab that"
    for read in (run.state, run.request, run.plan, lambda: RunDir.open(run.path)):
        with pytest.raises(RunDirError, match=expected):
            read()


@pytest.mark.parametrize("text", ["", '{"schema": 1, "type": "RunSt', "\x00\xff", "[]", "{}"])
def test_damaged_files_are_one_clear_line(run: RunDir, text: str) -> None:
    for name in ("state.json", "request.json"):
        (run.path / name).write_text(text)
    for read, name in ((run.state, "state.json"), (run.request, "request.json")):
        with pytest.raises(RunDirError, match=rf"{name}: damaged") as caught:
            read()
        assert "\n" not in str(caught.value)


def test_a_state_with_an_unknown_field_is_damaged_not_a_crash(run: RunDir) -> None:
    path = run.path / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"stat": 1}))
    with pytest.raises(RunDirError, match="did you mean 'state'"):
        run.state()


def test_replacing_the_state_leaves_no_draft(run: RunDir) -> None:
    run.write_state(replace(PENDING, state=JobState.RUNNING))
    assert run.state().state is JobState.RUNNING
    assert [path.name for path in run.path.iterdir() if path.name.startswith(".")] == []


def test_an_earlier_request_is_kept_when_it_changes(run: RunDir) -> None:
    before = (run.path / "request.json").read_text()
    request = run.request()
    run.write_request(request)
    assert not list(run.path.glob("request-attempt-*"))
    job = replace(request.job, training=replace(request.job.training, num_steps=9))
    run.write_request(replace(request, job=job))
    assert (run.path / "request-attempt-1.json").read_text() == before
    assert run.request().job.training.num_steps == 9


def test_a_running_job_whose_controller_is_gone_has_failed() -> None:
    state = replace(PENDING, state=JobState.RUNNING, controller=DEAD).observed(2_000.0)
    assert (state.state, state.reason, state.exit_code) == (
        JobState.FAILED,
        f"its controller (pid {DEAD.pid}) died",
        1,
    )


def test_a_running_job_whose_controller_lives_runs() -> None:
    running = replace(PENDING, state=JobState.RUNNING, controller=ProcessId.own())
    assert running.observed(2_000.0) == running


def test_a_controller_on_another_machine_is_trusted() -> None:
    elsewhere = ProcessId(host="another-machine", pid=1, started="1:1")
    running = replace(PENDING, state=JobState.RUNNING, controller=elsewhere)
    assert running.observed(2_000.0) == running


def test_a_finished_job_needs_no_controller() -> None:
    done = replace(PENDING, state=JobState.SUCCEEDED, controller=DEAD)
    assert done.observed(2_000.0) == done


def test_a_controller_that_never_came_up_is_a_failure_after_a_minute() -> None:
    assert PENDING.observed(1_059.0) == PENDING
    assert PENDING.observed(1_061.0).state is JobState.FAILED


def test_a_run_is_found_by_handle_id_beginning_and_path(runs: Path) -> None:
    run = make_run(runs, "20261120-161500-demo")
    make_run(runs, "20261121-161500-demo")
    for text in (
        "local://20261120-161500-demo",
        "20261120-161500-demo",
        "20261120",
        str(run.path),
        f"{run.path}/",
    ):
        assert find_run(text) == run


def test_an_id_that_is_the_beginning_of_another_is_itself(runs: Path) -> None:
    run = make_run(runs, "20261120-161500-demo")
    make_run(runs, "20261120-161500-demo-2")
    assert find_run("20261120-161500-demo") == run


def test_a_beginning_of_several_runs_names_them(runs: Path) -> None:
    make_run(runs, "20261120-161500-demo")
    make_run(runs, "20261120-161501-demo")
    with pytest.raises(InputError, match=r"beginning of 2 runs: 20261120-161501-demo, 2026"):
        find_run("20261120")


@pytest.mark.parametrize("text", ["20261120-161599-demo", "demo", "local://nope", "/no/run"])
def test_a_run_that_does_not_exist_has_its_own_exit_code(runs: Path, text: str) -> None:
    make_run(runs, "20261120-161500-demo")
    with pytest.raises(NoSuchRunError) as caught:
        find_run(text)
    assert caught.value.exit_code == ExitCode.NO_SUCH_JOB


@pytest.mark.parametrize("text", ["20261120-161599-demo", "demo"])
def test_the_nearest_run_is_suggested(runs: Path, text: str) -> None:
    make_run(runs, "20261120-161500-demo")
    with pytest.raises(NoSuchRunError, match=r"did you mean 20261120-161500-demo\?"):
        find_run(text)


@pytest.mark.parametrize("text", ["", "slurn://1", "local://../secrets", "local://.."])
def test_a_handle_that_cannot_be_one_is_wrong_input(runs: Path, text: str) -> None:
    with pytest.raises(InputError, match="handle"):
        find_run(text)


def test_the_newest_runs_come_first_and_broken_ones_are_told(runs: Path) -> None:
    make_run(runs, "20261120-161500-a")
    make_run(runs, "20261121-161500-b")
    (runs / "20261121-161500-b" / "state.json").write_text("{")
    make_run(runs, "20261119-161500-c")
    (runs / "20261122-000000-not-a-run").mkdir()
    (runs / "a file").write_text("")
    listed = list(list_runs(runs, limit=2))
    assert [job_id for job_id, _ in listed] == ["20261121-161500-b", "20261120-161500-a"]
    assert isinstance(listed[0][1], RunDirError)
    assert listed[1][1] == PENDING
    assert len(list(list_runs(runs, limit=0))) == 3


def test_a_list_of_a_thousand_runs_reads_only_states(runs: Path) -> None:
    state = (make_run(runs, "20261120-000000-demo").path / "state.json").read_text()
    for number in range(1, 1_000):
        (runs / f"20261120-{number:06}-demo").mkdir()
        (runs / f"20261120-{number:06}-demo" / "state.json").write_text(state)
    listed = list(list_runs(runs, limit=0))
    assert len(listed) == 1_000
    assert listed[0] == ("20261120-000999-demo", PENDING)


def test_the_root_is_where_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("TRIMTAB_RUNS_DIR", raising=False)
    assert runs_root() == tmp_path / ".trimtab" / "runs"
    monkeypatch.setenv("TRIMTAB_RUNS_DIR", "~/elsewhere")
    assert runs_root() == tmp_path / "elsewhere"
