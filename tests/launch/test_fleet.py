"""A controller's fleet of real agents with real ranks, on nodes that are all this host."""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]  # no stubs in the pinned set
import pytest

from trimtab.core.errors import JobFailedError
from trimtab.core.scheduling import RestartSpec
from trimtab.launch import wire
from trimtab.launch.api import AgentOrder, AgentStep, RankExit
from trimtab.launch.fleet import NodeGone, RankFroze, RoomWanted

NodesHere = Callable[..., Any]

FOREVER = "import time; print('up'); time.sleep(600)"
DEAF = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up'); time.sleep(600)"
SAVES = (
    "import signal, sys, time\n"
    "signal.signal(15, lambda *_: (print('saved'), sys.exit(0)))\n"
    "print('up')\n"
    "while True: time.sleep(0.02)"
)


def wait_up(nodes: Any, *ranks: int) -> None:
    nodes.until(lambda: all("up" in nodes.log(rank) for rank in ranks))


def connected(order: AgentOrder) -> socket.socket:
    host, _, port = order.controller_address.rpartition(":")
    return socket.create_connection((host, int(port)))


def test_ranks_are_numbered_in_the_order_of_the_nodes(nodes_here: NodesHere) -> None:
    nodes = nodes_here(2)
    backwards = nodes.gather()[::-1]
    program = (
        "import os; e = os.environ; print(*(e[k] for k in ('TRIMTAB_NODE', 'RANK', "
        "'WORLD_SIZE', 'LOCAL_RANK', 'LOCAL_WORLD_SIZE', 'GROUP_RANK', 'GROUP_WORLD_SIZE', "
        "'MASTER_ADDR', 'TRIMTAB_NODE_ADDRESS', 'TORCHELASTIC_RESTART_COUNT')))"
    )
    nodes.start(program, ranks_per_node=2, nodes=backwards)
    assert nodes.fleet.running == (0, 1, 2, 3)
    assert [nodes.fleet.node_of(rank) for rank in range(4)] == ["n1", "n1", "n0", "n0"]
    ended = nodes.until_ended()
    assert sorted(ended, key=lambda each: each.rank) == [
        RankExit(rank=rank, exit_code=0) for rank in range(4)
    ]
    assert [nodes.log(rank) for rank in range(4)] == [
        "n1 0 4 0 2 0 2 127.0.0.2 127.0.0.2 0\n",
        "n1 1 4 1 2 0 2 127.0.0.2 127.0.0.2 0\n",
        "n0 2 4 0 2 1 2 127.0.0.2 127.0.0.1 0\n",
        "n0 3 4 1 2 1 2 127.0.0.2 127.0.0.1 0\n",
    ]


def test_agents_tell_what_is_on_their_nodes_and_stay_for_the_next_attempt(
    nodes_here: NodesHere,
) -> None:
    nodes = nodes_here(2)
    asked = nodes.allocation.acquire(2, exclude=())
    found = nodes.fleet.gather(asked)
    assert set(found) == {"n0", "n1"}
    assert found["n1"].host == socket.gethostname()
    assert found["n1"].num_cores == len(os.sched_getaffinity(0))
    assert any(interface.endswith(" 127.0.0.1") for interface in found["n1"].interfaces)
    assert found["n1"].sees_run_dir
    nodes.start("print('first')")
    nodes.until_ended()
    nodes.start("import os; print('second', os.environ['TORCHELASTIC_RESTART_COUNT'])")
    nodes.until_ended()
    assert nodes.fleet.gather(asked) == found
    assert nodes.log(1) == "second 1\n"


def test_a_script_can_listen_on_the_port_it_is_told(nodes_here: NodesHere) -> None:
    nodes = nodes_here(2)
    program = (
        "import os, socket, time\n"
        "place = (os.environ['MASTER_ADDR'], int(os.environ['MASTER_PORT']))\n"
        "if os.environ['RANK'] == '0':\n"
        "    server = socket.create_server(place); print(server.accept()[0].recv(9))\n"
        "else:\n"
        "    while True:\n"
        "        try: peer = socket.create_connection(place)\n"
        "        except ConnectionRefusedError: time.sleep(0.02); continue\n"
        "        if peer.getsockname() != place: peer.sendall(b'hello'); break\n"
        "        peer.close()"  # it had met itself: TCP allows that before anyone listens
    )
    nodes.start(program)
    assert {each.exit_code for each in nodes.until_ended()} == {0}
    assert nodes.log(0) == "b'hello'\n"


