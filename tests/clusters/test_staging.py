"""Jobs on a real Slurm whose nodes see neither the run directory nor Trimtab's code.

Each node's slurmd has a mount namespace of its own, in which empty file systems lie over both;
all that nodes and this machine share is the folder of the address.
"""

import json
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from script_jobs import until

import trimtab
from trimtab.core.errors import InputError
from trimtab.core.job import JobState, ScriptSpec
from trimtab.core.scheduling import SlurmOptions, StageOptions
from trimtab.orchestrator.config import load_job
from trimtab.orchestrator.dev_cluster import slurm
from trimtab.orchestrator.dev_cluster.commands import program
from trimtab.orchestrator.dev_cluster.slurm import SlurmCluster
from trimtab.orchestrator.observation import observe
from trimtab.orchestrator.rundir import RunDir
from trimtab.orchestrator.submission import prepare_job, submit_job

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

DEMO = Path(__file__).parents[2] / "configs" / "demo.yaml"
SMALL = (
    "num_ranks=2", "layout.dp=2", "num_nodes=2", "data.max_seq_tokens=256",
    "step_planning.token_cap=512", "training.global_batch_seqs=4",
    "training.evaluate_every_steps=0", "training.num_steps=4", "checkpoint.every_steps=2",
    "stage.enabled=true",
)  # fmt: skip
PROFILE = {
    "model": "demo", "num_gpus": 2, "gpus_per_node": 1, "quadratic_ms": 1e-5,
    "linear_ms": 0.05, "fixed_ms": 5.0, "alltoall_mb_per_token": 0.004,
    "v_gb_per_s": {"2": 0.5}, "token_cap": 512,
}  # fmt: skip


@pytest.fixture(scope="module")
def runs() -> Iterator[Path]:
    """The folder of the run directories, which every node has its own of."""
    folder = Path(tempfile.mkdtemp(prefix="trimtab-runs-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module", autouse=True)
def apart(runs: Path) -> Iterator[SlurmCluster]:
    """Two nodes that share nothing with this machine but /tmp's other folders."""
    if shutil.which("sinfo") is None:
        pytest.skip("Slurm is not installed: apt-get install slurm-wlm munge")
    folder = Path(tempfile.mkdtemp(prefix="trimtab-"))
    hidden = [str(runs), *map(str, trimtab.__path__)]
    mounts = "\n".join(f"mount -t tmpfs none '{place}'" for place in hidden)
    slurmd = folder / "slurmd-apart"
    slurmd.write_text(f'#!/bin/sh -e\n{mounts}\nexec /usr/sbin/slurmd "$@"\n')
    entry = folder / "slurmd"
    entry.write_text(f'#!/bin/sh\nexec unshare --mount {slurmd} "$@"\n')
    for script in (slurmd, entry):
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(slurm, "program", lambda n: str(entry) if n == "slurmd" else program(n))
        cluster = SlurmCluster(folder=folder / "c")
        for name, value in cluster.environment.items():
            patch.setenv(name, value)
        try:
            cluster.start(num_nodes=2, gpus_per_node=0, cpus_per_node=8)
            yield cluster
        finally:
            cluster.stop()
            shutil.rmtree(folder, ignore_errors=True)


def ended(run: RunDir) -> JobState:
    until(lambda: observe(run).state.state.is_final)
    return observe(run).state.state


def staged_folders() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob("trimtab-??????"))


def test_a_script_runs_with_the_files_beside_it(runs: Path, tmp_path: Path) -> None:
    before = staged_folders()
    folder = tmp_path / "it's $(mine)"
    folder.mkdir()
    (folder / "beside.py").write_text("WORD = 'found it'\n")
    (folder / "train.py").write_text(
        "import os, beside; print(beside.WORD, os.environ['RANK'], os.environ['WORLD_SIZE'])\n"
    )
    job = ScriptSpec(
        name="script",
        argv=(sys.executable, "train.py"),
        folder=str(folder),
        num_ranks=2,
        num_nodes=2,
        slurm=SlurmOptions(),
        stage=StageOptions(enabled=True, address=f"file://{tmp_path}/word"),
    )
    run = submit_job(job, scheduler="slurm", root=runs)
    assert ended(run) is JobState.SUCCEEDED, observe(run).state.reason
    logs = "".join(path.read_text() for path in run.logs.iterdir())
    assert "found it 0 2" in logs
    assert "found it 1 2" in logs
    until(lambda: staged_folders() <= before)


def test_a_training_job_leaves_checkpoints_and_word_at_its_address(
    runs: Path, tmp_path: Path
) -> None:
    profile = tmp_path / "profile.json"
    profile.write_text(json.dumps(PROFILE))
    changes = [*SMALL, f"profile={profile}", f"checkpoint.address=file://{tmp_path}/word"]
    run = submit_job(load_job(DEMO, changes), scheduler="slurm", root=runs)
    assert ended(run) is JobState.SUCCEEDED, observe(run).state.reason
    assert not list(run.checkpoints.iterdir())
    at_address = [path.name for path in (tmp_path / "word" / run.job_id).iterdir()]
    assert any(name.startswith("step-") for name in at_address)
    assert run.events.exists()


def test_what_is_submitted_is_what_a_dry_run_prints(runs: Path, tmp_path: Path) -> None:
    job = ScriptSpec(
        name="script",
        argv=("true",),
        folder=str(tmp_path),
        num_ranks=1,
        slurm=SlurmOptions(),
        stage=StageOptions(enabled=True),
    )
    (tmp_path / "a.py").write_text("print(1)\n")
    first = prepare_job(job, scheduler="slurm", root=runs, run_id="same")
    time.sleep(1.1)  # a file format with a clock in it would differ
    second = prepare_job(job, scheduler="slurm", root=runs, run_id="same")
    assert first.request.submission == second.request.submission


@pytest.mark.parametrize(
    ("changes", "scheduler", "message"),
    [
        (
            (),
            "slurm",
            "checkpoints need a place that all of them reach; set checkpoint.address",
        ),
        (("num_nodes=1",), "local", "a job on this machine finds all it needs here"),
        (("ray.address=http://h:1",), "ray", "stage.enabled: Ray's nodes"),
        (("stage.python=python3",), "slurm", "stage.python: expected an absolute path"),
        (("stage.address=nowhere",), "slurm", "stage.address: expected an fsspec address"),
    ],
)
def test_what_cannot_be_staged_is_refused(
    changes: tuple[str, ...], scheduler: str, message: str, runs: Path, tmp_path: Path
) -> None:
    profile = tmp_path / "profile.json"
    profile.write_text(json.dumps(PROFILE))

    def prepare() -> None:
        job = load_job(DEMO, [*SMALL, f"profile={profile}", *changes])
        prepare_job(job, scheduler=scheduler, root=runs)  # type: ignore[arg-type]

    with pytest.raises(InputError, match=message):
        prepare()
