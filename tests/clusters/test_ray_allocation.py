"""The nodes of a job on a real Ray of three nodes, and agents started on them.

The agents are small programs that say what they were given.
"""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from script_jobs import until

from trimtab.core.errors import JobFailedError
from trimtab.core.job import Request, ScriptSpec
from trimtab.core.scheduling import RayOptions
from trimtab.launch.api import AgentOrder
from trimtab.launch.ray.allocation import RayAllocation
from trimtab.orchestrator.dev_cluster.ray import RayCluster
from trimtab.orchestrator.liveness import ProcessId

pytestmark = pytest.mark.ray

AGENT = """
import json, os, sys, time
from pathlib import Path
names = ("TRIMTAB_NODE", "TRIMTAB_AGENT_TOKEN", "CUDA_VISIBLE_DEVICES")
said = {name: os.environ.get(name) for name in names} | {"pid": os.getpid()}
path = Path(sys.argv[1], os.environ["TRIMTAB_NODE"])
path.with_suffix(".draft").write_text(json.dumps(said))
path.with_suffix(".draft").rename(f"{path}.json")
print("a word", flush=True)
while sys.argv[2] == "stay":
    time.sleep(0.05)
sys.exit(int(sys.argv[2]))
"""


class Job:
    """An allocation, and the run directory of its agents."""

    def __init__(self, folder: Path, *, num_ranks: int, needs_gpus: bool = False) -> None:
        self.run_dir = folder / "20261120-161500-a"
        (self.run_dir / "logs").mkdir(parents=True, exist_ok=True)
        job = ScriptSpec(
            name="a",
            argv=("true",),
            folder="/",
            num_ranks=num_ranks,
            num_nodes=2,
            needs_gpus=needs_gpus,
            ray=RayOptions(),
        )
        self.allocation = RayAllocation(
            Request(
                scheduler="ray",
                run_dir=str(self.run_dir),
                argv=(),
                environment=(),
                num_ranks=num_ranks,
                num_nodes=2,
                job=job,
                layout=None,
            )
        )

    def order(self, what: str) -> AgentOrder:
        argv = (sys.executable, "-c", AGENT, str(self.run_dir), what)
        return AgentOrder(controller_address="127.0.0.1:1", token="secret", argv=argv)

    def said(self, node: str) -> dict[str, str | int | None]:
        path = self.run_dir / f"{node}.json"
        until(path.exists)
        said: dict[str, str | int | None] = json.loads(path.read_text())
        return said

    def process(self, node: str) -> ProcessId:
        pid = self.said(node)["pid"]
        assert isinstance(pid, int)
        return ProcessId.of(pid)


MakeJob = Callable[..., Job]


@pytest.fixture
def make_job(
    ray_cluster: RayCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MakeJob]:
    """`make_job(num_ranks=8)`: this process is the driver, as a Ray job's entrypoint is."""
    import ray

    monkeypatch.setenv("RAY_ADDRESS", ray_cluster.gcs_address)

    whole_nodes = Job(tmp_path / "whole", num_ranks=8).allocation
    # Ray gives back what an earlier driver held a moment after that has gone.
    until(lambda: whole_nodes.num_free_nodes(exclude=()) == 3)
    yield lambda **options: Job(tmp_path, **options)
    ray.shutdown()


def test_nodes_come_in_the_order_of_their_addresses(
    ray_cluster: RayCluster, make_job: MakeJob
) -> None:
    nodes = make_job(num_ranks=4).allocation.acquire(3, exclude=())
    assert [node.name for node in nodes] == list(ray_cluster.states())
    assert [node.address for node in nodes] == ["127.0.0.2", "127.0.0.3", "127.0.0.4"]
    assert [node.hosts_controller for node in nodes] == [True, False, False]


def test_the_controller_listens_where_nodes_reach_its_own(make_job: MakeJob) -> None:
    assert make_job(num_ranks=4).allocation.controller_host == "127.0.0.2"