def test_ends_are_told_once_with_code_or_signal_and_last_words(nodes_here: NodesHere) -> None:
    nodes = nodes_here()
    program = (
        "import os, sys; print('the end')\n"
        "if os.environ['RANK'] == '0': sys.exit(93)\n"
        "os.kill(os.getpid(), 9)"
    )
    nodes.start(program, ranks_per_node=2)
    assert sorted(nodes.until_ended(), key=lambda each: each.rank) == [
        RankExit(rank=0, exit_code=93, last_words="the end"),
        RankExit(rank=1, signal="SIGKILL", last_words="the end"),
    ]
    assert nodes.fleet.poll() == ()
    assert nodes.fleet.node_of(0) is None


def test_a_frozen_rank_is_told_once_with_what_froze_it(nodes_here: NodesHere) -> None:
    nodes = nodes_here()
    nodes.start("import os; print(os.getpid(), 'up'); import time; time.sleep(600)")
    wait_up(nodes, 0)
    pid = int(nodes.log(0).split()[0])
    os.kill(pid, signal.SIGSTOP)
    nodes.until(lambda: bool(nodes.news))
    nodes.fleet.kill()
    assert nodes.until_ended() == [
        RankFroze(rank=0, reason=f"stopped by a signal (process {pid})"),
        RankExit(rank=0, signal="SIGKILL", last_words=f"{pid} up"),
    ]


def test_stopping_lets_ranks_save_and_killing_does_not(nodes_here: NodesHere) -> None:
    nodes = nodes_here(2)
    program = f"import os\nif os.environ['RANK'] == '0':\n    exec({SAVES!r})\nexec({DEAF!r})"
    nodes.start(program)
    wait_up(nodes, 0, 1)
    nodes.fleet.stop()
    nodes.until(lambda: nodes.fleet.running == (1,))
    nodes.fleet.kill()
    assert nodes.until_ended() == [
        RankExit(rank=0, exit_code=0),
        RankExit(rank=1, signal="SIGKILL", last_words="up"),
    ]
    assert nodes.log(0) == "up\nsaved\n"


def test_a_killed_agent_is_a_lost_node_whose_ranks_end(
    nodes_here: NodesHere, started_here: Callable[[], list[psutil.Process]]
) -> None:
    nodes = nodes_here(2)
    nodes.start(FOREVER)
    wait_up(nodes, 0, 1)
    nodes.allocation.agents["n1"].kill()
    nodes.until(lambda: bool(nodes.news))
    assert nodes.news == [NodeGone(node="n1", reason="the connection to its agent broke")]
    assert nodes.fleet.running == (0,)
    nodes.until(lambda: len(started_here()) == 2)  # n0's agent and rank
    nodes.fleet.kill()
    nodes.until_ended()


def test_a_stopped_agent_is_a_lost_node_and_ends_when_it_runs_again(
    nodes_here: NodesHere, started_here: Callable[[], list[psutil.Process]]
) -> None:
    nodes = nodes_here(2)
    nodes.start(SAVES)
    wait_up(nodes, 0, 1)
    agent = nodes.allocation.agents["n1"]
    agent.send_signal(signal.SIGSTOP)
    nodes.until(lambda: bool(nodes.news))
    (gone,) = nodes.news
    assert gone.node == "n1"
    assert gone.reason.startswith("its agent has sent nothing for ")
    agent.send_signal(signal.SIGCONT)
    nodes.until(lambda: agent.poll() is not None)
    assert nodes.log(1) == "up\nsaved\n"
    nodes.until(lambda: len(started_here()) == 2)


def test_a_node_that_was_lost_before_the_start_runs_no_rank(nodes_here: NodesHere) -> None:
    nodes = nodes_here(2)
    gathered = nodes.gather()
    nodes.allocation.agents["n1"].kill()
    nodes.allocation.agents["n1"].wait()
    nodes.start("print('up')", nodes=gathered)
    gone, ended = nodes.until_ended()
    assert isinstance(gone, NodeGone)
    assert gone.node == "n1"
    assert ended == RankExit(rank=0, exit_code=0)


