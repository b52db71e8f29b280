"""The controller's side of the agents: their connections, and the ranks they run together.

Everything a node tells becomes news that `poll` hands over; the calls that act return at once,
except `gather` and `start`, which wait for answers for a limited time.
"""

import contextlib
import secrets
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from trimtab.core.errors import JobFailedError
from trimtab.core.job import Request, ScriptSpec
from trimtab.launch import agent, wire
from trimtab.launch.api import AgentOrder, AgentStep, AllocatedNode, Allocation, RankExit
from trimtab.launch.links import AgentLink, AgentServer

SILENT_AGENT_S: Final = 6.0
"""An agent beats every second; one that is silent for this long has lost its node."""

_CONNECT_S: Final = 45.0
"""How long agents may take to report after they were started."""
_ANSWER_S: Final = 15.0
_POLL_S: Final = 0.02
_LEAVE_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeGone:
    """A node can run no ranks any more."""

    node: str
    reason: str
    ranks_live: bool = False
    """Whether its ranks can still write a checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankFroze:
    """A rank lives but does not run."""

    rank: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RoomWanted:
    """The scheduler has signalled an agent: the job is to end or to make room."""

    node: str
    signal: str


News = RankExit | NodeGone | RankFroze | RoomWanted


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendezvous:
    """What an attempt's ranks are told beside their request."""

    attempt: int
    collector_address: str
    collector_token: str = field(repr=False)
    request_name: str
    """File in the run directory that holds the request of this attempt."""
    request_text: str


