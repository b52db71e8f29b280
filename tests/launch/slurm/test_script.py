"""Whole scripts, compared byte for byte, and run."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from trimtab.core.errors import InputError
from trimtab.core.job import EnvVar, JobSpec, Request, ScriptSpec
from trimtab.core.plan import Layout
from trimtab.core.scheduling import RestartSpec, SlurmOptions
from trimtab.launch.slurm.scheduler import SlurmScheduler
from trimtab.launch.slurm.script import array_member, job_name

RUN_DIR = Path("/shared/runs/20261120-161500-demo")
MakeScript = Callable[..., ScriptSpec]
Golden = Callable[[str], str]

HOSTILE_NAMES = (
    "a\n#SBATCH --account=root\ntouch bad",
    "\"; touch bad; '",
    "$(touch bad) `touch bad`",
    "--wrap=touch bad",
    "-",
    "Zürich 東京 \u202e \x1b[31m",
    "\r\n\x00",
)
HOSTILE_FOLDERS = (
    "with spaces and 'single' and \"double\" quotes",
    "$(touch bad) `touch bad` ${HOME} ; touch bad & # no comment",
    "line\nbreak\n#SBATCH --account=root\ntouch bad\n",
    "dos\r\nbreak\ttab",
    "back\\slash\\",
    "%j %A %% percent",
    "-dash Zürich 東京",
)


def test_demo_on_two_nodes(scheduler: SlurmScheduler, cpu_job: JobSpec, golden: Golden) -> None:
    job = replace(cpu_job, num_nodes=2)
    request = scheduler.prepare(job, layout=Layout(dp=4), run_dir=RUN_DIR)
    assert request.submission == golden("demo")
    assert request == Request(
        scheduler="slurm",
        run_dir=str(RUN_DIR),
        argv=("/opt/venv/bin/python", "-P", "-m", "trimtab.orchestrator.rank", str(RUN_DIR)),
        environment=(
            EnvVar(name="CUDA_VISIBLE_DEVICES", value=""),
            EnvVar(name="OMP_NUM_THREADS", value="1"),
            EnvVar(name="PYTHONUNBUFFERED", value="1"),
        ),
        num_ranks=4,
        num_nodes=2,
        job=job,
        layout=Layout(dp=4),
        submission=golden("demo"),
    )


def test_gpus_are_asked_for_per_node_whatever_the_version(
    scheduler: SlurmScheduler, gpu_job: JobSpec, golden: Golden
) -> None:
    """Slurm >= 24.11 with select/linear refuses GPUs per task, per socket and per job."""
    request = scheduler.prepare(gpu_job, layout=Layout(dp=8), run_dir=RUN_DIR)
    assert request.submission == golden("gpus_per_node")
    assert request.environment == (EnvVar(name="PYTHONUNBUFFERED", value="1"),)


def test_every_option(scheduler: SlurmScheduler, gpu_job: JobSpec, golden: Golden) -> None:
    options = SlurmOptions(
        account="lab-7",
        partition="h100,h200",
        qos="high",
        time="1-12:00:00",
        constraint="[rack1|rack2]&ib",
        gpus_per_node="h100:8",
        exclude="n[3-4]",
        nodelist="n1",
        reservation="spring",
        dependency="afterok:1234:1235,singleton",
        signal="B:USR2@120",
        comment='ticket #12: "the long one"',
        args=("mem=0", "exclusive", "cpus-per-task=96", "mail-user=kim@example.org"),
    )
    job = replace(gpu_job, slurm=options, restart=RestartSpec(spare_nodes=1))
    request = scheduler.prepare(job, layout=Layout(dp=8), run_dir=RUN_DIR)
    assert request.submission == golden("every_option")


def test_containers(scheduler: SlurmScheduler, gpu_job: JobSpec, golden: Golden) -> None:
    options = SlurmOptions(
        gres="gpu:h100:8,nvme:1",
        container_image="registry.example.org#team/train:1.2",
        container_name="train",
        container_mounts="/data:/data:ro,/my models:/models",
        container_workdir="/workspace",
    )
    job = replace(gpu_job, slurm=options)
    request = scheduler.prepare(job, layout=Layout(dp=8), run_dir=RUN_DIR)
    assert request.submission == golden("containers")


def test_an_array_that_waits_for_another_job(
    scheduler: SlurmScheduler, cpu_job: JobSpec, golden: Golden
) -> None:
    options = SlurmOptions(array="0-3%2", dependency="afterany:77")
    request = scheduler.prepare(
        replace(cpu_job, slurm=options), layout=Layout(dp=4), run_dir=RUN_DIR
    )
    assert request.submission == golden("array")
    member = array_member(request, 3)
    assert member.run_dir == f"{RUN_DIR}-3"
    assert member.argv == (*request.argv[:-1], f"{RUN_DIR}-3")
    assert member.submission == request.submission


def test_hostile_names_and_paths(
    scheduler: SlurmScheduler, script_job: MakeScript, golden: Golden
) -> None:
    job = script_job(name=HOSTILE_NAMES[0], comment="a \\ b \"c\" 'd' $(touch bad) # e")
    run_dir = Path("/shared/\"a\" 'b' $(touch bad)") / "100%" / "20261120-161500-a"
    request = scheduler.prepare(job, layout=None, run_dir=run_dir)
    assert request.submission == golden("hostile")


def test_a_path_that_no_directive_can_hold(
    scheduler: SlurmScheduler, script_job: MakeScript, golden: Golden
) -> None:
    run_dir = Path("/shared/line\nbreak and back\\slash") / "20261120-161500-a"
    request = scheduler.prepare(script_job(), layout=None, run_dir=run_dir)
    assert request.submission == golden("unwritable_path")


def test_a_script_of_the_users(
    scheduler: SlurmScheduler, script_job: MakeScript, golden: Golden
) -> None:
    job = script_job()
    request = scheduler.prepare(job, layout=None, run_dir=RUN_DIR)
    assert request.submission == golden("script")
    assert request.argv == ("python", "my train.py", "--lr", "$(touch bad)")
    assert request.layout is None


@pytest.mark.parametrize("name", HOSTILE_NAMES)
@pytest.mark.parametrize("folder", HOSTILE_FOLDERS)
def test_hostile_scripts_do_nothing_but_start_the_keeper(
    tmp_path: Path, script_job: MakeScript, name: str, folder: str
) -> None:
    keeper = "import json, sys; print(json.dumps(sys.argv[1:]))"
    scheduler = SlurmScheduler(rank_argv=(), keeper_argv=(sys.executable, "-c", keeper))
    run_dir = tmp_path / folder / "20261120-161500-a"
    (run_dir / "logs").mkdir(parents=True)
    job = script_job(name=name)
    request = scheduler.prepare(job, layout=None, run_dir=run_dir)
    before = sorted(tmp_path.rglob("*"))
    said = _run(request.submission, folder=tmp_path)
    log = run_dir / "logs" / "slurm-1234.out"
    said = said or log.read_text()
    log.unlink(missing_ok=True)
    assert json.loads(said)[:3] == [str(run_dir), "--", "srun"]
    assert sorted(tmp_path.rglob("*")) == before
    lines = request.submission.splitlines()
    assert not any(line.startswith("#SBATCH --account") for line in lines)


def test_an_array_task_finds_its_own_run_directory(
    tmp_path: Path, script_job: MakeScript
) -> None:
    keeper = "import json, sys; print(json.dumps(sys.argv[1:]))"
    scheduler = SlurmScheduler(rank_argv=(), keeper_argv=(sys.executable, "-c", keeper))
    job = script_job(array="0-8", container_image="a'b $(touch bad)")
    run_dir = tmp_path / "a 'b' $(touch bad)" / "run"
    request = scheduler.prepare(job, layout=None, run_dir=run_dir)
    words = json.loads(_run(request.submission, folder=tmp_path))
    assert words[0] == f"{run_dir}-7"
    assert words[-2:] == [
        "--container-image=a'b $(touch bad)",
        f"--container-mounts={run_dir}-7:{run_dir}-7",
    ]
    assert list(tmp_path.iterdir()) == []


def test_fewer_gpus_than_ranks_on_a_node_are_refused(
    scheduler: SlurmScheduler, gpu_job: JobSpec
) -> None:
    for options, field in (
        (SlurmOptions(gpus_per_node="4"), "gpus_per_node"),
        (SlurmOptions(gres="gpu:h100:4"), "gres"),
    ):
        message = rf"^slurm.{field}: 8 ranks on each node need as many GPUs, got 4; "
        with pytest.raises(InputError, match=message):
            scheduler.prepare(
                replace(gpu_job, slurm=options), layout=Layout(dp=8), run_dir=RUN_DIR
            )


def test_gres_without_gpus_leaves_them_to_be_asked_for(
    scheduler: SlurmScheduler, gpu_job: JobSpec
) -> None:
    job = replace(gpu_job, slurm=SlurmOptions(gres="nvme:1"))
    script = scheduler.prepare(job, layout=Layout(dp=8), run_dir=RUN_DIR).submission
    assert "#SBATCH --gpus-per-node=8\n#SBATCH --gres=nvme:1\n" in script


def test_cores_follow_what_the_user_says(
    scheduler: SlurmScheduler, script_job: MakeScript
) -> None:
    for args, line, threads in (
        (("cpus-per-task=12",), "--cpus-per-task=12", "6"),
        (("exclusive",), None, None),
        ((), "--cpus-per-task=2", "1"),
    ):
        request = scheduler.prepare(script_job(args=args), layout=None, run_dir=RUN_DIR)
        lines = [row for row in request.submission.splitlines() if "--cpus-per-task" in row]
        assert lines == ([] if line is None else [f"#SBATCH {line}"])
        values = [var.value for var in request.environment if var.name == "OMP_NUM_THREADS"]
        assert values == ([] if threads is None else [threads])


def test_a_container_cannot_mount_a_path_with_a_colon(
    scheduler: SlurmScheduler, script_job: MakeScript
) -> None:
    with pytest.raises(InputError, match=r"^slurm.container_image: .* set TRIMTAB_RUNS_DIR$"):
        scheduler.prepare(
            script_job(container_image="x"), layout=None, run_dir=Path("/a:b/20261120-x")
        )


def test_job_names_are_plain() -> None:
    names = [job_name(name) for name in HOSTILE_NAMES]
    assert names == [
        "a-SBATCH-account-root-touch-bad",
        "touch-bad",
        "touch-bad-touch-bad",
        "wrap-touch-bad",
        "trimtab",
        "Zurich-31m",
        "trimtab",
    ]
    assert job_name("x" * 300) == "x" * 64


def _run(script: str, *, folder: Path) -> str:
    subprocess.run(["bash", "-n"], input=script.encode(), check=True)
    ended = subprocess.run(
        ["bash", "-s"],
        input=script.encode(),
        capture_output=True,
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "SLURM_JOB_ID": "1234", "SLURM_ARRAY_TASK_ID": "7"},
        check=True,
    )
    assert ended.stderr == b""
    return ended.stdout.decode()
