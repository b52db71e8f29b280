"""Nodes of this host: real agents under names and loopback addresses of their own."""

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # no stubs in the pinned set
import pytest

from trimtab.core.job import Request, ScriptSpec
from trimtab.launch import tether
from trimtab.launch.agent import NODE_VARIABLE, TOKEN_VARIABLE
from trimtab.launch.api import AgentOrder, AllocatedNode, Move
from trimtab.launch.fleet import Fleet, News, Rendezvous

MARK = "TRIMTAB_TESTS_MARK"


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run directory, under a name that no shell would forgive."""
    path = tmp_path / f"a run's $(folder); {secrets.token_hex(4)}"
    (path / "logs").mkdir(parents=True)
    (path / "state.json").write_text("{}")
    return path


@pytest.fixture
def started_here(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[psutil.Process]]:
    """`started_here()`: the living processes that this test has started, at any remove."""
    mark = secrets.token_hex(8)
    monkeypatch.setenv(MARK, mark)

    def started() -> list[psutil.Process]:
        return [
            process
            for process in psutil.process_iter()
            if process.pid != os.getpid() and _is_marked(process, mark)
        ]

    return started


def _is_marked(process: psutil.Process, mark: str) -> bool:
    try:
        return bool(
            process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE
        )
    except psutil.Error:
        return False


class Step:
    def __init__(self, processes: list[subprocess.Popen[bytes]]) -> None:
        self._processes = processes

    def poll(self) -> str | None:
        ended = [process.poll() is not None for process in self._processes]
        return "every agent has ended" if all(ended) else None

    def end(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()


@dataclass
class HereAllocation:
    """`num_nodes` nodes `n0`, `n1` and so on, all of them this host."""

    num_nodes: int
    elsewhere: Path | None = None
    """Where agents find the run directory instead: on a disk of their own."""
    token: str | None = None
    """What agents are given instead of the right token."""
    stand_in: Callable[[AgentOrder], "Step"] | None = None
    """Called instead of starting agents."""
    agents: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    controller_host = "127.0.0.1"
    can_move = False

    def acquire(self, num_nodes: int, *, exclude: Collection[str]) -> tuple[AllocatedNode, ...]:
        nodes = (
            AllocatedNode(
                name=f"n{index}", address=f"127.0.0.{index + 1}", hosts_controller=index == 0
            )
            for index in range(self.num_nodes)
        )
        return tuple(node for node in nodes if node.name not in exclude)[:num_nodes]

    def start_agents(self, nodes: Sequence[AllocatedNode], *, order: AgentOrder) -> Step:
        if self.stand_in is not None:
            return self.stand_in(order)
        argv = list(order.argv)
        if self.elsewhere is not None:
            argv[-2] = str(self.elsewhere)
        token = self.token or order.token
        for node in nodes:
            environment = {**os.environ, NODE_VARIABLE: node.name, TOKEN_VARIABLE: token}
            self.agents[node.name] = subprocess.Popen(
                tether.command(argv), env=environment, process_group=0
            )
        return Step([self.agents[node.name] for node in nodes])

    def release(self, node: str) -> None:
        raise NotImplementedError

    def num_free_nodes(self, *, exclude: Collection[str]) -> int:
        raise NotImplementedError

    def leave(self) -> None:
        raise NotImplementedError

    def go_elsewhere(self, *, exclude: Collection[str], reason: str) -> Move:
        raise NotImplementedError


@dataclass
class Nodes:
    """A fleet on some nodes of this host, and what it has told."""

    fleet: Fleet
    allocation: HereAllocation
    run_dir: Path
    news: list[News] = field(default_factory=list)
    attempt: int = 0

    def gather(self) -> tuple[AllocatedNode, ...]:
        nodes = self.allocation.acquire(self.allocation.num_nodes, exclude=())
        assert set(self.fleet.gather(nodes)) == {node.name for node in nodes}
        return nodes

    def start(
        self,
        program: str,
        *,
        ranks_per_node: int = 1,
        nodes: Sequence[AllocatedNode] | None = None,
        folder: str = "",
    ) -> None:
        """Start ranks of a piece of Python, as the next attempt."""
        nodes = self.gather() if nodes is None else nodes
        self.attempt += 1
        request = self.request(program, ranks_per_node * len(nodes), len(nodes), folder)
        self.fleet.start(
            request,
            nodes,
            rendezvous=Rendezvous(
                attempt=self.attempt,
                collector_address="127.0.0.1:1",
                collector_token="marker-of-the-token",
                request_name="request.json",
                request_text="the request",
            ),
        )

    def request(self, program: str, num_ranks: int, num_nodes: int, folder: str) -> Request:
        script = ScriptSpec(
            name="$(touch /tmp/x); rm -rf /",
            argv=(sys.executable, "-u", "-c", program),
            folder=folder or str(self.run_dir),
            num_ranks=num_ranks,
            num_nodes=num_nodes,
        )
        return Request(
            scheduler="local",
            run_dir=str(self.run_dir),
            argv=script.argv,
            environment=(),
            num_ranks=num_ranks,
            num_nodes=num_nodes,
            job=script,
            layout=None,
        )

    def until(self, is_there: Callable[[], bool]) -> None:
        """Listen until something holds."""
        while not is_there():
            self.news += self.fleet.poll()
            time.sleep(0.02)

    def until_ended(self) -> list[News]:
        """All that was told, once no rank runs any more."""
        self.until(lambda: not self.fleet.running)
        self.news += self.fleet.poll()
        return self.news

    def log(self, rank: int) -> str:
        """What a rank has written in its last attempt, without the line that begins it."""
        path = self.run_dir / "logs" / f"rank-{rank:04d}.log"
        text = path.read_text() if path.exists() else ""
        return text.rpartition("--- attempt ")[2].partition("\n")[2]


@pytest.fixture
def nodes_here(
    run_dir: Path, started_here: Callable[[], list[psutil.Process]]
) -> Iterator[Callable[..., Nodes]]:
    """`nodes_here(num_nodes, ...)`; after the test nothing of them is left on this host."""
    with ExitStack() as stack:

        def make(num_nodes: int = 1, **settings: object) -> Nodes:
            allocation = HereAllocation(num_nodes, **settings)  # type: ignore[arg-type]
            fleet = Fleet(allocation, run_dir=run_dir)
            stack.callback(fleet.close)
            return Nodes(fleet, allocation, run_dir)

        yield make
    while started_here():
        time.sleep(0.05)