class Fleet:
    """The agents of a job.

    Args:
        allocation: Where they are started.
        run_dir: The run directory as the controller sees it.
    """

    def __init__(self, allocation: Allocation, *, run_dir: Path) -> None:
        self._allocation = allocation
        self._run_dir = run_dir
        self._token = secrets.token_urlsafe(32)
        agent.mark_run_dir(run_dir, self._token)
        self._server = AgentServer(allocation.controller_host, token=self._token)
        self._links: dict[str, AgentLink] = {}
        self._steps: list[AgentStep] = []
        self._news: list[News] = []
        self._ports: dict[str, int] = {}
        self._rank_nodes: dict[int, str] = {}
        """Node of every rank whose end has not been told."""
        self._attempt = 0
        self._in_use: frozenset[str] = frozenset()
        """Nodes of the attempt, but those told gone; what happens to others is no news."""
        self._idle: list[AgentLink] = []
        """Agents of forgotten nodes."""
        self._due_s: dict[str, float] = {}
        """Until when an agent that was started and has not reported is waited for, by node."""
        self._warm: wire.KeepWarm | None = None
        """What agents are told that report while the ranks train."""

    @property
    def running(self) -> tuple[int, ...]:
        """Ranks whose end `poll` has not told yet, ascending."""
        return tuple(sorted(self._rank_nodes))

    def node_of(self, rank: int) -> str | None:
        """Where a running rank is."""
        return self._rank_nodes.get(rank)

    def gather(self, nodes: Sequence[AllocatedNode]) -> Mapping[str, wire.AgentHello]:
        """Have an agent on every node; those that are there already stay.

        Returns:
            What the agents have found, by node; a node whose agent does not report is missing.

        Raises:
            JobFailedError: The agents could not be started.
        """
        self._take_messages()
        self._warm = None
        missing = [node for node in nodes if node.name not in self._links]
        now_s = time.monotonic()
        not_due = [node for node in missing if self._due_s.get(node.name, 0.0) < now_s]
        step = self._start_agents(not_due)
        self._await_agents([node.name for node in missing], step)
        for node in missing:
            self._due_s.pop(node.name, None)  # who is late now is started again if asked for
        return {
            node.name: self._links[node.name].hello
            for node in nodes
            if node.name in self._links
        }

    def start(
        self, request: Request, nodes: Sequence[AllocatedNode], *, rendezvous: Rendezvous
    ) -> None:
        """Start the ranks of an attempt, `request.ranks_per_node` on each node in turn.

        Raises:
            JobFailedError: The first node does not answer.
        """
        self._attempt = rendezvous.attempt
        self._in_use = frozenset(node.name for node in nodes)
        self._news = [each for each in self._news if isinstance(each, RoomWanted)]
        first = nodes[0]
        port = self._reserve_port(first)
        per_node = request.ranks_per_node
        for index, node in enumerate(nodes):
            if node.name not in self._links:
                self._tell_gone(node.name, "its agent has ended before its ranks began")
                continue
            ranks = range(index * per_node, (index + 1) * per_node)
            self._rank_nodes |= dict.fromkeys(ranks, node.name)
            order = wire.StartRanks(
                attempt=rendezvous.attempt,
                first_rank=ranks.start,
                num_ranks=per_node,
                world_size=request.num_ranks,
                num_nodes=request.num_nodes,
                node_index=index,
                argv=request.argv,
                folder=_folder(request),
                environment=request.environment,
                request_name=rendezvous.request_name,
                request_text=rendezvous.request_text,
                node_address=node.address,
                store_host=first.address,
                store_port=port,
                rank_takes_socket=not isinstance(request.job, ScriptSpec),
                collector_address=rendezvous.collector_address,
                collector_token=rendezvous.collector_token,
            )
            self._send(node.name, order)

    def keep_warm(self, request: Request, *, exclude: Collection[str]) -> None:
        """Have a spare process beside every rank, and as many on each spare node.

        Their next start then saves what they have imported. Returns before they have.

        Raises:
            TrimtabError: The spare nodes could not be had; the others have been told.
        """
        self._warm = wire.KeepWarm(
            num_spares=request.ranks_per_node,
            argv=request.argv,
            environment=request.environment,
        )
        self._send_all(self._warm)
        if num_spare := request.job.restart.spare_nodes:
            nodes = self._allocation.acquire(request.num_nodes + num_spare, exclude=exclude)
            self._start_agents([node for node in nodes if node.name not in self._links])

    def poll(self) -> tuple[News, ...]:
        """What has happened since the last call, in the order it was heard of."""
        self._take_messages()
        now_s = time.monotonic()
        for node, link in list(self._links.items()):
            if now_s - link.seen_s > SILENT_AGENT_S:
                silence = f"its agent has sent nothing for {now_s - link.seen_s:.0f} s"
                self._lose(node, link, silence)
        news, self._news = tuple(self._news), []
        return news

    def stop(self) -> None:
        """Ask every rank to end cleanly: it writes a checkpoint first."""
        self._send_all(wire.StopRanks())

    def kill(self) -> None:
        """End every rank at once."""
        self._send_all(wire.KillRanks())

    def forget(self, node: str) -> None:
        """End the ranks of a node that is not to be used any more, and hear no more of it.

        Its agent stays until `close`: srun would take its end for that of the whole step.
        """
        link = self._links.pop(node, None)
        self._forget_ranks(node)
        if link is not None:
            self._idle.append(link)
            with contextlib.suppress(OSError):
                link.send(wire.KillRanks())

    def close(self) -> None:
        """End all ranks and agents."""
        self._send_all(wire.Leave())
        for link in self._idle:
            with contextlib.suppress(OSError):
                link.send(wire.Leave())
        deadline_s = time.monotonic() + _LEAVE_S
        while self._links and time.monotonic() < deadline_s:
            self._take_messages()
            time.sleep(_POLL_S)
        for step in self._steps:
            step.end()
        for link in (*self._links.values(), *self._idle):
            link.cut()
        self._server.close()

    def _start_agents(self, nodes: Sequence[AllocatedNode]) -> AgentStep | None:
        if not nodes:
            return None
        address = self._server.address
        order = AgentOrder(
            controller_address=address,
            token=self._token,
            argv=agent.command(self._run_dir, address),
        )
        step = self._allocation.start_agents(nodes, order=order)
        self._steps.append(step)
        self._due_s |= dict.fromkeys(
            (node.name for node in nodes), time.monotonic() + _CONNECT_S
        )
        return step

    def _await_agents(self, names: Sequence[str], step: AgentStep | None) -> None:
        deadline_s = time.monotonic() + _CONNECT_S
        while time.monotonic() < deadline_s:
            self._take_messages()
            if all(name in self._links for name in names):
                return
            if step is not None and step.poll() is not None:
                return
            time.sleep(_POLL_S)

    def _reserve_port(self, node: AllocatedNode) -> int:
        self._ports.pop(node.name, None)
        self._send(node.name, wire.ReservePort(host=node.address))
        deadline_s = time.monotonic() + _ANSWER_S
        why = None if node.name in self._links else "its agent has ended"
        while why is None and time.monotonic() < deadline_s:
            self._take_messages()
            if node.name in self._ports:
                return self._ports[node.name]
            why = self._why_gone(node.name)
            time.sleep(_POLL_S)
        raise JobFailedError(
            f"node {node.name} gives no port for the ranks' rendezvous: {why or 'no answer'}"
        )

    def _take_messages(self) -> None:
        for link, message in self._server.received():
            self._take(link, message)

    def _take(self, link: AgentLink, message: wire.FromAgent | None) -> None:
        node = link.hello.node
        if isinstance(message, wire.AgentHello):
            self._welcome(node, link)
        if self._links.get(node) is not link:
            return  # of an agent that has been given up
        link.seen_s = time.monotonic()
        match message:
            case None:
                self._lose(node, link, "the connection to its agent broke")
            case wire.PortReserved():
                self._ports[node] = message.port
            case wire.NodeFailing():
                self._tell_gone(node, message.reason, ranks_live=True)
            case wire.AgentSignalled():
                self._news.append(RoomWanted(node=node, signal=message.signal))
            case wire.LogWritten():
                self._write_log(message)
            case wire.RankEnded() | wire.RankStopped() | wire.RanksRefused():
                if message.attempt == self._attempt:
                    self._take_of_ranks(node, message)
            case _:
                return

    def _welcome(self, node: str, link: AgentLink) -> None:
        self._links[node] = link
        self._due_s.pop(node, None)
        if self._warm is not None:
            self._send(node, self._warm)

    def _take_of_ranks(
        self, node: str, message: wire.RankEnded | wire.RankStopped | wire.RanksRefused
    ) -> None:
        match message:
            case wire.RankEnded():
                self._note_end(message)
            case wire.RankStopped():
                self._news.append(RankFroze(rank=message.rank, reason=message.reason))
            case wire.RanksRefused():
                self._tell_gone(node, message.reason)
                self._forget_ranks(node)

    def _note_end(self, message: wire.RankEnded) -> None:
        if self._rank_nodes.pop(message.rank, None) is None:
            return
        self._news.append(
            RankExit(
                rank=message.rank,
                exit_code=message.exit_code,
                signal=message.signal,
                last_words=message.last_words,
            )
        )

    def _lose(self, node: str, link: AgentLink, reason: str) -> None:
        del self._links[node]
        link.cut()
        self._forget_ranks(node)
        self._tell_gone(node, reason)

    def _tell_gone(self, node: str, reason: str, *, ranks_live: bool = False) -> None:
        if node in self._in_use:
            self._in_use -= {node}
            self._news.append(NodeGone(node=node, reason=reason, ranks_live=ranks_live))

    def _why_gone(self, node: str) -> str | None:
        gone = (each for each in self._news if isinstance(each, NodeGone))
        return next((each.reason for each in gone if each.node == node), None)

    def _forget_ranks(self, node: str) -> None:
        """Ranks of a lost node: nobody will tell their end."""
        for rank in [rank for rank, where in self._rank_nodes.items() if where == node]:
            del self._rank_nodes[rank]

    def _write_log(self, message: wire.LogWritten) -> None:
        log = self._run_dir / "logs" / Path(message.name).name
        with log.open("a", encoding="utf-8") as file:
            file.write(message.text)

    def _send_all(self, message: wire.ToAgent) -> None:
        for node in list(self._links):
            self._send(node, message)

    def _send(self, node: str, message: wire.ToAgent) -> None:
        link = self._links.get(node)
        if link is None:
            return
        try:
            link.send(message)
        except OSError as error:
            self._lose(node, link, f"its agent cannot be reached: {error}")


def _folder(request: Request) -> str:
    if not isinstance(request.job, ScriptSpec):
        return request.run_dir
    return "." if request.job.stage.enabled else request.job.folder  # agents start in the copy
