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
    return ClusterSpec(
        name=section.name,
        nodes=tuple(
            _node(node, path=_join(path, f"nodes[{index}]")) for index, node in enumerate(nodes)
        ),
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
    checks.positive(path, value)
    return value * units.TFLOP


def _gpu(document: Any, *, path: str) -> GpuSpec:
    rest = _mapping(document, path=path)
    _check_keys(rest, GpuSection, apart="peak_tflop_per_s", path=path)
    peaks = _mapping(rest.pop("peak_tflop_per_s", {}), path=f"{path}.peak_tflop_per_s")
    section = serde.from_fields(GpuSection, rest, path=path)
    checks.positive(f"{path}.memory_gib", section.memory_gib)
    checks.positive(f"{path}.memory_gb_per_s", section.memory_gb_per_s)
    for precision, tflop_per_s in peaks.items():
        checks.one_of(f"{path}.peak_tflop_per_s", precision, PRECISIONS)
        checks.positive(f"{path}.peak_tflop_per_s.{precision}", tflop_per_s)
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
    checks.positive(f"{path}.gb_per_s", section.gb_per_s)
    checks.not_negative(f"{path}.latency_us", section.latency_us)
    return Link(
        bytes_per_s=section.gb_per_s * units.GB, latency_s=section.latency_us * units.US
    )


def _nic(section: NicSection, *, path: str) -> NicSpec:
    checks.whole_number(f"{path}.count", section.count)
    checks.positive(f"{path}.gbit_per_s", section.gbit_per_s)
    checks.not_negative(f"{path}.latency_us", section.latency_us)
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
