"""What a person asks for on the command line, as a job."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trimtab.core.errors import InputError
from trimtab.core.job import JobSpec, ScriptSpec
from trimtab.core.scheduling import RayOptions, RestartSpec, SlurmOptions
from trimtab.orchestrator.config import load_job
from trimtab.orchestrator.wanted_job import Wanted

PROJECT = Path(__file__).parents[2]
SECTIONS = """
num_nodes: 2
restart: {max_restarts: 7, warm_spares: true}
slurm:
  account: abc
  time: 1:00:00
  gpus_per_node: 8
  args: [mem=64G, exclusive]
ray: {address: "http://head:8265"}
"""


@pytest.fixture
def job_file(tmp_path: Path) -> str:
    """The demo with sections for every scheduler."""
    shutil.copytree(PROJECT / "configs", tmp_path / "configs")
    shutil.copytree(PROJECT / "clusters", tmp_path / "clusters")
    file = tmp_path / "configs" / "demo.yaml"
    file.write_text(file.read_text() + SECTIONS)
    return str(file)


def wanted(*arguments: str, scheduler: str = "slurm", **options: Any) -> Wanted:
    return Wanted(scheduler=scheduler, arguments=arguments, **options)  # type: ignore[arg-type]


def test_a_job_file_is_taken_as_it_is(job_file: str) -> None:
    assert wanted(job_file).job() == load_job(job_file)
    assert wanted(job_file, scheduler="local").job() == load_job(job_file)


def test_slurms_options_are_the_text_they_are_written_as(job_file: str) -> None:
    expected = SlurmOptions(
        account="abc", time="1:00:00", gpus_per_node="8", args=("mem=64G", "exclusive")
    )
    assert load_job(job_file).slurm == expected
    overrides = ["slurm.time=60", "slurm.account=null", "slurm.qos=0123", "slurm.args=[mem=1G]"]
    assert load_job(job_file, overrides).slurm == replace(
        expected, time="60", account=None, qos="0123", args=("mem=1G",)
    )


def test_options_win_over_the_file_one_by_one(job_file: str) -> None:
    job = wanted(
        job_file,
        "slurm.qos=night",
        num_nodes=4,
        restart={"max_restarts": 1},
        slurm={"time": "2:00:00", "args": ("comment2=x",)},
    ).job()
    assert job.num_nodes == 4
    assert job.restart == RestartSpec(max_restarts=1, warm_spares=True)
    assert job.slurm == SlurmOptions(
        account="abc", time="2:00:00", qos="night", gpus_per_node="8", args=("comment2=x",)
    )
    assert job.ray == RayOptions(address="http://head:8265")


@pytest.mark.parametrize(
    ("scheduler", "options", "message"),
    [
        ("local", {"slurm": {"time": "1"}}, "--time: an option of -s slurm, but the job goes"),
        ("ray", {"slurm": {"gpus_per_node": "1"}}, "--gpus-per-node: an option of -s slurm"),
        ("local", {"slurm": {"args": ("x",)}}, "--slurm-arg: an option of -s slurm"),
        ("slurm", {"ray": {"working_dir": "."}}, "--working-dir: an option of -s ray"),
        ("local", {"restart": {"spare_nodes": 1}}, "--spare-nodes: only jobs of Slurm"),
        ("slurm", {"restart": {"spare_nodes": -1}}, "restart.spare_nodes: expected a whole"),
        ("slurm", {"restart": {"when_short": "shrnk"}}, "did you mean 'shrink'"),
        ("slurm", {"num_nodes": 3}, "4 ranks cannot be shared evenly by 3 nodes"),
        ("slurm", {"name": "x"}, "--name: for scripts after --"),
        ("slurm", {"ranks_per_node": 2}, "--ranks-per-node: for scripts after --"),
    ],
)
def test_an_option_that_cannot_be_is_refused_by_name(
    job_file: str, scheduler: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        wanted(job_file, scheduler=scheduler, **options).job()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("restart.max_restart=1", "unknown key 'max_restart'; did you mean 'max_restarts'"),
        ("slurm.tme=1", "unknown key 'tme'; did you mean 'time'"),
        ("ray.adress=x", "unknown key 'adress'; did you mean 'address'"),
        ("restart.warm_spares=maybe", "expected true or false, got 'maybe'"),
        ("slurm.time=[1]", "slurm.time: expected text"),
    ],
)
def test_a_wrong_key_names_the_nearest(job_file: str, override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        wanted(job_file, override).job()


def test_a_script_runs_once_on_this_machine_unless_told_otherwise() -> None:
    script = wanted(scheduler="local", script=("python", "my train.py", "--lr", "1")).job()
    assert script == ScriptSpec(
        name="my train",
        argv=("python", "my train.py", "--lr", "1"),
        folder=str(Path.cwd()),
        num_ranks=1,
        num_nodes=1,
    )


def test_a_script_has_a_rank_for_each_gpu_of_its_nodes() -> None:
    script = wanted(script=("./run",), num_nodes=2, slurm={"gpus_per_node": "h100:4"}).job()
    assert isinstance(script, ScriptSpec)
    assert (script.name, script.num_ranks, script.num_nodes) == ("run", 8, 2)
    assert script.needs_gpus
    few = wanted(
        script=("./run",), ranks_per_node=2, name="x", slurm={"gpus_per_node": "4"}
    ).job()
    assert (few.name, few.num_ranks) == ("x", 2)


def test_a_script_takes_machines_and_restarts_from_a_job_file(job_file: str) -> None:
    job = load_job(job_file)
    script = wanted(job_file, script=("python", "x.py"), slurm={"qos": "night"}).job()
    assert isinstance(script, ScriptSpec)
    assert (script.name, script.num_ranks, script.num_nodes) == ("demo", 4, 2)
    assert (script.restart, script.ray) == (job.restart, job.ray)
    assert script.slurm == replace(job.slurm, qos="night")
    spread = wanted(job_file, "num_nodes=null", "cluster.nodes[0].gpus_per_node=1",
                    "cluster.nodes[0].count=4", script=("x",)).job()  # fmt: skip
    assert spread.num_nodes == 4, "as many as the cluster's nodes ask for"


def test_each_task_of_an_array_has_its_number(job_file: str) -> None:
    asked = wanted(job_file, "training.seed=%a", slurm={"array": "1-5:2%1"})
    jobs = asked.array_jobs()
    seeds = {task: job.training.seed for task, job in jobs.items() if isinstance(job, JobSpec)}
    assert seeds == {1: 1, 3: 3, 5: 5}
    same = wanted(job_file, slurm={"array": "0-1"}).array_jobs()
    assert same[0] == same[1]
    assert wanted(job_file).array_jobs() == {}
    elsewhere = wanted(job_file, "slurm.array=0-1", scheduler="local")
    assert elsewhere.array_jobs() == {}, "an array is Slurm's alone"


@pytest.mark.parametrize(
    "options",
    [
        {"slurm": {"time": "1"}},
        {"num_nodes": 2},
        {"name": "x"},
        {"script": ("x",)},
        {"restart": {"max_restarts": 1}},
    ],
)
def test_a_run_goes_on_without_options(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="--resume: a run goes on with what it was submitted"):
        wanted(**options).only_overrides()


def test_nothing_to_run_is_one_clear_line() -> None:
    with pytest.raises(InputError, match="JOB: expected a job file, -- COMMAND or --resume"):
        wanted().job()
