"""A cluster file: datasheet units in, core values out.

Every number is checked in the unit the user wrote, under the path the user wrote it at.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from trimtab.core import checks, serde, units
from trimtab.core.cluster import (
    PRECISIONS,
    ClusterSpec,
    GpuSpec,
    IslandLink,
    Link,
    NicKind,
    NicSpec,
    NodeSpec,
    PeakRate,
    Precision,
)
from trimtab.core.errors import InputError, shown, unknown_name_message

_LEAST, _MOST = 1e-6, 1e9
"""Of a figure in the file's units; beyond them, times leave what a float holds."""
_MOST_GPUS = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSection:
    """A link: GB/s (1e9 bytes) in one direction, microseconds."""

    gb_per_s: float
    latency_us: float


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSection:
    """A GPU: GiB (2**30 bytes), GB/s, and dense TFLOP/s of each precision."""

    name: str
    memory_gib: float
    memory_gb_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class NicSection:
    """`count` equal NICs of a node: Gbit/s of one port in one direction, microseconds."""

    kind: NicKind
    gbit_per_s: float
    latency_us: float
    count: int = 1
    devices: tuple[str, ...] = ()
    gid_index: int | None = None
    interface: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSection:
    """`count` equal nodes."""

    name: str
    gpus_per_node: int
    intra_node: LinkSection
    nics: tuple[NicSection, ...]
    count: int = 1
    island: str = "main"
    measured_tflop_per_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class IslandLinkSection:
    """What two islands reach each other with, in GB/s and microseconds; or one way of it."""

    islands: tuple[str, str]
    gb_per_s: float
    latency_us: float
    one_way: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSection:
    """The file without its nodes."""

    name: str
    links: tuple[IslandLinkSection, ...] = ()
    source: str = ""


def cluster_from_document(document: Mapping[str, Any], *, path: str = "") -> ClusterSpec:
    """The cluster of a YAML document in datasheet units.

    Args:
        document: Keys `name`, `nodes`, and optionally `links` and `source`.
        path: Where the document stands in its file; messages begin with it.

    Raises:
        InputError: A key is unknown or missing, or a value is of the wrong type or sign.
    """
    rest = dict(document)
    _check_keys(rest, ClusterSection, apart="nodes", path=path)
    nodes = _required(rest, "nodes", path=path)
    if not isinstance(nodes, list):
        raise InputError(f"{_join(path, 'nodes')}: expected a list, got {shown(nodes)}")
    section = serde.from_fields(ClusterSection, rest, path=path)
    specs = tuple(
        _node(node, path=_join(path, f"nodes[{index}]")) for index, node in enumerate(nodes)
    )
    num_gpus = sum(spec.num_gpus for spec in specs)
    if num_gpus > _MOST_GPUS:
        raise InputError(
            f"{_join(path, 'nodes')}: at most {_MOST_GPUS:,} GPUs can be planned, "
            f"got {num_gpus:,}; lower count or gpus_per_node"
        )
    return ClusterSpec(
        name=section.name,
        nodes=specs,
        links=tuple(
            _island_link(link, path=_join(path, f"links[{index}]"))
            for index, link in enumerate(section.links)
        ),
        source=section.source,
    )


def _node(document: Any, *, path: str) -> NodeSpec:
    rest = _mapping(document, path=path)
    _check_keys(rest, NodeSection, apart="gpu", path=path)
    gpu = _gpu(_required(rest, "gpu", path=path), path=f"{path}.gpu")
    if isinstance(rest.get("island"), list):
        raise InputError(
            f"{path}.island: expected one island, got {shown(rest['island'])}; islands do not "
            "overlap, so list these nodes under one of them and give it links to the others"
        )
    section = serde.from_fields(NodeSection, rest, path=path)
    checks.whole_number(f"{path}.count", section.count)
    checks.whole_number(f"{path}.gpus_per_node", section.gpus_per_node)
    checks.not_empty(f"{path}.nics", section.nics)
    return NodeSpec(
        name=section.name,
        count=section.count,
        gpu=gpu,
        gpus_per_node=section.gpus_per_node,
        intra_node=_link(section.intra_node, path=f"{path}.intra_node"),
        nics=tuple(
            _nic(nic, path=f"{path}.nics[{index}]") for index, nic in enumerate(section.nics)
        ),
        island=section.island,
        measured_flop_per_s=None
        if section.measured_tflop_per_s is None
        else _tflop(section.measured_tflop_per_s, path=f"{path}.measured_tflop_per_s"),
    )


def _tflop(value: float, *, path: str) -> float:
    _check_figure(path, value)
    return value * units.TFLOP


