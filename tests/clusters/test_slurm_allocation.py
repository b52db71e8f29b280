"""The nodes of a job on a real Slurm, seen from its batch host, while nodes die.

Each test has a job whose batch script only waits, and acts in its place: with the environment
that Slurm gives it. Agents are small commands.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from script_jobs import until

from trimtab.core.job import JobHandle, Request, ScriptSpec
from trimtab.core.scheduling import SlurmOptions
from trimtab.launch.api import AgentOrder, AgentStep, AllocatedNode
from trimtab.launch.slurm.allocation import SlurmAllocation
from trimtab.launch.slurm.scheduler import SlurmScheduler
from trimtab.launch.slurm.script import array_member, sbatch_script
from trimtab.orchestrator.dev_cluster.slurm import SlurmCluster

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("mended_slurm")]

WAIT = (sys.executable, "-c", "import time; time.sleep(600)")
SCHEDULER = SlurmScheduler(rank_argv=(), keeper_argv=WAIT)
AGENT = (
    "echo $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES $TRIMTAB_AGENT_TOKEN; exec -a {0} sleep 600"
)

Hold = Callable[..., SlurmAllocation]


@pytest.fixture
def hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hold:
    """`hold(nodes=2, spares=1, exclude="n4")`: the allocation of a new job."""

    def go(*, nodes: int = 2, spares: int = 0, **options: Any) -> SlurmAllocation:
        request = request_of(tmp_path / "run", nodes=nodes, spares=spares, **options)
        handle = SCHEDULER.submit(request, lock_fd=None)
        if "array" in options:
            monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
            handle = replace(handle, job_id=f"{handle.job_id}_0")
            request = array_member(request, 0)
        until(lambda: job(handle.job_id)["JobState"] == "RUNNING")
        monkeypatch.setenv("SLURM_JOB_ID", job(handle.job_id)["JobId"])
        monkeypatch.setenv("SLURM_JOB_PARTITION", "main")
        monkeypatch.setenv("SLURMD_NODENAME", job(handle.job_id)["BatchHost"])
        return SlurmAllocation(srun_of(request), request=request, handle=handle)

    return go


def request_of(run_dir: Path, *, nodes: int, spares: int, **options: Any) -> Request:
    spec = ScriptSpec(
        name="a",
        argv=("true",),
        folder="/",
        num_ranks=8 * nodes,
        num_nodes=nodes,
        needs_gpus=True,
        slurm=SlurmOptions(**({"args": ("cpus-per-task=2",)} | options)),
    )
    spec = replace(spec, restart=replace(spec.restart, spare_nodes=spares))
    request = SCHEDULER.prepare(spec, layout=None, run_dir=run_dir)
    for member in (request, array_member(request, 0), array_member(request, 1)):
        (Path(member.run_dir) / "logs").mkdir(parents=True)
    return request


def srun_of(request: Request) -> tuple[str, ...]:
    """The srun command line in the script, as the keeper gets it."""
    words = sbatch_script(request, keeper_argv=WAIT).splitlines()[-1].split()
    assert words[0] == "srun"
    return tuple(words)


def order(marker: str) -> AgentOrder:
    return AgentOrder(
        controller_address="127.0.0.1:1",
        token="a-secret",
        argv=("bash", "-c", AGENT.format(marker)),
    )


def job(job_id: str) -> dict[str, str]:
    """What Slurm says of a job; of an array, of its first line."""
    said = subprocess.run(
        ["scontrol", "show", "job", "--oneliner", job_id],
        capture_output=True,
        text=True,
        check=True,
    )
    words = said.stdout.splitlines()[0].split()
    return dict(word.split("=", 1) for word in words if "=" in word)


def held(allocation: SlurmAllocation) -> str:
    return job(os.environ["SLURM_JOB_ID"])["NodeList"]


def names(nodes: tuple[AllocatedNode, ...]) -> list[str]:
    return [node.name for node in nodes]


def log(tmp_path: Path) -> list[str]:
    """What agents have said, in any order."""
    path = tmp_path / "run" / "logs" / "agents.log"
    return sorted(line for line in path.read_text().splitlines() if line.endswith("a-secret"))


def said(*nodes: str) -> list[str]:
    return [f"{node} 0,1,2,3,4,5,6,7 a-secret" for node in nodes]


def agents(marker: str) -> int:
    argv = ["pgrep", "--full", "--count", f"^{marker} 600"]
    return int(subprocess.run(argv, capture_output=True, text=True, check=False).stdout)


def ended(step: AgentStep, marker: str) -> None:
    step.end()
    assert step.poll() is not None
    until(lambda: agents(marker) == 0)


def set_state(node: str, state: str) -> None:
    argv = ["scontrol", "update", f"nodename={node}", f"state={state}", "reason=a test"]
    subprocess.run(argv, check=True)


def test_nodes_come_in_the_order_of_their_names(hold: Hold) -> None:
    allocation = hold(nodes=3, spares=1)
    assert allocation.controller_host == "127.0.0.1"
    assert allocation.acquire(3, exclude=()) == (
        AllocatedNode(name="n1", address="127.0.0.1", hosts_controller=True),
        AllocatedNode(name="n2", address="127.0.0.1", hosts_controller=False),
        AllocatedNode(name="n3", address="127.0.0.1", hosts_controller=False),
    )
    assert names(allocation.acquire(3, exclude={"n2"})) == ["n1", "n3", "n4"]
    assert names(allocation.acquire(3, exclude={"n1", "n2"})) == ["n3", "n4"]
    assert names(allocation.acquire(9, exclude=())) == ["n1", "n2", "n3", "n4"]
    assert allocation.acquire(2, exclude={"n1", "n2", "n3", "n4"}) == ()


def test_nodes_that_are_down_are_not_used_and_drained_ones_last(hold: Hold) -> None:
    allocation = hold(nodes=4)
    set_state("n2", "drain")
    set_state("n3", "down")
    try:
        assert names(allocation.acquire(4, exclude=())) == ["n1", "n4", "n2"]
    finally:
        set_state("n2", "resume")
        set_state("n3", "resume")


def test_only_nodes_that_could_be_had_at_once_are_free(hold: Hold) -> None:
    allocation = hold(nodes=1)
    assert allocation.num_free_nodes(exclude=()) == 3
    assert allocation.num_free_nodes(exclude={"n1", "n2"}) == 2
    set_state("n2", "drain")
    set_state("n3", "down")
    try:
        assert allocation.num_free_nodes(exclude=()) == 1
    finally:
        set_state("n2", "resume")
        set_state("n3", "resume")


def test_agents_run_where_they_are_ordered_and_end_when_they_are_ended(
    hold: Hold, tmp_path: Path
) -> None:
    allocation = hold(nodes=3)
    nodes = allocation.acquire(3, exclude={"n2"})
    step = allocation.start_agents(nodes, order=order("agent-some"))
    until(lambda: len(log(tmp_path)) == 2)
    assert log(tmp_path) == said("n1", "n3")
    assert step.poll() is None
    assert agents("agent-some") == 2
    ended(step, "agent-some")
    ended(step, "agent-some")  # nothing is left to do


def test_a_lost_node_is_replaced_while_agents_beside_it_run_on(
    hold: Hold, tmp_path: Path, slurm_cluster: SlurmCluster
) -> None:
    allocation = hold(nodes=3, spares=1)
    nodes = allocation.acquire(3, exclude=())
    first = allocation.start_agents(nodes, order=order("agent-first"))
    until(lambda: len(log(tmp_path)) == 3)
    slurm_cluster.kill_node("n3", hard=True)
    assert agents("agent-first") == 2

    allocation.release("n3")
    assert held(allocation) == "n[1-2,4]"
    assert not list(Path.cwd().glob("slurm_job_*")), "scripts of scontrol"
    assert names(allocation.acquire(3, exclude={"n3"})) == ["n1", "n2", "n4"]
    second = allocation.start_agents(
        allocation.acquire(1, exclude={"n1", "n2", "n3"}), order=order("agent-second")
    )
    until(lambda: len(log(tmp_path)) == 4)
    assert log(tmp_path) == said("n1", "n2", "n3", "n4")
    assert first.poll() is None
    assert agents("agent-first") == 2
    ended(second, "agent-second")
    ended(first, "agent-first")


def test_a_node_that_has_died_unnoticed_is_left_out(
    hold: Hold, slurm_cluster: SlurmCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    allocation = hold(nodes=2, spares=1)
    slurm_cluster.kill_node("n2")
    assert slurm_cluster.states()["n2"] == "mixed"
    assert names(allocation.acquire(2, exclude=())) == ["n1", "n3"]
    assert capsys.readouterr().out.startswith(
        "node n2 is left out: its slurmd does not answer at 127.0.0.1:"
    )


@pytest.mark.slow
def test_a_node_that_dies_before_its_agent_starts_ends_the_step_and_not_the_job(
    hold: Hold, tmp_path: Path, slurm_cluster: SlurmCluster
) -> None:
    allocation = hold(nodes=2)
    nodes = allocation.acquire(2, exclude=())
    slurm_cluster.kill_node("n2")
    step = allocation.start_agents(nodes, order=order("agent-lonely"))
    until(step.poll)
    assert step.poll() == "srun ended with 233; see logs/agents.log"
    again = allocation.start_agents(nodes[:1], order=order("agent-again"))
    until(lambda: agents("agent-again") == 1)
    ended(again, "agent-again")


def test_its_own_node_cannot_be_released(hold: Hold) -> None:
    allocation = hold(nodes=2)
    allocation.release("n1")
    allocation.release("n9")
    assert held(allocation) == "n[1-2]"


def test_a_job_whose_own_node_dies_has_a_successor_on_others(
    hold: Hold, slurm_cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_NNODES", "4")  # as every job has; it is not the successor's
    monkeypatch.setenv("WANDB_API_KEY", "inherited")
    allocation = hold(nodes=2, exclude="n3", dependency="singleton")
    first = os.environ["SLURM_JOB_ID"]
    assert held(allocation) == "n[1-2]"
    slurm_cluster.kill_node("n1", hard=True)
    move = allocation.go_elsewhere(exclude={"n1"}, reason="slurmd died")
    assert move.handle != JobHandle(scheduler="slurm", job_id=first)
    assert move.how == f"{move.handle} takes over, without n1: slurmd died"
    second = job(move.handle.job_id)
    assert (second["ExcNodeList"], second["Dependency"]) == ("n[1,3]", "(null)")
    assert second["JobState"] == "PENDING"  # n2 is still the first one's
    assert script_of(move.handle.job_id) == script_of(first)
    allocation.leave()
    until(lambda: job(move.handle.job_id)["JobState"] == "RUNNING")
    assert job(move.handle.job_id)["NodeList"] == "n[2,4]"
    assert job(first)["JobState"] in ("COMPLETING", "CANCELLED")


def test_a_successor_waits_for_nothing_its_forerunner_was_to_wait_for(hold: Hold) -> None:
    allocation = hold(nodes=1, nodelist="n2", args=("cpus-per-task=2", "begin=now"))
    move = allocation.go_elsewhere(exclude={"n2"}, reason="a rank died there twice")
    until(lambda: job(move.handle.job_id)["JobState"] == "RUNNING")
    second = job(move.handle.job_id)
    assert (second["ReqNodeList"], second["ExcNodeList"]) == ("", "n2")
    assert second["NodeList"] == "n1"


def test_a_task_of_an_array_has_a_successor_of_its_own(hold: Hold) -> None:
    allocation = hold(nodes=1, array="0-1")
    first = allocation.acquire(1, exclude=())
    assert len(first) == 1
    move = allocation.go_elsewhere(exclude={first[0].name}, reason="a rank died there twice")
    array, _, task = move.handle.job_id.partition("_")
    assert task == "0"
    until(lambda: job(move.handle.job_id)["JobState"] == "RUNNING")
    assert job(array)["ArrayTaskId"] == "0"
    allocation.leave()
    until(lambda: job(os.environ["SLURM_JOB_ID"])["JobState"] == "CANCELLED")


@pytest.mark.slow
def test_without_a_node_to_leave_the_job_itself_is_requeued(hold: Hold) -> None:
    allocation = hold(nodes=2)
    first = os.environ["SLURM_JOB_ID"]
    script = script_of(first)
    move = allocation.go_elsewhere(exclude=(), reason="the time limit is near")
    assert move.handle == JobHandle(scheduler="slurm", job_id=first)
    assert move.how == "requeued: the time limit is near"
    until(lambda: job(first)["JobState"] == "RUNNING" and job(first)["Restarts"] == "1")
    assert script_of(first) == script


def test_a_job_that_has_ended_cannot_be_asked(hold: Hold) -> None:
    allocation = hold(nodes=1)
    first = os.environ["SLURM_JOB_ID"]
    subprocess.run(["scancel", first], check=True)
    until(lambda: job(first)["JobState"] == "CANCELLED")
    assert allocation.acquire(1, exclude=()) == ()
    allocation.release("n2")


def script_of(job_id: str) -> str:
    said = subprocess.run(
        ["scontrol", "write", "batch_script", job_id, "-"],
        capture_output=True,
        text=True,
        check=True,
    )
    return said.stdout