def test_the_end_of_an_agent_without_ranks_is_no_news(nodes_here: NodesHere) -> None:
    nodes = nodes_here(2)
    gathered = nodes.gather()
    nodes.start(SAVES, nodes=gathered[:1])
    wait_up(nodes, 0)
    nodes.allocation.agents["n1"].kill()
    nodes.allocation.agents["n1"].wait()
    nodes.fleet.stop()
    assert nodes.until_ended() == [RankExit(rank=0, exit_code=0)]


def test_without_the_first_node_there_is_no_rendezvous(nodes_here: NodesHere) -> None:
    nodes = nodes_here()
    gathered = nodes.gather()
    nodes.allocation.agents["n0"].kill()
    with pytest.raises(JobFailedError, match="node n0 gives no port for the ranks' rendezvous"):
        nodes.start(FOREVER, nodes=gathered)
    assert nodes.fleet.running == ()


def test_a_lost_node_can_be_gathered_again(nodes_here: NodesHere) -> None:
    nodes = nodes_here()
    nodes.start(FOREVER)
    nodes.allocation.agents["n0"].kill()
    nodes.until_ended()
    nodes.start("print('again')")
    nodes.until_ended()
    assert nodes.news[-1] == RankExit(rank=0, exit_code=0)
    assert nodes.log(0) == "again\n"


def test_spare_nodes_are_warm_too(nodes_here: NodesHere) -> None:
    program = (
        "import sys; from trimtab.launch.warm import await_order\n"
        "is_warm = sys.argv[-1] == '--warm'\n"
        "if is_warm and not await_order(): sys.exit(0)\n"
        "print('warm' if is_warm else 'cold')"
    )
    nodes = nodes_here(2)
    first, second = nodes.allocation.acquire(2, exclude=())
    nodes.fleet.gather([first])
    nodes.start(program, nodes=[first])
    nodes.until_ended()
    assert nodes.log(0) == "cold\n"

    request = nodes.request(program, 1, 1, "")
    job = replace(request.job, restart=RestartSpec(spare_nodes=1, warm_spares=True))
    nodes.fleet.keep_warm(replace(request, job=job), exclude=())
    spare_agent = psutil.Process(nodes.allocation.agents["n1"].pid)
    nodes.until(spare_agent.children)
    for node in (second, first):
        assert set(nodes.fleet.gather([node])) == {node.name}
        nodes.start(program, nodes=[node])
        nodes.until_ended()
        assert nodes.log(0) == "warm\n"
    assert len(nodes.allocation.agents) == 2


def test_a_forgotten_node_ends_its_ranks_and_tells_nothing(
    nodes_here: NodesHere, started_here: Callable[[], list[psutil.Process]]
) -> None:
    nodes = nodes_here(2)
    nodes.start(DEAF)
    wait_up(nodes, 0, 1)
    nodes.fleet.forget("n1")
    nodes.fleet.forget("never there")
    assert nodes.fleet.running == (0,)
    nodes.until(lambda: len(started_here()) == 3)  # both agents and rank 0
    nodes.fleet.kill()
    assert [each.rank for each in nodes.until_ended()] == [0]


