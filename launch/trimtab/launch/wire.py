"""What a controller and its agents say to each other: one JSON document a line, over TCP.

An agent connects and sends `{"token": "..."}`, then `AgentHello`, then the other messages of
`FromAgent`; the controller answers with those of `ToAgent`.
"""

import json
from dataclasses import dataclass, field

from trimtab.core import serde
from trimtab.core.job import EnvVar

MAX_LINE_BYTES = 16 * 2**20
"""A request with the plan profile of a large cluster, and all addresses, stays far below."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentHello:
    """The agent is up; what it finds on its node."""

    node: str
    host: str
    pid: int
    version: str
    """Of Trimtab on this node."""
    num_cores: int
    num_gpus: int
    gpu: str
    """Device name, empty where there is none."""
    interfaces: tuple[str, ...]
    """Network interfaces that are up, as `eth0 10.0.0.4`."""
    sees_run_dir: bool
    """Whether the run directory of the controller is visible here."""
    missing_packages: tuple[str, ...] = ()
    """What our own ranks would import, and this node's Python has not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentBeat:
    """The agent lives; sent every second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PortReserved:
    """Answer to `ReservePort`: the node's own port for the ranks' rendezvous store."""

    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RankEnded:
    """A rank's process has ended, and all it had started with it."""

    attempt: int
    rank: int
    exit_code: int | None
    signal: str | None
    last_words: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RankStopped:
    """A rank's process lives but has not been run for some seconds."""

    attempt: int
    rank: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RanksRefused:
    """The ranks could not be started."""

    attempt: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFailing:
    """The node is about to be lost although the agent still lives."""

    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSignalled:
    """The scheduler asks the job to end or to make room."""

    signal: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LogWritten:
    """New output of a rank, where the node cannot see the run directory."""

    name: str
    """Of the log, `rank-0003.log`."""
    text: str


FromAgent = (
    AgentHello
    | AgentBeat
    | PortReserved
    | RankEnded
    | RankStopped
    | RanksRefused
    | NodeFailing
    | AgentSignalled
    | LogWritten
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReservePort:
    """Keep a free port for the rendezvous store that rank 0, on this node, will hold."""

    host: str
    """The address to listen on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartRanks:
    """Start the node's ranks of an attempt."""

    attempt: int
    first_rank: int
    num_ranks: int
    world_size: int
    num_nodes: int
    node_index: int
    """Place of this node in the order of the ranks."""
    argv: tuple[str, ...]
    folder: str
    """Working directory of the ranks; made where it is missing."""
    environment: tuple[EnvVar, ...]
    request_name: str
    """File in the run directory that holds the request of this attempt."""
    request_text: str
    """Its content, written where the node cannot see the controller's run directory."""
    node_address: str
    """Where the other nodes reach this one."""
    store_host: str
    """Address of the first node."""
    store_port: int
    """Of the ranks' rendezvous store, held by rank 0."""
    rank_takes_socket: bool
    """Whether rank 0 inherits the reserved socket; else the port is freed just before."""
    collector_address: str
    collector_token: str = field(repr=False)
    """A secret: it reaches the ranks through their environment only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepWarm:
    """Have spare processes import what ranks need, for the next `StartRanks` to be quick."""

    num_spares: int
    argv: tuple[str, ...]
    """The command line of a rank."""
    environment: tuple[EnvVar, ...]
    """Variables that all ranks share; some are read while importing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRanks:
    """Ask the ranks to end cleanly (SIGTERM: they write a checkpoint first)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KillRanks:
    """End the ranks at once, with all they have started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leave:
    """End the ranks at once, then the agent."""


ToAgent = ReservePort | StartRanks | KeepWarm | StopRanks | KillRanks | Leave


def token_line(token: str) -> bytes:
    """The first line of a connection."""
    return json.dumps({"token": token}).encode() + b"\n"


def line(message: FromAgent | ToAgent) -> bytes:
    """A message as it goes over the wire."""
    return serde.to_json(message).encode() + b"\n"
