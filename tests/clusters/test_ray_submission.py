"""Submitting to a real Ray of three nodes, looking at jobs there and ending them.

The keeper is a small program that says what it was given, and which signals it gets.
"""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from script_jobs import until

from trimtab.core.errors import InputError
from trimtab.core.job import JobHandle, JobState, Request, ScriptSpec
from trimtab.core.scheduling import RayOptions
from trimtab.launch.api import SchedulerView
from trimtab.launch.ray.scheduler import CANCEL_FILE, RayScheduler
from trimtab.orchestrator.dev_cluster.ray import RayCluster

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

KEEPER = """
import json, os, signal, sys, time
from pathlib import Path
log = Path(sys.argv[1], "logs", "keeper.log").open("a", buffering=1)
print(json.dumps([sys.argv[1:], os.getcwd(), os.environ.get("MINE")]), file=log)
def leave(*_):
    print("asked to end", file=log)
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
sys.exit(int(os.environ["MINE"])) if "MINE" in os.environ else None
while True:
    time.sleep(0.05)
"""
SCHEDULER = RayScheduler(rank_argv=(), keeper_argv=(sys.executable, "-c", KEEPER))
HOSTILE = "-a\nb\ntouch bad; $(touch bad) '\""
HOSTILE_FOLDER = "a 'b' \"c\" $(touch bad) %j # & ; \n\\"

Submit = Callable[..., tuple[JobHandle, Path]]


@pytest.fixture
def submit(tmp_path: Path) -> Iterator[Submit]:
    """`submit(working_dir=...)`: a job whose ranks never start."""
    handles: list[JobHandle] = []

    def go(**options: Any) -> tuple[JobHandle, Path]:
        run_dir = tmp_path / HOSTILE_FOLDER / f"{tmp_path.name}-{len(handles)}"
        (run_dir / "logs").mkdir(parents=True)
        (run_dir / "request.json").touch()
        request = prepared(run_dir, **options)
        SCHEDULER.check(request)
        handles.append(SCHEDULER.submit(request, lock_fd=None))
        return handles[-1], run_dir

    yield go
    for handle in handles:
        SCHEDULER.cancel(handle, at_once=False)
    for handle in handles:
        until(lambda handle=handle: view(handle).state.is_final)  # type: ignore[misc]  # bound
    assert not list(tmp_path.rglob("bad"))


def prepared(
    run_dir: Path, *, num_ranks: int = 2, needs_gpus: bool = False, **options: Any
) -> Request:
    job = ScriptSpec(
        name=HOSTILE,
        argv=("true",),
        folder="/",
        num_ranks=num_ranks,
        num_nodes=2,
        needs_gpus=needs_gpus,
        ray=RayOptions(**options),
    )
    return SCHEDULER.prepare(job, layout=None, run_dir=run_dir)


def view(handle: JobHandle) -> SchedulerView:
    return SCHEDULER.views([handle])[handle]


def log(run_dir: Path) -> list[str]:
    path = run_dir / "logs" / "keeper.log"
    return path.read_text().splitlines() if path.exists() else []


def test_the_keeper_starts_with_what_was_prepared_and_is_asked_to_end(submit: Submit) -> None:
    handle, run_dir = submit()
    until(lambda: log(run_dir))
    assert json.loads(log(run_dir)[0])[0] == [str(run_dir)]
    assert view(handle) == SchedulerView(
        state=JobState.RUNNING, native_state="RUNNING", reason=""
    )
    SCHEDULER.cancel(handle, at_once=False)
    until(lambda: view(handle).state is JobState.CANCELLED)
    assert view(handle).native_state == "STOPPED"
    assert log(run_dir)[1:] == ["asked to end"]


def test_at_once_is_told_by_a_file(submit: Submit) -> None:
    handle, run_dir = submit()
    until(lambda: log(run_dir))
    SCHEDULER.cancel(handle, at_once=True)
    assert (run_dir / CANCEL_FILE).exists()


def test_the_working_directory_and_the_environment_reach_the_keeper(
    submit: Submit, tmp_path: Path
) -> None:
    code = tmp_path / "my code"
    code.mkdir()
    (code / "train.py").write_text("1\n")
    variables = json.dumps({"env_vars": {"MINE": "0"}})
    handle, run_dir = submit(working_dir=str(code), runtime_env_json=variables)
    until(lambda: view(handle).state.is_final)
    assert view(handle).state is JobState.SUCCEEDED
    _, folder, mine = json.loads(log(run_dir)[0])
    assert mine == "0"
    assert folder != str(code)
    assert (Path(folder) / "train.py").read_text() == "1\n"


def test_a_folder_that_has_changed_since_is_not_submitted(
    tmp_path: Path,
) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "train.py").write_text(str(tmp_path))
    request = prepared(tmp_path / "run", working_dir=str(code))
    (code / "train.py").write_text("changed")
    with pytest.raises(InputError, match=r"^ray\.working_dir: .* changed since the job was"):
        SCHEDULER.submit(request, lock_fd=None)


def test_a_failed_keeper_is_a_failed_job(submit: Submit) -> None:
    handle, _ = submit(runtime_env_json=json.dumps({"env_vars": {"MINE": "93"}}))
    until(lambda: view(handle).state.is_final)
    assert view(handle).state is JobState.FAILED
    assert "exit code 93" in view(handle).reason


def test_many_jobs_are_one_question_and_unknown_ones_are_left_out(submit: Submit) -> None:
    handles = [submit()[0] for _ in range(2)]
    unknown = JobHandle(scheduler="ray", job_id="unknown")
    assert set(SCHEDULER.views([*handles, unknown])) == set(handles)
    assert SCHEDULER.views([unknown]) == {}


def test_a_job_of_the_same_name_is_refused_in_rays_words(submit: Submit) -> None:
    handle, _ = submit()
    with pytest.raises(InputError, match=f"refused .*{handle.job_id} already exists"):
        submit(submission_id=handle.job_id)


def test_an_unknown_job_cannot_be_cancelled(ray_cluster: RayCluster) -> None:
    unknown = JobHandle(scheduler="ray", job_id="unknown")
    with pytest.raises(InputError) as refused:
        SCHEDULER.cancel(unknown, at_once=False)
    assert str(refused.value) == (
        f"ray://unknown: the Ray cluster at {ray_cluster.address} does not know this job (any "
        "more)"
    )


def test_more_than_the_nodes_have_is_refused_before_anything_is_queued(
    ray_cluster: RayCluster, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as refused:
        SCHEDULER.check(prepared(tmp_path, num_ranks=6, needs_gpus=True))
    assert str(refused.value) == (
        "num_ranks: 2 nodes with 3 GPU each are asked for, but of the 3 live nodes of the Ray "
        f"cluster at {ray_cluster.address} only 0 can give that (most on one node: 2, all "
        "together: 6); choose other num_ranks and num_nodes, or another ray.resource"
    )
    with pytest.raises(InputError, match=r"with 1 slot each .* only 0 can give that"):
        SCHEDULER.check(prepared(tmp_path, resource="slot"))


def test_a_wrong_token_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    with pytest.raises(InputError, match=r"wants a token .*; set RAY_AUTH_MODE=token"):
        SCHEDULER.check(prepared(tmp_path))