def test_an_excluded_node_is_never_given(make_job: MakeJob) -> None:
    job = make_job(num_ranks=4)
    first, second, third = job.allocation.acquire(3, exclude=())
    assert job.allocation.acquire(3, exclude={second.name}) == (first, third)
    fresh = make_job(num_ranks=2)
    assert fresh.allocation.acquire(2, exclude={first.name}) == (second, third)


def test_what_another_job_holds_is_not_given(make_job: MakeJob) -> None:
    """Both want all CPUs of a node."""
    held = make_job(num_ranks=8).allocation.acquire(2, exclude=())
    other = make_job(num_ranks=8)
    assert other.allocation.num_free_nodes(exclude=()) == 1
    left = other.allocation.acquire(2, exclude=())
    assert len(left) == 1
    assert left[0] not in held


def test_no_node_can_give_more_than_it_has(make_job: MakeJob) -> None:
    assert make_job(num_ranks=10).allocation.acquire(2, exclude=()) == ()


def test_agents_get_their_name_token_and_all_gpus(make_job: MakeJob) -> None:
    job = make_job(num_ranks=4, needs_gpus=True)
    nodes = job.allocation.acquire(2, exclude=())
    step = job.allocation.start_agents(nodes, order=job.order("stay"))
    for node in nodes:
        said = job.said(node.name)
        assert said["TRIMTAB_NODE"] == node.name
        assert said["TRIMTAB_AGENT_TOKEN"] == "secret"
        assert sorted(str(said["CUDA_VISIBLE_DEVICES"]).split(",")) == ["0", "1"]
    assert step.poll() is None
    agents = [job.process(node.name) for node in nodes]
    step.end()
    assert not any(agent.is_alive for agent in agents)
    assert (job.run_dir / "logs" / "agents.log").read_text() == "a word\n" * 2


def test_a_step_says_how_its_agents_ended(make_job: MakeJob) -> None:
    job = make_job(num_ranks=2)
    nodes = job.allocation.acquire(2, exclude=())
    step = job.allocation.start_agents(nodes, order=job.order("7"))
    until(step.poll)
    said = (step.poll() or "").split("; node ")
    assert sorted(each.removeprefix("node ") for each in said) == [
        f"{node.name}: the agent ended with 7; see logs/agents.log" for node in nodes
    ]
    step.end()


def test_an_agent_that_cannot_be_started_is_told(make_job: MakeJob) -> None:
    job = make_job(num_ranks=2)
    nodes = job.allocation.acquire(1, exclude=())
    missing = AgentOrder(controller_address="127.0.0.1:1", token="", argv=("/no/such/python",))
    step = job.allocation.start_agents(nodes, order=missing)
    until(step.poll)
    assert "No such file or directory: '/no/such/python'" in (step.poll() or "")
    step.end()


def test_a_killed_node_is_replaced_and_the_others_go_on(
    mended_ray: RayCluster, make_job: MakeJob
) -> None:
    job = make_job(num_ranks=8)
    head = next(iter(mended_ray.states()))
    nodes = job.allocation.acquire(2, exclude=())
    step = job.allocation.start_agents(nodes, order=job.order("stay"))
    agents = {node.name: job.process(node.name) for node in nodes}
    victim = next(node for node in nodes if node.name != head)
    (survivor,) = (node for node in nodes if node is not victim)
    mended_ray.kill_node(victim.name)
    until(lambda: not agents[victim.name].is_alive)
    again = job.allocation.acquire(2, exclude={victim.name})
    assert len(again) == 2
    assert survivor in again
    assert victim not in again
    (spare,) = (node for node in again if node != survivor)
    further = job.allocation.start_agents([spare], order=job.order("stay"))
    assert job.process(spare.name).is_alive
    assert agents[survivor.name].is_alive
    for each in (step, further):
        each.end()
    assert not agents[survivor.name].is_alive
    until(lambda: len(job.allocation.acquire(3, exclude=())) == 2)  # Ray has noticed


def test_a_ray_job_cannot_be_put_elsewhere(make_job: MakeJob) -> None:
    allocation = make_job(num_ranks=2).allocation
    assert not allocation.can_move
    with pytest.raises(JobFailedError, match="cannot be put on other nodes without n1: tired"):
        allocation.go_elsewhere(exclude={"n1"}, reason="tired")
