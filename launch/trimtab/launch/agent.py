"""The agent of a node: starts, watches and ends its ranks as the controller says.

    TRIMTAB_AGENT_TOKEN=... python -P -m trimtab.launch.agent RUN_DIR HOST:PORT [--lock FD]

It outlives attempts. When the controller is gone it has the ranks write a checkpoint and ends.
Its name comes from `TRIMTAB_NODE`, else from Slurm, else from the host. Of a run there is one
agent on a node at a time: it holds the node's lock together with its ranks, and a new agent
ends what an old one has left.
"""

import argparse
import contextlib
import hashlib
import os
import queue
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import BinaryIO, Final

from trimtab.core import serde
from trimtab.core.errors import InputError, JobFailedError, TrimtabError
from trimtab.launch import locks, wire
from trimtab.launch.facts import node_facts
from trimtab.launch.interfaces import interface_environment
from trimtab.launch.logs import LogTail, rank_log
from trimtab.launch.processes import RankOrder, RankProcesses
from trimtab.launch.rank_environment import rank_environment
from trimtab.launch.ray.actor_watch import ActorWatch
from trimtab.launch.slurm.daemon import SlurmdWatch
from trimtab.launch.spares import SparePool
from trimtab.launch.staging import STAGE_VARIABLE

TOKEN_VARIABLE: Final = "TRIMTAB_AGENT_TOKEN"  # noqa: S105  the name of one
NODE_VARIABLE: Final = "TRIMTAB_NODE"

_MARK: Final = ".controller"
"""In the run directory: the controller's token, as nobody can use it."""
_TURN_S: Final = 0.05
_LOOK_S: Final = 0.5
"""Period of the looks at frozen ranks, at what keeps the node, and at logs to send."""
_BEAT_S: Final = 1.0
_CONNECT_S: Final = 15.0
_ORPHAN_GRACE_S: Final = 30.0
"""How long ranks may take to save and end after the controller has gone."""
_LEFTOVER_GRACE_S: Final = 35.0
"""How long a new agent waits for an old one's ranks before it ends them itself."""


def command(run_dir: Path, controller_address: str) -> tuple[str, ...]:
    """The agent's command line."""
    module = "trimtab.launch.agent"
    return (sys.executable, "-P", "-m", module, str(run_dir), controller_address)


def mark_run_dir(run_dir: Path, token: str) -> None:
    """Let agents with this token see that they share the controller's run directory."""
    (run_dir / _MARK).write_text(_mark(token))


def is_run_dir_of(run_dir: Path, token: str) -> bool:
    """Whether a directory is that of the controller with this token.

    One of the same name may be this node's own: of a time when the controller ran here.
    """
    try:
        return (run_dir / _MARK).read_text() == _mark(token)
    except OSError:
        return False


