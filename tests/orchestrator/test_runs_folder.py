"""Listing and finding runs in their folder."""

from pathlib import Path

import pytest

from trimtab.core.errors import ExitCode, InputError, RunDirError
from trimtab.core.job import JobHandle, JobState
from trimtab.orchestrator.rundir import NoSuchRunError, RunDir, RunState
from trimtab.orchestrator.runs_folder import find_run, list_runs, newest_run, runs_root

PENDING = RunState(
    name="small",
    num_ranks=3,
    state=JobState.PENDING,
    reason="its controller is starting",
    attempt=1,
    submitted_s=1_000.0,
)


def make_run(root: Path, job_id: str, state: RunState = PENDING) -> RunDir:
    """A run directory with a state and nothing else."""
    (root / job_id).mkdir(parents=True)
    run = RunDir(root / job_id)
    run.write_state(state)
    return run


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


def test_a_run_is_found_by_every_handle_it_ever_had(runs: Path) -> None:
    run = make_run(runs, "20261120-161500-demo")
    assert str(run.handle) == "local://20261120-161500-demo"
    for job_id in ("1234", "1300"):
        run.add_handle(JobHandle(scheduler="slurm", job_id=job_id))
    run.add_handle(JobHandle(scheduler="slurm", job_id="1300"))
    assert [str(handle) for handle in run.handles] == ["slurm://1234", "slurm://1300"]
    assert str(run.handle) == "slurm://1300"
    for text in ("slurm://1234", "slurm://1300", "20261120"):
        assert find_run(text) == run
    with pytest.raises(NoSuchRunError, match="there is no run 'slurm://123' in"):
        find_run("slurm://123")
    assert [run_id for run_id, _ in list_runs(runs, limit=0)] == [run.job_id]


def test_the_handle_of_an_array_names_its_tasks(runs: Path) -> None:
    for task in range(5):
        run = make_run(runs, f"20261120-161500-demo-{task}")
        run.add_handle(JobHandle(scheduler="slurm", job_id=f"7_{task}"))
    assert find_run("slurm://7_3").job_id == "20261120-161500-demo-3"
    message = "slurm://7 is an array of 5 jobs: name one, slurm://7_0, slurm://7_1, slurm://7_2"
    with pytest.raises(InputError, match=message):
        find_run("slurm://7")


@pytest.mark.parametrize("text", ["slurm://[0-9]*", "ray://*", "slurm://.."])
def test_no_handle_is_a_pattern(runs: Path, text: str) -> None:
    run = make_run(runs, "20261120-161500-demo")
    run.add_handle(JobHandle(scheduler="slurm", job_id="7_1"))
    with pytest.raises((NoSuchRunError, InputError), match=r"there is no run|is not a job id"):
        find_run(text)


@pytest.mark.parametrize("text", ["slurn://7\n", "7\n", "\xff"])
def test_a_damaged_handle_is_one_clear_line(runs: Path, text: str) -> None:
    run = make_run(runs, "20261120-161500-demo")
    (run.path / "handle").write_text(text, encoding="latin-1")
    with pytest.raises(RunDirError, match="handle: damaged: "):
        _ = run.handle


def test_the_newest_run_is_the_last_submitted(runs: Path) -> None:
    with pytest.raises(NoSuchRunError, match=r"no run in .* yet"):
        newest_run()
    make_run(runs, "20261120-161500-b")
    make_run(runs, "20261119-161500-a")
    (runs / "20261121-000000-not-a-run").mkdir()
    assert newest_run().job_id == "20261120-161500-b"
