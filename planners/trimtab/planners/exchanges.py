"""What the ranks of a sequence group exchange for attention, from datasheets.

Ulysses trades tokens for heads by two all-to-alls a layer and pass. Where a degree does not
divide the key-value heads these are copied until it does, which moves more. A ring passes key-
value blocks to the neighbour: twice where no layer is recomputed (forward, and again backward),
and their fp32 gradients once, which go one hop further to be home.

Sources: DeepSpeed-Ulysses, arXiv:2309.14509; ring attention, arXiv:2310.01889; DistFlashAttn,
arXiv:2310.03294.
"""

import math

from trimtab.core.cluster import Precision
from trimtab.core.model import ModelSpec
from trimtab.core.plan import Layout
from trimtab.core.profile import DegreeBandwidth, RingCosts
from trimtab.planners.placement import Machine

_EXCHANGE_EFFICIENCY = 0.3
"""Share of the NVLink rate that an all-to-all reaches: FlexSP's 96.5 x 7/8 of 300 GB/s."""
_NIC_EFFICIENCY = 0.7
"""Share of the NIC line rate: FlexSP's 4.87 x 7/8 of 6.25 GB/s."""
_SEND_EFFICIENCY = 0.7
"""Share of a link's rate that a stream to one neighbour reaches; assumed, on either link."""
_OVERLAP_FRACTION = 0.9
"""Share of the attention that hides a transfer; assumed: the kernels share the device."""
_GRADIENT_BYTES = 4
_EXCHANGES = 2
"""All-to-alls of a layer and pass: queries, keys and values together, and outputs."""


def useful_degrees(num_ranks: int) -> tuple[int, ...]:
    """1, 2, 3, 4, 6, 8, 12, 16, ... and `num_ranks`: each at most half as much again."""
    powers = [1 << power for power in range(num_ranks.bit_length())]
    degrees = {*powers, *(3 * power for power in powers), num_ranks}
    return tuple(sorted(degree for degree in degrees if degree <= num_ranks))


def group_degrees(model: ModelSpec, layout: Layout) -> tuple[int, ...]:
    """Group degrees of a layout: divisors of dp * cp that split the heads of a tp rank."""
    heads = model.num_heads // layout.tp
    ranks = layout.group_ranks
    return tuple(d for d in range(1, min(heads, ranks) + 1) if heads % d == ranks % d == 0)


def alltoall_bytes_per_token(
    model: ModelSpec, layout: Layout, *, precision: Precision, degree: int = 1
) -> float:
    """What Ulysses moves per token: queries, keys, values and outputs, there and back.

    Args:
        model: The model.
        layout: The layout.
        precision: Of activations.
        degree: Ranks of the group; key-value heads that it does not divide count as often as
            they are copied.
    """
    kv_heads = max(1, model.num_kv_heads // layout.tp)
    copies = degree // math.gcd(degree, kv_heads)
    copied = (model.num_heads + copies * model.num_kv_heads) / (
        model.num_heads + model.num_kv_heads
    )
    elements = model.attention_elements / layout.tp * copied
    passes = 3 if layout.recompute == "full" else 2
    return passes * _stage_layers(model, layout) * _element_bytes(precision) * elements


def alltoall_bytes_per_s(layout: Layout, used: Machine, degree: int) -> float:
    """Bytes of one rank over the time its share, (degree - 1) / degree of them, takes."""
    link = used.exchange_link(degree, stride=layout.tp)
    inside = degree * layout.tp <= used.gpus_per_node
    efficiency = _EXCHANGE_EFFICIENCY if inside else _NIC_EFFICIENCY
    return efficiency * link.bytes_per_s * degree / (degree - 1)


def ulysses_bandwidths(
    model: ModelSpec, layout: Layout, used: Machine, *, precision: Precision
) -> tuple[DegreeBandwidth, ...]:
    """Bandwidth and latencies of every Ulysses degree of a layout, ascending.

    Degrees divide the heads of a tp rank. What copied key-value heads add is taken off the
    bandwidth. The messages of an all-to-all are posted together: one latency each.
    """
    heads = model.num_heads // layout.tp
    useful = [d for d in useful_degrees(layout.group_ranks) if heads % d == 0]
    plain = alltoall_bytes_per_token(model, layout, precision=precision)
    passes = 3 if layout.recompute == "full" else 2
    num_exchanges = passes * _EXCHANGES * _stage_layers(model, layout)
    found = []
    for degree in sorted({*group_degrees(model, layout), *useful} - {1}):
        moved = alltoall_bytes_per_token(model, layout, precision=precision, degree=degree)
        link = used.exchange_link(degree, stride=layout.tp)
        found.append(
            DegreeBandwidth(
                degree=degree,
                bytes_per_s=alltoall_bytes_per_s(layout, used, degree) * plain / moved,
                latency_s=num_exchanges * link.latency_s,
            )
        )
    return tuple(found)


def ring_costs(
    model: ModelSpec,
    layout: Layout,
    used: Machine,
    *,
    precision: Precision,
    quadratic_s: float,
) -> RingCosts | None:
    """What ring attention costs in a layout, at `useful_degrees`; None for a single rank.

    Blocks are taken to be attended to as fast as whole sequences.
    """
    degrees = useful_degrees(layout.group_ranks)[1:]
    if not degrees:
        return None
    layers = _stage_layers(model, layout)
    passes = 3 if layout.recompute == "full" else 2
    block_bytes = layers * passes * _element_bytes(precision) * _kv_elements(model, layout)
    gradient_bytes = layers * _GRADIENT_BYTES * _kv_elements(model, layout)
    bytes_per_token = block_bytes + gradient_bytes
    bandwidths = []
    for degree in degrees:
        link = used.send_link(degree, stride=layout.tp)
        hops = degree - 1
        moved = hops * bytes_per_token + gradient_bytes
        bandwidths.append(
            DegreeBandwidth(
                degree=degree,
                bytes_per_s=_SEND_EFFICIENCY
                * link.bytes_per_s
                * hops
                * bytes_per_token
                / moved,
                latency_s=layers * ((passes + 1) * hops + 1) * link.latency_s,
            )
        )
    return RingCosts(
        quadratic_s=quadratic_s,
        bytes_per_token=bytes_per_token,
        bandwidths=tuple(bandwidths),
        overlap_fraction=_OVERLAP_FRACTION,
    )


def ring_buffer_bytes(model: ModelSpec, layout: Layout, *, precision: Precision) -> float:
    """Most bytes per token of a rank that a ring holds of one layer besides its activations.

    In the backward pass: the block attended to and the one that arrives, and the fp32
    gradients of both. Ulysses holds less: one layer's queries, keys and values once more.
    """
    block = (_element_bytes(precision) + _GRADIENT_BYTES) * _kv_elements(model, layout)
    return 2 * block


def _kv_elements(model: ModelSpec, layout: Layout) -> float:
    """Elements of a token's keys and values in one layer of a tp rank."""
    share = model.num_kv_heads / (model.num_heads + model.num_kv_heads)
    return share * model.attention_elements / layout.tp


def _stage_layers(model: ModelSpec, layout: Layout) -> int:
    return -(-model.num_layers // layout.pp)


def _element_bytes(precision: Precision) -> int:
    return 4 if precision in ("fp32", "tf32") else 2