class Agent:
    """One node's ranks, at the end of a connection to the controller."""

    def __init__(
        self,
        run_dir: Path,
        connection: socket.socket,
        *,
        node: str,
        sees_run_dir: bool,
        held_fds: tuple[int, ...],
        keeps_node: SlurmdWatch | ActorWatch | None,
    ) -> None:
        self._run_dir = run_dir
        self._connection = connection
        self._node = node
        self._held_fds = held_fds
        self._orders: queue.SimpleQueue[wire.ToAgent | None] = queue.SimpleQueue()
        self._ranks = RankProcesses()
        self._spares = SparePool(held_fds)
        self._attempt = 0
        self._reserved: socket.socket | None = None
        self._logs: dict[int, LogTail] = {}
        """Of the ranks whose output is sent over."""
        self._keeps_node = keeps_node
        self._signals: list[str] = []
        self._leaving = False
        self._sees_run_dir = sees_run_dir

    def note_signal(self, number: int, _frame: FrameType | None) -> None:
        """The scheduler's wish, told to the controller with the next turn."""
        self._signals.append(signal.Signals(number).name)

    def run(self) -> None:
        """Serve until told to leave, or until the controller is gone."""
        self._send(node_facts(node=self._node, sees_run_dir=self._sees_run_dir))
        threading.Thread(target=self._receive, name="orders", daemon=True).start()
        look_s = beat_s = time.monotonic()
        try:
            while not self._leaving:
                self._take_orders()
                self._tell_exits()
                now_s = time.monotonic()
                if now_s >= look_s:
                    look_s = now_s + _LOOK_S
                    self._look_around()
                if now_s >= beat_s:
                    beat_s = now_s + _BEAT_S
                    self._send(wire.AgentBeat())
                time.sleep(_TURN_S)
        except OSError:
            self._end_as_orphan()
        finally:
            self._spares.end()
            self._ranks.kill()
            self._ranks.wait()

    def _receive(self) -> None:
        with (
            contextlib.suppress(OSError, InputError, UnicodeDecodeError),
            self._connection.makefile("rb") as stream,
        ):
            while text := stream.readline(wire.MAX_LINE_BYTES):
                self._orders.put(serde.from_json(wire.ToAgent, text.decode()))  # type: ignore[arg-type]  # a union
        self._orders.put(None)

    def _take_orders(self) -> None:
        while not self._orders.empty():
            match self._orders.get():
                case wire.ReservePort(host=host):
                    self._reserve_port(host)
                case wire.StartRanks() as order:
                    self._start(order)
                case wire.KeepWarm() as order:
                    self._keep_warm(order)
                case wire.StopRanks():
                    self._ranks.stop()
                case wire.KillRanks():
                    self._ranks.kill()
                case wire.Leave():
                    self._leaving = True
                case None:
                    raise ConnectionError("the controller is gone")

    def _reserve_port(self, host: str) -> None:
        self._free_port()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            self._reserved = socket.create_server((host, 0), family=family, backlog=4096)
        except OSError as error:
            reason = f"it cannot listen on its own address: {error.strerror}"
            self._send(wire.NodeFailing(reason=reason))
            return
        self._send(wire.PortReserved(port=self._reserved.getsockname()[1]))

    def _free_port(self) -> None:
        if self._reserved is not None:
            self._reserved.close()
            self._reserved = None

    def _start(self, order: wire.StartRanks) -> None:
        self._attempt = order.attempt
        self._ranks = RankProcesses()
        try:
            self._make_folders(order)
            for local_rank in range(order.num_ranks):
                self._start_rank(order, local_rank)
        except (TrimtabError, OSError) as error:
            self._ranks.kill()
            self._send(wire.RanksRefused(attempt=order.attempt, reason=str(error)))
        finally:
            self._free_port()

    def _make_folders(self, order: wire.StartRanks) -> None:
        Path(order.folder).mkdir(parents=True, exist_ok=True)
        if self._sees_run_dir:
            return
        self._run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self._run_dir / order.request_name).write_text(order.request_text, encoding="utf-8")
        ranks = range(order.first_rank, order.first_rank + order.num_ranks)
        self._logs = {rank: LogTail(rank_log(self._run_dir, rank)) for rank in ranks}

    def _start_rank(self, order: wire.StartRanks, local_rank: int) -> None:
        rank = order.first_rank + local_rank
        store_fd = None
        if rank == 0 and self._reserved is not None:
            if order.rank_takes_socket:
                store_fd = self._reserved.fileno()
            else:
                self._free_port()
        rank_order = RankOrder(
            rank=rank,
            argv=order.argv,
            folder=Path(order.folder),
            environment=rank_environment(
                order,
                local_rank=local_rank,
                node=self._node,
                run_dir=self._run_dir,
                store_fd=store_fd,
                inherited=_inherited(order.node_address),
            ),
            log=rank_log(self._run_dir, rank),
            attempt=order.attempt,
            inherited_fds=self._held_fds + (() if store_fd is None else (store_fd,)),
        )
        spare = self._spares.take(rank_order)
        if spare is None:
            self._ranks.start(rank_order)
        else:
            self._ranks.adopt(rank_order, spare)

    def _keep_warm(self, order: wire.KeepWarm) -> None:
        shared = {variable.name: variable.value for variable in order.environment}
        environment = _own_environment() | shared
        try:
            self._spares.keep(order.num_spares, argv=order.argv, environment=environment)
        except OSError as error:
            _say(f"a spare could not be started, so a restart will take longer: {error}")

    def _tell_exits(self) -> None:
        for ended in self._ranks.poll():
            while self._send_log(ended.rank):
                pass  # all of it, before its end is told
            self._send(
                wire.RankEnded(
                    attempt=self._attempt,
                    rank=ended.rank,
                    exit_code=ended.exit_code,
                    signal=ended.signal,
                    last_words=ended.last_words,
                )
            )

    def _look_around(self) -> None:
        for rank, reason in self._ranks.frozen().items():
            self._send(wire.RankStopped(attempt=self._attempt, rank=rank, reason=reason))
        if self._keeps_node is not None and (failing := self._keeps_node.failure()):
            self._send(wire.NodeFailing(reason=failing))
        while self._signals:
            self._send(wire.AgentSignalled(signal=self._signals.pop(0)))
        for rank in self._logs:
            self._send_log(rank)

    def _send_log(self, rank: int) -> bool:
        """Send some of what is new in a rank's log; whether there was any."""
        log = self._logs.get(rank)
        text = "" if log is None else log.read_new()
        if log is None or not text:
            return False
        self._send(wire.LogWritten(name=log.path.name, text=text))
        return True

    def _send(self, message: wire.FromAgent) -> None:
        self._connection.sendall(wire.line(message))

    def _end_as_orphan(self) -> None:
        _say("the controller is gone: the ranks write a checkpoint and end")
        self._ranks.stop()
        deadline_s = time.monotonic() + _ORPHAN_GRACE_S
        while self._ranks.running and time.monotonic() < deadline_s:
            self._ranks.poll()
            time.sleep(_TURN_S)


