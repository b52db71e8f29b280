"""A real Ray on this machine: a head node and further nodes, each a raylet of its own.

Nothing of another Ray on the machine is touched: the cluster has its own ports and its own
folder for sessions, and every node its own address of the loopback network. Ray listens on all
interfaces whatever it is told, so that the cluster wants a token from whoever talks to it.
"""

import contextlib
import os
import re
import secrets
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from trimtab.core.errors import InputError, JobFailedError, MissingExtraError
from trimtab.launch.ray.cluster_nodes import node_name
from trimtab.launch.ray.jobs_api import JobsApi
from trimtab.orchestrator.dev_cluster import node_processes, shape
from trimtab.orchestrator.dev_cluster.daemons import Daemons, free_ports

_HEAD: Final = "n1"
_UP_TIMEOUT_S: Final = 120.0
_TRIES: Final = 3
"""How often a node is started that gives up by itself: Ray allows it 30 s, which is little for
several nodes on one busy machine."""
_OBJECT_STORE_BYTES: Final = 80_000_000
"""Nearly the least that Ray takes; ranks pass nothing through it."""
_PORTS_FILE: Final = "ports"
_TOKEN_FILE: Final = "token"  # noqa: S105  the name of one
_MOST_FOLDER_CHARS: Final = 40
"""Paths of sockets in a session's folder end after 107 characters."""
_QUIET: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_enable_worker_prestart": "0",  # else a process for each made-up CPU
    "RAY_prestart_worker_first_driver": "0",
}
_NODE_VARIABLE: Final = "TRIMTAB_DEV_CLUSTER_NODE"
"""Everything that runs on a node of the cluster has it in its environment."""
_PROC: Final = Path("/proc")


