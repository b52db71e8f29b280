import json
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from trimtab.core.errors import RunDirError
from trimtab.core.job import JobState
from trimtab.core.plan import JobPlan
from trimtab.orchestrator.liveness import ProcessId
from trimtab.orchestrator.rundir import (
    RunDir,
    RunIdTakenError,
    RunState,
    request_text,
)
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
    earlier = run.request()
    job, _ = earlier.training
    run.write_request(earlier)
    assert not (run.path / "request-attempt-1.json").exists()
    changed = replace(job, training=replace(job.training, num_steps=9))
    run.write_request(replace(earlier, job=changed))
    assert run.request().training[0].training.num_steps == 9
    assert (run.path / "request-attempt-1.json").read_text() == request_text(earlier)


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
