"""What was measured of the ways between ranks, one line for each kind of pair."""

from dataclasses import dataclass
from typing import Literal, get_args

from trimtab.core import checks

PairKind = Literal["node", "island", "between"]
"""Two ranks of one node, of two nodes of one island, of two islands."""
PAIR_KINDS: tuple[str, ...] = get_args(PairKind)


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPool:
    """Ranks of one kind of node, numbered one after the other."""

    name: str
    """Of the nodes in the cluster file."""
    island: str
    num_nodes: int
    ranks_per_node: int

    @property
    def num_ranks(self) -> int:
        return self.num_nodes * self.ranks_per_node


@dataclass(frozen=True, slots=True, kw_only=True)
class PairSpeed:
    """The way from ranks of one kind of node to ranks of another."""

    kind: PairKind
    source: str
    """Name of the nodes; of pairs between islands, the island's."""
    target: str
    latency_s: float
    """Of a message of eight bytes, one way: half of there and back."""
    bytes_per_s: float
    """Of all pairs together, sending at once."""
    num_pairs: int

    def __post_init__(self) -> None:
        checks.one_of("pair.kind", self.kind, PAIR_KINDS)
        checks.not_negative("pair.latency_s", self.latency_s)
        checks.positive("pair.bytes_per_s", self.bytes_per_s)
        checks.whole_number("pair.num_pairs", self.num_pairs)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSpeeds:
    """All that was measured in one run."""

    pairs: tuple[PairSpeed, ...]
    backend: str
    """`gloo` or `nccl`."""
    num_ranks: int
    message_bytes: int