def _gpu(document: Any, *, path: str) -> GpuSpec:
    rest = _mapping(document, path=path)
    _check_keys(rest, GpuSection, apart="peak_tflop_per_s", path=path)
    peaks = _mapping(rest.pop("peak_tflop_per_s", {}), path=f"{path}.peak_tflop_per_s")
    section = serde.from_fields(GpuSection, rest, path=path)
    _check_figure(f"{path}.memory_gib", section.memory_gib)
    _check_figure(f"{path}.memory_gb_per_s", section.memory_gb_per_s)
    for precision, tflop_per_s in peaks.items():
        checks.one_of(f"{path}.peak_tflop_per_s", precision, PRECISIONS)
        _check_figure(f"{path}.peak_tflop_per_s.{precision}", tflop_per_s)
    return GpuSpec(
        name=section.name,
        memory_bytes=round(section.memory_gib * units.GIB),
        memory_bytes_per_s=section.memory_gb_per_s * units.GB,
        peaks=tuple(
            PeakRate(precision=cast(Precision, precision), flop_per_s=tflop_per_s * units.TFLOP)
            for precision, tflop_per_s in peaks.items()
        ),
    )


def _link(section: LinkSection, *, path: str) -> Link:
    _check_figure(f"{path}.gb_per_s", section.gb_per_s)
    _check_latency(f"{path}.latency_us", section.latency_us)
    return Link(
        bytes_per_s=section.gb_per_s * units.GB, latency_s=section.latency_us * units.US
    )


def _nic(section: NicSection, *, path: str) -> NicSpec:
    checks.whole_number(f"{path}.count", section.count)
    _check_figure(f"{path}.gbit_per_s", section.gbit_per_s)
    _check_latency(f"{path}.latency_us", section.latency_us)
    return NicSpec(
        kind=section.kind,
        count=section.count,
        bytes_per_s=section.gbit_per_s * units.GBIT,
        latency_s=section.latency_us * units.US,
        devices=section.devices,
        gid_index=section.gid_index,
        interface=section.interface,
    )


def _island_link(section: IslandLinkSection, *, path: str) -> IslandLink:
    link = LinkSection(gb_per_s=section.gb_per_s, latency_us=section.latency_us)
    return IslandLink(
        islands=section.islands, link=_link(link, path=path), one_way=section.one_way
    )


def _check_figure(field: str, value: Any) -> None:
    checks.positive(field, value)
    checks.between(field, value, _LEAST, _MOST)


def _check_latency(field: str, value: Any) -> None:
    checks.not_negative(field, value)
    checks.between(field, value, 0, _MOST)


def _mapping(value: Any, *, path: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a mapping, got {shown(value)}")
    return dict(value)


def _check_keys(rest: dict[str, Any], section: type, *, apart: str, path: str) -> None:
    """Refuse a key that is neither a field of `section` nor the one read apart from it."""
    known = {apart, *(field.name for field in dataclasses.fields(section))}
    for key in rest:
        if key not in known:
            raise InputError(f"{_join(path, key)}: {unknown_name_message('key', key, known)}")


def _required(rest: dict[str, Any], key: str, *, path: str) -> Any:
    if key not in rest:
        raise InputError(f"{_join(path, key)}: missing")
    return rest.pop(key)


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


def cluster_document(cluster: ClusterSpec) -> dict[str, Any]:
    """The document of a cluster in datasheet units, which `cluster_from_document` reads."""
    document: dict[str, Any] = {"name": cluster.name}
    if cluster.source:
        document["source"] = cluster.source
    document["nodes"] = [_node_document(node) for node in cluster.nodes]
    if cluster.links:
        document["links"] = [
            {"islands": list(entry.islands), **_link_document(entry.link)}
            | ({"one_way": True} if entry.one_way else {})
            for entry in cluster.links
        ]
    return document


def _node_document(node: NodeSpec) -> dict[str, Any]:
    gpu = node.gpu
    described: dict[str, Any] = {
        "name": gpu.name,
        "memory_gib": gpu.memory_bytes / units.GIB,
        "memory_gb_per_s": _rounded(gpu.memory_bytes_per_s / units.GB),
    }
    if gpu.peaks:
        described["peak_tflop_per_s"] = {
            peak.precision: _rounded(peak.flop_per_s / units.TFLOP) for peak in gpu.peaks
        }
    document: dict[str, Any] = {
        "name": node.name,
        "count": node.count,
        "gpus_per_node": node.gpus_per_node,
        "island": node.island,
        "gpu": described,
        "intra_node": _link_document(node.intra_node),
        "nics": [_nic_document(nic) for nic in node.nics],
    }
    if node.measured_flop_per_s is not None:
        document["measured_tflop_per_s"] = _rounded(node.measured_flop_per_s / units.TFLOP)
    return document


def _link_document(link: Link) -> dict[str, float]:
    return {
        "gb_per_s": _rounded(link.bytes_per_s / units.GB),
        "latency_us": _rounded(link.latency_s / units.US),
    }


def _rounded(value: float) -> float:
    """To six digits, which is more than a measurement has."""
    return float(f"{value:.6g}")


def _nic_document(nic: NicSpec) -> dict[str, Any]:
    document: dict[str, Any] = {
        "kind": nic.kind,
        "count": nic.count,
        "gbit_per_s": _rounded(nic.bytes_per_s / units.GBIT),
        "latency_us": _rounded(nic.latency_s / units.US),
    }
    if nic.devices:
        document["devices"] = list(nic.devices)
    if nic.gid_index is not None:
        document["gid_index"] = nic.gid_index
    if nic.interface is not None:
        document["interface"] = nic.interface
    return document
