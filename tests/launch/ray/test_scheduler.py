"""Whole submissions, compared byte for byte; what a shell makes of them is run."""

import json
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from trimtab.core.errors import InputError
from trimtab.core.job import EnvVar, JobHandle, Request, ScriptSpec
from trimtab.launch.ray.scheduler import RayScheduler

RUN_DIR = Path("/shared/runs/20261120-161500-mine")
MakeScript = Callable[..., ScriptSpec]
Golden = Callable[[str], str]

HOSTILE_FOLDERS = (
    "with spaces and 'single' and \"double\" quotes",
    "$(touch bad) `touch bad` ${HOME} ; touch bad & # no comment",
    "line\nbreak\ntouch bad\n",
    "dos\r\nbreak\ttab",
    "back\\slash\\",
    "-dash Zürich 東京",
)


def test_a_script_on_two_nodes(
    scheduler: RayScheduler, script_job: MakeScript, golden: Golden
) -> None:
    job = script_job()
    assert scheduler.prepare(job, layout=None, run_dir=RUN_DIR) == Request(
        scheduler="ray",
        run_dir=str(RUN_DIR),
        argv=("python", "my train.py", "--lr", "$(touch bad)"),
        environment=(EnvVar(name="PYTHONUNBUFFERED", value="1"),),
        num_ranks=4,
        num_nodes=2,
        job=job,
        layout=None,
        submission=golden("script"),
    )


def test_the_users_runtime_environment_is_kept(
    scheduler: RayScheduler, script_job: MakeScript, golden: Golden
) -> None:
    job = script_job(
        submission_id="nightly-7",
        working_dir="s3://bucket/code.zip",
        runtime_env_json=json.dumps(
            {
                "pip": ["numpy"],
                "env_vars": {"LR": "$(touch bad)", "RAY_JOB_STOP_WAIT_TIME_S": "600"},
            }
        ),
    )
    request = scheduler.prepare(job, layout=None, run_dir=RUN_DIR)
    assert request.submission == golden("environment")


def test_a_script_runs_in_the_copy_of_the_working_directory(
    scheduler: RayScheduler, script_job: MakeScript
) -> None:
    job = script_job(working_dir="s3://bucket/code.zip")
    request = scheduler.prepare(job, layout=None, run_dir=RUN_DIR)
    assert request.job == replace(job, folder=".")


def test_the_address_of_the_environment_is_written_down(
    scheduler: RayScheduler, script_job: MakeScript, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://elsewhere:8265/")
    request = scheduler.prepare(script_job(address=None), layout=None, run_dir=RUN_DIR)
    assert request.job.ray.address == "http://elsewhere:8265"


def test_a_second_submission_of_a_run_has_a_name_of_its_own(
    scheduler: RayScheduler, script_job: MakeScript, tmp_path: Path
) -> None:
    run_dir = tmp_path / "20261120-161500-mine"
    run_dir.mkdir()
    (run_dir / "handle").write_text("ray://20261120-161500-mine\n")
    request = scheduler.prepare(script_job(), layout=None, run_dir=run_dir)
    assert json.loads(request.submission)["submission_id"] == "20261120-161500-mine-2"


@pytest.mark.parametrize("folder", HOSTILE_FOLDERS)
def test_no_shell_reads_the_run_directory(
    script_job: MakeScript, tmp_path: Path, folder: str
) -> None:
    says = (sys.executable, "-c", "import json, sys; print(json.dumps(sys.argv[1:]))")
    scheduler = RayScheduler(rank_argv=(), keeper_argv=says)
    run_dir = tmp_path / folder
    request = scheduler.prepare(script_job(name=folder), layout=None, run_dir=run_dir)
    said = subprocess.run(
        json.loads(request.submission)["entrypoint"],
        shell=True,  # as Ray runs it
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert json.loads(said.stdout) == [str(run_dir)]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("given", ["", "a b", "a/b", "$(touch bad)", "-a", "a\n", "x" * 101])
def test_a_submission_id_that_is_none_is_refused(
    scheduler: RayScheduler, script_job: MakeScript, given: str
) -> None:
    job = script_job(submission_id=given)
    with pytest.raises(InputError, match=r"^ray\.submission_id: expected up to 100 letters"):
        scheduler.prepare(job, layout=None, run_dir=RUN_DIR)


@pytest.mark.parametrize("given", ["", "a\nb", "x" * 201])
def test_a_resource_that_is_none_is_refused(
    scheduler: RayScheduler, script_job: MakeScript, given: str
) -> None:
    with pytest.raises(InputError, match=r"^ray\.resource: expected the name of a resource"):
        scheduler.prepare(script_job(resource=given), layout=None, run_dir=RUN_DIR)


def test_nobody_at_the_address_is_said_before_anything_is_queued(
    scheduler: RayScheduler, script_job: MakeScript
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]  # closed below: nobody listens there
    job = script_job(address=f"http://127.0.0.1:{port}")
    request = scheduler.prepare(job, layout=None, run_dir=RUN_DIR)
    with pytest.raises(InputError) as refused:
        scheduler.check(request)
    assert str(refused.value) == (
        f"ray.address: no Ray Jobs API answers at http://127.0.0.1:{port} ([Errno 111] "
        "Connection refused); start the cluster, or give the address of its dashboard, as "
        "http://HEAD:8265"
    )


def test_no_jobs_are_no_question(scheduler: RayScheduler) -> None:
    assert scheduler.views([]) == {}


def test_a_job_without_an_address_cannot_be_looked_for(scheduler: RayScheduler) -> None:
    with pytest.raises(InputError, match=r"^ray\.address: none given"):
        scheduler.views([JobHandle(scheduler="ray", job_id="a")])
