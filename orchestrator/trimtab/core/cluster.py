"""The machines: GPUs, NICs, nodes, islands and the links between them."""

import itertools
import math
from dataclasses import dataclass
from typing import Literal, get_args

from trimtab.core import checks
from trimtab.core.errors import InputError

Precision = Literal["fp32", "tf32", "bf16", "fp16", "fp8", "fp4"]
PRECISIONS: tuple[str, ...] = get_args(Precision)

NicKind = Literal["infiniband", "roce", "ethernet", "loopback"]
NIC_KINDS: tuple[str, ...] = get_args(NicKind)


@dataclass(frozen=True, slots=True, kw_only=True)
class PeakRate:
    """The dense (not sparse) datasheet rate of one precision."""

    precision: Precision
    flop_per_s: float

    def __post_init__(self) -> None:
        checks.one_of("precision", self.precision, PRECISIONS)
        checks.positive("peak_tflop_per_s", self.flop_per_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSpec:
    """One accelerator; a device of unknown peak (a CPU, say) has no `peaks`."""

    name: str
    memory_bytes: int
    memory_bytes_per_s: float
    peaks: tuple[PeakRate, ...] = ()
    num_sms: int = 108
    """Streaming multiprocessors (or compute units)."""

    @property
    def is_cpu(self) -> bool:
        """Whether ranks run on the CPU: the device's name begins with `cpu`, in any case."""
        return self.name.casefold().startswith("cpu")

    def __post_init__(self) -> None:
        checks.not_empty("gpu.name", self.name)
        checks.whole_number("gpu.memory_gib", self.memory_bytes)
        checks.positive("gpu.memory_gb_per_s", self.memory_bytes_per_s)

    def peak_flop_per_s(self, precision: Precision) -> float | None:
        """The dense peak of `precision`, or None where the datasheet gives none."""
        for peak in self.peaks:
            if peak.precision == precision:
                return peak.flop_per_s
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A way between two ends: one direction's bandwidth and the time of an empty message."""

    bytes_per_s: float
    latency_s: float

    def __post_init__(self) -> None:
        checks.positive("link.gb_per_s", self.bytes_per_s)
        checks.not_negative("link.latency_us", self.latency_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class NicSpec:
    """`count` equal NICs of a node; `bytes_per_s` is one NIC's line rate in one direction."""

    kind: NicKind
    count: int
    """Ports, or rails."""
    bytes_per_s: float
    latency_s: float
    devices: tuple[str, ...] = ()
    """RDMA devices (HCAs) as the node calls them, `mlx5_0`; none: NCCL finds them."""
    gid_index: int | None = None
    """Of RoCE: which entry of a port's table of addresses is the routable one."""
    interface: str | None = None
    """What sockets use, `eth0` or `bond0`; None: the interface of the node's address."""

    def __post_init__(self) -> None:
        checks.one_of("nic.kind", self.kind, NIC_KINDS)
        checks.whole_number("nic.count", self.count)
        checks.positive("nic.gbit_per_s", self.bytes_per_s)
        checks.not_negative("nic.latency_us", self.latency_s)
        for device in self.devices:
            checks.device_name("nic.devices", device)
        if self.gid_index is not None:
            checks.whole_number("nic.gid_index", self.gid_index, at_least=0)
        if self.interface is not None:
            checks.device_name("nic.interface", self.interface)

    @property
    def is_rdma(self) -> bool:
        return self.kind in ("infiniband", "roce")


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSpec:
    """`count` equal nodes of one island, called `name-0` ... `name-{count-1}`."""

    name: str
    count: int
    gpu: GpuSpec
    gpus_per_node: int
    intra_node: Link
    """NVLink, PCIe or shared memory: what one GPU reaches its neighbours in the node with."""
    nics: tuple[NicSpec, ...]
    island: str
    measured_flop_per_s: float | None = None
    """Model FLOP/s of one of these GPUs while it trains its layers in its own island, gradient
    exchange included, as `trimtab report` tells it; None: forecast from the datasheet."""

    def __post_init__(self) -> None:
        checks.not_empty("node.name", self.name)
        if self.measured_flop_per_s is not None:
            checks.positive(f"nodes.{self.name}.measured_tflop_per_s", self.measured_flop_per_s)
        checks.whole_number(f"nodes.{self.name}.count", self.count)
        checks.whole_number(f"nodes.{self.name}.gpus_per_node", self.gpus_per_node)
        checks.not_empty(f"nodes.{self.name}.nics", self.nics)
        checks.not_empty(f"nodes.{self.name}.island", self.island)

    @property
    def num_gpus(self) -> int:
        return self.count * self.gpus_per_node

    @property
    def fastest_nic(self) -> NicSpec:
        return max(self.nics, key=lambda nic: nic.count * nic.bytes_per_s)

    @property
    def nic_link_per_gpu(self) -> Link:
        """What one GPU gets of its node's fastest NICs when all its GPUs send at once."""
        nic = self.fastest_nic
        return Link(
            bytes_per_s=nic.count * nic.bytes_per_s / self.gpus_per_node,
            latency_s=nic.latency_s,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class IslandLink:
    """What a whole island reaches another one with, all its GPUs together.

    Each direction has the full bandwidth. With `one_way` it is the way from the first island to
    the second alone, and another entry says what the way back is like.
    """

    islands: tuple[str, str]
    link: Link
    one_way: bool = False

    def __post_init__(self) -> None:
        if len(self.islands) != 2 or self.islands[0] == self.islands[1]:
            raise InputError(
                f"links.islands: expected two different islands, got {list(self.islands)}"
            )

    @property
    def directions(self) -> tuple[tuple[str, str], ...]:
        """The ways it stands for, each from an island to another."""
        there, back = self.islands
        return ((there, back),) if self.one_way else ((there, back), (back, there))


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSpec:
    """The whole machine: GPUs are numbered node by node in the order of `nodes`."""

    name: str
    nodes: tuple[NodeSpec, ...]
    links: tuple[IslandLink, ...] = ()
    source: str = ""
    """Where the figures come from."""

    def __post_init__(self) -> None:
        checks.not_empty("cluster.name", self.name)
        checks.not_empty("cluster.nodes", self.nodes)
        names = [node.name for node in self.nodes]
        repeated = {name for name in names if names.count(name) > 1}
        if repeated:
            raise InputError(f"cluster.nodes: the name {min(repeated)!r} is used twice")
        for island_link in self.links:
            for island in island_link.islands:
                checks.one_of("links.islands", island, self.islands)
        self._check_ways()

    def _check_ways(self) -> None:
        """Raise where a way is given twice, or some island cannot reach another."""
        ways = [way for entry in self.links for way in entry.directions]
        for source, target in ways:
            if ways.count((source, target)) > 1:
                raise InputError(
                    f"links: the way from {source!r} to {target!r} is given twice; a link goes "
                    "both ways unless it says one_way: true"
                )
        if not self.links:
            return
        for source, target in itertools.permutations(self.islands, 2):
            if self.route(source, target) is None:
                raise InputError(
                    f"links: no way leads from the island {source!r} to {target!r}; link them, "
                    "directly or by way of others"
                )

    def route(self, source: str, target: str) -> tuple[tuple[str, str], ...] | None:
        """The widest way from an island to another, link by link; among those the shortest.

        Empty where the file gives no links, so that the nodes' own NICs join all islands; None
        where no way leads there.
        """
        if not self.links or source == target:
            return ()
        widths = {
            way: entry.link.bytes_per_s for entry in self.links for way in entry.directions
        }
        best: dict[str, tuple[float, int, tuple[tuple[str, str], ...]]] = {
            source: (-math.inf, 0, ())
        }
        for _ in self.islands:
            for (start, end), width in widths.items():
                if start not in best:
                    continue
                narrow, hops, ways = best[start]
                reached = (max(narrow, -width), hops + 1, (*ways, (start, end)))
                if end not in best or reached < best[end]:
                    best[end] = reached
        return best[target][2] if target in best else None

    def way(self, source: str, target: str) -> Link:
        """The link of one direction, which the file gives."""
        return next(entry.link for entry in self.links if (source, target) in entry.directions)

    @property
    def num_gpus(self) -> int:
        return sum(node.num_gpus for node in self.nodes)

    @property
    def islands(self) -> tuple[str, ...]:
        """Island names in the order they first appear."""
        return tuple(dict.fromkeys(node.island for node in self.nodes))

    @property
    def gpu_names(self) -> tuple[str, ...]:
        """Device names in the order they first appear."""
        return tuple(dict.fromkeys(node.gpu.name for node in self.nodes))
