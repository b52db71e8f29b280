"""Real agents, with this test as their controller."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

import psutil  # type: ignore[import-untyped]  # no stubs in the pinned set
import pytest

from trimtab.core.job import EnvVar
from trimtab.launch import agent, wire
from trimtab.launch.links import AgentLink, AgentServer
from trimtab.launch.logs import rank_log

TOKEN = "marker-of-the-agents-token"
SAVES = (
    "import signal, sys, time\n"
    "signal.signal(15, lambda *_: (time.sleep(1), print('saved'), sys.exit(0)))\n"
    "print('up')\n"
    "while True: time.sleep(0.02)"
)
DEAF = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up'); time.sleep(600)"
ORDER = wire.StartRanks(
    attempt=3,
    first_rank=0,
    num_ranks=1,
    world_size=1,
    num_nodes=1,
    node_index=0,
    argv=("true",),
    folder="/",
    environment=(),
    request_name="request.json",
    request_text="",
    node_address="127.0.0.1",
    store_host="127.0.0.1",
    store_port=0,
    rank_takes_socket=True,
    collector_address="127.0.0.1:1",
    collector_token="",
)


def impatient(run_dir: Path, address: str) -> tuple[str, ...]:
    """The command line of an agent that waits a second where another waits longer."""
    program = (
        "import sys; from trimtab.launch import agent\n"
        "agent._LEFTOVER_GRACE_S = agent._CONNECT_S = 1.0\n"
        "sys.exit(agent.main(sys.argv[1:]))"
    )
    return (sys.executable, "-P", "-c", program, *agent.command(run_dir, address)[-2:])


@dataclass
class Controller:
    """The other end of the agents."""

    run_dir: Path
    server: AgentServer
    agents: list[subprocess.Popen[bytes]] = field(default_factory=list)
    links: list[AgentLink] = field(default_factory=list)
    heard: list[wire.FromAgent | None] = field(default_factory=list)

    def start_agent(
        self,
        environment: Mapping[str, str] = MappingProxyType({}),
        *,
        argv: tuple[str, ...] | None = None,
    ) -> subprocess.Popen[bytes]:
        argv = argv or agent.command(self.run_dir, self.server.address)
        inherited = {**os.environ, "TRIMTAB_NODE": "n0", agent.TOKEN_VARIABLE: TOKEN}
        process = subprocess.Popen(argv, env={**inherited, **environment})
        self.agents.append(process)
        return process

    def hear(self, kind: type[wire.FromAgent] | None) -> wire.FromAgent | None:
        """The next message of a kind, or the end of the connection; others are kept too."""
        while True:
            for link, message in self.server.received():
                if link not in self.links:
                    self.links.append(link)
                self.heard.append(message)
                if message is None if kind is None else isinstance(message, kind):
                    return message
            time.sleep(0.02)

    def order(self, message: wire.ToAgent) -> None:
        self.links[-1].send(message)

    def start_rank(self, program: str, **changes: object) -> None:
        argv = (sys.executable, "-u", "-c", program)
        order = replace(ORDER, **{"argv": argv, **changes})  # type: ignore[arg-type]
        self.order(order)

    def log(self) -> str:
        path = rank_log(self.run_dir, 0)
        return path.read_text().partition("\n")[2] if path.exists() else ""

    def until_up(self) -> None:
        while "up" not in self.log():
            time.sleep(0.02)


@pytest.fixture
def controller(
    run_dir: Path, started_here: Callable[[], list[psutil.Process]]
) -> Iterator[Controller]:
    agent.mark_run_dir(run_dir, TOKEN)
    controller = Controller(run_dir, AgentServer("127.0.0.1", token=TOKEN))
    yield controller
    controller.server.close()
    for link in controller.links:
        link.cut()
    for process in controller.agents:
        process.wait()
    while started_here():
        time.sleep(0.05)


def test_an_agent_beats_until_it_is_told_to_leave(controller: Controller) -> None:
    process = controller.start_agent()
    hello = controller.hear(wire.AgentHello)
    assert isinstance(hello, wire.AgentHello)
    assert (hello.node, hello.pid) == ("n0", process.pid)
    controller.hear(wire.AgentBeat)
    controller.hear(wire.AgentBeat)
    controller.order(wire.Leave())
    assert process.wait() == 0


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({"TRIMTAB_NODE": "n7", "SLURMD_NODENAME": "s7"}, "n7"),
        ({"TRIMTAB_NODE": "", "SLURMD_NODENAME": "s7"}, "s7"),
        ({"TRIMTAB_NODE": "", "SLURMD_NODENAME": ""}, socket.gethostname()),
    ],
)
def test_the_nodes_name_is_the_one_it_was_given(
    controller: Controller, environment: dict[str, str], name: str
) -> None:
    controller.start_agent(environment)
    hello = controller.hear(wire.AgentHello)
    assert isinstance(hello, wire.AgentHello)
    assert hello.node == name


def test_rank_0_is_handed_the_listening_socket_of_the_store(controller: Controller) -> None:
    controller.start_agent()
    controller.hear(wire.AgentHello)
    controller.order(wire.ReservePort(host="127.0.0.3"))
    reserved = controller.hear(wire.PortReserved)
    assert isinstance(reserved, wire.PortReserved)
    program = (
        "import os, socket; descriptor = int(os.environ['TRIMTAB_STORE_FD'])\n"
        "server = socket.socket(fileno=descriptor)\n"
        "print(*server.getsockname()); print('up'); print(server.accept()[0].recv(9))"
    )
    controller.start_rank(program)
    controller.until_up()
    with socket.create_connection(("127.0.0.3", reserved.port)) as connection:
        connection.sendall(b"hello")
    ended = controller.hear(wire.RankEnded)
    assert isinstance(ended, wire.RankEnded)
    assert (ended.attempt, ended.rank, ended.exit_code) == (3, 0, 0)
    assert controller.log() == f"127.0.0.3 {reserved.port}\nup\nb'hello'\n"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.3", reserved.port))


def test_a_spare_takes_the_place_of_the_next_rank(controller: Controller) -> None:
    program = (
        "import os, socket, sys; from trimtab.launch.warm import await_order\n"
        "mark_at_start = os.environ.get('MARK')\n"
        "if sys.argv[-1] == '--warm' and not await_order(): sys.exit(0)\n"
        "server = socket.socket(fileno=int(os.environ['TRIMTAB_STORE_FD']))\n"
        "print(mark_at_start, os.environ['RANK'], server.getsockname()[0])"
    )
    argv = (sys.executable, "-P", "-c", program)
    controller.start_agent()
    controller.hear(wire.AgentHello)
    mark = EnvVar(name="MARK", value="warm")
    controller.order(wire.KeepWarm(num_spares=1, argv=argv, environment=(mark,)))
    for expected in ("warm 0 127.0.0.3", "None 0 127.0.0.3"):
        controller.order(wire.ReservePort(host="127.0.0.3"))
        controller.hear(wire.PortReserved)
        controller.start_rank(program, argv=argv)
        ended = controller.hear(wire.RankEnded)
        assert isinstance(ended, wire.RankEnded)
        assert ended.exit_code == 0, ended.last_words
        assert rank_log(controller.run_dir, 0).read_text().splitlines()[-1] == expected


def test_an_address_that_is_not_the_nodes_own_is_told(controller: Controller) -> None:
    controller.start_agent()
    controller.hear(wire.AgentHello)
    controller.order(wire.ReservePort(host="198.51.100.7"))
    failing = controller.hear(wire.NodeFailing)
    assert isinstance(failing, wire.NodeFailing)
    assert failing.reason == (
        "it cannot listen on its own address: Cannot assign requested address "
        "(while attempting to bind on address ('198.51.100.7', 0))"
    )


def test_ranks_do_not_get_the_agents_token(controller: Controller) -> None:
    controller.start_agent()
    controller.hear(wire.AgentHello)
    controller.start_rank("import os; print(dict(os.environ))")
    controller.hear(wire.RankEnded)
    assert "TRIMTAB_COLLECTOR" in controller.log()
    assert TOKEN not in controller.log()


def test_what_a_dead_rank_has_started_is_ended_too(controller: Controller) -> None:
    controller.start_agent()
    controller.hear(wire.AgentHello)
    program = (
        "import os, subprocess; child = subprocess.Popen(['sleep', '600'])\n"
        "print(child.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    controller.start_rank(program)
    ended = controller.hear(wire.RankEnded)
    assert isinstance(ended, wire.RankEnded)
    assert ended.signal == "SIGKILL"
    child = int(controller.log())
    while psutil.pid_exists(child) and psutil.Process(child).status() != "zombie":
        time.sleep(0.02)


@pytest.mark.parametrize("nonsense", [b"", b"{}\n", b"\xff\n"])
def test_without_its_controller_an_agent_has_its_ranks_save_and_ends(
    controller: Controller, nonsense: bytes
) -> None:
    process = controller.start_agent()
    controller.hear(wire.AgentHello)
    controller.start_rank(SAVES)
    controller.until_up()
    if nonsense:
        controller.links[-1].connection.sendall(nonsense)
    else:
        controller.links[-1].cut()
    assert process.wait() == 0
    assert controller.log() == "up\nsaved\n"


def test_a_new_agent_waits_for_what_an_old_one_has_left_to_save(
    controller: Controller,
) -> None:
    old = controller.start_agent()
    controller.hear(wire.AgentHello)
    controller.start_rank(SAVES)
    controller.until_up()
    old.kill()
    controller.hear(None)
    controller.start_agent()
    controller.hear(wire.AgentHello)
    assert controller.log() == "up\nsaved\n"


def test_a_new_agent_ends_what_an_old_one_has_left(
    controller: Controller, started_here: Callable[[], list[psutil.Process]]
) -> None:
    old = controller.start_agent()
    controller.hear(wire.AgentHello)
    controller.start_rank(DEAF)
    controller.until_up()
    old.kill()
    controller.hear(None)
    new = controller.start_agent(argv=impatient(controller.run_dir, controller.server.address))
    assert len(started_here()) == 2
    controller.hear(wire.AgentHello)
    assert [process.pid for process in started_here()] == [new.pid]


def test_agents_of_other_nodes_and_runs_do_not_wait(
    controller: Controller, run_dir: Path
) -> None:
    controller.start_agent()
    controller.hear(wire.AgentHello)
    first = controller.links[-1]
    controller.start_agent({"TRIMTAB_NODE": "n1"})
    controller.hear(wire.AgentHello)
    assert controller.links[-1] is not first
    first.cut()


def test_signals_are_told_and_end_nothing(controller: Controller) -> None:
    process = controller.start_agent()
    controller.hear(wire.AgentHello)
    process.send_signal(signal.SIGTERM)
    assert controller.hear(wire.AgentSignalled) == wire.AgentSignalled(signal="SIGTERM")
    controller.hear(wire.AgentBeat)


def test_without_a_controller_the_agent_says_so(run_dir: Path) -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))  # and does not listen
        answer = subprocess.run(
            impatient(run_dir, f"127.0.0.1:{deaf.getsockname()[1]}"),
            env={**os.environ, "TRIMTAB_NODE": "n0", agent.TOKEN_VARIABLE: TOKEN},
            capture_output=True,
            text=True,
            check=False,
        )
    assert answer.returncode == 1
    assert "the agent of n0 ends: " in answer.stdout
    assert "Connection refused" in answer.stdout
