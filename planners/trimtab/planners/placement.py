"""Where ranks and layers go, and which link a group of ranks talks over.

Ranks are numbered in Megatron's order, tp fastest, then cp, dp and pp, and placed on the GPUs
of the cluster in turn: tp groups stay in a node, and only pipeline traffic goes far.
"""

from dataclasses import dataclass

from trimtab.core.cluster import ClusterSpec, GpuSpec, Link, NodeSpec, Precision
from trimtab.core.errors import InputError
from trimtab.core.model import ModelSpec
from trimtab.core.plan import Layout, Placement


def placement(cluster: ClusterSpec, layout: Layout, *, num_layers: int) -> Placement:
    """Ranks on nodes in Megatron's order, layers spread evenly over the stages."""
    names = [f"{node.name}-{index}" for node in cluster.nodes for index in range(node.count)]
    sizes = [node.gpus_per_node for node in cluster.nodes for _ in range(node.count)]
    gpus = [name for name, size in zip(names, sizes, strict=True) for _ in range(size)]
    return Placement(
        rank_nodes=tuple(gpus[: layout.num_ranks]),
        stage_layers=layout.stage_layers or stage_layers(num_layers, layout.pp),
        rank_gpus=tuple(gpu for size in sizes for gpu in range(size))[: layout.num_ranks],
    )


def layers_of(model: ModelSpec, layout: Layout) -> tuple[int, ...]:
    """Layers of each stage: the layout's own, or as even as can be.

    Raises:
        InputError: The layout's own do not add up to the model's.
    """
    if not layout.stage_layers:
        return stage_layers(model.num_layers, layout.pp)
    if sum(layout.stage_layers) != model.num_layers:
        raise InputError(
            f"layout.stage_layers: expected {model.num_layers} layers in all, as "
            f"{model.name!r} has, got {sum(layout.stage_layers)}"
        )
    return layout.stage_layers


def relieved_layers(num_layers: int, pp: int, *, output_layers: float) -> tuple[int, ...]:
    """Layers of each stage, fewer in the last for its output matrix.

    Args:
        num_layers: Of the model.
        pp: Stages.
        output_layers: How many layers take as long as the output matrix.
    """
    if pp == 1:
        return (num_layers,)
    share = (num_layers + output_layers) / pp
    last = min(num_layers - pp + 1, max(1, round(share - output_layers)))
    return (*stage_layers(num_layers - last, pp - 1), last)


def stage_layers(num_layers: int, pp: int) -> tuple[int, ...]:
    """Layers of each stage, as even as can be.

    Surplus layers go to the middle stages: the first and the last also hold the embedding and
    the output matrix.
    """
    even, surplus = divmod(num_layers, pp)
    middle_first = sorted(range(pp), key=lambda stage: abs(2 * stage - (pp - 1)))
    with_surplus = set(middle_first[:surplus])
    return tuple(even + (stage in with_surplus) for stage in range(pp))


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The part of a cluster that a job uses, as its slowest members see it."""

    gpu: GpuSpec
    """The GPU with the least memory; rates are those of the slowest."""
    num_ranks: int
    gpus_per_node: int
    intra_node: Link
    nic_per_gpu: Link
    island_ends: tuple[int, ...]
    """Number of ranks up to the end of each island but the last."""
    between_islands: Link | None
    """What the slowest pair of islands shares; None where the nodes' own NICs join them."""

    def ring_link(self, degree: int, *, stride: int) -> Link:
        """The slowest link of a ring over `degree` ranks that are `stride` apart.

        Where the ring leaves the node, its members there use their NICs together.
        """
        if degree * stride <= self.gpus_per_node:
            return self.intra_node
        members = max(1, min(degree, self.gpus_per_node // stride))
        return self._far_link(degree, stride=stride, num_nics=members)

    def exchange_link(self, degree: int, *, stride: int) -> Link:
        """What a rank of an all-to-all sends over; what stays in the node spares the NICs."""
        if degree * stride <= self.gpus_per_node:
            return self.intra_node
        inside = max(1, self.gpus_per_node // stride)
        outside_fraction = (degree - inside) / (degree - 1)
        slow = self._far_link(degree, stride=stride, num_nics=1)
        bytes_per_s = min(self.intra_node.bytes_per_s, slow.bytes_per_s / outside_fraction)
        return Link(bytes_per_s=bytes_per_s, latency_s=slow.latency_s)

    def _far_link(self, degree: int, *, stride: int, num_nics: int) -> Link:
        """The NICs, or a group's share of what joins the islands where it spans two."""
        nic = self.nic_per_gpu
        bytes_per_s = min(self.intra_node.bytes_per_s, num_nics * nic.bytes_per_s)
        between = self.between_islands
        if between is None or all(end % (degree * stride) == 0 for end in self.island_ends):
            return Link(bytes_per_s=bytes_per_s, latency_s=nic.latency_s)
        share = between.bytes_per_s * degree / self.num_ranks
        return Link(bytes_per_s=min(bytes_per_s, share), latency_s=between.latency_s)


def machine(cluster: ClusterSpec, num_ranks: int, *, precision: Precision) -> Machine:
    """The first `num_ranks` GPUs of `cluster`.

    Raises:
        InputError: The cluster has fewer GPUs.
    """
    if num_ranks > cluster.num_gpus:
        raise InputError(
            f"num_ranks: the cluster {cluster.name!r} has {cluster.num_gpus} GPUs, "
            f"got {num_ranks}"
        )
    used, ends = _used_nodes(cluster, num_ranks)
    islands = list(dict.fromkeys(node.island for node in used))
    between = [
        entry.link for entry in cluster.links if all(name in islands for name in entry.islands)
    ]
    slowest = min(used, key=lambda node: node.gpu.peak_flop_per_s(precision) or 0.0).gpu
    return Machine(
        gpu=GpuSpec(
            name=slowest.name,
            memory_bytes=min(node.gpu.memory_bytes for node in used),
            memory_bytes_per_s=min(node.gpu.memory_bytes_per_s for node in used),
            peaks=slowest.peaks,
            num_sms=slowest.num_sms,
        ),
        num_ranks=num_ranks,
        gpus_per_node=min(node.gpus_per_node for node in used),
        intra_node=_slowest([node.intra_node for node in used]),
        nic_per_gpu=_slowest([node.nic_link_per_gpu for node in used]),
        island_ends=tuple(ends),
        between_islands=_slowest(between) if between else None,
    )


def _used_nodes(cluster: ClusterSpec, num_ranks: int) -> tuple[list[NodeSpec], list[int]]:
    """The node groups of the first ranks, and the rank counts at which the island changes."""
    used: list[NodeSpec] = []
    ends: list[int] = []
    count = 0
    for node in cluster.nodes:
        if count >= num_ranks:
            break
        if used and used[-1].island != node.island:
            ends.append(count)
        used.append(node)
        count += node.num_gpus
    return used, ends


def _slowest(links: list[Link]) -> Link:
    return Link(
        bytes_per_s=min(link.bytes_per_s for link in links),
        latency_s=max(link.latency_s for link in links),
    )
