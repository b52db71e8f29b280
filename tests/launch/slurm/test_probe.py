import socket
from collections.abc import Iterator

import pytest

from trimtab.launch.slurm.probe import silent_nodes
from trimtab.launch.slurm.topology import NodeInfo


@pytest.fixture
def open_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def node(name: str, *, port: int, address: str = "127.0.0.1") -> NodeInfo:
    return NodeInfo(name=name, address=address, state="IDLE", port=port)


def test_only_nodes_that_do_not_answer_are_silent(open_port: int) -> None:
    nodes = [node("n1", port=open_port), node("n2", port=1), node("n3", port=open_port)]
    assert silent_nodes(nodes) == {
        "n2": "its slurmd does not answer at 127.0.0.1:1: [Errno 111] Connection refused"
    }


def test_a_node_without_a_known_port_or_no_node_is_not_silent() -> None:
    assert silent_nodes([node("n1", port=0)]) == {}
    assert silent_nodes([]) == {}
