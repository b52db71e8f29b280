"""Looking for slurmd's socket, with real sockets in its place."""

import os
import socket
from pathlib import Path

import pytest

from trimtab.launch.slurm.daemon import SlurmdWatch, is_listening


def test_a_listening_socket_is_seen_and_a_closed_one_is_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert is_listening(port)
    assert not is_listening(port)


def test_one_that_listens_on_ipv6_alone_is_seen_too() -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as server:
        assert is_listening(server.getsockname()[1])


def test_a_connection_is_no_listener() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as connection,
    ):
        assert not is_listening(connection.getsockname()[1])


def test_three_looks_in_a_row_must_find_nobody() -> None:
    server = socket.create_server(("127.0.0.1", 0))
    port = server.getsockname()[1]
    watch = SlurmdWatch("n1", port)
    assert watch.failure() is None
    server.close()
    assert [watch.failure(), watch.failure()] == [None, None]
    with socket.create_server(("127.0.0.1", port)):
        assert watch.failure() is None
    assert [watch.failure(), watch.failure()] == [None, None]
    assert watch.failure() == f"slurmd of n1 no longer listens on port {port}"


def test_outside_slurm_there_is_nothing_to_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURMD_NODENAME", raising=False)
    assert SlurmdWatch.of_this_node() is None


def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: str) -> None:
    """Make this the node n1 of a cluster whose scontrol answers as told."""
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\ncase "$*" in\n{answers}\nesac\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SLURMD_NODENAME", "n1")


NODE = (
    "NodeName=n1 Arch=x86_64 CoresPerSocket=1\\n   NodeAddr=127.0.0.1 Port={port} Version=22\\n"
)


def test_the_port_is_the_nodes_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        node = NODE.format(port=server.getsockname()[1])
        commands(tmp_path, monkeypatch, f"'show node n1') printf '{node}' ;;")
        watch = SlurmdWatch.of_this_node()
        assert watch is not None
        assert watch.failure() is None


def test_a_node_that_tells_no_port_has_the_clusters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        config = f"SlurmctldPort = 1\\nSlurmdPort              = {port}\\n"
        answers = f"'show node n1') echo NodeName=n1 ;;\n'show config') printf '{config}' ;;"
        commands(tmp_path, monkeypatch, answers)
        assert SlurmdWatch.of_this_node() is not None


def test_a_slurmd_that_is_not_seen_at_first_is_not_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    commands(tmp_path, monkeypatch, f"'show node n1') printf '{NODE.format(port=port)}' ;;")
    assert SlurmdWatch.of_this_node() is None
    commands(tmp_path, monkeypatch, "*) exit 1 ;;")
    assert SlurmdWatch.of_this_node() is None