def main(argv: Sequence[str]) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="trimtab.launch.agent")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("controller")
    parser.add_argument("--lock", type=int, help="descriptor of the run's locked file")
    options = parser.parse_args(argv)
    node = os.environ.get(NODE_VARIABLE) or os.environ.get("SLURMD_NODENAME")
    node = node or socket.gethostname()
    try:
        with locks.open_node_lock(options.run_dir, node) as lock:
            _end_leftovers(lock)
            try:
                _serve(options, node=node, lock=lock)
            finally:
                _remove_staged(options.run_dir)
    except (TrimtabError, OSError) as error:
        _say(f"the agent of {node} ends: {error}")
        return 1
    return 0


def _serve(options: argparse.Namespace, *, node: str, lock: BinaryIO) -> None:
    """Be the agent of the controller that `options` name, while holding the node's lock."""
    token = os.environ[TOKEN_VARIABLE]
    keeps_node = ActorWatch.of_this_process() or SlurmdWatch.of_this_node()
    held = (lock.fileno(),) if options.lock is None else (lock.fileno(), options.lock)
    agent = Agent(
        options.run_dir,
        _connect(options.controller, token=token),
        node=node,
        sees_run_dir=is_run_dir_of(options.run_dir, token),
        held_fds=held,
        keeps_node=keeps_node,
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, agent.note_signal)
    agent.run()


def _remove_staged(run_dir: Path) -> None:
    """Leave nothing of a staged job, but what a controller has kept here."""
    staged = os.environ.get(STAGE_VARIABLE)
    if staged:
        shutil.rmtree(staged, ignore_errors=True)
    if staged is not None and not (run_dir / "state.json").exists():
        shutil.rmtree(run_dir, ignore_errors=True)


def _mark(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _end_leftovers(lock: BinaryIO) -> None:
    """Take the node's lock; what an earlier agent of the run left here is ended first."""
    if not locks.take_over(lock, grace_s=_LEFTOVER_GRACE_S):
        raise JobFailedError(f"processes of an earlier attempt hold {lock.name} and do not end")


def _connect(address: str, *, token: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    deadline_s = time.monotonic() + _CONNECT_S
    while True:
        try:
            connection = socket.create_connection((host, int(port)), timeout=_CONNECT_S)
            break
        except OSError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(_LOOK_S)
    connection.settimeout(None)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(wire.token_line(token))
    return connection


def _inherited(node_address: str) -> Mapping[str, str]:
    """What ranks inherit: our environment without our secret, bound to the node's network."""
    return _own_environment() | interface_environment(node_address)


def _own_environment() -> dict[str, str]:
    ours = (TOKEN_VARIABLE, STAGE_VARIABLE)
    return {name: value for name, value in os.environ.items() if name not in ours}


def _say(line: str) -> None:
    print(time.strftime("%Y-%m-%d %H:%M:%S"), line, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