@dataclass(frozen=True, slots=True, kw_only=True)
class RayCluster:
    """A development cluster by its folder."""

    folder: Path

    @property
    def address(self) -> str:
        """Of the Jobs API.

        Raises:
            InputError: There is no cluster in the folder.
        """
        return f"http://127.0.0.1:{self._ports()[1]}"

    @property
    def gcs_address(self) -> str:
        """What `ray.init` and `ray status` take.

        Raises:
            InputError: There is no cluster in the folder.
        """
        return f"{_address(_HEAD)}:{self._ports()[0]}"

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which Ray's commands for jobs, and Trimtab, find the cluster."""
        return {"RAY_ADDRESS": self.address, **self._token_variables}

    @property
    def is_running(self) -> bool:
        """Whether its head node lives."""
        return _HEAD in Daemons(self.folder).alive

    def start(self, *, num_nodes: int, gpus_per_node: int, cpus_per_node: int) -> None:
        """Make the cluster if it is not there, and start what does not run.

        Args:
            num_nodes: The head is one of them.
            gpus_per_node: Fake ones.
            cpus_per_node: As Ray is told.

        Raises:
            InputError: The folder holds something else, or a cluster of another shape.
            JobFailedError: A node does not come up; the message holds its last words.
            MissingExtraError: Ray is not installed.
        """
        self._check_machine()
        wanted = shape.Shape(
            kind="ray",
            num_nodes=num_nodes,
            gpus_per_node=gpus_per_node,
            cpus_per_node=cpus_per_node,
        )
        shape.claim(self.folder, wanted)
        with shape.at_work(self.folder, "ray"):
            self._configure()
            daemons = Daemons(self.folder)
            if _HEAD not in daemons.alive:
                for node in daemons.alive:
                    self._kill(daemons, node, hard=True)  # of a head that is gone
            self._start_nodes(daemons, [_HEAD])
            self._start_nodes(daemons, [f"n{index}" for index in range(2, num_nodes + 1)])

    def stop(self) -> None:
        """End the cluster's jobs and nodes, then remove its folder.

        Raises:
            InputError: There is no cluster in the folder.
        """
        with shape.at_work(self.folder, "ray"):
            daemons = Daemons(self.folder)
            for node in self._all_nodes():
                self._kill(daemons, node, hard=True)
            shape.remove(self.folder)

    def kill_node(self, node: str, *, hard: bool = False) -> None:
        """Kill a node's raylet; with `hard` also all that jobs run there, as a power cut does.

        Args:
            node: Its name, as `states` and Trimtab's runs call it.
            hard: Whether to leave nothing.

        Raises:
            InputError: There is no such node, or it is the head, with which all others end.
        """
        with shape.at_work(self.folder, "ray"):
            daemons = Daemons(self.folder)
            names = self._names(daemons)
            if node not in names:
                raise InputError(
                    f"node: expected one of {', '.join(names)}, got {node!r}; "
                    "`trimtab dev-cluster ray status` shows them"
                )
            if names[node] == _HEAD:
                raise InputError(
                    f"node: {node} is the head, without which the cluster is none; "
                    "`trimtab dev-cluster ray stop` ends all of it"
                )
            self._kill(daemons, names[node], hard=hard)

    def start_node(self, node: str) -> None:
        """Start a node in the place of a killed one: to Ray it is a new one, by a new name.

        Raises:
            InputError: There is no such node, it lives, or the cluster does not run.
            JobFailedError: It does not come up; the message holds its last words.
        """
        with shape.at_work(self.folder, "ray"):
            daemons = Daemons(self.folder)
            if _HEAD not in daemons.alive:
                raise InputError(
                    f"--folder: the cluster in {self.folder} does not run; "
                    "`trimtab dev-cluster ray start` starts it"
                )
            dead = {_address(each): each for each in self._all_nodes()}
            address = node.rpartition("-")[0]
            if address not in dead or node in self._names(daemons):
                raise InputError(f"node: expected the name of a killed node, got {node!r}")
            self._start_nodes(daemons, [dead[address]])

    def states(self) -> dict[str, str]:
        """What is known of each node, by name: `head`, `alive`, or `dead` where none runs."""
        daemons = Daemons(self.folder)
        alive = self._names(daemons)
        running = set(alive.values())
        states = {name: "head" if node == _HEAD else "alive" for name, node in alive.items()}
        missing = [node for node in self._all_nodes() if node not in running]
        return states | {f"{_address(node)}-?": "dead" for node in missing}

    def _configure(self) -> None:
        """Choose ports and a token, unless that has been done; the ports last."""
        ports, token = self.folder / _PORTS_FILE, self.folder / _TOKEN_FILE
        if not ports.exists():
            token.touch(mode=0o600)
            token.write_text(secrets.token_hex(32))
            ports.write_text(" ".join(map(str, free_ports(3))))

    @property
    def _token_variables(self) -> dict[str, str]:
        path = self.folder / _TOKEN_FILE
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path)}

    def _start_nodes(self, daemons: Daemons, nodes: list[str]) -> None:
        """Start those that do not run at the same time, and wait for all of them."""
        for node in nodes:
            self._start_node(daemons, node)
        for node in nodes:
            for tries_left in reversed(range(_TRIES)):
                try:
                    self._await_node(daemons, node)
                    break
                except JobFailedError:
                    if not tries_left or node in daemons.alive:
                        raise
                    self._start_node(daemons, node)

    def _start_node(self, daemons: Daemons, node: str) -> None:
        if node not in daemons.alive:
            self._end_leftovers(node)
            daemons.start(node, self._argv(node), environment=self._variables(node))

    def _await_node(self, daemons: Daemons, node: str) -> None:
        daemons.await_answer(
            node, lambda: self._is_up(node), what=f"node {node}", timeout_s=_UP_TIMEOUT_S
        )

    def _is_up(self, node: str) -> bool:
        node_id = _raylet_node_id(self._processes_of(node))
        if node_id is None:
            return False
        with contextlib.suppress(InputError, ValueError):  # its dashboard is not up yet
            api = JobsApi(self.address, environment=self.environment)
            return node_id in {each.node_id for each in api.live_nodes()}
        return False

    def _argv(self, node: str) -> list[str]:
        made = shape.made_shape(self.folder)
        assert made is not None  # claimed
        gcs_port, dashboard_port, client_port = self._ports()
        argv = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block"]
        argv += [f"--node-ip-address={_address(node)}", f"--temp-dir={self.folder / node}"]
        argv += [f"--num-cpus={made.cpus_per_node}", f"--num-gpus={made.gpus_per_node}"]
        argv += [f"--object-store-memory={_OBJECT_STORE_BYTES}", "--disable-usage-stats"]
        argv += ["--min-worker-port=0", "--max-worker-port=0", "--log-color=false"]
        argv += ["--dashboard-agent-listen-port=0"]
        if node != _HEAD:
            return [*argv, f"--address={self.gcs_address}"]
        argv += ["--head", f"--port={gcs_port}", f"--ray-client-server-port={client_port}"]
        return [*argv, "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard_port}"]

    def _variables(self, node: str) -> dict[str, str]:
        return {**_QUIET, **self._token_variables, _NODE_VARIABLE: f"{self.folder}:{node}"}

    def _kill(self, daemons: Daemons, node: str, *, hard: bool) -> None:
        """Kill `ray start`, with which the kernel kills the raylet that it started."""
        raylets = {pid for pid in self._processes_of(node) if _is_raylet(pid)}
        node_processes.kill_all(frozenset(raylets))
        daemons.kill(node)
        if hard:
            self._end_leftovers(node)

    def _end_leftovers(self, node: str) -> None:
        while left := self._processes_of(node):
            node_processes.kill_all(left)
            time.sleep(0.1)

    def _processes_of(self, node: str) -> frozenset[int]:
        mark = f"{_NODE_VARIABLE}={self.folder}:{node}".encode()
        found = set()
        for path in _PROC.glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has ended, or is another user's
                if mark in (path / "environ").read_bytes().split(b"\0"):
                    found.add(int(path.name))
        return frozenset(found - {os.getpid()})

    def _names(self, daemons: Daemons) -> dict[str, str]:
        """The nodes that run, by the name that a job calls them."""
        ids = {node: _raylet_node_id(self._processes_of(node)) for node in daemons.alive}
        return {node_name(_address(node), ids_): node for node, ids_ in ids.items() if ids_}

    def _all_nodes(self) -> list[str]:
        made = shape.made_shape(self.folder)
        return [] if made is None else [f"n{i}" for i in range(1, made.num_nodes + 1)]

    def _ports(self) -> tuple[int, int, int]:
        """Of the head's global control store, its dashboard and its server for Ray Client."""
        try:
            gcs, dashboard, client = (self.folder / _PORTS_FILE).read_text().split()
        except (OSError, ValueError) as error:
            raise InputError(
                f"--folder: expected a Ray cluster in {self.folder}; "
                "`trimtab dev-cluster ray start` makes one"
            ) from error
        return int(gcs), int(dashboard), int(client)

    def _check_machine(self) -> None:
        from importlib.util import find_spec

        if find_spec("ray") is None:
            raise MissingExtraError("dev-cluster: Ray is missing; pip install 'trimtab[ray]'")
        if len(str(self.folder)) > _MOST_FOLDER_CHARS:
            raise InputError(
                f"--folder: expected at most {_MOST_FOLDER_CHARS} characters, for Ray makes "
                f"sockets below it, got {str(self.folder)!r}"
            )


def _address(node: str) -> str:
    """Every node has an address of its own, all of them of the loopback interface.

    127.0.0.1 is nobody's: Ray would take the machine's outer address in its place.
    """
    return f"127.0.0.{int(node.removeprefix('n')) + 1}"


def _is_raylet(pid: int) -> bool:
    return Path(_command(pid)[0]).name == "raylet"


def _raylet_node_id(pids: frozenset[int]) -> str | None:
    """The id that a raylet among the processes was started with."""
    for pid in pids:
        if _is_raylet(pid):
            for argument in _command(pid):
                if match := re.fullmatch(r"--node_id=([0-9a-f]+)", argument):
                    return match[1]
    return None


def _command(pid: int) -> list[str]:
    try:
        return (_PROC / str(pid) / "cmdline").read_text(errors="replace").split("\0")
    except OSError:  # it has ended
        return [""]