def test_ranks_that_cannot_be_started_are_a_node_that_cannot_be_used(
    nodes_here: NodesHere, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    nodes = nodes_here()
    nodes.start(FOREVER, ranks_per_node=2, folder=f"{tmp_path}/file/folder")
    (gone,) = nodes.until_ended()
    assert gone.node == "n0"
    assert "Not a directory" in gone.reason


def test_a_signal_to_an_agent_is_a_wish_of_the_scheduler(nodes_here: NodesHere) -> None:
    nodes = nodes_here()
    nodes.start(SAVES)
    wait_up(nodes, 0)
    nodes.allocation.agents["n0"].send_signal(signal.SIGTERM)
    nodes.until(lambda: bool(nodes.news))
    assert nodes.news == [RoomWanted(node="n0", signal="SIGTERM")]
    assert nodes.fleet.running == (0,)


def test_a_wish_that_comes_between_attempts_is_not_lost(nodes_here: NodesHere) -> None:
    nodes = nodes_here()
    nodes.gather()
    nodes.allocation.agents["n0"].send_signal(signal.SIGINT)
    while not nodes.fleet._news:  # it tells twice a second
        nodes.gather()
        time.sleep(0.02)
    nodes.start("print('up')")
    assert nodes.until_ended()[0] == RoomWanted(node="n0", signal="SIGINT")


def test_logs_come_from_nodes_that_do_not_see_the_run_directory(
    nodes_here: NodesHere, tmp_path: Path
) -> None:
    there = tmp_path / "disk of the node" / "run"
    nodes = nodes_here(elsewhere=there)
    (hello,) = nodes.fleet.gather(nodes.allocation.acquire(1, exclude=())).values()
    assert not hello.sees_run_dir
    program = (
        "import os; print(open(os.environ['TRIMTAB_REQUEST']).read())\n"
        "for line in range(20_000): print(line, 'äöü' * 5)"
    )
    nodes.start(program)
    nodes.until_ended()
    lines = nodes.log(0).splitlines()
    assert lines[0] == "the request"
    assert lines[1:] == [f"{line} {'äöü' * 5}" for line in range(20_000)]
    assert (there / "request.json").read_text() == "the request"
    assert (there / "logs" / "rank-0000.log").read_text().endswith(nodes.log(0))


def test_an_agent_with_a_wrong_token_is_refused(
    nodes_here: NodesHere, capfd: pytest.CaptureFixture[str]
) -> None:
    nodes = nodes_here(token="wrong, and not of ASCII alone: é")
    assert nodes.fleet.gather(nodes.allocation.acquire(1, exclude=())) == {}
    assert "the controller is gone" in capfd.readouterr().out


@pytest.mark.parametrize(
    "nonsense",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff\xfe\n",
        b"[" * 100_000,
        b"{}\n",
        b'{"token": 7}\n',
        '{"token": "é"}\n'.encode(),
        b"\n",
    ],
)
def test_nonsense_instead_of_the_token_is_cut_off_without_harm(
    nodes_here: NodesHere, nonsense: bytes
) -> None:
    nodes = nodes_here()

    def talk(order: AgentOrder) -> AgentStep:
        # It may be cut while it is still talking.
        with connected(order) as connection, contextlib.suppress(ConnectionError):
            connection.sendall(nonsense)
            assert connection.recv(1) == b""
        nodes.allocation.stand_in = None
        asked = nodes.allocation.acquire(1, exclude=())
        step: AgentStep = nodes.allocation.start_agents(asked, order=order)
        return step

    nodes.allocation.stand_in = talk
    nodes.start("print('up')")
    assert nodes.until_ended() == [RankExit(rank=0, exit_code=0)]


@pytest.mark.parametrize("nonsense", [b"\xff\n", b"{}\n", b'{"kind": "Leave"}\n', b"[" * 9_999])
def test_an_agent_that_turns_to_nonsense_is_a_lost_node(
    nodes_here: NodesHere, nonsense: bytes
) -> None:
    hello = wire.AgentHello(
        node="n0",
        host="h",
        pid=1,
        version="0",
        num_cores=1,
        num_gpus=0,
        gpu="",
        interfaces=(),
        sees_run_dir=True,
    )

    def talk(order: AgentOrder) -> None:
        with connected(order) as connection, connection.makefile("rb") as orders:
            connection.sendall(wire.token_line(order.token) + wire.line(hello))
            assert b"ReservePort" in orders.readline()
            connection.sendall(wire.line(wire.PortReserved(port=1)))
            assert b"StartRanks" in orders.readline()
            connection.sendall(nonsense + b"\n")
            assert orders.read() == b"", "it is cut off"

    class Talker(threading.Thread):
        """In place of an agent's step."""

        def poll(self) -> None:
            return None

        def end(self) -> None:
            self.join()

    def start_talking(order: AgentOrder) -> AgentStep:
        talker = Talker(target=talk, args=(order,))
        talker.start()
        return talker

    nodes = nodes_here(stand_in=start_talking)
    nodes.start("print('up')")
    assert nodes.until_ended() == [
        NodeGone(node="n0", reason="the connection to its agent broke")
    ]
